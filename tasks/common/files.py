"""Where data sets lie that are not part of this package; and the one atomic writer, under the name that tasks use."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from manifoldflow.files import atomic, open_text, read_bytes, write_bytes, write_json, write_text

FOLDER_VARIABLE = "MANIFOLDFLOW_DATA"
"""Environment variable that names the folder of the shared data."""

__all__ = [
    "FOLDER_VARIABLE",
    "atomic",
    "find_shared",
    "open_text",
    "read_bytes",
    "safe_name",
    "write_bytes",
    "write_csv",
    "write_json",
    "write_text",
]


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
        folders.append(Path(__file__).resolve().parents[2].parent / "shared" / "data")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{name}: not found in {' or '.join(map(str, folders))}; pass --data-folder FOLDER (the one that holds "
        f"{Path(name).parent}/) or set {FOLDER_VARIABLE}"
    )


def write_csv(path: str | Path, names: Sequence[str], rows: Iterable[Iterable[Any]]) -> Path:
    """A table with a header, complete or not at all."""
    with atomic(path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
    return Path(path)


def safe_name(name: str) -> str:
    """The stem of a name, or of a path, with letters, digits, - and _ only: fit for a folder."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in Path(name).stem)
