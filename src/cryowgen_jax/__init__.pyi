"""Public surface: every name, and the room it comes from. ``__init__.py`` imports them when they are first used."""

from .chains import CalibrationResult as CalibrationResult
from .chains import ChainResult as ChainResult
from .chains import PsiEstimate as PsiEstimate
from .chains import effective_potential as effective_potential
from .chains import sample as sample
from .chains import simulation_based_calibration as simulation_based_calibration
from .methods import Family as Family
from .methods import cryogen_map as cryogen_map
from .methods import cryogen_ot as cryogen_ot
from .methods import cryowgen_langevin as cryowgen_langevin
from .methods import cryowgen_mc as cryowgen_mc
from .methods import importance_sample as importance_sample
from .models import CenterNet as CenterNet
from .models import ConvWitness as ConvWitness
from .models import Decoder as Decoder
from .models import from_linen as from_linen
from .models import from_nnx as from_nnx
from .operators import Rotation as Rotation
from .operators import Wedge as Wedge
from .operators import compose as compose
from .operators import wedge_mask as wedge_mask
from .operators import wedge_mask_from_tilts as wedge_mask_from_tilts
from .potentials import GaussianMixtureWitness as GaussianMixtureWitness
from .potentials import Posterior as Posterior
from .potentials import QuadraticWitness as QuadraticWitness
from .potentials import surrogate as surrogate
from .potentials import temper as temper
from .restoration import Restoration as Restoration
from .restoration import WedgeReport as WedgeReport
from .restoration import adapt_witness as adapt_witness
from .restoration import inspect_wedge as inspect_wedge
from .restoration import load_witness as load_witness
from .restoration import restore as restore
from .samplers import WeightedFamily as WeightedFamily
from .samplers import kinetic as kinetic
from .samplers import langevin as langevin
from .samplers import leimkuhler_matthews as leimkuhler_matthews
from .samplers import pcnl as pcnl
from .samplers import sk_rock as sk_rock
from .samplers import tempered as tempered
from .spatial.rotation import cube_rotations as cube_rotations
from .spatial.rotation import random_rotations as random_rotations
from .spatial.rotation import rotate as rotate
from .types import InputError as InputError

__version__: str
