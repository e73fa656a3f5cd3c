"""What importing the sequence task costs, and which of its rooms see which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "tasks" / "dna"
MODULES = sorted(ROOT.glob("*.py"))
HEAVY = ("lightning", "matplotlib", "Bio", "fastapi", "pydantic", "uvicorn", "rich", "jsonargparse")


def test_importing_the_task_is_quick_and_brings_nothing_heavy():
    code = (
        "import sys, time; start = time.process_time(); import manifoldflow.tasks.dna as dna; "
        "dna.SequenceDesigner, dna.load_set, dna.read_motifs; "
        f"print(time.process_time() - start, *sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *heavy = done.stdout.split()
    assert heavy == [] and float(seconds) < 2.5


def test_the_commands_are_there_when_they_are_asked_for():
    from manifoldflow.tasks import dna
    from manifoldflow.tasks.dna import commands

    assert dna.COMMANDS is commands.COMMANDS and dna.train is commands.train
    assert {name for name in dna.__all__ if not hasattr(dna, name)} == set()
    assert not hasattr(dna, "no_such_name")


def imports_of(path: Path) -> set[str]:
    """Modules of this folder that a file imports, lazily imported ones too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("manifoldflow.tasks.dna."):
            found.add((node.module or "").split(".")[3])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_no_room_is_reached_from_those_below_it(path):
    """No circle: from what a module imports no way leads back to it."""
    if path.stem == "__init__":
        return
    graph = {p.stem: imports_of(p) for p in MODULES} | {"serving": set()}
    seen: set[str] = set()
    todo = set(graph[path.stem])
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= graph.get(name, set()) - seen
    assert path.stem not in seen
    if path.stem not in ("commands", "protocol", "oracle_study"):
        assert "commands" not in seen
