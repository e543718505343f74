"""Files of a restoration: volumes, run.json, report.html."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cryowgen_jax import report
from cryowgen_jax.cli import console as screen
from cryowgen_jax.io import Tomogram, require_free_space, write_text_atomic, write_volume
from cryowgen_jax.restoration import Restoration, RestorationReport
from cryowgen_jax.spatial import fourier

PACKAGES = ("cryowgen-jax", "jax", "jaxlib", "flax", "blackjax", "numpy", "scipy", "mrcfile")
SPREADS = ("std", "missed")  # volumes with a scale of their own, from 0
MASK = "mask"
SPECTRA = ("tomogram", "mean", "one sample")  # of which the report shows power spectra
NUM_SUMMARIES = 5  # volumes beside the samples
NUM_CHECKPOINTS, VOLUMES_PER_CHAIN = 3, 5  # two that are kept and the one being written; beside the samples, measured


def require_space(folder: pathlib.Path, tomogram: Tomogram, num_samples: int, num_chains: int) -> None:
    """Refuse to start where the volumes and the checkpoints on the way to them will not fit on the disk."""
    checkpoints = NUM_CHECKPOINTS * (VOLUMES_PER_CHAIN * num_chains + num_samples)
    require_free_space(folder, (num_samples + NUM_SUMMARIES + checkpoints) * tomogram.data.size * 4)


def write_all(
    folder: pathlib.Path,
    restoration: Restoration,
    settings: Mapping[str, Any],
    tomogram: Tomogram,
    *,
    estimated_seconds: float,
) -> None:
    """Write volumes and report.html, and run.json last: where it is, the run is complete."""
    write_volumes(folder, restoration, tomogram)
    write_report(folder, restoration, settings, tomogram)
    record = run_record(restoration, settings, estimated_seconds)
    write_text_atomic(folder / "run.json", json.dumps(_plain(record), indent=2, allow_nan=False) + "\n")


def write_volumes(folder: pathlib.Path, restoration: Restoration, like: Tomogram) -> None:
    """mean.mrc, std.mrc, missed.mrc, wedge.mrc and samples/sample_000.mrc ..., all in the frame of the tomogram."""
    for number, member in enumerate(restoration.samples):
        write_volume(folder / "samples" / f"sample_{number:03d}.mrc", member, like)
    write_volume(folder / "wedge.mrc", fourier.centered_full_spectrum(restoration.wedge, like.data.shape), like)
    if restoration.report.specimen is not None:
        write_volume(folder / "mask.mrc", restoration.report.specimen, like)
    write_volume(folder / "missed.mrc", restoration.missed, like)
    write_volume(folder / "std.mrc", restoration.std, like)
    write_volume(folder / "mean.mrc", restoration.mean, like)


def run_record(restoration: Restoration, settings: Mapping[str, Any], estimated_seconds: float) -> dict[str, Any]:
    """What run.json holds: settings, diagnostics, timings, versions, devices."""
    outcome = restoration.report._asdict()
    for volume in ("envelope", "specimen", "model_input"):
        outcome.pop(volume)
    outcome["wedge_found"] = restoration.report.wedge_found._asdict()
    outcome["weights"] = restoration.weights.tolist()
    return {
        "settings": dict(settings),
        "diagnostics": outcome,
        "timings": {
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": outcome.pop("seconds"),
            "estimated_seconds": estimated_seconds,
        },
        "versions": versions(),
        "devices": [str(device) for device in jax.devices()],
    }


def versions() -> dict[str, str]:
    """Python's and the packages' versions."""
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in PACKAGES}}


def write_report(
    folder: pathlib.Path, restoration: Restoration, settings: Mapping[str, Any], tomogram: Tomogram
) -> None:
    """Write report.html."""
    outcome, size = restoration.report, float(np.mean(tomogram.voxel_size_angstrom))
    volumes = {
        "tomogram": tomogram.data,
        "mean": restoration.mean,
    }
    if len(restoration.samples) > 1:
        volumes |= {"one sample": restoration.samples[0], "another sample": restoration.samples[-1]}
        volumes |= {"std": restoration.std, "missed": restoration.missed}
    volumes = _bright(volumes, outcome)
    figures = {"Slices": report.slice_figure(volumes, voxel_size_angstrom=size, spread=SPREADS)}
    captions = {
        "Slices": "Density is shown bright. The tomogram is smeared along its beam axis "
        f"({settings['beam_axis']}). Where std is large, the samples disagree and the mean is a guess. "
        "Missed: how likely there is density of half the particles' level, at a resolution of 4 voxels, where the mean "
        "shows less."
    }
    if outcome.model_input is not None:
        seen = {"tomogram": tomogram.data, "what the model saw": outcome.model_input}
        if outcome.specimen is not None:
            seen[MASK] = outcome.specimen
        figures["What is no specimen"] = report.slice_figure(_bright(seen, outcome), voxel_size_angstrom=size)
        captions["What is no specimen"] = (
            f"Found: {'; '.join(outcome.found)}. It was kept away from the model and put back as it was. What is empty "
            "was filled with noise. The mask (mask.mrc) is dark where voxels counted neither as specimen nor as "
            "solvent. --as-given turns this off."
        )
    if (settings["tilt_axis"], settings["beam_axis"]) == ("y", "z"):
        spectra = {name: volume for name, volume in volumes.items() if name in SPECTRA}
        figures["Power spectra"] = report.spectrum_figure(
            spectra, voxel_size_angstrom=size, tilt_range=tuple(settings["tilt_range"])
        )
        captions["Power spectra"] = (
            "The empty double triangle of the tomogram is its missing wedge. A sample should fill it evenly; the mean "
            "holds there only what all samples agree on."
        )
    summary: list[tuple[str, Any] | tuple[str, Any, str]] = [
        ("Method", outcome.method),
        _witness(outcome),
        ("Status", outcome.status),
        ("Samples", len(restoration.samples)),
        ("Density in the tomogram", outcome.contrast),
        *([("Beside the specimen", "; ".join(outcome.found), "kept away from the model")] if outcome.found else []),
        ("Noise", f"{outcome.noise_std:.4g} per voxel ({outcome.noise_rule})"),
        *([_missed(outcome.missed_share)] if np.isfinite(outcome.missed_share) else []),
        ("Sampler", outcome.sampler),
        *([_widening(outcome.widening)] if outcome.widening != 1 else []),
        ("Effective samples", screen.number(outcome.ess, ".0f"), "how many independent samples mean and std rest on"),
        *(
            [("R-hat", screen.number(outcome.r_hat, ".2f"), "1 where the chains agree; above 1.2 they need more steps")]
            if outcome.num_gradients
            else []
        ),
        ("Time", screen.duration(outcome.seconds)),
    ]
    page = report.render_report(
        f"Restoration of {tomogram.path.name}",
        summary,
        outcome.warnings,
        figures,
        {**settings, "versions": versions()},
        captions=captions,
    )
    write_text_atomic(folder / "report.html", page)


def _bright(volumes: dict[str, np.ndarray], outcome: RestorationReport) -> dict[str, np.ndarray]:
    """The volumes with density bright."""
    sign = -1 if outcome.contrast == "dark" else 1
    return {name: volume if name in (*SPREADS, MASK) else sign * volume for name, volume in volumes.items()}


def _witness(outcome: RestorationReport) -> tuple[str, Any] | tuple[str, Any, str]:
    if not outcome.hidden_tilt_agreement:
        return ("Witness", outcome.witness)
    agreement = ", ".join(f"{name} {value:.3f}" for name, value in outcome.hidden_tilt_agreement.items())
    meaning = "what says what is likely; correlation of each candidate with tilts that were hidden from it"
    return ("Witness", f"{outcome.witness} ({agreement})", meaning)


def _widening(factor: float) -> tuple[str, Any, str]:
    return ("Spread in the wedge", f"variance x {factor:.2f}", "what the error in hidden tilts asked for")


def _missed(share: float) -> tuple[str, Any, str]:
    return ("Density that the mean does not show", f"{100 * share:.0f} %", "expected share; missed.mrc says where")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return str(value) if isinstance(value, pathlib.Path) else value
