"""Examples in the docstrings of the public surface run and print what they say."""

import doctest

import jax
import jax.numpy as jnp
import pytest

import cryowgen_jax as cg

PARSER = doctest.DocTestParser()


def with_examples():
    return [name for name in cg.__all__ if ">>>" in (getattr(cg, name).__doc__ or "")]


@pytest.mark.parametrize("name", with_examples())
def test_examples_run(name):
    names = {"cg": cg, "jax": jax, "jnp": jnp}
    test = PARSER.get_doctest(getattr(cg, name).__doc__, names, name, None, None)
    told = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=told.append)
    assert not failed, "".join(told)


def test_samplers_and_what_runs_them_have_examples():
    samplers = {"langevin", "leimkuhler_matthews", "pcnl", "kinetic", "sk_rock", "tempered"}
    assert samplers | {"sample", "effective_potential", "simulation_based_calibration"} <= set(with_examples())
