"""A family of restored cryo-electron tomograms by Langevin sampling of the missing-wedge posterior."""
