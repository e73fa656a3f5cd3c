"""Imports go one way, so that each layer can be read, tested and replaced without those above it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each part may import besides itself. A part that is not named here fails, so that a new one finds its layer first.
ALLOWED: dict[str, set[str]] = {}


def _layer(*parts: str, sees: str = "") -> None:
    """Parts of one layer: they see what ``sees`` names and what that sees, never each other."""
    below = {name for part in sees.split() for name in (part, *ALLOWED[part])}
    ALLOWED.update({part: set(below) for part in parts})


_layer("version", "registry", "files", "assignment")
_layer("numerics")
_layer("state", "segment", sees="numerics files")
_layer("manifolds", "discrete", sees="state segment")
_layer("distributions", sees="manifolds discrete")
_layer("field", sees="state")
_layer("paths", "coupling", sees="distributions field assignment")
_layer("noising", sees="paths coupling")
_layer("metrics", sees="manifolds discrete")
_layer("nn", sees="manifolds discrete")
_layer("sampling", sees="noising")
_layer("flow", sees="sampling nn")
_layer("gflownet", sees="flow")
_layer("guidance", sees="flow gflownet")
_layer("checkpoint", sees="registry version files")
_layer("training", sees="checkpoint manifolds discrete")
_layer("curves", sees="training")
_layer("reflow", sees="flow gflownet training")
_layer("testing", sees="flow gflownet")
_layer("flows", sees="distributions")
_layer("energies", sees="flow gflownet training flows")
_layer("cli", sees="registry version")  # nothing else is needed, so the help is quick
_layer("serving", sees="checkpoint")
_layer("public", sees="training testing guidance")  # the flat public names
_layer("__init__", sees="public version")
_layer("__main__", sees="cli")

MODULES = sorted(p for p in (ROOT / "manifoldflow").rglob("*.py") if "tasks" not in p.parts)
TASK_MODULES = sorted((ROOT / "tasks").rglob("*.py"))


def part_of(path: Path) -> str:
    """The layer of a file in the package."""
    return path.relative_to(ROOT / "manifoldflow").with_suffix("").parts[0]


def imported(path: Path, text: str | None = None) -> list[tuple[str, int]]:
    """Full dotted names that a file imports from our packages, lazily imported ones too, with their lines."""
    package = path.relative_to(ROOT).parts[:-1]
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(text if text is not None else path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found += [
                (a.value, node.lineno) for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
    return [(name, line) for name, line in found if name.split(".")[0] in ("manifoldflow", "tasks")]


def offences(path: Path, text: str | None = None) -> list[str]:
    """Imports of a library file that go up or sideways."""
    part, found = part_of(path), []
    for name, line in imported(path, text):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        is_part = (ROOT / "manifoldflow" / target).is_dir() or (ROOT / "manifoldflow" / f"{target}.py").is_file()
        if top == "tasks" or target == "tasks":
            found.append(f"{path.name}:{line} imports {name}; the library never imports a task")
        elif not is_part:  # a name of the root, which imports everything; only the version is free of layers
            if part not in ("__init__", "public") and target != "__version__":
                found.append(f"{path.name}:{line} imports {name} from the root; name the module that defines it")
        elif target != part and target not in ALLOWED[part]:
            found.append(
                f"{path.name}:{line} imports {name}; {part} may import {', '.join(sorted(ALLOWED[part])) or 'none'}"
            )
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_library_module_imports_only_layers_below_it(path: Path) -> None:
    assert part_of(path) in ALLOWED, f"{part_of(path)} has no layer yet: add it to ALLOWED in this file"
    assert not offences(path), "\n".join(offences(path))


@pytest.mark.parametrize("path", TASK_MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_task_module_imports_neither_the_command_line_nor_another_task(path: Path) -> None:
    own = path.relative_to(ROOT).parts[1]
    for name, line in imported(path):
        assert not name.startswith("manifoldflow.cli"), f"{path.name}:{line} imports the command line"
        allowed = {own, "common"}  # and what tasks have in common, which knows none of them
        assert not name.startswith("tasks"), f"{path.name}:{line} imports {name}; the name is manifoldflow.tasks"
        assert not name.startswith("manifoldflow.tasks.") or name.split(".")[2] in allowed, (
            f"{path.name}:{line}: {name}"
        )


def test_lower_rooms_of_a_task_do_not_climb_to_its_commands() -> None:
    climbers = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in TASK_MODULES
        if path.name != "__init__.py" and "command" not in path.name
        for name, line in imported(path)
        if re.search(r"\.(\w+_)?commands?(\.|$)", name)
    ]
    assert not climbers, "\n".join(climbers)


def test_command_line_module_itself_imports_only_the_standard_library_at_the_top() -> None:
    import sys

    tree = ast.parse((ROOT / "manifoldflow" / "cli.py").read_text())
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert names and all(
        name.split(".")[0] in sys.stdlib_module_names for name in set(names) - {"manifoldflow.registry"}
    )


def graph(trees: dict[str, Path]) -> dict[str, set[str]]:
    """Which of our modules each of them imports, lazily or not; a package's name is that of its ``__init__``."""
    edges: dict[str, set[str]] = {}
    for name, path in trees.items():
        found = set()
        for target, _ in imported(path):
            # "from a.b import c" is the module a.b.c, or a name of a.b
            known = [t for t in (target, target.rpartition(".")[0]) if t in trees]
            found |= set(known[:1])
        edges[name] = found - {name}
    return edges


def modules() -> dict[str, Path]:
    """Our modules by dotted name."""
    found = {}
    for path in [*MODULES, *TASK_MODULES]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = ("manifoldflow", *parts) if parts[0] == "tasks" else parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The circles of a graph that a walk from every node finds, each as the names on it."""
    found, done = [], set()

    def walk(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name not in done:
            for target in sorted(edges.get(name, ())):
                walk(target, [*trail, name])
            done.add(name)

    for name in sorted(edges):
        walk(name, [])
    return found


def test_no_module_imports_itself_round_a_corner() -> None:
    """Lazy imports count: a circle that is hidden in a function is one that nobody can move a module out of."""
    waiting = {"manifoldflow.tasks.proteins.overview"}  # each with one partner
    made = [circle for circle in circles(graph(modules())) if not waiting & set(circle)]
    assert not made, "\n".join(" -> ".join(circle) for circle in made)


def test_the_search_for_circles_finds_one_through_a_lazy_import(tmp_path: Path) -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    edges = graph(modules())
    assert "manifoldflow.registry" in edges["manifoldflow.checkpoint"]
    assert "manifoldflow" in edges["manifoldflow.tasks.proteins.flow"]  # import manifoldflow as mf


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("manifolds/sphere.py", "from manifoldflow.flow import Flow"),
        ("manifolds/sphere.py", "from ..flow import Flow"),
        ("manifolds/sphere.py", "def f():\n    import manifoldflow.training"),
        ("paths/geodesic.py", "from manifoldflow import coupling"),
        ("paths/geodesic.py", "from manifoldflow import Sphere"),
        ("training/fit.py", "import manifoldflow.tasks.proteins"),
        ("cli.py", "import importlib\nimportlib.import_module('manifoldflow.tasks.proteins')"),
        ("cli.py", "from manifoldflow.training import fit"),
    ],
)
def test_the_check_finds_an_import_that_goes_up(file: str, text: str) -> None:
    assert offences(ROOT / "manifoldflow" / file, text)
