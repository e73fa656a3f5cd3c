"""Imports go one way, so that each layer can be read, tested and replaced without those above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each part may import besides itself. A part that is not named here fails, so that a new one finds its layer first.
ALLOWED: dict[str, set[str]] = {}


def _layer(*parts: str, sees: str = "") -> None:
    """Parts of one layer: they see what ``sees`` names and what that sees, never each other."""
    below = {name for part in sees.split() for name in (part, *ALLOWED[part])}
    ALLOWED.update({part: set(below) for part in parts})


_layer("numerics")
_layer("state", "segment", sees="numerics")
_layer("manifolds", "discrete", sees="state segment")
_layer("distributions", sees="manifolds discrete")
_layer("paths", "coupling", sees="distributions")
_layer("metrics", sees="manifolds discrete")
_layer("nn", sees="manifolds discrete")
_layer("sampling", sees="paths coupling")
_layer("flow", "gflownet", sees="sampling nn")
_layer("guidance", sees="flow gflownet")
_layer("checkpoint", sees="flow gflownet")
_layer("reflow", sees="flow gflownet")
_layer("curves")
_layer("training", sees="checkpoint curves")
_layer("testing", sees="flow gflownet")
_layer("cli")  # tasks come through entry points; nothing else is needed, so the help is quick
_layer("__init__", sees="training testing guidance")  # the flat public names

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
            if part != "__init__" and target != "__version__":
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
        allowed = (own, "shared")  # the one module that tasks have in common
        assert not name.startswith("tasks"), f"{path.name}:{line} imports {name}; the name is manifoldflow.tasks"
        assert not name.startswith("manifoldflow.tasks.") or name.split(".")[2] in allowed, (
            f"{path.name}:{line}: {name}"
        )


def test_command_line_module_itself_imports_only_the_standard_library_at_the_top() -> None:
    import sys

    tree = ast.parse((ROOT / "manifoldflow" / "cli.py").read_text())
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert names and all(name.split(".")[0] in sys.stdlib_module_names for name in names), names


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("manifolds/sphere.py", "from manifoldflow.flow import Flow"),
        ("manifolds/sphere.py", "from ..flow import Flow"),
        ("manifolds/sphere.py", "def f():\n    import manifoldflow.training"),
        ("paths/geodesic.py", "from manifoldflow import coupling"),
        ("paths/geodesic.py", "from manifoldflow import Sphere"),
        ("training.py", "import manifoldflow.tasks.proteins"),
        ("cli.py", "import importlib\nimportlib.import_module('manifoldflow.tasks.proteins')"),
        ("cli.py", "from manifoldflow.training import fit"),
    ],
)
def test_the_check_finds_an_import_that_goes_up(file: str, text: str) -> None:
    assert offences(ROOT / "manifoldflow" / file, text)
