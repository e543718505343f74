r"""The learned model: a network looks at the tomogram, and its answer makes a posterior.

The network (``models.prior_net``) answers with a centre zbar, the power P of what it does not know per frequency, and a
relative standard deviation s(x) per voxel. Together with the data they give, per Fourier coefficient,

.. math:: V = \Big(\frac1P + \frac MN\Big)^{-1}, \qquad m = V \Big(\frac{\bar z}{P} + \frac{M y}{N}\Big)

The family is the Gaussian with mean m and covariance V^(1/2) s^2 V^(1/2), whose exponent is

.. math:: F(z) = -\tfrac12 \sum_x e(x)\, [F^{-1} V^{-1/2} F (z - m)]^2(x), \qquad e = 1 / s^2 .

Measured coefficients stay within the noise of the data, since V <= N / M. The witness is what remains of F without data
term and tether. With e_0 the smallest e,

.. math:: w(z) = -\tfrac12 \sum_x (e(x) - e_0)\, [F^{-1} V^{-1/2} F (z - m)]^2(x)
          - \tfrac12 (z - \mu)^T c\, (z - \mu), \qquad c = \frac{e_0}{V} - \frac MN - \beta,
          \quad \mu = m + \frac{M}{N} \frac{m - y}{c} .

The network has seen y, so w is not a prior: it was learned together with the data term. F is quadratic, so its mean is
its maximum.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax import io, platform
from cryowgen_jax.models import NnxFunction, prior_network
from cryowgen_jax.models import prior_net as priors
from cryowgen_jax.potentials import QuadraticWitness, SolventWitness, SumWitness
from cryowgen_jax.restoration.geometry import Geometry
from cryowgen_jax.restoration.solvent_fit import first_model
from cryowgen_jax.restoration.spectra import Shells, shells_of
from cryowgen_jax.restoration.volume_model import VolumeModel
from cryowgen_jax.spatial import fourier
from cryowgen_jax.types import Array, InputError

PathLike = str | os.PathLike[str]

RELATIVE_TETHER = 0.5  # beta as a share of the smallest precision
LARGEST_CONTRAST, FIRM = 32.0, 0.995  # of e, whose quantile FIRM counts as its largest: chains step accordingly
_NUDGE = 1e-3  # of a coefficient's precision, at least, in its quadratic term


@dataclasses.dataclass(frozen=True)
class PriorWeights:
    """A trained network that says what is likely, given a tomogram; ``settings`` say how it was trained."""

    network: NnxFunction
    settings: dict[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LearnedModel(VolumeModel):
    """The Gaussian that a network's answer and the data make.

    Attributes
    ----------
    signal
        S per shell, as the network was told it.
    precision
        e per voxel, (Z, Y, X).
    variance
        V per coefficient, rfftn layout.
    mask
        M, rfftn layout.
    """

    signal: np.ndarray
    precision: np.ndarray
    variance: np.ndarray
    mask: np.ndarray

    @property
    def center(self) -> np.ndarray:
        """The tether's centre: m, so that the tether does not move the mean."""
        return self.mean

    @property
    def firmness(self) -> np.ndarray:
        """e, scaled from 0 at its smallest to 1 at its largest."""
        low = self.precision.min()
        return (self.precision - low) / max(float(self.precision.max() - low), 1e-6)

    @property
    def prior_precision(self) -> np.float32:
        """Beta."""
        return np.float32(RELATIVE_TETHER * self.precision.min() / self.variance.max())

    def witness(self) -> SumWitness:
        """w, for the posterior's ``prior_precision``."""
        lowest = float(self.precision.min())
        data = self.mask / self.shells.spread(self.noise)
        stiffness = lowest / self.variance
        curvature = stiffness - data - self.prior_precision
        curvature = np.where(np.abs(curvature) < _NUDGE * stiffness, _NUDGE * stiffness, curvature)
        mean = np.asarray(fourier.rfftn(jnp.asarray(self.mean)))
        balance = mean + data * (mean - self.observation) / curvature
        stationary = QuadraticWitness(
            jnp.asarray(curvature, jnp.float32),
            fourier.irfftn(jnp.asarray(balance, jnp.complex64), self.shells.shape),
        )
        whitening = np.sqrt((float(self.precision.max()) - lowest) / self.variance)
        local = SolventWitness(jnp.asarray(self.firmness), jnp.asarray(whitening, jnp.float32), jnp.asarray(self.mean))
        return SumWitness((stationary, local))

    def draw(self, noises: Array, mask: np.ndarray) -> Array:
        """A draw of the posterior: its mean and V^(1/2) s noise, the first of the two."""
        scaled = fourier.rfftn(noises[0] / np.sqrt(self.precision)) * np.sqrt(self.variance)
        return jnp.asarray(self.mean) + fourier.irfftn(scaled, self.shells.shape)


