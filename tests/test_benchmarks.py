"""The benchmarks run, and what they measure is the fast path."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import cryowgen_jax as cg
from cryowgen_jax import platform
from tests import QUICK_TO_COMPILE

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


def run_benchmark(name: str, *arguments: str) -> str:
    environment = os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE}
    command = [sys.executable, str(BENCHMARKS / name), "--quick", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_step_cost_prints_its_ratios():
    table = run_benchmark("step_cost.py")
    for row in ("driver / (value_and_grad + normal)", "driver / blackjax.sgld", "plain Flax / witness"):
        assert row in table
    assert "nan" not in table


@pytest.mark.slow
def test_mc_vs_sgld_prints_its_table_and_draws_its_picture(tmp_path):
    picture = tmp_path / "folder" / "picture.png"
    table = run_benchmark("mc_vs_sgld.py", "--output", str(picture))
    for row in ("conditional_prior", "gaussian", "langevin", "preconditioned", "pcnl"):
        assert row in table
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_samplers_prints_its_table_its_step_costs_and_its_goals():
    table = run_benchmark("samplers.py", "--samplers", "auto", "sgld")
    for row in ("long run", "auto ", "sgld ", "kinetic, learnt / (", "auto / blackjax sgld, per gradient"):
        assert row in table
    assert "nan" not in table


@pytest.mark.slow
def test_samplers_prints_on_what_their_cost_depends():
    table = run_benchmark("samplers.py", "--independence", "--witness", "log-cosh")
    for row in ("6^3  ", "8^3  ", "over lambda / beta: largest / smallest", "over size: largest / smallest"):
        assert row in table
    assert "nan" not in table


@pytest.mark.slow
def test_psi_agrees_with_its_closed_forms():
    table = run_benchmark("psi.py", "--cases", "hidden", "open", "log-cosh")
    for row in ("hidden", "open", "log-cosh"):
        assert row in table
    assert "nan" not in table
    assert "NOT met" not in table


def test_chains_are_traced_with_the_fast_convolution():
    forms = []

    def log_density(position):
        forms.append(platform.convolution_form())
        return -0.5 * jnp.sum(position**2)

    cg.sample(jax.random.key(0), log_density, sampler="mala", num_chains=2, num_steps=2, warmup=0, init=jnp.zeros(3))
    assert ("native" if platform.native_convolution_is_fast() else "stacked") in forms
