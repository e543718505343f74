"""What the README promises in code and commands is true."""

import ast
import inspect
import pathlib
import re
import shlex

import pytest
from click.testing import CliRunner

import cryowgen_jax as cg
from cryowgen_jax.cli import cryowgen

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_name_what_exists():
    """And give functions the arguments that they have; that the examples run takes longer."""
    calls = [node for source in blocks("python") for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    ours = [call for call in calls if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "cg"]
    assert len(ours) > 3
    for call in ours:
        function = getattr(cg, call.func.attr)
        inspect.signature(function).bind(*call.args, **{keyword.arg: keyword.value for keyword in call.keywords})


@pytest.mark.slow
@pytest.mark.parametrize("source", blocks("python"))
def test_python_examples_run(source, capsys):
    exec(compile(source, "README.md", "exec"), {})
    assert "exact Gaussian draws" in capsys.readouterr().out


def test_every_option_it_names_exists():
    known = CliRunner().invoke(cryowgen, ["restore", "--help"]).output
    known += CliRunner().invoke(cryowgen, ["demo", "--help"]).output
    known += CliRunner().invoke(cryowgen, ["train", "--help"]).output
    named = set(re.findall(r"`(--[a-z0-9-]+)", README)) | set(re.findall(r"cryowgen \w+ .*?(--[a-z-]+)", README))
    assert named
    assert not {option for option in named if option not in known}


def test_every_command_it_names_exists():
    listed = CliRunner().invoke(cryowgen, ["--help"]).output
    for line in "\n".join(blocks("sh")).splitlines():
        for part in line.split("&&"):
            words = shlex.split(part)
            if words and words[0].endswith("cryowgen"):
                assert words[1] in listed


def test_every_file_it_names_exists():
    for path in re.findall(r"\]\(([^)#:]+)\)|`?python ((?:experiments|benchmarks)/\S+\.py)`?", README):
        assert (ROOT / (path[0] or path[1])).exists(), path
