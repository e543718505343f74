"""Arrays on grids: Fourier transforms, shells and rotations. See ARCHITECTURE.md."""
