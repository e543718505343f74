"""The command line run in this process, since importing JAX anew takes seconds."""

import contextlib
import io
import sys
from typing import NamedTuple
from unittest import mock

from cryowgen_jax import cli

SHORT = ("--samples", "2", "--steps", "4", "--warmup", "4", "--witness", "solvent")
CHAINS = (*SHORT, "--sampler", "preconditioned")
RANGE = ("--tilt-range", "-60", "60")


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def cryowgen(*arguments):
    """Exit status and what was printed."""
    out, err = io.StringIO(), io.StringIO()
    argv = mock.patch.object(sys, "argv", ["cryowgen", *map(str, arguments)])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
    return Outcome(status, out.getvalue(), err.getvalue())


def refused(*arguments):
    """The one line on stderr of a command that ends with exit status 2 and says nothing else."""
    outcome = cryowgen(*arguments)
    assert outcome.status == 2, outcome
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("cryowgen: error: ")
    return lines[0]
