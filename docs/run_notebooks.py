"""Run the notebooks of ``docs/notebooks`` from top to bottom and keep in them what they print and draw.

    python docs/run_notebooks.py             # all of them
    python docs/run_notebooks.py densities   # one

No Jupyter is needed: a notebook here is plain Python. The tests run the same cells (``tests/test_notebooks.py``).
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "notebooks"


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
    """Run the code cells in order, in one namespace and in an empty folder; their outputs are put in.

    Raises:
        RuntimeError: a cell fails; says which.
    """
    namespace: dict[str, Any] = {"__name__": "notebook"}
    count = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number, cell in enumerate(notebook["cells"]):
            if cell["cell_type"] != "code":
                continue
            count += 1
            try:
                cell["outputs"], cell["execution_count"] = _run("".join(cell["source"]), namespace, count), count
            except Exception as error:
                raise RuntimeError(f"cell {number}: {type(error).__name__}: {error}") from error
    return notebook


def _run(source: str, namespace: dict[str, Any], count: int) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(tree, "<cell>", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        data: dict[str, Any] = {"text/plain": _lines(repr(value))}
        if hasattr(value, "savefig"):
            picture = io.BytesIO()
            value.savefig(picture, format="png", dpi=70, facecolor="white")
            data = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": ["<Figure>"]}
        outputs.append({"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data})
    return outputs


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def to_markdown(notebook: dict[str, Any]) -> str:
    """A notebook as a page: text, code, and what the code printed and drew."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f'<img alt="output" src="data:image/png;base64,{data["image/png"]}">')
            elif text := "".join(output.get("text", data.get("text/plain", []))).rstrip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Command line."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from manifoldflow.files import write_text

    for path in sorted(FOLDER.glob("*.ipynb")):
        if len(sys.argv) < 2 or path.stem in sys.argv[1:]:
            made = execute(json.loads(path.read_text(encoding="utf-8")))
            write_text(path, json.dumps(made, indent=1, ensure_ascii=False) + "\n")
            print(f"ran {path}", flush=True)


if __name__ == "__main__":
    main()
