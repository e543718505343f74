r"""Draws from a denoiser: Langevin dynamics from much noise to little.

Let p be a law of volumes v, p_s that of v + s * white noise, and D(z, s) = E[v | v + s xi = z] the denoiser. The score
of p_s is (D - z) / s^2 (Tweedie), and the Langevin dynamics

.. math:: dz = 2 \, \frac{D(z, s) - z}{s} \, |ds| + \sqrt{2 s |ds|} \; dB

with s falling carries p_s along (Song et al., ICLR 2021). From s to t, with a = t^2 / s^2, its exponential integrator
is

.. math:: z \leftarrow a z + (1 - a) \hat D + t \sqrt{1 - a} \; \xi, \qquad
          \hat D = D_s + \frac{h}{2 h'} (D_s - D_{s'}), \quad h = \log \frac{s}{t}, \quad h' = \log \frac{s'}{s}

where D is extrapolated to the middle of the step from its value at the level s' before (Lu et al., DPM-Solver++, 2022).
It is exact where D does not change along the way. Of a Gaussian v with 16 levels from 3 to 0.03 the variance is right
within 6 %, with 48 within 1 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cryowgen_jax.samplers import NoiseFn, white_noise
from cryowgen_jax.types import Array, InputError, PRNGKey

Denoise = Callable[[Array, Array], Array]

CURVE = 7.0  # levels are evenly spaced in s^(1/7): Karras et al., NeurIPS 2022


def noise_levels(largest: float, smallest: float, number: int) -> np.ndarray:
    """``number`` levels from the largest to the smallest, denser where they are small.

    Raises
    ------
    InputError
        Where they do not fall, or are fewer than two.
    """
    if not (np.isfinite(largest) and largest > smallest > 0 and number >= 2):
        raise InputError(f"{number} levels from {largest:g} to {smallest:g}: give two or more, from large to small")
    roots = np.linspace(largest ** (1 / CURVE), smallest ** (1 / CURVE), number)
    return (roots**CURVE).astype(np.float32)


def reverse_diffusion(
    key: PRNGKey,
    denoise: Denoise,
    position: Array,
    levels: Sequence[float] | np.ndarray | Array,
    draw_noise: NoiseFn = white_noise,
) -> Array:
    """From a draw of p_s at the first level to one of p_s at the last.

    Parameters
    ----------
    key
        Of the noise.
    denoise
        D: (position, s) -> mean of v. It is called once a step.
    position
        A draw at the first level, such as of N(E v, (P + s^2) I) where s is far above the spread of v, P its variance.
    levels
        s, falling, such as :func:`noise_levels`.
    draw_noise
        (key, shape) -> white noise of variance 1.

    Returns
    -------
    Array
        The draw. It still holds the noise of the last level.

    Examples
    --------
    Of a Gaussian of variance 4, whose denoiser is a factor:

    >>> import jax, jax.numpy as jnp
    >>> from cryowgen_jax.methods import noise_levels, reverse_diffusion
    >>> def denoise(position, sigma):
    ...     return 4 / (4 + sigma**2) * position
    >>> start_key, key = jax.random.split(jax.random.key(0))
    >>> start = (4 + 20.0**2) ** 0.5 * jax.random.normal(start_key, (20, 20, 20))
    >>> draw = reverse_diffusion(key, denoise, start, noise_levels(20.0, 0.05, 60))
    >>> 3.8 < float(draw.var()) < 4.2
    True
    """
    falling = jnp.asarray(levels, jnp.float32)
    lengths = jnp.log(falling[:-1] / falling[1:])
    ratios = jnp.concatenate([jnp.zeros(1), lengths[1:] / lengths[:-1]])  # the first step does not extrapolate

    def down(carry: tuple[Array, Array], step: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        (position, last), (before, after, ratio, number) = carry, step
        found = denoise(position, before)
        kept = (after / before) ** 2
        noise = after * jnp.sqrt(1 - kept) * draw_noise(jax.random.fold_in(key, number), position.shape)
        position = kept * position + (1 - kept) * (found + 0.5 * ratio * (found - last)) + noise
        return (position, found), None

    steps = (falling[:-1], falling[1:], ratios, jnp.arange(lengths.size))
    return jax.lax.scan(down, (position, jnp.zeros_like(position)), steps)[0][0]
