"""Examples in the docstrings of the public names run and print what they say."""

import doctest

import jax
import jax.numpy as jnp
import pytest

import cryowgen_jax as cg

PARSER = doctest.DocTestParser()
WITHOUT = {  # what functions return, shown in the examples of these
    *("CalibrationResult", "ChainResult", "Family", "PsiEstimate", "Restoration", "WedgeReport", "WeightedFamily"),
}


def doc(name: str) -> str:
    return getattr(cg, name).__doc__ or ""


@pytest.mark.parametrize("name", sorted(set(cg.__all__) - WITHOUT))
def test_public_names_have_examples(name):
    assert ">>>" in doc(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in sorted(cg.__all__) if ">>>" in doc(name)])
def test_examples_run(name):
    test = PARSER.get_doctest(doc(name), {"cg": cg, "jax": jax, "jnp": jnp}, name, None, None)
    told = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=told.append)
    assert not failed, "".join(told)
