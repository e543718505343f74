"""Closed forms in float64 numpy with dense matrices: what the code is held to. Imports nothing of the package.

Half spectra are in rfftn layout under the unitary transform; "dense" operators act on flattened volumes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Law(NamedTuple):
    """A posterior by its parts: component weights, means and covariances, and Psi = -log of the total mass."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    psi: float

    @property
    def mean(self) -> np.ndarray:
        return self.weights @ self.means

    @property
    def covariance(self) -> np.ndarray:
        second = sum(
            w * (c + np.outer(m, m)) for w, m, c in zip(self.weights, self.means, self.covariances, strict=True)
        )
        return second - np.outer(self.mean, self.mean)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        labels = rng.choice(len(self.weights), count, p=self.weights)
        out = np.empty((count, self.means.shape[1]))
        for j, (mean, covariance) in enumerate(zip(self.means, self.covariances, strict=True)):
            mine = labels == j
            out[mine] = mean + rng.normal(size=(mine.sum(), len(mean))) @ np.linalg.cholesky(covariance).T
        return out

    def responsibilities(self, positions: np.ndarray) -> np.ndarray:
        """Probability of every component given a position: its mean over the law is the component's weight."""
        logs = np.stack(
            [
                np.log(w) + log_normal(positions, m, c)
                for w, m, c in zip(self.weights, self.means, self.covariances, strict=True)
            ],
            axis=-1,
        )
        odds = np.exp(logs - logs.max(axis=-1, keepdims=True))
        return odds / odds.sum(axis=-1, keepdims=True)


# Fourier space


def dft(shape: Shape) -> np.ndarray:
    """The unitary transform of flattened volumes as a dense matrix."""
    matrix = np.ones((1, 1), complex)
    for n in shape:
        k = np.arange(n)
        matrix = np.kron(matrix, np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n))
    return matrix


def full_spectrum(half: np.ndarray, shape: Shape) -> np.ndarray:
    """All coefficients of an even real array of which the half spectrum is given."""
    full = np.zeros(shape)
    for index in np.ndindex(*shape):
        mirrored = tuple(-i % n for i, n in zip(index, shape, strict=True))
        full[index] = half[index] if index[-1] <= shape[-1] // 2 else half[mirrored]
    return full


