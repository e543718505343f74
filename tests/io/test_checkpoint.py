import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryowgen_jax.io.checkpoint import load_checkpoint, save_checkpoint
from cryowgen_jax.types import InputError


class State(typing.NamedTuple):
    position: jax.Array
    key: jax.Array
    extra: dict


def state(seed=0):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, (4, 3, 5), dtype=np.uint32)  # every kind of float32, NaN payloads included
    return State(
        position=jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.float32),
        key=jax.random.split(jax.random.key(seed), 4),
        extra={
            "none kept": jnp.zeros((4, 0, 3)),
            "one key": jax.random.key(seed, impl="rbg"),
            "half": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
            "flag": jnp.asarray(True),
            "host": rng.normal(size=(2, 2)),
            "scalar": np.float64(rng.normal()),
            "count": 2**70 + seed,
            "step size": 0.1 + seed,
            "not yet": float("nan"),
            "name": "pcnl",
            "done": False,
        },
    )


def as_bytes(tree):
    """Type, shape and every bit of every leaf."""
    return [_leaf_bytes(leaf) for leaf in jax.tree.leaves(tree)]


def _leaf_bytes(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "key", str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf)).tobytes()
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return type(leaf), str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()
    return type(leaf), repr(leaf)


def test_round_trip_is_exact(tmp_path):
    save_checkpoint(tmp_path / "run" / "checkpoint", 7, state())
    step, tree = load_checkpoint(tmp_path / "run" / "checkpoint", state(1))
    assert step == 7
    assert isinstance(tree, State)
    assert as_bytes(tree) == as_bytes(state())
    assert as_bytes(tree) != as_bytes(state(1))
    np.testing.assert_array_equal(jax.random.normal(tree.key[2], (3,)), jax.random.normal(state().key[2], (3,)))


def test_shapes_alone_are_enough_to_load(tmp_path):
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "key": jax.random.split(jax.random.key(3), 2)}
    save_checkpoint(tmp_path, 1, tree)
    _, loaded = load_checkpoint(tmp_path, jax.eval_shape(lambda: tree))
    assert as_bytes(loaded) == as_bytes(tree)


@pytest.mark.parametrize("tree", [{"steps": 3}, {}, {"empty": np.zeros((0, 2))}, 1.5])
def test_trees_without_stored_arrays(tmp_path, tree):
    save_checkpoint(tmp_path, 1, tree)
    step, loaded = load_checkpoint(tmp_path, tree)
    assert step == 1
    assert as_bytes(loaded) == as_bytes(tree)


def test_nothing_there(tmp_path):
    assert load_checkpoint(tmp_path / "gone", state()) is None
    assert not (tmp_path / "gone").exists()
    assert load_checkpoint(tmp_path, state()) is None


def test_newest_counts_and_two_stay(tmp_path):
    for step in (1, 3, 10):
        save_checkpoint(tmp_path, step, {"a": jnp.full(3, float(step))})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["10", "3"]
    step, tree = load_checkpoint(tmp_path, {"a": jnp.zeros(3)})
    assert step == 10
    np.testing.assert_array_equal(tree["a"], [10.0, 10.0, 10.0])


