"""``cryowgen inspect``."""

from __future__ import annotations

import json
import pathlib

import click

from cryowgen_jax.io import read_tomogram
from cryowgen_jax.restoration import inspect_wedge


@click.command()
@click.argument("tomogram", type=click.Path(path_type=pathlib.Path))
@click.option("--permissive", is_flag=True, help="Read files that break the MRC standard but can be understood.")
@click.option("--voxel-size", type=float, help="Angstrom, instead of what the header says.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(tomogram: pathlib.Path, permissive: bool, voxel_size: float | None, as_json: bool) -> None:
    """Find beam axis, tilt axis and tilt range in the power spectrum of TOMOGRAM.

    The contrast ratio is the power near the beam over that elsewhere: about 0.001 in a tomogram, 0.5 to 1 in a volume
    without a missing wedge.
    """
    volume = read_tomogram(tomogram, permissive=permissive, voxel_size_override=voxel_size)
    found = inspect_wedge(volume.data)
    if as_json:
        click.echo(json.dumps({"tomogram": str(tomogram), "shape": volume.data.shape, **found._asdict()}))
        return
    shape = " x ".join(str(n) for n in volume.data.shape)
    sizes = sorted({f"{size:.4g}" for size in volume.voxel_size_angstrom})
    click.echo(f"{tomogram}: {shape} voxels (Z, Y, X) of {' / '.join(sizes)} A")
    for note in volume.notes:
        click.echo(f"note: {note}")
    if found.tilt_range is None:
        click.echo(f"no missing wedge is visible (contrast ratio {found.contrast_ratio:.2g})")
        return
    low, high = found.tilt_range
    click.echo(
        f"beam axis {found.beam_axis}, tilt axis {found.tilt_axis}, tilt range about {low:+.0f} to {high:+.0f} degrees "
        f"(contrast ratio {found.contrast_ratio:.2g})"
    )