def symmetric_half(rng: np.random.Generator, shape: Shape, low: float, high: float) -> np.ndarray:
    """Random values in [low, high] with the symmetry of a real filter, rfftn layout, float32."""
    full = rng.uniform(low, high, shape)
    mirrored = full
    for axis, n in enumerate(shape):
        mirrored = np.take(mirrored, -np.arange(n) % n, axis=axis)
    return (0.5 * (full + mirrored))[..., : shape[-1] // 2 + 1].astype(np.float32)


def dense_filter(half: np.ndarray, shape: Shape) -> np.ndarray:
    """F^-1 diag F as a real matrix."""
    f = dft(shape)
    matrix = f.conj().T @ (full_spectrum(np.asarray(half, float), shape).reshape(-1, 1) * f)
    assert np.abs(matrix.imag).max() < 1e-9, "the half spectrum is not that of a real filter"
    return matrix.real


def spectral_diagonal(matrix: np.ndarray, shape: Shape) -> np.ndarray:
    """Half spectrum of diag(F M F^-1), real part."""
    f = dft(shape)
    diagonal = np.einsum("ki,ij,kj->k", f, matrix, f.conj()).real.reshape(shape)
    return diagonal[..., : shape[-1] // 2 + 1]


def multiplicity(shape: Shape) -> np.ndarray:
    """How many full-spectrum coefficients share one half-spectrum coefficient along the last axis."""
    counts = [1 if k == 0 or 2 * k == shape[-1] else 2 for k in range(shape[-1] // 2 + 1)]
    return np.array(counts, float)


def wedge(shape: Shape, tilt: float = 60.0) -> np.ndarray:
    """Symmetric missing wedge, tilt axis y, beam along z: 1 where |kx| >= |kz| tan(90 - tilt)."""
    kz = np.abs(np.fft.fftfreq(shape[0]))[:, None, None]
    kx = np.fft.rfftfreq(shape[2])[None, None, :]
    mask = kx >= kz * np.tan(np.deg2rad(90 - tilt)) - 1e-12
    return np.broadcast_to(mask, (shape[0], shape[1], kx.size)).astype(np.float32)


def radius(shape: Shape) -> np.ndarray:
    """|k| in cycles per voxel, half spectrum."""
    axes = [np.fft.fftfreq(n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    return np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))


# Posteriors: e^F with F(z) = w(z) - lambda/2 |x - H z|^2 - beta/2 |z - zbar|^2, a Gaussian or a mixture of some


def log_normal(positions: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Log-density of N(mean, covariance) at flattened positions (..., D)."""
    difference = positions - mean
    solved = np.linalg.solve(covariance, difference.reshape(-1, len(mean)).T).T.reshape(difference.shape)
    log_det = np.linalg.slogdet(covariance)[1]
    return -0.5 * (np.sum(difference * solved, axis=-1) + log_det + len(mean) * np.log(2 * np.pi))


def gaussian_posterior(
    h: np.ndarray,
    x: np.ndarray,
    lam: float,
    center: np.ndarray,
    beta: float,
    curvature: np.ndarray | None = None,
    mean: np.ndarray | None = None,
) -> Law:
    """Linear decoder H, witness -1/2 (z - m)^T S (z - m): N(Q^-1 r, Q^-1), Q = S + lambda H^T H + beta."""
    d = len(center)
    s = np.zeros((d, d)) if curvature is None else curvature
    m = np.zeros(d) if mean is None else mean
    q = s + lam * h.T @ h + beta * np.eye(d)
    r = s @ m + lam * h.T @ x + beta * center
    mu = np.linalg.solve(q, r)
    psi = 0.5 * (lam * x @ x + beta * center @ center + m @ s @ m - r @ mu + np.linalg.slogdet(q)[1])
    return Law(np.ones(1), mu[None], np.linalg.inv(q)[None], psi - 0.5 * d * np.log(2 * np.pi))


def mixture_posterior(
    h: np.ndarray,
    x: np.ndarray,
    lam: float,
    center: np.ndarray,
    beta: float,
    weights: np.ndarray,
    means: np.ndarray,
    variance: float,
) -> Law:
    """Linear decoder H, witness log sum_j pi_j N(z; m_j, v I): a mixture of as many Gaussians, their weights new."""
    d = len(center)
    q = np.eye(d) / variance + lam * h.T @ h + beta * np.eye(d)
    r = means / variance + lam * h.T @ x + beta * center
    mu = np.linalg.solve(q, r.T).T
    log_mass = (
        np.log(weights / np.sum(weights))
        - 0.5 * d * np.log(2 * np.pi * variance)
        - 0.5 * np.sum(means**2, axis=1) / variance
        - 0.5 * (lam * x @ x + beta * center @ center)
        + 0.5 * np.sum(r * mu, axis=1)
        - 0.5 * np.linalg.slogdet(q)[1]
        + 0.5 * d * np.log(2 * np.pi)
    )
    top = log_mass.max()
    mass = np.exp(log_mass - top)
    covariances = np.repeat(np.linalg.inv(q)[None], len(weights), axis=0)
    return Law(mass / mass.sum(), mu, covariances, -(top + np.log(mass.sum())))


def psi_gradients(
    law: Law, h: np.ndarray, x: np.ndarray, lam: float, center: np.ndarray, beta: float, shape: Shape
) -> dict[str, np.ndarray]:
    """-E[dF] for observation, center, lambda, beta and a transfer in rfftn layout (H = F^-1 t F)."""
    mean, covariance = law.mean, law.covariance
    second = covariance + np.outer(mean, mean)
    residual = x - h @ mean
    to_h = -lam * (np.outer(x, mean) - h @ second)
    return {
        "observation": (lam * residual).reshape(shape),
        "center": (beta * (center - mean)).reshape(shape),
        "data_weight": np.array(0.5 * (residual @ residual + np.trace(h @ covariance @ h.T))),
        "prior_precision": np.array(0.5 * (np.sum((mean - center) ** 2) + np.trace(covariance))),
        "transfer": multiplicity(shape) * spectral_diagonal(to_h, shape),
    }


# Samplers: stationary variances of their discretisations on Gaussian modes


def ula_variance(q: np.ndarray, eta: float) -> np.ndarray:
    """Stationary variance of z + eta grad + sqrt(2 eta) xi on precision q."""
    return 1 / (q * (1 - 0.5 * eta * q))


def pcnl_variance(c: np.ndarray, g: np.ndarray, a: np.ndarray | float) -> np.ndarray:
    """Stationary variance of unadjusted pCNL on a mode of Gaussian variance c where the witness has curvature g / c."""
    e = 1 - a
    return c / (1 + g) * (2 - e) / (2 - e - e * g)


def kinetic_variance(c: np.ndarray, g: np.ndarray, h: float) -> np.ndarray:
    """Stationary variance of unadjusted kinetic Langevin (kick, rotation, kick) on such a mode; any refreshment."""
    return c / (1 + g * h / np.tan(h) - 0.25 * (g * h) ** 2)


def kinetic_shift(g: np.ndarray, h: float) -> np.ndarray:
    """How far its mean is on the way from the Gaussian part's to the witness's; g/(1 + g) is exact, and its limit."""
    gain = g * 0.5 * h / np.tan(0.5 * h)
    return gain / (1 + gain)


# Comparing with samples


def second_moment_scores(draws: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Standard scores of the second moments of independent zero-mean Gaussian draws (count, ...) against a variance."""
    return (np.mean(draws**2, axis=0) / variance - 1) / np.sqrt(2 / draws.shape[0])


def mean_scores(values: np.ndarray, expected: np.ndarray | float) -> np.ndarray:
    """Standard scores of the mean of independent values (count, ...)."""
    error = np.std(values, axis=0, ddof=1) / np.sqrt(values.shape[0])
    return (np.mean(values, axis=0) - expected) / np.maximum(error, 1e-30)