@pytest.mark.parametrize("step", [3, 2])
def test_an_older_step_is_refused_not_dropped(tmp_path, step):
    save_checkpoint(tmp_path, 3, {"a": jnp.ones(3)})
    with pytest.raises(InputError, match=rf"step 3, this one is of step {step}.*--resume"):
        save_checkpoint(tmp_path, step, {"a": jnp.zeros(3)})
    np.testing.assert_array_equal(load_checkpoint(tmp_path, {"a": jnp.zeros(3)})[1]["a"], jnp.ones(3))


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"a": jnp.zeros((2, 4)), "n": 1}, r"\['a'\] float32\[2, 3\] where this run has \['a'\] float32\[2, 4\]"),
        ({"a": jnp.zeros((2, 3), jnp.int32), "n": 1}, "int32"),
        ({"a": np.zeros((2, 3)), "n": 1}, "float64"),
        ({"b": jnp.zeros((2, 3)), "n": 1}, r"\['b'\]"),
        ({"a": jnp.zeros((2, 3))}, "2 arrays and numbers where this run has 1"),
        ({"a": jnp.zeros((2, 3)), "n": 1, "z": 1}, "has 3"),
        ({"a": jnp.zeros((2, 3)), "n": 1.0}, r"\['n'\] int where this run has \['n'\] float"),
        ((jnp.zeros((2, 3)), 1), r"\[0\]"),
        ({"a": jax.random.split(jax.random.key(0), 6).reshape(2, 3), "n": 1}, "key<"),
    ],
)
def test_checkpoint_of_another_run(tmp_path, like, words):
    save_checkpoint(tmp_path, 5, {"a": jnp.ones((2, 3)), "n": 4})
    with pytest.raises(InputError, match=words) as caught:
        load_checkpoint(tmp_path, like)
    assert str(tmp_path) in str(caught.value)
    assert "step 5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_kind_of_key_must_agree(tmp_path):
    save_checkpoint(tmp_path, 1, {"key": jax.random.key(0)})
    with pytest.raises(InputError, match="key<"):
        load_checkpoint(tmp_path, {"key": jax.random.key(0, impl="rbg")})


def test_leaf_of_no_use(tmp_path):
    with pytest.raises(TypeError, match=r"\['f'\].*object"):
        save_checkpoint(tmp_path, 1, {"f": object()})


def test_other_devices_on_loading(tmp_path):
    devices = jax.devices()
    assert len(devices) >= 4
    spread = jax.sharding.NamedSharding(jax.make_mesh((4,), ("chain",)), jax.sharding.PartitionSpec("chain"))
    values = np.arange(8.0, dtype=np.float32).reshape(4, 2)
    save_checkpoint(tmp_path, 1, {"a": jax.device_put(values, spread)})
    like = {"a": jax.device_put(np.zeros((4, 2), np.float32), devices[0])}
    loaded = load_checkpoint(tmp_path, like)[1]["a"]
    np.testing.assert_array_equal(loaded, values)
    assert loaded.devices() == {devices[0]}
    back = load_checkpoint(tmp_path, {"a": jax.device_put(np.zeros((4, 2), np.float32), spread)})[1]["a"]
    np.testing.assert_array_equal(back, values)
    assert back.sharding == spread


def test_half_a_save_is_ignored_and_cleared(tmp_path):
    like = {"a": jnp.zeros(3)}
    save_checkpoint(tmp_path, 1, {"a": jnp.ones(3)})
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    step, tree = load_checkpoint(tmp_path, like)
    assert step == 1
    np.testing.assert_array_equal(tree["a"], jnp.ones(3))
    save_checkpoint(tmp_path, 3, {"a": jnp.full(3, 2.0)})
    assert load_checkpoint(tmp_path, like)[0] == 3
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "3"]


def stored(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)