def model_of(
    learned: PriorWeights,
    halves: tuple[Array, ...],
    mask: np.ndarray,
    geometry: Geometry,
    neighbour: LearnedModel | None = None,
) -> LearnedModel:
    """The model that a network's weights make of a tomogram; a ``neighbour``, another tile's model, lends spectra."""
    if neighbour is None:
        first = first_model(halves, mask)
        noise, signal, rule = first.noise, first.signal, first.noise_rule
        parts, shells = first.halves, first.shells
    else:
        noise, signal, rule, shells = neighbour.noise, neighbour.signal, neighbour.noise_rule, neighbour.shells
        parts = tuple(np.asarray(fourier.rfftn(half)) * shells.mask for half in halves)
    data = np.mean(np.stack(parts), axis=0)
    level = float(data[0, 0, 0].real) / np.sqrt(np.prod(shells.shape))
    volume = np.asarray(fourier.irfftn(jnp.asarray(data), shells.shape)) - level
    order = geometry.order
    shape = tuple(shells.shape[axis] for axis in order)
    seen = shells_of(shape, np.ones(fourier.spectrum_shape(shape)))
    guess, log_variance, powers = _look(
        learned.network, jnp.asarray(volume.transpose(order)), seen, noise, signal, geometry.tilt_range
    )
    back = np.argsort(order)
    precision = np.exp(-log_variance).transpose(back)
    precision = np.maximum(precision, np.quantile(precision, FIRM) / LARGEST_CONTRAST)
    precision = np.minimum(precision, precision.min() * LARGEST_CONTRAST)
    power = np.where(shells.mask > 0, shells.spread(powers[0]), shells.spread(powers[1]))
    weight = mask / shells.spread(noise)
    variance = 1 / (1 / power + weight)
    center = np.asarray(fourier.rfftn(jnp.asarray(guess.transpose(back) + np.float32(level))))
    blend = variance * (center / power + weight * data)
    mean = np.asarray(fourier.irfftn(jnp.asarray(blend, jnp.complex64), shells.shape))
    return LearnedModel(
        shells=shells,
        halves=parts,
        noise_rule=rule,
        noise=noise,
        mean=mean,
        signal=signal,
        precision=precision,
        variance=variance.astype(np.float32),
        mask=mask,
    )


def _look(
    network: NnxFunction,
    volume: Array,
    shells: Shells,
    noise: np.ndarray,
    signal: np.ndarray,
    tilt_range: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The network's answer, zbar, log s^2 and P per shell, averaged over half turns of the volume about its axes."""
    centers, variances, gains = [], [], []
    low, high = tilt_range
    for flips in ((), (0, 2), (0, 1), (1, 2)):
        # a half turn about the tilt axis keeps the tilts, one about another axis reverses them
        tilts = jnp.asarray((low, high) if flips in ((), (0, 2)) else (-high, -low), jnp.float32)
        turned = jnp.flip(volume, flips)
        answer = _run(network, turned, jnp.asarray(shells.spread(noise)), jnp.asarray(shells.spread(signal)), tilts)
        centers.append(np.flip(np.asarray(answer[0]), flips))
        variances.append(np.flip(np.asarray(answer[1]), flips))
        gains.append(np.asarray(answer[2]))
    seen, unseen = (
        signal * np.exp(np.interp(shells.frequency, priors.KNOTS, values)) for values in np.mean(gains, axis=0)
    )
    return np.mean(centers, axis=0), np.mean(variances, axis=0), (seen, unseen)


@platform.jit
def _run(network: NnxFunction, volume: Array, noise: Array, signal: Array, tilts: Array) -> tuple[Array, ...]:
    told = priors.features(fourier.rfftn(volume), noise, signal, tilts, volume.shape)
    prior = network(told)
    return prior.center * told.scale, prior.log_variance, prior.log_gain


def save_witness(path: PathLike, network: NnxFunction, settings: dict[str, object]) -> None:
    """Write a network (``from_nnx`` of a ``PriorNet``) with half precision; ``settings`` must name channels, levels."""
    io.save_weights(path, {name: np.asarray(leaf, np.float16) for name, leaf in _named(network).items()}, settings)


def load_witness(path: PathLike) -> PriorWeights:
    """Read a network that :func:`save_witness` wrote.

    Raises
    ------
    InputError
        Where the file is missing, holds no weights, or those of another network.
    """
    arrays, settings = io.load_weights(path)
    try:
        sizes = {name: int(str(settings[name])) for name in ("channels", "levels")}
        # shapes alone: drawing weights that are then replaced would take most of a minute to compile
        like = jax.eval_shape(functools.partial(prior_network, **sizes))
        wanted = _named(like)
        leaves = [jnp.asarray(arrays[name], jnp.float32) for name in wanted]
    except KeyError as error:
        raise InputError(f"'{path}' lacks {error}: give weights that save_witness wrote") from error
    for leaf, (name, expected) in zip(leaves, wanted.items(), strict=True):
        if leaf.shape != expected.shape:
            raise InputError(
                f"'{path}' has {name} of shape {leaf.shape}, not {expected.shape}: give weights that save_witness wrote"
            )
    return PriorWeights(jax.tree.unflatten(jax.tree.structure(like), leaves), settings)


def shipped_weights() -> PriorWeights:
    """The one that the package ships (``experiments/learned_witness``)."""
    return load_witness(pathlib.Path(__file__).with_name("learned.safetensors"))


def _named(network: NnxFunction) -> dict[str, Any]:
    """The leaves, arrays or their shapes, by name and in order."""
    leaves = jax.tree_util.tree_leaves_with_path(network.variables)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
