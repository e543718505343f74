"""What the solvent model and its fit take as given: the constants that were chosen, their units, and on what."""

from __future__ import annotations

import dataclasses

Pair = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class SolventSettings:
    """Constants of the solvent model.

    A pair holds the value for tomograms and the value for maps without noise; :func:`between` interpolates, and of
    ``rounds`` one or the other is taken. Lengths are in voxels, frequencies in cycles per voxel. "sd" is the standard
    deviation of the blurred solvent.

    What they were chosen on: *tomograms* are ten with known truth, those of the tables in ``experiments/`` among them;
    *spread* is some thirty such tomograms; *maps* are the maps of ``experiments/restoration_quality/clean_maps.py``, as
    they come and turned. What says nothing else is a round number that was not tuned.

    Attributes
    ----------
    blur_share, least_blur, largest_blur
        Width of the blur before solvent is told from particle: this share of the wavelength at which noise outgrows
        signal, within these bounds. Chosen on tomograms.
    particle_share, least_threshold, largest_threshold
        Solvent ends at this share of the standard deviation of particles above the level, but not below or above these
        bounds in sd. Chosen on tomograms; the largest for maps on maps.
    below
        Solvent also ends this many sd below its level.
    softness
        Width in sd over which the envelope falls. Chosen on tomograms and on maps.
    first_tightness, rounds
        The share of the threshold in the first round, and the number of rounds in which it rises to 1. What is taken
        for solvent is flattened, so faint objects must be let in before solvent is known well. Chosen on tomograms and
        on maps.
    level_width, level_shifts
        The level moves to the mean of the voxels in a Gaussian window about it, of this width in sd, so many times a
        round.
    solvent_gain
        Factor on P_s found from two halves or beside white noise: the mean has smoothed the solvent that it is measured
        in. Chosen on tomograms.
    solvent_share
        Share of the power found in solvent that is solvent and not noise, where one tomogram with coloured noise cannot
        tell. Chosen on tomograms and on maps.
    clean_share, clean_band
        One tomogram with coloured noise counts as a tomogram where solvent has at least the first of these shares of
        the power (median over the shells of this band), as a map without noise where it has at most the second. Chosen
        on real tomograms (0.4 to 0.6) and maps (0.001 to 0.16).
    empty_share
        The same for two halves, of the signal's power: particles in vacuum. Chosen on four complexes alone in vacuum
        (0.005 to 0.02) and on simulated tomograms, small ones without texture among them (0.033 to 0.28).
    least_measured
        Share of the spectrum's power, the zero frequency left out, that the measured region must exceed: rounding.
    residual, final_residual, most_iterations
        Where conjugate gradients stop, as a share of the right side: in the rounds and draws, and for the mean that is
        reported; and after how many iterations at most.
    least_noise, least_solvent, least_shell
        Floors that keep a tomogram without noise, or particles in vacuum, from being singular: of noise as a share of
        the signal, of solvent as a share of particles, both in the same shell; of either as a share of the strongest
        shell. That of solvent for maps was chosen on maps.
    relative_tether
        beta as a share of the smallest 1 / P_p.
    hidden, most_hidden
        What the blind model is not shown: this share of the degrees that are missing, this share of the tilt range at
        most.
    widenings, blind_draws
        Rounds in which the factor on P_s is found, and draws of the blind model in each.
    largest_widening, pooled
        Largest factor of one round, and the number of neighbouring shells that are looked at together.
    significant
        Standard errors below which what the blind model missed may be noise.
    share_of_widening
        Share of the logarithm of the factor that the model gets, since the blind model has the harder task. Chosen on
        spread: 1/2 leaves more of them too sure, 2/3 more too cautious.
    most_solvent
        The largest P_s that the factor may make, as a share of P_p.
    """

    blur_share: float = 0.2
    least_blur: float = 1.0
    largest_blur: float = 2.0
    particle_share: float = 0.35
    least_threshold: float = 1.0
    largest_threshold: Pair = (4.0, 24.0)
    below: float = 5.0
    softness: Pair = (0.5, 6.0)
    first_tightness: float = 1 / 6
    rounds: tuple[int, int] = (12, 24)
    level_width: float = 0.7
    level_shifts: int = 5
    solvent_gain: float = 1.3
    solvent_share: Pair = (0.2, 0.9)
    clean_share: Pair = (0.3, 0.1)
    clean_band: tuple[float, float] = (0.05, 0.25)
    empty_share: Pair = (0.03, 0.015)
    least_measured: float = 1e-6
    residual: float = 1e-2
    final_residual: float = 1e-4
    most_iterations: int = 200
    least_noise: float = 1e-4
    least_solvent: Pair = (5e-4, 1e-4)
    least_shell: float = 1e-9
    relative_tether: float = 0.5
    hidden: float = 0.5
    most_hidden: float = 0.4
    widenings: int = 3
    blind_draws: int = 4
    largest_widening: float = 10.0
    pooled: int = 3
    significant: float = 2.0
    share_of_widening: float = 0.6
    most_solvent: float = 0.9


SETTINGS = SolventSettings()


def between(pair: Pair, cleanness: float) -> float:
    """Geometric interpolation between the value for tomograms (cleanness 0) and for maps without noise (1)."""
    return pair[0] ** (1 - cleanness) * pair[1] ** cleanness