def test_damaged_checkpoint(tmp_path):
    """The one before it is as good; without one there is a line."""
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": jnp.full(3, float(step))})
    for file in stored(tmp_path / "2" / "arrays"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"2' is damaged and was removed: going on from step 1"):
        step, found = load_checkpoint(tmp_path, {"a": jnp.zeros(3)})
    assert step == 1
    np.testing.assert_array_equal(found["a"], 1)
    save_checkpoint(tmp_path, 2, {"a": jnp.full(3, 2.0)})
    assert load_checkpoint(tmp_path, {"a": jnp.zeros(3)})[0] == 2
    for file in [*stored(tmp_path / "1" / "arrays"), *stored(tmp_path / "2" / "arrays")]:
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"2' is damaged .*start again") as caught:
        load_checkpoint(tmp_path, {"a": jnp.zeros(3)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [0.03, 0.2, 0.5, 0.8, 0.97])
@pytest.mark.filterwarnings("ignore:checkpoint .* is damaged")
def test_a_flipped_bit_is_never_taken_for_the_state(tmp_path, place):
    """In any file: what is loaded is the checkpoint before, or the same state if the bit meant nothing."""
    states = {step: {"a": jax.random.normal(jax.random.key(step), (64, 32)), "n": step} for step in (1, 2)}
    noticed = 0
    for number, name in enumerate(["arrays", "description"]):
        folder = tmp_path / str(number)
        for step, tree in states.items():
            save_checkpoint(folder, step, tree)
        for which in range(len(stored(folder / "2" / name))):
            copy = tmp_path / f"{number}_{which}"
            shutil.copytree(folder, copy)
            file = stored(copy / "2" / name)[which]
            content = bytearray(file.read_bytes())
            content[int(place * len(content))] ^= 4
            file.write_bytes(content)
            try:
                step, found = load_checkpoint(copy, states[1])
            except InputError:
                noticed += 1
                continue
            noticed += step == 1
            assert as_bytes(found) == as_bytes(states[step])
    assert noticed > 0


def test_another_version_of_jax_is_said(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jax, "__version__", "0.0.1")
        save_checkpoint(tmp_path, 1, {"a": jnp.zeros(3)})
    with pytest.warns(UserWarning, match=r"written with JAX 0\.0\.1"):
        assert load_checkpoint(tmp_path, {"a": jnp.zeros(3)})[0] == 1


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Failed to write 646478 bytes: No space left on device [os_error_code='28']"),
    ],
)
def test_full_disk(tmp_path, monkeypatch, failure):
    import orbax.checkpoint as ocp

    save_checkpoint(tmp_path, 1, {"a": jnp.ones(250_000)})

    def fail(*_, **__):
        (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
        raise failure

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(InputError, match=r"disk is full: 1\.0 MB needed, .* free"):
        save_checkpoint(tmp_path, 2, {"a": jnp.ones(250_000)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]
    assert load_checkpoint(tmp_path, {"a": jnp.zeros(250_000)})[0] == 1


def test_other_errors_are_not_hidden(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    def fail(*_, **__):
        raise ValueError("a fault of ours")

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(ValueError, match="a fault of ours"):
        save_checkpoint(tmp_path, 1, {"a": jnp.ones(3)})


def test_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot write"):
        save_checkpoint(tmp_path / "file", 1, {"a": jnp.ones(3)})


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_quiet(tmp_path, capfd, caplog, level):
    save_checkpoint(tmp_path / "warm", 1, state())
    logger = logging.getLogger("absl")
    before = logger.level
    try:
        logger.setLevel(level)
        caplog.clear()
        save_checkpoint(tmp_path, 1, state())
        load_checkpoint(tmp_path, state())
        assert logger.level == level
    finally:
        logger.setLevel(before)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


SAVE_FOR_EVER = """
import itertools, sys
import jax.numpy as jnp
from cryowgen_jax.io.checkpoint import save_checkpoint
for step in itertools.count(1):
    save_checkpoint(sys.argv[1], step, {"a": jnp.full(2_000_000, float(step)), "n": step})
    print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.013, 0.031])
def test_killed_while_saving(tmp_path, delay):
    child = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, tmp_path], stdout=subprocess.PIPE, text=True)
    with child:
        done = max(int(child.stdout.readline()) for _ in range(2))
        try:
            child.wait(delay)
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
    step, tree = load_checkpoint(tmp_path, {"a": jnp.zeros(2_000_000), "n": 0})
    assert step >= done
    assert tree["n"] == step
    np.testing.assert_array_equal(tree["a"], float(step))
    save_checkpoint(tmp_path, step + 1, tree)
    assert sorted(int(entry.name) for entry in tmp_path.iterdir())[-1] == step + 1


def test_an_interruption_during_a_save_comes_after_it(tmp_path, monkeypatch):
    """Not during it, and not never: an event loop that is about to end loses the signal."""
    import orbax.checkpoint as ocp

    save = ocp.CheckpointManager.save

    def interrupted(self, *arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return save(self, *arguments, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 1, {"a": np.arange(3)})
    assert signal.getsignal(signal.SIGINT) is before
    step, found = load_checkpoint(tmp_path, {"a": np.zeros(3, int)})
    assert step == 1
    np.testing.assert_array_equal(found["a"], np.arange(3))
