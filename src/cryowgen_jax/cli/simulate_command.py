"""``cryowgen simulate``."""

from __future__ import annotations

import pathlib

import click

from cryowgen_jax.cli.options import ANGSTROM, DEGREES, PATH, RATIO, seed_option
from cryowgen_jax.io import new_volume, prepare_output_file
from cryowgen_jax.operators import wedge_mask
from cryowgen_jax.simulation import SimulatedTomogram, simulate_tomogram
from cryowgen_jax.simulation.tomogram import SMALLEST_AXIS

AXIS_LENGTH = click.IntRange(min=SMALLEST_AXIS)


@click.command()
@click.option("--output", "-o", required=True, type=PATH, metavar="TOMO.mrc", help="Tomogram to write.")
@click.option(
    "--tilt-range",
    nargs=2,
    type=DEGREES,
    default=(-60.0, 60.0),
    metavar="LO HI",
    help="Lowest and highest tilt in degrees.  [default: -60 60]",
)
@click.option(
    "--snr",
    type=RATIO,
    default=0.1,
    show_default=True,
    metavar="S",
    help="Signal-to-noise ratio of each half (variance over variance).",
)
@click.option(
    "--shape",
    nargs=3,
    type=AXIS_LENGTH,
    default=(64, 128, 128),
    metavar="Z Y X",
    help=f"Voxels along each axis, {SMALLEST_AXIS} or more.  [default: 64 128 128]",
)
@click.option("--voxel-size", type=ANGSTROM, default=10.0, show_default=True, metavar="A", help="Angstrom.")
@seed_option("The same number makes the same tomogram.")
def command(
    output: pathlib.Path,
    tilt_range: tuple[float, float],
    snr: float,
    shape: tuple[int, int, int],
    voxel_size: float,
    seed: int,
) -> None:
    """Make a tomogram with known truth: particles, a membrane and a filament in noisy solvent.

    Writes four volumes: the tomogram (mean of two halves) and, beside it, TOMO_half1.mrc, TOMO_half2.mrc and
    TOMO_truth.mrc. Density is bright, the beam along z, the tilt axis along y.

    Example: cryowgen simulate --output tomo.mrc --tilt-range -50 50
    """
    wedge_mask(shape, tilt_range)  # a range that cannot be used is refused before anything is written
    prepare_output_file(output)
    simulated = simulate_tomogram(shape, tilt_range, snr, seed, voxel_size)
    for path in write_simulation(simulated, output):
        click.echo(f"wrote {path}")


def write_simulation(simulated: SimulatedTomogram, output: pathlib.Path) -> list[pathlib.Path]:
    """Write tomogram, halves and truth; returns their paths."""
    volumes = {
        output: 0.5 * (simulated.half1 + simulated.half2),
        output.with_name(f"{output.stem}_half1.mrc"): simulated.half1,
        output.with_name(f"{output.stem}_half2.mrc"): simulated.half2,
        output.with_name(f"{output.stem}_truth.mrc"): simulated.truth,
    }
    for path, volume in volumes.items():
        new_volume(path, volume, simulated.voxel_size_angstrom)
    return list(volumes)
