"""The examples in the docstrings of the public names run and print what they say."""

import doctest

import pytest

import cryowgen_jax as cg


def examples(name: str) -> list[doctest.DocTest]:
    return doctest.DocTestFinder(recurse=False).find(getattr(cg, name), name, globs={})


@pytest.mark.parametrize("name", sorted(cg.__all__))
def test_examples_run(name, capsys):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in examples(name):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out
