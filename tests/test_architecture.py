"""ARCHITECTURE.md is true: imports point down its levels, and listed packages stay in the rooms that list them."""

import ast
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "cryowgen_jax"
FFT = "jax.numpy.fft"
SURFACE = "the public surface"


class Room(NamedTuple):
    level: int
    packages: dict[str, str | None]  # package -> the one file that may import it, or None


class Import(NamedTuple):
    """One import: by which module, of what, and where."""

    module: str
    target: str
    line: int


def read_table(text: str) -> dict[str, Room]:
    """The level table: room -> level and the packages that only it may import."""
    rooms = {}
    for level, name, packages in re.findall(r"^\| (\d+) \| `(\w+)` \|.*\| ?([^|]*)\|$", text, re.MULTILINE):
        owned: dict[str, str | None] = {}
        for item in filter(None, (part.strip() for part in packages.split(","))):
            named = re.fullmatch(r"`?([\w.]+)`?(?: \(in `([\w.]+)`\))?", item)
            assert named, f"ARCHITECTURE.md: what is {item!r}?"
            owned[named[1].replace("jnp.", "jax.numpy.")] = named[2]
        rooms[name] = Room(int(level), owned)
    return rooms


def room_of(module: str) -> str:
    """The room of ``cryowgen_jax.chains.run`` is chains; the package's own ``__init__`` is the public surface."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else SURFACE


def imports(module: str, source: str, is_package: bool, modules: set[str]) -> Iterator[Import]:
    """Every import of a source file, lazy and type-checking ones included, as full names."""
    package = module if is_package else module.rpartition(".")[0]
    aliases: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for name in node.names:
                aliases[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.partition(".")[0]
                )
                yield Import(module, name.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [base])])
            for name in node.names:
                full = f"{base}.{name.name}"
                aliases[name.asname or name.name] = full
                # a name of our own package counts as the module it lives in; others keep theirs (jax.numpy.fft)
                yield Import(module, base if base in modules and full not in modules else full, node.lineno)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and dotted(node, aliases) == FFT:
            yield Import(module, FFT, node.lineno)


def dotted(node: ast.AST, aliases: dict[str, str]) -> str:
    """``jnp.fft.rfftn`` as jax.numpy.fft.rfftn, where jnp is an alias of jax.numpy; "" for anything else."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, aliases)
        return f"{base}.{node.attr}" if base else ""
    return aliases.get(node.id, "") if isinstance(node, ast.Name) else ""


def faults(sources: dict[str, tuple[str, bool]], rooms: dict[str, Room]) -> list[str]:
    """What is wrong with the imports of a set of modules: name -> (source, whether it is a package's __init__)."""
    owners: dict[str, list[str]] = {}
    for name, room in rooms.items():
        for package in room.packages:
            owners.setdefault(package, []).append(name)
    modules = set(sources)
    found, graph = [], {}
    for module, (source, is_package) in sources.items():
        if room_of(module) not in rooms and module != PACKAGE:
            found.append(f"{module}: ARCHITECTURE.md knows no such room")
            continue
        every = list(imports(module, source, is_package, modules))
        graph[module] = {i.target for i in every if i.target in modules and i.target != module}
        found += [f"{i.module}:{i.line}: {words}" for i in every if (words := fault(i, rooms, owners))]
    return found + [" -> ".join(loop) for loop in cycles(graph)]


def fault(item: Import, rooms: dict[str, Room], owners: dict[str, list[str]]) -> str | None:
    here = room_of(item.module)
    if item.target == PACKAGE or item.target.startswith(PACKAGE + "."):
        there = room_of(item.target)
        if here in (there, SURFACE):
            return "the public surface does not know the command line" if (here, there) == (SURFACE, "cli") else None
        if there == SURFACE or there not in rooms:  # a name of the public surface
            return None if here == "cli" else f"imports the public surface ({item.target})"
        if rooms[there].level < rooms[here].level:
            return None
        direction = "sideways" if rooms[there].level == rooms[here].level else "up"
        return f"imports {direction}: {there} (level {rooms[there].level}) from {here} (level {rooms[here].level})"
    for package, allowed in owners.items():
        if item.target == package or item.target.startswith(package + "."):
            if here not in allowed:
                return f"imports {package}, which is for {' and '.join(allowed)} only"
            file = rooms[here].packages[package]
            if file is not None and item.module.rpartition(".")[2] + ".py" != file:
                return f"imports {package}, which is for {file} only"
    return None


