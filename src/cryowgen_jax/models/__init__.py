"""The Flax code: convolution, witness, decoder, centre, conditional prior, denoiser, adapters. See ARCHITECTURE.md."""

from cryowgen_jax.models.adapters import NnxFunction, from_linen, from_nnx
from cryowgen_jax.models.center import CenterNet, DataConsistent
from cryowgen_jax.models.conv_witness import ConvWitness
from cryowgen_jax.models.convolution import conv_general_dilated, convolve3
from cryowgen_jax.models.decoder import Decoder
from cryowgen_jax.models.denoiser import Denoiser, Sight, denoising_network
from cryowgen_jax.models.prior_net import ConditionalPrior, PriorNet, prior_network

__all__ = [
    "CenterNet",
    "ConditionalPrior",
    "ConvWitness",
    "DataConsistent",
    "Decoder",
    "Denoiser",
    "NnxFunction",
    "PriorNet",
    "Sight",
    "conv_general_dilated",
    "convolve3",
    "denoising_network",
    "from_linen",
    "from_nnx",
    "prior_network",
]
