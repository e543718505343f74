"""``cryowgen inspect``."""

from __future__ import annotations

import json
import pathlib

import click

from cryowgen_jax.cli.options import ANGSTROM, PATH, PERMISSIVE
from cryowgen_jax.io import read_tomogram
from cryowgen_jax.restoration import inspect_wedge
from cryowgen_jax.types import InputError


@click.command()
@click.argument("tomogram", type=PATH)
@PERMISSIVE
@click.option("--voxel-size", type=ANGSTROM, metavar="A", help="Angstrom, instead of what the header says.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
def command(tomogram: pathlib.Path, permissive: bool, voxel_size: float | None, as_json: bool) -> None:
    """Find beam axis, tilt axis and tilt range in the power spectrum of TOMOGRAM.

    TOMOGRAM is a reconstruction in MRC format, not a tilt series. It is not changed, and nothing is written.

    The contrast ratio is the power near the beam over that elsewhere: about 0.001 in a tomogram, 0.5 to 1 in a volume
    without a missing wedge.

    Example: cryowgen inspect tomo.mrc
    """
    volume = read_tomogram(tomogram, permissive=permissive, voxel_size_override=voxel_size)
    try:
        found = inspect_wedge(volume.data)
    except InputError as error:
        raise InputError(f"'{tomogram}': {error}") from error
    if as_json:
        facts = {"tomogram": str(tomogram), "shape": volume.data.shape, "voxel_size": volume.voxel_size_angstrom}
        click.echo(json.dumps({**facts, **found._asdict(), "notes": volume.notes}))
        return
    shape = " x ".join(str(n) for n in volume.data.shape)
    sizes = [f"{size:.4g}" for size in volume.voxel_size_angstrom]
    click.echo(f"{tomogram}: {shape} voxels (Z, Y, X) of {sizes[0] if len(set(sizes)) == 1 else ' x '.join(sizes)} A")
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