def cycles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """One cycle of modules through every edge that closes one, in depth-first order."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> Iterator[list[str]]:
        if module in path:
            yield [*path[path.index(module) :], module]
        elif module not in finished:
            for target in sorted(graph.get(module, ())):
                yield from visit(target, [*path, module])
            finished.add(module)

    for module in sorted(graph):
        yield from visit(module, [])


def the_package() -> dict[str, tuple[str, bool]]:
    sources = {}
    for path in sorted((ROOT / "src" / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        is_package = parts[-1] == "__init__"
        sources[".".join(parts[:-1] if is_package else parts)] = (path.read_text(), is_package)
    return sources


ROOMS = read_table((ROOT / "ARCHITECTURE.md").read_text())


def test_the_table_is_read_whole():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(ROOMS) == len(re.findall(r"^\| \d", text, re.MULTILINE)) >= 14
    assert ROOMS["types"] == Room(0, {})
    assert ROOMS["spatial"].packages == {FFT: "fourier.py"}
    assert {name for name, room in ROOMS.items() if "blackjax" in room.packages} == {"samplers", "chains"}
    assert {"mrcfile", "orbax"} <= set(ROOMS["io"].packages)
    assert ROOMS["cli"].level == max(room.level for room in ROOMS.values())


def test_every_room_exists():
    present = {room_of(module) for module in the_package()} - {SURFACE}
    assert present == set(ROOMS)


def test_imports_point_down_and_packages_stay_in_their_rooms():
    assert faults(the_package(), ROOMS) == []


WRONG = {
    "up": ("potentials.posterior", "from cryowgen_jax.chains import sample", "up: chains"),
    "up to a module": ("spatial.fourier", "import cryowgen_jax.operators.wedge", "up: operators"),
    "sideways": ("samplers.pcnl", "from cryowgen_jax.potentials.gaussian import split", "sideways: potentials"),
    "sideways on level 0": ("types", "from cryowgen_jax import platform", "sideways: platform"),
    "relative": ("samplers.pcnl", "from ..chains.run import run", "up: chains"),
    "relative to the package": ("samplers.pcnl", "from .. import methods", "up: methods"),
    "lazy": ("io.mrc", "def f():\n    from cryowgen_jax.report import page", "up: report"),
    "for types only": (
        "models.witness",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cryowgen_jax.chains import ChainResult",
        "up: chains",
    ),
    "the surface from below": ("chains.run", "from cryowgen_jax import sample", "public surface"),
    "the surface whole": ("report.page", "import cryowgen_jax as cg", "public surface"),
    "the surface and the command line": ("", "from cryowgen_jax.cli import main", "command line"),
    "fft elsewhere": ("operators.wedge", "import jax.numpy as jnp\nx = jnp.fft.rfftn", "jax.numpy.fft"),
    "fft in full": ("potentials.gaussian", "import jax\nx = jax.numpy.fft.rfftn", "jax.numpy.fft"),
    "fft by name": ("chains.summaries", "from jax.numpy import fft", "jax.numpy.fft"),
    "fft by another name": ("chains.summaries", "import jax.numpy.fft as transforms", "jax.numpy.fft"),
    "fft function by name": ("chains.summaries", "from jax.numpy.fft import rfftn", "jax.numpy.fft"),
    "fft in another file of its room": ("spatial.rotation", "import jax.numpy as np\nnp.fft.fftn", "fourier.py only"),
    "mrcfile outside io": ("restoration.restore", "import mrcfile", "mrcfile"),
    "orbax outside io": ("chains.resumption", "def f():\n    import orbax.checkpoint as ocp", "orbax"),
    "flax outside models": ("samplers.pcnl", "from flax import nnx", "flax"),
    "blackjax in a method": ("methods.langevin", "import blackjax", "blackjax"),
    "blackjax at the command line": ("cli.main", "from blackjax.mcmc import mala", "blackjax"),
    "matplotlib outside report": ("simulation.score", "import matplotlib.pyplot as plt", "matplotlib"),
    "click outside cli": ("report.page", "from click import echo", "click"),
    "a room of nobody": ("helpers.core", "import jax", "knows no such room"),
}


@pytest.mark.parametrize("name", WRONG)
def test_forbidden_imports_are_caught(name):
    where, source, words = WRONG[name]
    module = f"{PACKAGE}.{where}".rstrip(".")
    clean = {other: ("", is_package) for other, (_, is_package) in the_package().items()}
    assert faults(clean, ROOMS) == []
    found = faults(clean | {module: (source, module == PACKAGE)}, ROOMS)
    assert len(found) == 1
    assert words in found[0]


RIGHT = [
    ("chains.run", "import blackjax\nfrom cryowgen_jax import platform, potentials, samplers"),
    ("samplers.pcnl", "from cryowgen_jax.samplers.interface import algorithm\nfrom .interface import GaussianPart"),
    ("spatial.fourier", "import jax.numpy as jnp\njnp.fft.rfftn"),
    ("report.figures", "import numpy as np\nnp.fft.fftshift"),
    ("cli.main", "import click\nimport cryowgen_jax as cg\nfrom cryowgen_jax import __version__, restoration"),
    ("io.checkpoint", "import orbax.checkpoint"),
    ("", "from cryowgen_jax.chains import sample"),
]


@pytest.mark.parametrize(("where", "source"), RIGHT)
def test_allowed_imports_pass(where, source):
    module = f"{PACKAGE}.{where}".rstrip(".")
    clean = {other: ("", is_package) for other, (_, is_package) in the_package().items()}
    assert faults(clean | {module: (source, module == PACKAGE)}, ROOMS) == []


def test_cycles_are_caught():
    clean = {other: ("", is_package) for other, (_, is_package) in the_package().items()}
    loop = {
        f"{PACKAGE}.chains.run": (f"from {PACKAGE}.chains.record import Chain", False),
        f"{PACKAGE}.chains.record": (f"from {PACKAGE}.chains import streaming", False),
        f"{PACKAGE}.chains": (f"from {PACKAGE}.chains.run import run", True),
    }
    assert faults(clean | loop, ROOMS) == []  # a package's submodule is no loop
    through_the_package = {f"{PACKAGE}.chains.record": (f"from {PACKAGE}.chains import sample_all", False)}
    assert len(faults(clean | loop | through_the_package, ROOMS)) == 1
    lazy = {f"{PACKAGE}.chains.record": (f"def f():\n    from {PACKAGE}.chains.run import run", False)}
    found = faults(clean | loop | lazy, ROOMS)
    assert [set(loop.split(" -> ")) for loop in found] == [{f"{PACKAGE}.chains.record", f"{PACKAGE}.chains.run"}]
