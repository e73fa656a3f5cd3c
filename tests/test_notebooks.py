"""The notebooks run from top to bottom on a fresh folder, and hold what they print."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))

pytest.importorskip("matplotlib")


def runner() -> Any:
    spec = importlib.util.spec_from_file_location("run_notebooks", DOCS / "run_notebooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_task_has_a_notebook() -> None:
    from manifoldflow.registry import OURS, find_tasks

    ours = {name for name, entry in find_tasks().items() if entry.module.startswith(OURS)}
    assert ours <= {path.stem for path in NOTEBOOKS}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_holds_its_outputs(path: Path) -> None:
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert (kept["nbformat"], kept["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in kept["cells"]}) == len(kept["cells"])
    made = runner().execute(json.loads(path.read_text(encoding="utf-8")))
    for before, after in zip(kept["cells"], made["cells"], strict=True):
        if after["cell_type"] == "code":
            kinds = [[output["output_type"] for output in cell["outputs"]] for cell in (before, after)]
            assert kinds[0] == kinds[1], "outputs are missing: python docs/run_notebooks.py"


def test_a_notebook_becomes_a_page_and_a_broken_cell_is_named() -> None:
    def notebook(*cells: str) -> dict[str, Any]:
        return {"cells": [{"cell_type": "code", "source": cell, "outputs": []} for cell in cells]}

    made = runner().execute(notebook("x = 2\nprint('hello')", "x + 1"))
    page = runner().to_markdown(made)
    assert (
        page
        == "```python\nx = 2\nprint('hello')\n```\n\n```text\nhello\n```\n\n```python\nx + 1\n```\n\n```text\n3\n```\n"
    )
    with pytest.raises(RuntimeError, match="cell 1: ZeroDivisionError"):
        runner().execute(notebook("x = 0", "1 / x"))
