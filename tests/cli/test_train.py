"""``cryowgen train``: a witness adapted to a tomogram, interrupted and resumed; what it refuses."""

import jax
import numpy as np
import pytest

import cryowgen_jax.cli.train_command as train_command
from cryowgen_jax.io import read_tomogram
from cryowgen_jax.models import denoising_network, prior_network
from cryowgen_jax.restoration import Adaptation, adapt, adapt_witness, load_witness, save_witness
from cryowgen_jax.restoration.prior_weights import PriorWeights
from tests.cli.command import RANGE, cryowgen, refused
from tests.io.raw import mrc_bytes, ramp

SETTINGS = {"channels": 2, "levels": 0, "widths": "[2]", "pairs": "[1]"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Those of a small network that has learned nothing."""
    path = tmp_path_factory.mktemp("weights") / "start.safetensors"
    save_witness(path, PriorWeights(prior_network(channels=2, levels=0), denoising_network((2,), (1,)), SETTINGS))
    return path


@pytest.fixture
def no_learning(monkeypatch):
    """Give back the weights as they came."""
    log = {"loss": np.array([2.0, 1.0])}
    monkeypatch.setattr(train_command, "adapt_witness", lambda *_, start, **__: Adaptation(start, log))


def leaves(network):
    return [np.asarray(leaf, np.float16) for leaf in jax.tree.leaves(network)]


@pytest.mark.slow
def test_interrupted_and_resumed_is_what_the_library_learns(files, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(adapt, "NUM_DRAWS", 2)
    monkeypatch.setattr(adapt, "NUM_SCENES", 3)
    output = tmp_path / "mine.safetensors"
    options = (*RANGE, "--half2", files.half2, "--start", weights, "--iterations", "20", "--seed", "4")
    arguments = ("train", files.half1, *options, "--output", output)
    heard = []

    def until_it_learns(*positional, progress, **named):
        def stop(report):
            heard.append(report.phase)
            progress(report)
            if report.phase == adapt.LEARNING:
                raise KeyboardInterrupt

        return adapt_witness(*positional, progress=stop, **named)

    with monkeypatch.context() as patch:
        patch.setattr(train_command, "adapt_witness", until_it_learns)
        stopped = cryowgen(*arguments)
    assert stopped.status == 130
    assert "--resume" in stopped.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors.unfinished"]
    assert heard.count(adapt.LEARNING) == 1

    outcome = cryowgen(*arguments, "--resume")
    assert (outcome.status, outcome.out) == (0, "")
    for words in ("1 tomogram, 1 round of 20 steps: about", "step 20 of 20, loss", f"--witness {output}"):
        assert words in outcome.err
    assert "estimating" not in outcome.err, "what was drawn is not drawn again"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]

    found, start = load_witness(output), load_witness(weights)
    halves = [read_tomogram(path).data for path in (files.half1, files.half2)]
    whole = adapt_witness(
        halves[:1], (-60.0, 60.0), halves2=halves[1:], start=start, num_iterations=20, key=jax.random.key(4)
    )
    for a, b in zip(leaves(found.second), leaves(whole.weights.second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(leaves(found.second), leaves(start.second), strict=True))
    assert found.settings["channels"] == 2
    assert found.settings["adapted"]["iterations"] == 20


def test_complete_and_other_runs_are_left_alone(files, weights, tmp_path, no_learning):
    output = tmp_path / "mine.safetensors"
    arguments = ("train", files.half1, *RANGE, "--start", weights, "-o", output)
    assert cryowgen(*arguments).status == 0
    content = output.read_bytes()
    assert "exists already" in refused(*arguments)
    assert "nothing to do" in cryowgen(*arguments, "--resume").err
    line = refused(*arguments, "--resume", "--seed", "5")
    assert "--seed 0, not --seed 5" in line
    line = refused("train", files.half2, *arguments[2:], "--resume")
    assert f"another tomogram ({files.half1}, not {files.half2})" in line
    assert output.read_bytes() == content


REFUSED = {
    "no tomogram": ([], ["TOMOGRAM"]),
    "gone": (["gone.mrc"], ["cannot read", "gone.mrc"]),
    "halves": (
        ["{half1}", "{half1}", "--half2", "{half2}"],
        ["2 tomograms and 1 second halves", "one --half2 for each"],
    ),
    "same halves": (["{half1}", "--half2", "{half1}"], ["half1.mrc': the two halves are the same volume"]),
    "small": (["small.mrc"], ["small.mrc", "at least 16 voxels"]),
    "start": (["{half1}", "--start", "{half2}"], ["holds no weights"]),
    "tilts": (["{half1}", "--tilt-range", "60", "-60"], ["reversed"]),
    "suffix": (["{half1}", "-o", "mine.npz"], ["does not end in .safetensors", "mine.npz.safetensors"]),
    "iterations": (["{half1}", "--iterations", "0"], ["--iterations"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_leaves_nothing_behind(files, weights, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    given, words = REFUSED[name]
    if name == "small":
        (tmp_path / "small.mrc").write_bytes(mrc_bytes(ramp((8, 20, 20)), voxel=10.0))
    arguments = [argument.format(**files._asdict()) for argument in given]
    if "-o" not in arguments:
        arguments += ["-o", "mine.safetensors"]
    if "--start" not in arguments:
        arguments += ["--start", weights]
    if "--tilt-range" not in arguments:
        arguments += RANGE
    line = refused("train", *arguments)
    for word in words:
        assert word in line
    assert not [path for path in tmp_path.iterdir() if path.name != "small.mrc"]


def test_notes_on_voxels(files, weights, tmp_path, no_learning):
    arguments = (*RANGE, "--start", weights, "--voxel-size", "20", "-o", tmp_path / "mine.safetensors")
    outcome = cryowgen("train", files.half1, *arguments)
    assert outcome.status == 0
    assert "20 A: the network that comes with the program learned from 10 A" in outcome.err


@pytest.mark.slow
def test_restore_uses_what_was_learned(files, weights, tmp_path, no_learning):
    output = tmp_path / "mine.safetensors"
    assert cryowgen("train", files.half1, *RANGE, "--start", weights, "-o", output).status == 0
    outcome = cryowgen(
        "restore", files.half1, *RANGE, "--samples", "2", "--witness", output, "-o", tmp_path / "restored"
    )
    assert outcome.status == 0
    assert (tmp_path / "restored" / "mean.mrc").is_file()
