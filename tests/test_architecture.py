"""ARCHITECTURE.md is true: imports point down its levels, and packages and calls stay in the places that list them."""

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
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(module, name.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = base_of(node, package)
            for name in node.names:
                full = f"{base}.{name.name}"
                # a name of our own package counts as the module it lives in; others keep theirs (jax.numpy.fft)
                yield Import(module, base if base in modules and full not in modules else full, node.lineno)
    aliases = aliases_in(tree, package)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node, aliases) == FFT:
            yield Import(module, FFT, node.lineno)


def base_of(node: ast.ImportFrom, package: str) -> str:
    """What names are imported from, in full."""
    base = node.module or ""
    if not node.level:
        return base
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *filter(None, [base])])


def aliases_in(tree: ast.AST, package: str) -> dict[str, str]:
    """Imported names, as they are called in a file -> in full."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                top = name.name.partition(".")[0]
                aliases[name.asname or top] = name.name if name.asname else top
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                aliases[name.asname or name.name] = f"{base_of(node, package)}.{name.name}"
    return aliases


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
    highest = sorted(ROOMS, key=lambda name: ROOMS[name].level)
    assert highest[-2:] == ["cli", "__main__"]


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
    "matplotlib outside report": ("simulation.evaluation", "import matplotlib.pyplot as plt", "matplotlib"),
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


# Calls that have a place of their own --------------------------------------------------------------------------------

NUMPY = ("numpy", "jax.numpy")
METHODS_ON_DISK = {
    *("open", "read_text", "write_text", "read_bytes", "write_bytes", "tofile"),
    *("touch", "unlink", "rename", "mkdir", "rmdir"),
}
NAMES = {  # functions, and whatever comes from a package ("shutil.")
    "optimiser steps": {
        *("optax.apply_updates", "optax.lbfgs", "optax.scale_by_lbfgs", "optax.value_and_grad_from_state"),
        *("scipy.optimize.", "jax.scipy.optimize.", "jaxopt.", "optimistix."),
    },
    "disk": {
        *("shutil.", "tempfile.", "zipfile.", "tarfile.", "gzip.", "bz2.", "lzma.", "io.open", "codecs.open"),
        *("builtins.open", "numpy.lib.format.open_memmap"),
        *(f"pathlib.Path.{name}" for name in (*METHODS_ON_DISK, "replace", "symlink_to")),
        *(f"os.{name}" for name in ("open", "remove", "unlink", "rename", "replace", "makedirs", "mkdir", "rmdir")),
        *(f"os.{name}" for name in ("renames", "symlink", "link", "truncate", "removedirs")),
        *(f"{np}.{name}" for np in NUMPY for name in ("save", "savez", "savez_compressed", "savetxt")),
        *(f"{np}.{name}" for np in NUMPY for name in ("load", "loadtxt", "genfromtxt", "fromfile", "memmap")),
    },
    "angles": {
        *(f"math.{name}" for name in ("tan", "atan", "atan2", "degrees", "radians")),
        *("jax.lax.tan", "jax.lax.atan2", "cmath.phase", *(f"{np}.angle" for np in NUMPY)),
        *(f"{np}.{name}" for np in NUMPY for name in ("tan", "arctan", "arctan2", "atan", "atan2")),
        *(f"{np}.{name}" for np in NUMPY for name in ("degrees", "radians", "deg2rad", "rad2deg")),
    },
}
OWN_FILES = "importlib.resources.files"


class Call(NamedTuple):
    """One call that has a place of its own: of which kind, in which module, how it is written, and where."""

    kind: str
    module: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line}: {self.kind}: {self.text}"


def read_places(text: str) -> dict[str, set[str]]:
    """The table of calls: kind -> the rooms and files that may hold them."""
    rows = re.findall(r"^\| ([a-z ]+) \| (`[^|]*) \| [^|]* \|$", text, re.MULTILINE)
    return {kind: set(re.findall(r"`([\w.]+)`", places)) for kind, places in rows}


def calls(module: str, source: str, is_package: bool) -> Iterator[Call]:
    """Every call of a source file that has a place of its own."""
    tree = ast.parse(source)
    aliases = aliases_in(tree, module if is_package else module.rpartition(".")[0])
    for node in ast.walk(tree):
        for kind, found in kinds(node, aliases):
            yield Call(kind, module, ast.unparse(found), found.lineno)


def kinds(node: ast.AST, aliases: dict[str, str]) -> Iterator[tuple[str, ast.expr]]:
    """What a node is, if it is one of the calls: names by what they stand for, methods by their own name."""
    if isinstance(node, ast.Attribute | ast.Name):
        name = dotted(node, aliases)
        for kind, known in NAMES.items():
            if name in known or any(name.startswith(package) for package in known if package.endswith(".")):
                yield kind, node
    if not isinstance(node, ast.Call):
        return
    if isinstance(node.func, ast.Name) and node.func.id == "open" and "open" not in aliases:
        yield "disk", node.func
    if isinstance(node.func, ast.Attribute) and not dotted(node.func, aliases):
        own_files = any(dotted(inner, aliases) == OWN_FILES for inner in ast.walk(node.func))
        if node.func.attr in METHODS_ON_DISK and not own_files:
            yield "disk", node.func
        optax_s = {"updates", "params"} & {keyword.arg for keyword in node.keywords}
        if node.func.attr == "update" and (len(node.args) >= 2 or optax_s):
            yield "optimiser steps", node.func


def misplaced(sources: dict[str, tuple[str, bool]], places: dict[str, set[str]]) -> list[Call]:
    """Calls outside their place."""
    return [
        call
        for module, (source, is_package) in sources.items()
        for call in calls(module, source, is_package)
        if not places[call.kind] & {room_of(module), module.rpartition(".")[2] + ".py"}
    ]


PLACES = read_places((ROOT / "ARCHITECTURE.md").read_text())


def test_the_table_of_calls_is_read_whole():
    assert set(PLACES) == {"optimiser steps", "disk", "angles"}
    assert PLACES["optimiser steps"] == {"optimisation"}
    assert PLACES["disk"] == {"io", "platform.py"}
    files = {module.rpartition(".")[2] + ".py" for module in the_package()}
    for place in set().union(*PLACES.values()):
        assert place in (files if place.endswith(".py") else ROOMS), place


def test_calls_stay_in_their_places():
    assert [str(call) for call in misplaced(the_package(), PLACES)] == []


def test_every_file_that_is_an_exception_is_one():
    for kind, places in PLACES.items():
        for place in places:
            if place.endswith(".py"):
                fewer = PLACES | {kind: places - {place}}
                assert len(misplaced(the_package(), fewer)) > len(misplaced(the_package(), PLACES)), place


MISPLACED = {
    "a step by hand": (
        "training.descent",
        "import optax\ndef f(s, g, o, p):\n    u, s = o.update(g, s, p)\n    return optax.apply_updates(p, u), s",
        ["optimiser steps: optax.apply_updates", "optimiser steps: o.update"],
    ),
    "a step without its parameters": (
        "training.amortised",
        "class N:\n    def draw(self, g, s):\n        return self.optimizer.update(g, s)",
        ["optimiser steps: self.optimizer.update"],
    ),
    "a step of what is made on the spot": (
        "chains.run",
        "from optax import adam\nu, s = adam(0.1).update(g, s)",
        ["optimiser steps: adam(0.1).update"],
    ),
    "a step with keywords": (
        "training.amortised",
        "def f(o, g, s):\n    return o.update(updates=g, state=s)",
        ["optimiser steps: o.update"],
    ),
    "a method by its class": (
        "cli.results",
        "import pathlib\npathlib.Path.write_text(path, text)",
        ["disk: pathlib.Path.write_text"],
    ),
    "compressed": ("cli.results", "import gzip\ngzip.open(path, 'w')", ["disk: gzip.open"]),
    "phases of complex numbers": ("samplers.pcnl", "import numpy as np\nnp.angle(z)", ["angles: np.angle"]),
    "apply_updates by another name": (
        "methods.point_estimates",
        "from optax import apply_updates as move\nmove(p, u)",
        ["optimiser steps: move"],
    ),
    "L-BFGS": ("methods.point_estimates", "import optax as ox\no = ox.lbfgs()", ["optimiser steps: ox.lbfgs"]),
    "its line search": (
        "methods.point_estimates",
        "import optax\nf = optax.value_and_grad_from_state(g)",
        ["optimiser steps: optax.value_and_grad_from_state"],
    ),
    "someone else's loop": (
        "restoration.solvent_model",
        "import scipy.optimize\nx = scipy.optimize.minimize(f, x)",
        ["optimiser steps: scipy.optimize.minimize"],
    ),
    "open": ("cli.results", "with open(path) as file:\n    pass", ["disk: open"]),
    "a path's open": ("cli.results", "with path.open('rb') as file:\n    pass", ["disk: path.open"]),
    "text": (
        "report.page",
        "import pathlib\npathlib.Path('page').read_text()",
        ["disk: pathlib.Path('page').read_text"],
    ),
    "bytes": ("report.figures", "(folder / 'a.png').write_bytes(png)", ["disk: (folder / 'a.png').write_bytes"]),
    "a folder": ("chains.record", "folder.mkdir(parents=True)", ["disk: folder.mkdir"]),
    "an end": ("cli.results", "import os\nos.remove(path)", ["disk: os.remove"]),
    "an end by name": ("cli.results", "from os import replace\nreplace(a, b)", ["disk: replace"]),
    "a tree": ("cli.results", "import shutil\nshutil.rmtree(folder)", ["disk: shutil.rmtree"]),
    "a temporary file": ("chains.record", "from tempfile import mkdtemp\nmkdtemp()", ["disk: mkdtemp"]),
    "an array": ("restoration.restore", "import numpy as np\nnp.save(path, a)", ["disk: np.save"]),
    "arrays": ("models.adapters", "import jax.numpy as jnp\njnp.load(path)", ["disk: jnp.load"]),
    "tilts in training": (
        "training.specimens",
        "import jax.numpy as jnp\na = jnp.arctan2(kz, kx)",
        ["angles: jnp.arctan2"],
    ),
    "tilts in restoration": ("restoration.adapt", "import numpy as np\nnp.deg2rad(60)", ["angles: np.deg2rad"]),
    "tilts in a picture": ("report.figures", "from math import radians\nradians(60)", ["angles: radians"]),
    "tilts in the file beside": ("samplers.pcnl", "import math\nmath.tan(1.0)", ["angles: math.tan"]),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_misplaced_calls_are_caught(name):
    where, source, expected = MISPLACED[name]
    found = misplaced({f"{PACKAGE}.{where}": (source, False)}, PLACES)
    assert sorted(f"{call.kind}: {call.text}" for call in found) == sorted(expected)


WELL_PLACED = [
    ("optimisation", "import optax\nu, s = o.update(g, s, p)\np = optax.apply_updates(p, u)"),
    ("training.descent", "import optax\no = optax.adam(1e-3)\ns = o.init(p)\nsettings.update(other)"),
    ("chains.run", f"from {PACKAGE}.chains import streaming\nm = streaming.update(m, x)"),  # a function, no method
    ("cli.console", "self._bar.update(self._task, completed=1, note='')"),
    ("io.run_folder", "import shutil\nshutil.rmtree(path)\npath.open('rb')\nopen(path)"),
    ("report.page", f"from importlib import resources\nresources.files('{PACKAGE}').joinpath('a').read_text()"),
    ("cli.demo_command", "if path.is_dir() and any(path.iterdir()) and not path.exists():\n    pass"),
    ("cli.results", f"from {PACKAGE}.io import write_text_atomic\nwrite_text_atomic(path, text.replace('a', 'b'))"),
    ("operators.wedge", "import numpy as np\nnp.rad2deg(np.arctan2(a, b))"),
    ("restoration.wedge_inspection", "import math\nmath.tan(math.radians(60))"),
    ("models.unet", "import jax.numpy as jnp\njnp.tanh(x)"),
]


@pytest.mark.parametrize(("where", "source"), WELL_PLACED)
def test_calls_in_their_place_pass(where, source):
    assert misplaced({f"{PACKAGE}.{where}": (source, False)}, PLACES) == []


# Files ---------------------------------------------------------------------------------------------------------------


def twice(paths: list[pathlib.Path]) -> list[str]:
    """Names that more than one file has."""
    names = [path.name for path in paths if path.name not in ("__init__.py", "__main__.py")]
    return sorted({name for name in names if names.count(name) > 1})


def test_names_of_files_are_unique():
    paths = sorted((ROOT / "src").rglob("*.py"))
    assert len(paths) > 50
    assert twice(paths) == []
    assert twice([*paths, ROOT / "src" / PACKAGE / "methods" / "langevin.py"]) == ["langevin.py"]
