"""``cryowgen demo``: the comparison it leaves, from a restoration that is at hand, and once in earnest."""

import json
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest

import cryowgen_jax.cli.demo_command as demo_command
from cryowgen_jax.cli.console import show_table
from tests.cli.command import cryowgen
from tests.cli.conftest import SHAPE

FOLDERS = ["cryowgen_langevin", "cryowgen_mc", "cryogen_ot", "cryogen_map"]
FILES = ["demo.png", "report.html", "table.md", "tomogram.mrc"]
FILES += [f"tomogram_{name}.mrc" for name in ("half1", "half2", "truth")]


def test_what_it_leaves(restored, tmp_path, monkeypatch):
    """Importance sampling ends with all the weight on one member: its calibration is a dash, not a number."""
    given = restored.restoration

    def at_hand(*_, method, **__):
        weights = np.array([0.5, 0.5] if method == "cryowgen_langevin" else [1.0, 0.0])
        doubts = () if method == "cryowgen_langevin" else ("The weights rest on 1.0 candidates.",)
        return given._replace(
            weights=weights, report=given.report._replace(ess=1 / np.sum(weights**2), warnings=doubts)
        )

    monkeypatch.setattr(demo_command, "restore", at_hand)
    monkeypatch.setattr(demo_command, "METHODS", ("cryowgen_langevin", "cryowgen_mc"))  # every one is two pictures
    outcome = cryowgen("demo", "--output", tmp_path / "demo", "--shape", *SHAPE)
    assert outcome.status == 0, outcome
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == sorted([*FILES, *FOLDERS[:2]])
    for folder in FOLDERS[:2]:
        names = sorted(path.name for path in (tmp_path / "demo" / folder).iterdir())
        assert names == ["mean.mrc", "missed.mrc", "samples", "std.mrc", "wedge.mrc"]
    assert (tmp_path / "demo" / "demo.png").read_bytes().startswith(b"\x89PNG")

    lines = (tmp_path / "demo" / "table.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert table[0][1:4] == ["in-wedge correlation", "measured correlation", "95 % coverage"]
    assert [row[0] for row in table[2:]] == ["tomogram itself", "CryoWGEN-II", "CryoWGEN-I"]
    assert all(len(row) == len(table[0]) for row in table)
    assert table[2][1] == "0.00"  # nothing was measured there
    assert table[2][3:] == ["-"] * 4
    assert 0 <= float(table[3][3]) <= 1
    assert table[4][3:6] == ["-", "-", "1"]

    page = (tmp_path / "demo" / "report.html").read_text()
    assert "CryoWGEN-I: The weights rest on 1.0 candidates." in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page)
    assert max(map(len, outcome.out.splitlines())) < 110
    assert "report.html" in outcome.err


def test_table_wraps_headings_between_words_only(capsys):
    show_table("title", ("", "in-wedge correlation"), [("tomogram itself", "0.00"), ("a", "0.5")], caption="best: 1")
    assert capsys.readouterr().out.splitlines() == [
        "",
        "title",
        "",
        "                    in-wedge",
        "                 correlation",
        "---------------  -----------",
        "tomogram itself         0.00",
        "a                        0.5",
        "",
        "best: 1",
    ]


def processor_seconds():
    """Of the commands that were run and have ended, which other programs on the machine hardly disturb."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_in_earnest(tmp_path):
    """Of fewer voxels, and all else as by default."""
    started = processor_seconds()
    command = [sys.executable, "-m", "cryowgen_jax", "demo", "--shape", "48", "64", "64"]
    as_users_have_it = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=as_users_have_it)
    assert processor_seconds() - started < 160  # of three minutes on two cores for twice as many voxels
    assert sorted(path.name for path in (tmp_path / "cryowgen-demo").iterdir()) == sorted(FILES + FOLDERS)
    row = next(line for line in shown.stdout.splitlines() if line.startswith("CryoWGEN-II  "))
    in_wedge, measured, coverage, spread_over_error = map(float, row.split()[1:5])
    assert in_wedge > 0.55
    assert measured > 0.85
    assert 0.85 < coverage < 0.97
    assert 0.6 < spread_over_error < 1.4
    inspected = [sys.executable, "-m", "cryowgen_jax", "inspect", "--json", "cryowgen-demo/tomogram.mrc"]
    found = json.loads(subprocess.run(inspected, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)
    assert found["tilt_range"] == pytest.approx([-60, 60], abs=3)
