"""Tables of numbers from CSV, TSV, text and NPZ files, with errors that name the line."""

import csv
import difflib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manifoldflow.files import open_npz, open_text

SUFFIXES = (".csv", ".tsv", ".txt", ".npz")


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of a file.

    Attributes:
        path: the file.
        names: of the columns.
        columns: one array per column, of strings or of numbers.
        lines: where each row stands in the file.
        word: what those numbers count, ``"line"`` of a text file or ``"row"`` of an array.
    """

    path: Path
    names: list[str]
    columns: list[np.ndarray]
    lines: np.ndarray
    word: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def numeric(self) -> list[str]:
        """Names of the columns whose first cell is a number."""
        return [n for n, c in zip(self.names, self.columns, strict=True) if len(c) and _is_number(c[0])]

    def index(self, name: str) -> int:
        """Where the column is, by name (upper or lower case) or by number from 1."""
        lower = [n.lower() for n in self.names]
        if name.lower() in lower:
            return lower.index(name.lower())
        if name.isdigit() and 1 <= int(name) <= len(self.names):
            return int(name) - 1
        close = difflib.get_close_matches(name.lower(), lower, n=1)
        hint = f" (did you mean {self.names[lower.index(close[0])]!r}?)" if close else ""
        raise ValueError(f"{self.path} has no column {name!r}{hint}; its columns are {', '.join(self.names)}")

    def text(self, name: str) -> np.ndarray:
        """A column as strings."""
        return self.columns[self.index(name)].astype(str)

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Columns as float64 ``(rows, len(names))``; an empty cell is NaN.

        Raises:
            ValueError: a column is missing, or a cell is no number.
        """
        return np.stack([self._number_column(self.index(n)) for n in names], -1)

    def _number_column(self, i: int) -> np.ndarray:
        column = self.columns[i]
        if column.dtype.kind in "fiub":
            return column.astype(np.float64)
        cells = np.where(np.char.strip(column) == "", "nan", column)
        try:
            return cells.astype(np.float64)
        except ValueError:
            row = next(r for r, cell in enumerate(cells) if not _is_number(cell))
            raise ValueError(
                f"{self.path}, {self.word} {self.lines[row]}: {self.names[i]} is {str(column[row])!r}, expected a number"
            ) from None


def read_table(path: str | Path, keys: Sequence[str] = ()) -> Table:
    """Read ``.csv``, ``.tsv``, ``.txt`` (each also ``.gz``) or ``.npz``.

    Text: lines that start with ``#`` are comments; the cells are parted by tab, comma, semicolon or spaces, whichever the
    first line has; a first line without numbers names the columns, otherwise they are called 1, 2, 3 ...

    Args:
        path: the file.
        keys: of an NPZ file that holds several arrays: one table, or vectors of one length that become columns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, damaged, or not of these kinds.
    """
    path = Path(path)
    if not path.is_file():
        there = "is a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(
            f"{path}: {there}; --data takes a file ({', '.join(SUFFIXES)}, also .gz) or a set's name"
        )
    name = path.name.lower().removesuffix(".gz")
    if not name.endswith(SUFFIXES):
        raise ValueError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)} (text also with .gz)")
    return _read_npz(path, keys) if name.endswith(".npz") else _read_text(path)


def _read_text(path: Path) -> Table:
    try:
        with open_text(path) as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read as text ({error}); is it another format, or cut off?") from None
    kept = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip() and line.lstrip()[0] != "#"]
    if not kept:
        raise ValueError(f"{path}: holds no data, only {'comments' if text.strip() else 'nothing'}")
    first = kept[0][1]
    mark = next((m for m in ("\t", ",", ";") if m in first), None)
    if mark is None:
        rows = [line.split() for _, line in kept]
    else:
        rows = [[cell.strip() for cell in row] for row in csv.reader((line for _, line in kept), delimiter=mark)]
    lines = [i for i, _ in kept]
    has_header = not any(_is_number(cell) for cell in rows[0])
    names = rows.pop(0) if has_header else [str(i + 1) for i in range(len(rows[0]))]
    lines = lines[1:] if has_header else lines
    if not rows:
        raise ValueError(f"{path}: has a line of column names ({', '.join(names)}) and no rows below it")
    width = len(names)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            raise ValueError(f"{path}, line {line}: {len(row)} cells, expected {width} as in the first line")
    return Table(path, names, [np.array(column) for column in zip(*rows, strict=True)], np.array(lines))


def _read_npz(path: Path, keys: Sequence[str]) -> Table:
    try:
        with open_npz(path) as file:
            arrays = {name: file[name] for name in file.files if not keys or name.removesuffix("_chain") in keys}
            every = file.files
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(
            f"{path}: cannot be read as NPZ without pickles, it is damaged or cut off ({reason})"
        ) from None
    numeric = {n: a for n, a in arrays.items() if a.dtype.kind in "fiu" and a.ndim}
    if missing := [k for k in keys if k not in numeric]:
        close = difflib.get_close_matches(missing[0], every, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"{path} has no array of numbers {missing[0]!r}{hint}; its arrays are {', '.join(every) or 'none'}"
        )
    chosen = {k: numeric[k] for k in keys} or numeric
    lengths = {len(a) for a in chosen.values()}
    tables = [n for n, a in chosen.items() if a.ndim > 1]
    if not chosen or len(lengths) > 1 or (tables and len(chosen) > 1):
        raise ValueError(f"{path}: which array? name one with --columns; its arrays are {', '.join(every) or 'none'}")
    if lengths == {0}:
        raise ValueError(f"{path}: {', '.join(chosen)} has no rows")
    names, columns = list(chosen), [a.astype(np.float64) for a in chosen.values()]
    if tables:
        flat = columns[0].reshape(len(columns[0]), -1)
        names, columns = [str(i + 1) for i in range(flat.shape[1])], list(flat.T)
    labels = arrays.get(f"{tables[0] if tables else next(iter(chosen))}_chain")
    if labels is not None and labels.dtype.kind not in "fiu":
        names, columns = [*names, "chain"], [*columns, labels]
    return Table(path, names, columns, np.arange(len(columns[0])), "row")


def _is_number(cell: object) -> bool:
    try:
        float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
