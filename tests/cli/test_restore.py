"""``cryowgen restore``: what it writes, what it says, and that an interrupted run loses nothing."""

import errno
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import mrcfile
import numpy as np
import pytest
from rich.console import Console

import cryowgen_jax.cli.restore_command as restore_command
from cryowgen_jax.chains import Progress
from cryowgen_jax.cli import console
from cryowgen_jax.restoration import save_witness
from cryowgen_jax.restoration.prior_weights import shipped_weights
from cryowgen_jax.types import InputError
from tests.cli.command import CHAINS, RANGE, SHORT, cryowgen, refused
from tests.cli.conftest import ORIGIN, SHAPE, STARTS, VOXEL, hard_wedge
from tests.io.raw import field, is_strictly_valid, labels, mrc_bytes

SAMPLES = ["samples/sample_000.mrc", "samples/sample_001.mrc"]
VOLUMES = ["mean.mrc", "missed.mrc", "std.mrc", "wedge.mrc", *SAMPLES]


def volume(path):
    """(Z, Y, X) of a file with columns along Z, rows along X and sections along Y."""
    with mrcfile.open(path) as mrc:
        return np.array(mrc.data).transpose(2, 0, 1)


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def record(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((folder / "run.json").read_text(), parse_constant=refuse)


def stopping(monkeypatch, at):
    """Press Ctrl-C when the progress that ``at`` accepts is reported."""
    genuine = restore_command.restore

    def interrupted(*arguments, progress, **options):
        def report(now):
            progress(now)
            if at(now):
                raise KeyboardInterrupt

        return genuine(*arguments, progress=report, **options)

    monkeypatch.setattr(restore_command, "restore", interrupted)


class TestSignals:
    def test_sigterm_is_an_interruption(self, files, tmp_path, monkeypatch):
        """As a batch system sends it when time is up; the handler that was there before comes back."""
        before = signal.getsignal(signal.SIGTERM)
        genuine = restore_command.restore

        def killed(*arguments, progress, **options):
            def report(now):
                progress(now)
                if now.phase == "sampling":
                    os.kill(os.getpid(), signal.SIGTERM)

            return genuine(*arguments, progress=report, **options)

        monkeypatch.setattr(restore_command, "restore", killed)
        outcome = cryowgen("restore", files.tomogram, *RANGE, *CHAINS, "--output", tmp_path / "out")
        assert outcome.status == 143
        assert "terminated: repeat the command with --resume" in outcome.err
        assert signal.getsignal(signal.SIGTERM) is before
        monkeypatch.setattr(restore_command, "restore", genuine)
        again = cryowgen("restore", files.tomogram, *RANGE, *CHAINS, "--output", tmp_path / "out", "--resume")
        assert again.status == 0

    def test_a_name_that_is_not_utf_8(self, files, tmp_path):
        strange = os.fsencode(tmp_path) + b"/t\xe9.mrc"
        pathlib.Path(os.fsdecode(strange)).write_bytes(files.half1.read_bytes())
        line = refused("restore", os.fsdecode(strange), *RANGE, "--output", tmp_path / "out")
        assert "is not UTF-8: rename the file" in line
        assert not (tmp_path / "out").exists()


class TestBesideTheSpecimen:
    POINT = ("--method", "cryogen_map", "--witness", "solvent")

    @pytest.fixture
    def bordered(self, files, tmp_path):
        """A tomogram with a slope and an empty corner, and where that corner is."""
        half = mrcfile.read(files.half1)
        inside = np.add.outer(np.zeros(SHAPE[0]), np.add.outer(np.arange(SHAPE[1]), np.arange(SHAPE[2]))) > 16
        path, mask = tmp_path / "bordered.mrc", tmp_path / "corner.mrc"
        path.write_bytes(mrc_bytes(np.where(inside, half + 40, 0).astype(np.float32), voxel=VOXEL))
        mask.write_bytes(mrc_bytes(inside.astype(np.float32), voxel=VOXEL))
        return path, mask, inside

    def test_what_is_found_is_said_and_drawn(self, bordered, tmp_path):
        path, _, inside = bordered
        outcome = cryowgen("restore", path, *RANGE, *self.POINT, "--output", tmp_path / "out")
        assert outcome.status == 0
        assert "beside the specimen: empty parts: " in " ".join(outcome.err.split())
        assert record(tmp_path / "out")["diagnostics"]["found"][0].startswith("empty parts: ")
        page = (tmp_path / "out" / "report.html").read_text()
        assert "What is no specimen" in page
        assert "Beside the specimen" in page
        assert np.mean((mrcfile.read(tmp_path / "out" / "mask.mrc") > 0) != inside) < 0.02
        np.testing.assert_array_equal(mrcfile.read(tmp_path / "out" / "mean.mrc")[:, :6, :6], 0)

    def test_as_given(self, bordered, tmp_path):
        outcome = cryowgen("restore", bordered[0], *RANGE, *self.POINT, "--as-given", "--output", tmp_path / "out")
        assert outcome.status == 0
        found = record(tmp_path / "out")
        assert found["diagnostics"]["found"] == []
        assert found["settings"]["as_given"] is True
        assert not (tmp_path / "out" / "mask.mrc").exists()
        assert "What is no specimen" not in (tmp_path / "out" / "report.html").read_text()

    def test_a_mask(self, bordered, files, tmp_path):
        _, mask, inside = bordered
        options = ("--mask", mask, "--as-given")
        outcome = cryowgen("restore", files.half1, *RANGE, *self.POINT, *options, "--output", tmp_path / "out")
        assert outcome.status == 0
        np.testing.assert_array_equal(mrcfile.read(tmp_path / "out" / "mask.mrc") > 0, inside)
        mean, half = mrcfile.read(tmp_path / "out" / "mean.mrc"), mrcfile.read(files.half1)
        np.testing.assert_array_equal(mean[~inside], half[~inside])
        assert record(tmp_path / "out")["settings"]["mask"] == str(mask)

    def test_a_mask_of_another_shape(self, restored, files, tmp_path):
        small = tmp_path / "small.mrc"
        small.write_bytes(mrc_bytes(np.arange(4096, dtype=np.float32).reshape(16, 16, 16), voxel=VOXEL))
        arguments = ("restore", files.half1, *RANGE, "--mask", small, "--output", tmp_path / "out")
        assert "give volumes of one shape" in refused(*arguments)


class TestFiles:
    def test_which(self, restored):
        assert contents(restored.folder) == sorted([*VOLUMES, "report.html", "run.json"])

    @pytest.mark.parametrize("name", VOLUMES)
    def test_frame_is_that_of_the_tomogram(self, restored, files, name):
        path = restored.folder / name
        assert is_strictly_valid(path)
        assert volume(path).shape == SHAPE
        nz, ny, nx = SHAPE
        stored = {"nx": nz, "ny": nx, "nz": ny, "mx": nx, "my": ny, "mz": nz, "mode": 2, "ispg": 1}
        for item, value in {**stored, "mapc": 3, "mapr": 1, "maps": 2, **STARTS, **ORIGIN}.items():
            assert field(path, item) == value, item
        assert [field(path, f"cella_{axis}") for axis in "xyz"] == [nx * VOXEL, ny * VOXEL, nz * VOXEL]
        assert labels(path)[0] == b"from the microscope"

    def test_volumes_are_what_the_library_returned(self, restored):
        given = restored.restoration
        np.testing.assert_array_equal(volume(restored.folder / "mean.mrc"), given.mean)
        np.testing.assert_array_equal(volume(restored.folder / "std.mrc"), given.std)
        np.testing.assert_array_equal(volume(restored.folder / "missed.mrc"), given.missed)
        for name, member in zip(SAMPLES, given.samples, strict=True):
            np.testing.assert_array_equal(volume(restored.folder / name), member)
        assert given.std.min() >= 0
        assert not np.array_equal(*given.samples)

    def test_wedge_is_centred_and_whole(self, restored):
        wedge = volume(restored.folder / "wedge.mrc")
        np.testing.assert_array_equal(wedge, hard_wedge(SHAPE))
        assert wedge[tuple(n // 2 for n in SHAPE)] == 1
        assert wedge[0, SHAPE[1] // 2, SHAPE[2] // 2] == 0

    def test_measured_part_follows_the_data(self, restored, files):
        wedge = np.fft.ifftshift(hard_wedge(SHAPE))
        seen, found, truth = (
            np.fft.fftn(array)
            for array in (volume(files.tomogram), volume(restored.folder / "mean.mrc"), mrcfile.read(files.truth))
        )
        low = sum(np.meshgrid(*(np.fft.fftfreq(n) ** 2 for n in SHAPE), indexing="ij")) < 0.15**2
        low[0, 0, 0] = False

        def correlation(a, b, where):
            return np.vdot(a[where], b[where]).real / np.linalg.norm(a[where]) / np.linalg.norm(b[where])

        assert correlation(seen, found, low & wedge) > 0.95
        assert correlation(truth, found, low & ~wedge) > 0.2

    def test_record(self, restored, files):
        found = record(restored.folder)
        settings = {"tilt_range": [-60, 60], "samples": 2, "steps": 4, "warmup": 4, "seed": 0, "tilt_axis": "y"}
        settings |= {"method": "cryowgen_langevin", "half2": None, "tilt_angles": None, "contrast": "auto"}
        settings |= {"tomogram": str(files.tomogram), "voxel_size_angstrom": [VOXEL] * 3}
        assert {name: found["settings"][name] for name in settings} == settings
        assert {"python", "cryowgen-jax", "jax", "numpy"} <= set(found["versions"])
        assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
        assert found["diagnostics"]["contrast"] == "bright"
        assert found["diagnostics"]["wedge_found"]["beam_axis"] == "z"
        assert (found["diagnostics"]["witness"], found["diagnostics"]["sampler"]) == ("solvent", "exact")
        assert found["diagnostics"]["weights"] == [0.5, 0.5]
        assert found["diagnostics"]["r_hat"] is None  # too few steps
        assert found["timings"]["seconds"] > 0
        assert found["timings"]["estimated_seconds"] > 0
        assert found["devices"]

    def test_report(self, restored):
        page = (restored.folder / "report.html").read_text()
        words = re.sub(r"base64,[^\"]*", "", page)
        assert "Restoration of tomogram.mrc" in words
        assert "too short" not in words
        assert "R-hat" not in words
        assert "exact" in words
        assert "Density that the mean does not show" in words
        assert "nan" not in words
        assert "Power spectra" in words
        assert page.count("data:image/png;base64,") == 2


class TestWords:
    def test_plan_before_and_summary_after(self, restored):
        lines = restored.outcome.err.splitlines()
        assert restored.outcome.out == ""
        assert re.fullmatch(r"24 x 32 x 28 voxels, 2 samples: about \d+ (s|min), \d+ MiB of memory", lines[0])
        assert any(re.fullmatch(r"tomogram.mrc: estimating the model, step \d+ of \d+.*", line) for line in lines)
        assert any(re.fullmatch(r"tomogram.mrc: drawing, step 2 of 2.*", line) for line in lines)
        assert lines[-1].endswith(f"look at {restored.folder / 'report.html'}")
        assert "R-hat" not in lines[-1]
        assert "" not in lines

    def test_contradiction_comes_before_the_work(self, files, tmp_path, monkeypatch):
        stopping(monkeypatch, at=lambda now: True)
        outcome = cryowgen("restore", files.tomogram, "--tilt-range", -60, 45, *SHORT, "-o", tmp_path / "out")
        assert outcome.status == 130
        warning = [
            line for line in outcome.err.splitlines() if line.startswith("warning: the missing wedge looks like")
        ]
        assert len(warning) == 1
        assert "-60 to 45 degrees" in warning[0]
        assert warning[0].endswith("check the tilt range")

    def test_importance_sampling_and_contradiction_are_said_once(self, files, tmp_path, no_pictures):
        command = ("restore", files.tomogram, "--tilt-range", -60, 45, *SHORT, "--method", "cryowgen_mc")
        command = (*command, "--center", files.tomogram)  # or all weights would be alike
        outcome = cryowgen(*command, "-o", tmp_path / "out")
        assert outcome.status == 0
        warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
        assert len(warnings) == 2, outcome.err
        assert "looks like" in warnings[0]
        assert "use cryowgen_langevin" in warnings[1]
        assert len(record(tmp_path / "out")["diagnostics"]["warnings"]) == 2
        wedge = volume(tmp_path / "out" / "wedge.mrc")
        inner = (slice(1, None), slice(None), slice(1, None))  # tilts of either sign meet in the Nyquist planes
        np.testing.assert_array_equal(wedge[inner], hard_wedge(SHAPE, high=45.0)[inner])
        assert not np.array_equal(wedge[inner], hard_wedge(SHAPE, low=-45.0, high=60.0)[inner])

    def test_progress_in_a_log(self, capsys, monkeypatch):
        monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
        with console.ProgressDisplay(console.terminal(), "tomo.mrc") as report:
            report(Progress("tile 1 of 2, estimating the model", 60, 120, 1.0, 30.0))
            report(Progress("tile 1 of 2, estimating the model", 90, 120, 1.0, 60.0))
            report(Progress("tile 1 of 2, warm-up", 100, 200, 0.9, 50.0))  # resumed: 100 steps were done before
            report(Progress("tile 1 of 2, unrecorded", 150, 200, 0.8, 75.0))
            report(Progress("tile 1 of 2, sampling", 200, 200, 0.7, 100.0))
            report(Progress("tile 2 of 2, warm-up", 10, 200, 0.9, 9.0))
        assert capsys.readouterr().err.splitlines() == [
            "tomo.mrc: tile 1 of 2, estimating the model, step 60 of 120",
            "tomo.mrc: tile 1 of 2, estimating the model, step 90 of 120, 30 s left",
            "tomo.mrc: tile 1 of 2, warm-up, step 100 of 200, acceptance 0.90",
            "tomo.mrc: tile 1 of 2, sampling, step 150 of 200, acceptance 0.80, 25 s left",
            "tomo.mrc: tile 1 of 2, sampling, step 200 of 200, acceptance 0.70",
            "tomo.mrc: tile 2 of 2, warm-up, step 10 of 200, acceptance 0.90",
        ]

    def test_progress_in_a_log_is_sparse(self, capsys):
        with console.ProgressDisplay(console.terminal(), "tomo.mrc") as report:
            for step in range(10, 201, 10):
                report(Progress("sampling", step, 200, 1.0, step / 1000))
        steps = [int(line.split("step ")[1].split()[0]) for line in capsys.readouterr().err.splitlines()]
        assert steps == [10, 200]

    def test_progress_on_a_terminal(self):
        screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
        with console.ProgressDisplay(screen, "tomo.mrc") as report:
            report(Progress("tile 1 of 12, estimating the model", 120, 120, 1.0, 30.0))
            report(Progress("tile 1 of 12, warm-up", 100, 200, 0.9, 5000.0))
            report(Progress("tile 1 of 12, sampling", 150, 200, 0.9, 9000.0))
        last = screen.file.getvalue().splitlines()[-2]
        assert "tile 1 of 12, sampling" in last
        assert "150/200" in last
        assert "steps, acceptance 0.90, 67 min left" in last
        assert "\u2026" not in last

    @pytest.mark.parametrize(
        ("seconds", "words"), [(0, "1 s"), (89, "89 s"), (91, "2 min"), (5399, "90 min"), (5400, "1.5 h")]
    )
    def test_duration(self, seconds, words):
        assert console.duration(seconds) == words


class TestOptions:
    def test_they_reach_the_library(self, files, tmp_path, monkeypatch):
        called = []

        def note(*arguments, **options):
            called.append((arguments, options))
            raise KeyboardInterrupt

        monkeypatch.setattr(restore_command, "restore", note)
        command = ("restore", files.half1, "--half2", files.half2, "--center", files.truth)
        command += ("--tilt-angles", files.tilts, "--tilt-axis", "x", "--beam-axis", "y", "--contrast", "dark")
        command += ("--method", "cryowgen_langevin", "--tile", 64, 65, 66, "--output", tmp_path / "out")
        command += ("--samples", 5, "--steps", 6, "--warmup", 7, "--seed", 8)
        assert cryowgen(*command).status == 130
        [((tomogram, tilt_range), options)] = called
        assert tilt_range == (-60, 60)
        given = {"tomogram": tomogram, **options}
        for name, path in {"tomogram": files.half1, "half2": files.half2, "center": files.truth}.items():
            np.testing.assert_array_equal(given[name], mrcfile.read(path))
        plain = {"contrast": "dark", "tilt_axis": "x", "beam_axis": "y", "method": "cryowgen_langevin"}
        plain |= {
            "tile_shape": (64, 65, 66),
            "num_samples": 5,
            "num_steps": 6,
            "warmup": 7,
            "checkpoint": tmp_path / "out" / "checkpoint",
        }
        assert {name: options[name] for name in plain} == plain
        assert (options["witness"], options["sampler"]) == ("auto", "auto")
        assert jax.random.key_data(options["key"]).tolist() == jax.random.key_data(jax.random.key(8)).tolist()
        assert options["tilt_angles"].tolist() == [float(line) for line in files.tilts.read_text().split()]

    @pytest.mark.parametrize(
        ("option", "value"), [("--seed", 2**63), ("--steps", 10**12), ("--warmup", 10**12), ("--voxel-size", 1e-300)]
    )
    def test_numbers_too_large_or_small_are_refused(self, files, tmp_path, option, value):
        assert option in refused("restore", files.half1, *RANGE, "-o", tmp_path / "out", option, value)
        assert contents(tmp_path) == []

    def test_weights_reach_the_library_and_voxels_of_another_size_are_noted(self, files, tmp_path, monkeypatch):
        called = []

        def note(*_, **options):
            called.append(options["witness"])
            raise KeyboardInterrupt

        monkeypatch.setattr(restore_command, "restore", note)
        shipped = shipped_weights()
        save_witness(tmp_path / "weights", shipped)
        for name in ("learned", tmp_path / "weights"):
            outcome = cryowgen("restore", files.half1, *RANGE, "--witness", name, "-o", tmp_path / f"out{len(called)}")
            assert outcome.status == 130
            assert "learned from 10 A" not in outcome.err
        assert called[0] == "learned"
        assert called[1].settings == shipped.settings
        fine = tmp_path / "fine.mrc"
        fine.write_bytes(mrc_bytes(mrcfile.read(files.half1), voxel=2.6))
        outcome = cryowgen("restore", fine, *RANGE, "--witness", "learned", "-o", tmp_path / "fine")
        assert "voxels of 2.6 A: the network learned from 10 A, bin the tomogram" in outcome.err

    def test_everything_at_once(self, files, tmp_path):
        half1, half2, center = (tmp_path / f"{name}.mrc" for name in ("half1", "half2", "center"))
        for path, source in ((half1, files.half1), (half2, files.half2), (center, files.truth)):
            path.write_bytes(mrc_bytes(-mrcfile.read(source), voxel=9.0 if path == center else VOXEL))
        command = ("restore", half1, "--half2", half2, "--center", center, "--tilt-angles", files.tilts)
        outcome = cryowgen(*command, "--contrast", "dark", *SHORT, "--seed", 4, "-o", tmp_path / "out")
        assert outcome.status == 0, outcome.err
        assert f"note: '{center}' says voxels of 9 x 9 x 9 A" in outcome.err
        found = record(tmp_path / "out")
        assert found["diagnostics"]["contrast"] == "dark"
        assert found["diagnostics"]["noise_rule"] != "white, from the weakest shells"
        angles = [float(line) for line in files.tilts.read_text().split()]
        assert found["settings"]["tilt_angles"] == angles
        assert found["settings"]["tilt_range"] == [-60, 60]
        assert (found["settings"]["half2"], found["settings"]["center"]) == (str(half2), str(center))
        wedge, mean = (mrcfile.read(tmp_path / "out" / f"{name}.mrc") for name in ("wedge", "mean"))
        assert wedge[tuple(n // 2 for n in SHAPE)] > 0
        assert 0 == wedge.min() < wedge.max() <= 1
        middle = [n // 2 for n in SHAPE]
        gap, opposite = (wedge[middle[0] + 6, middle[1], middle[2] + sign * 12] for sign in (1, -1))
        assert gap == 0 < opposite  # 27 degrees on either side
        truth = mrcfile.read(files.truth)
        assert np.corrcoef(mean.ravel(), truth.ravel())[0, 1] < -0.5

    def test_seed_and_contrast(self, restored, files, tmp_path, no_pictures):
        """Another seed, other samples; a tomogram with its sign turned is found to be dark."""
        path = tmp_path / "dark.mrc"
        path.write_bytes(mrc_bytes(-volume(files.tomogram), voxel=VOXEL))
        assert cryowgen("restore", path, *RANGE, *SHORT, "--seed", 1, "-o", tmp_path / "out").status == 0
        assert record(tmp_path / "out")["diagnostics"]["contrast"] == "dark"
        mean = mrcfile.read(tmp_path / "out" / "mean.mrc")
        assert not np.array_equal(mrcfile.read(tmp_path / "out" / SAMPLES[0]), -restored.restoration.samples[0])
        assert np.corrcoef(mean.ravel(), restored.restoration.mean.ravel())[0, 1] < -0.7

    def test_report_of_other_axes_and_half_maps(self, restored, files, tmp_path):
        """No spectra where the figure's axes would be wrong; the halves' mean is what is shown."""
        settings = record(restored.folder)["settings"] | {"tilt_axis": "x"}
        whole = restore_command.read_tomogram(files.tomogram)
        restore_command.results.write_report(tmp_path, restored.restoration, settings, whole)
        assert "Power spectra" not in (tmp_path / "report.html").read_text()
        halves = {name: restore_command.read_tomogram(files._asdict()[name]) for name in ("half1", "half2")}
        seen = restore_command._seen({"tomogram": halves["half1"], "half2": halves["half2"]})
        np.testing.assert_allclose(seen.data, whole.data, atol=1e-5)
        assert seen.path == halves["half1"].path


class TestResuming:
    @pytest.mark.slow
    def test_interrupted_and_resumed(self, files, tmp_path, monkeypatch):
        """The same bytes as the run that was left alone."""
        arguments = ("restore", files.tomogram, *RANGE, *CHAINS)
        whole = cryowgen(*arguments, "--output", tmp_path / "whole")
        assert sum("too short" in line for line in whole.err.splitlines()) == 1
        assert "effective samples -, R-hat -" in whole.err
        command = (*arguments, "--output", tmp_path / "out")
        with monkeypatch.context() as patch:
            stopping(patch, at=lambda now: now.phase == "warm-up" and now.step == 2)
            outcome = cryowgen(*command)
        assert outcome.status == 130
        assert outcome.err.splitlines()[-1] == (
            "cryowgen: interrupted: repeat the command with --resume to go on from here"
        )
        assert (tmp_path / "out" / "checkpoint").is_dir()
        assert not list((tmp_path / "out").rglob("*.mrc"))
        assert "not empty" in refused(*command)

        line = refused(*command, "--resume", "--samples", "3")
        assert "--samples 2, not --samples 3" in line
        assert "same settings" in line

        steps = []
        with monkeypatch.context() as patch:
            stopping(patch, at=lambda now: steps.append((now.phase, now.step)))
            outcome = cryowgen(*command, "--resume")
        assert outcome.status == 0, outcome.err
        assert min(step for phase, step in steps if phase in ("warm-up", "sampling")) > 2  # it went on from there
        for name in VOLUMES:
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    def test_complete_already(self, restored, no_work):
        before = {name: (restored.folder / name).read_bytes() for name in contents(restored.folder)}
        command = (*restored.arguments, "--output", restored.folder, "--resume")
        outcome = cryowgen(*command)
        assert (outcome.status, outcome.out) == (0, "")
        assert outcome.err == f"'{restored.folder}' is complete already, nothing to do\n"
        assert "--seed 0, not --seed 3" in refused(*command, "--seed", 3)
        assert "--tilt-range -60 60, not --tilt-range -50 60" in refused(*command, "--tilt-range", -50, 60)
        assert "not empty" in refused(*command[:-1])
        assert {name: (restored.folder / name).read_bytes() for name in contents(restored.folder)} == before

    def test_other_files(self, restored, files, tmp_path, no_work):
        """A tomogram that has moved is the same one; another one under the same name is not, nor is a half less."""
        moved = tmp_path / "moved.mrc"
        moved.write_bytes(files.tomogram.read_bytes())
        command = ("restore", moved, *RANGE, *SHORT, "--output", restored.folder, "--resume")
        assert cryowgen(*command).status == 0
        assert f"no --half2, not --half2 {files.half2}" in refused(*command, "--half2", files.half2)
        moved.write_bytes(mrc_bytes(mrcfile.read(files.half1), voxel=VOXEL))
        line = refused(*command)
        assert f"another tomogram ({files.tomogram}, not {moved})" in line
        assert "same files" in line
        before = record(restored.folder)
        before["settings"] |= {"half2": "half2.mrc", "half2_sha256": "0" * 64}
        (tmp_path / "run.json").write_text(json.dumps(before))
        command = (*restored.arguments, "--output", tmp_path, "--resume")
        assert "--half2 half2.mrc, not no --half2" in refused(*command)

    def test_damaged_settings(self, files, tmp_path, no_work):
        (tmp_path / "out").mkdir()
        for content in ("", "[]", "{"):
            (tmp_path / "out" / "settings.json").write_text(content)
            line = refused("restore", files.tomogram, *RANGE, "-o", tmp_path / "out", "--resume")
            assert "settings.json' is damaged: delete the folder" in line
        (tmp_path / "out" / "settings.json").unlink()
        (tmp_path / "out" / "run.json").write_text('{"settings": 5}')
        line = refused("restore", files.tomogram, *RANGE, "-o", tmp_path / "out", "--resume")
        assert "run.json' is damaged: delete the folder" in line

    def test_a_folder_of_other_files_is_not_taken(self, files, tmp_path, no_work):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mean.mrc").write_text("precious")
        line = refused("restore", files.tomogram, *RANGE, "-o", tmp_path / "out", "--resume")
        assert "holds files but no run to go on with" in line
        assert contents(tmp_path / "out") == ["mean.mrc"]

    @pytest.mark.parametrize("trouble", [MemoryError(), OSError(errno.EIO, "I/O error", "tomo.mrc")])
    def test_what_breaks_before_anything_is_computed_leaves_nothing(self, files, tmp_path, monkeypatch, trouble):
        def broken(*_, **__):
            raise trouble

        monkeypatch.setattr(restore_command, "restore", broken)
        assert cryowgen("restore", files.tomogram, *RANGE, "-o", tmp_path / "out").status == 2
        assert not (tmp_path / "out").exists()

    def test_resume_of_nothing_starts(self, files, tmp_path, monkeypatch):
        stopping(monkeypatch, at=lambda now: True)
        command = ("restore", files.tomogram, *RANGE, *SHORT, "-o", tmp_path / "out", "--resume")
        assert cryowgen(*command).status == 130
        assert contents(tmp_path / "out") == ["settings.json"]

    def test_disk_full_at_the_end(self, restored, files, tmp_path, monkeypatch, no_pictures):
        """No half-written file, and what was computed by chains is not computed again."""
        arguments = ("restore", files.tomogram, *RANGE, *CHAINS)
        whole = tmp_path / "whole"
        assert cryowgen(*arguments, "--output", whole).status == 0
        command = (*arguments, "--output", tmp_path / "out")
        replace = os.replace

        def full(source, target):
            if pathlib.Path(target).name == "std.mrc":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            outcome = cryowgen(*command)
        assert outcome.status == 2
        line = outcome.err.splitlines()[-1]
        for word in (str(tmp_path / "out" / "std.mrc"), "disk is full", "free some space", "--resume"):
            assert word in line
        left = [name for name in contents(tmp_path / "out") if not name.startswith("checkpoint")]
        assert left == ["missed.mrc", *SAMPLES, "settings.json", "wedge.mrc"]
        for name in (*SAMPLES, "wedge.mrc"):
            assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()

        steps = []
        stopping(monkeypatch, at=lambda now: steps.append(now.phase) if now.phase in console.OF_CHAINS else None)
        assert cryowgen(*command, "--resume").status == 0
        assert steps == []
        assert contents(tmp_path / "out") == [name for name in contents(restored.folder) if name != "report.html"]
        for name in VOLUMES:
            assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()

    def test_disk_full_on_the_way(self, files, tmp_path, monkeypatch):
        def full(*_, checkpoint, **__):
            (checkpoint / "3").mkdir(parents=True)
            raise InputError("cannot write the checkpoint, the disk is full: free some space")

        monkeypatch.setattr(restore_command, "restore", full)
        outcome = cryowgen("restore", files.tomogram, *RANGE, *SHORT, "-o", tmp_path / "out")
        assert outcome.status == 2
        assert outcome.err.splitlines()[-1].endswith(
            "free some space; repeat the command with --resume to keep what was computed"
        )
        assert (tmp_path / "out" / "checkpoint" / "3").is_dir()

    @pytest.mark.slow
    def test_tiles(self, tmp_path, monkeypatch):
        """Interrupted in the second tile; nothing of the first is sampled again."""
        tomogram = tmp_path / "tomo.mrc"
        assert cryowgen("simulate", "--output", tomogram, "--shape", 24, 112, 32).status == 0
        command = ("restore", tomogram, *RANGE, *CHAINS, "--tile", 64, 64, 64, "--output")
        whole = cryowgen(*command, tmp_path / "whole")
        assert whole.status == 0
        assert "tile 3 of 3, sampling" in whole.err
        with monkeypatch.context() as patch:
            stopping(patch, at=lambda now: now.phase == "tile 2 of 3, warm-up" and now.step == 2)
            assert cryowgen(*command, tmp_path / "out").status == 130
        phases = []
        stopping(monkeypatch, at=lambda now: phases.append(now.phase))
        assert cryowgen(*command, tmp_path / "out", "--resume").status == 0
        assert {"tile 1 of 3, warm-up", "tile 1 of 3, sampling"}.isdisjoint(phases)
        assert {"tile 2 of 3, warm-up", "tile 3 of 3, sampling"} <= set(phases)
        for name in VOLUMES:
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_real_signal(self, files, tmp_path, number, status):
        command = [sys.executable, "-m", "cryowgen_jax", "restore", str(files.tomogram), *RANGE]
        command += ["--samples", "2", "--steps", "5000", "--sampler", "preconditioned"]
        command += ["--witness", "solvent", "--output", str(tmp_path / "out")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr:
                if "warm-up" in line:
                    break
            time.sleep(1)
            process.send_signal(number)
            rest = process.stderr.read()
        assert process.returncode == status, rest
        assert rest.splitlines()[-1].endswith("repeat the command with --resume to go on from here")
        assert "Traceback" not in rest
        assert "settings.json" in contents(tmp_path / "out")
