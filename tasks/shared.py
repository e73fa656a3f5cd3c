"""What the tasks have in common: where data sets lie that are not part of this package, and results as JSON."""

import json
import os
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "MANIFOLDFLOW_DATA"
"""Environment variable that names the folder of the shared data."""


def find_shared(name: str, data_folder: str | Path | None = None) -> Path:
    """Where a file of the shared data lies: in ``data_folder``, else below $MANIFOLDFLOW_DATA, else beside the checkout.

    Raises:
        FileNotFoundError: in none of them.
    """
    if data_folder is not None:
        folders = [Path(data_folder)]
    else:
        told = os.environ.get(FOLDER_VARIABLE)
        folders = [Path(told)] if told else []
        folders.append(Path(__file__).resolve().parents[1].parent / "shared" / "data")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{name}: not found in {' or '.join(map(str, folders))}; pass --data-folder FOLDER (the one that holds "
        f"{Path(name).parent}/) or set {FOLDER_VARIABLE}"
    )


def write_json(path: Path, content: Any) -> None:
    """JSON, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(fresh, path)
