"""What a person reads first."""

import subprocess
import sys
import time

import pytest

from cryowgen_jax.cli import COMMANDS
from tests.cli.command import cryowgen

OPTIONS = {
    "demo": ["--output", "--shape", "--seed"],
    "simulate": ["--output", "--tilt-range", "--snr", "--shape", "--seed", "--voxel-size"],
    "inspect": ["--json", "--permissive", "--voxel-size"],
    "train": [
        *["--tilt-range", "--output", "--half2", "--start", "--rounds", "--iterations", "--seed", "--tilt-axis"],
        *["--beam-axis", "--contrast", "--voxel-size", "--permissive", "--resume"],
    ],
    "restore": [
        *["--tilt-range", "--tilt-angles", "--output", "--half2", "--center", "--method", "--samples", "--steps"],
        *[
            "--warmup",
            "--seed",
            "--tilt-axis",
            "--beam-axis",
            "--contrast",
            "--voxel-size",
            "--permissive",
            "--resume",
            "--tile",
        ],
    ],
}
JARGON = ["posterior", "MCMC", "half-spectrum", "tether", "prior", "burn-in", "PRNG", "INTEGER", "FLOAT", "PATH"]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), *((name, "--help") for name in COMMANDS)])
def test_help_fits_a_terminal(arguments):
    outcome = cryowgen(*arguments)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("Usage: cryowgen")
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_commands_are_listed():
    out = cryowgen().out
    assert out == cryowgen("--help").out
    assert set(OPTIONS) == set(COMMANDS)
    for name in COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_explained_in_plain_words(name):
    out = cryowgen(name, "--help").out
    for option in OPTIONS[name]:
        assert option in out
    for word in JARGON:
        assert word not in out
    lines = out[out.index("Options:") :].splitlines()[1:]
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        has_words = len(line.split("  ")) > 2 or below.startswith(" " * 20)
        assert has_words or not line.lstrip().startswith("-"), line


def test_version():
    outcome = cryowgen("--version")
    assert outcome.status == 0
    assert outcome.out.startswith("cryowgen, version ")


@pytest.mark.slow
def test_as_a_program(tmp_path):
    started = time.monotonic()
    command = [sys.executable, "-m", "cryowgen_jax"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("Usage: cryowgen")
    assert time.monotonic() - started < 20
    gone = subprocess.run([*command, "inspect", tmp_path / "gone.mrc"], capture_output=True, text=True, check=False)
    assert (gone.returncode, gone.stdout, gone.stderr.count("\n")) == (2, "", 1)
