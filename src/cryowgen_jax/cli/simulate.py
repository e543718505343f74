"""``cryowgen simulate``."""

from __future__ import annotations

import pathlib

import click

from cryowgen_jax.io import new_volume, prepare_output_file
from cryowgen_jax.simulation import SimulatedTomogram, simulate_tomogram


@click.command()
@click.option("--output", "-o", required=True, type=click.Path(path_type=pathlib.Path), help="Tomogram to write, .mrc.")
@click.option(
    "--tilt-range", nargs=2, type=float, default=(-60.0, 60.0), show_default=True, metavar="LO HI", help="Degrees."
)
@click.option("--snr", type=float, default=0.1, show_default=True, help="Signal over noise variance of each half.")
@click.option(
    "--shape", nargs=3, type=int, default=(64, 128, 128), show_default=True, metavar="Z Y X", help="Voxels, 24 or more."
)
@click.option("--voxel-size", type=float, default=10.0, show_default=True, help="Angstrom.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed makes the same tomogram.")
def command(
    output: pathlib.Path,
    tilt_range: tuple[float, float],
    snr: float,
    shape: tuple[int, int, int],
    voxel_size: float,
    seed: int,
) -> None:
    """Make a tomogram with known truth: particles, a membrane and a filament in noisy solvent.

    Writes four volumes: OUTPUT, the tomogram (mean of two halves), and beside it NAME_half1.mrc, NAME_half2.mrc and
    NAME_truth.mrc. Density is bright, the beam along z, the tilt axis along y.
    """
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
