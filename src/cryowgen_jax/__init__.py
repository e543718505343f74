"""A family of restored cryo-electron tomograms by Langevin sampling of the missing-wedge posterior.

``import cryowgen_jax as cg``. Volumes are (Z, Y, X) float32, Fourier arrays have the layout of ``jnp.fft.rfftn``. The
public names are listed in ``__init__.pyi`` and imported when they are first used.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
