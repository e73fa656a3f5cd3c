"""Crystals from files: CIF, POSCAR, extended XYZ, tables with a column of CIFs, folders of them; packed with gzip or not.

What cannot be read, or is no ordered crystal, is a :class:`Rejected` with its place and the reason, and reading goes on.
"""

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from manifoldflow.files import open_bytes, read_bytes
from manifoldflow.tasks.crystals.reading_cif import crystal_of, has_atoms, parse_cif
from manifoldflow.tasks.crystals.reading_vasp import parse_poscar
from manifoldflow.tasks.crystals.reading_xyz import parse_extxyz
from manifoldflow.tasks.crystals.structure import Crystal

CLOSEST = 0.5
"""Angstrom: atoms nearer than this overlap, and the crystal is rejected."""
LIMIT = 2**28
"""Bytes of one file of structures, unpacked; tables are read row by row and may be larger."""
MOST_BYTES_A_CELL = 2**24
"""Bytes of one cell of a table."""
NAME_COLUMNS = ("material_id", "id", "name", "mp_id", "mpid", "task_id", "structure_id")
CIF_COLUMNS = ("cif", "structure", "cif_string", "relaxed_cif")
_SAME = {".vasp": ".poscar", ".contcar": ".poscar", ".mcif": ".cif", ".tsv": ".csv"}
SUFFIXES = (".cif", ".mcif", ".vasp", ".poscar", ".contcar", ".extxyz", ".xyz", ".csv", ".tsv")


@dataclass(frozen=True)
class Rejected:
    """What was not read.

    Args:
        source: file.
        row: of a table, from 1; empty otherwise.
        name: of the structure, where it has one.
        reason: in words.
    """

    source: str
    row: str
    name: str
    reason: str

    def __str__(self) -> str:
        where = f", row {self.row}" if self.row else ""
        return f"{self.source}{where}{f' ({self.name})' if self.name else ''}: {self.reason}"


def split_suffix(path: Path) -> tuple[str, str]:
    """Stem and ending without ``.gz``: ``("a", ".cif")`` of ``a.cif.gz``; POSCAR and CONTCAR files are ``.poscar``."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    stem, suffix = Path(name).stem, Path(name).suffix.lower()
    if suffix in SUFFIXES:
        return stem, _SAME.get(suffix, suffix)
    if re.search(r"(^|[._-])(POSCAR|CONTCAR)", name.upper()):
        return name, ".poscar"
    return stem, suffix


def structure_files(inputs: Iterable[str | Path]) -> list[Path]:
    """Every readable file of files and folders (searched recursively), each once, in a fixed order.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: no input, or a folder without such files.
    """
    files: dict[Path, None] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith(".")]
            inside = [
                p for p in inside if split_suffix(p)[1] in SUFFIXES and (split_suffix(p)[1] != ".csv" or _has_cifs(p))
            ]
            if not inside:
                raise ValueError(
                    f"{path}: no structure files inside; expected {', '.join(SUFFIXES)} (or .gz) or POSCAR"
                )
            files.update(dict.fromkeys(inside))
        elif path.exists():
            files[path] = None
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    if not files:
        raise ValueError("no inputs; name at least one file or folder")
    return list(files)


def _has_cifs(path: Path) -> bool:
    """Whether a table in a folder has a column of structures; a list of results beside them has none."""
    try:
        with _open_table(path) as file:
            return _column(_header(file, None)[0], None, CIF_COLUMNS) is not None
    except (ValueError, OSError, csv.Error):
        return True  # read, and then rejected with the reason


def _open_table(path: Path) -> IO[str]:
    """A table as text, read row by row: UTF-8 or UTF-16 by its mark; a byte that is not UTF-8 is kept aside (:func:`_mended`)."""
    raw = open_bytes(path)
    mark = raw.peek(2)[:2]  # type: ignore[attr-defined]
    encoding = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return io.TextIOWrapper(raw, encoding=encoding, errors="surrogateescape", newline="")


def _mended(text: str) -> str:
    """A cell that is not UTF-8 read as Latin-1."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    return text


def _header(file: IO[str], column: str | None) -> tuple[list[str], Iterator[list[str]]]:
    """The names of a table's columns, and the rows to come. Columns are parted by commas, semicolons or tabs: by what makes one
    of them the column of CIFs, else by what is met most often."""
    line = next((line for line in file if line.strip() and not line.startswith("#")), "")
    best = max(",;\t", key=line.count)
    for separator in (best, ",", ";", "\t"):
        names = next(csv.reader([line], delimiter=separator), [])
        if _column(names, column, CIF_COLUMNS) is not None:
            best = separator
            break
    return [_mended(name) for name in next(csv.reader([line], delimiter=best), [])], csv.reader(file, delimiter=best)


def read_crystals(
    path: str | Path, *, column: str | None = None, name: str | None = None, closest: float = CLOSEST
) -> Iterator[Crystal | Rejected]:
    """The crystals of one file, in the file's own cells, and what of it is none.

    Args:
        path: CIF (every data block with atoms), POSCAR, extended XYZ (every frame) or CSV, also packed with gzip.
        column: of a table: the column that holds CIFs; found by its usual names if absent.
        name: of a table: the column of names; found by its usual names if absent, else rows are numbered from 1.
        closest: angstrom; atoms nearer than this are rejected.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a table without the column.
    """
    path = Path(path)
    stem, suffix = split_suffix(path)
    if suffix == ".csv":
        yield from _read_table(path, column, name, closest)
        return
    try:
        items = list(_parsed(decode(read_bytes(path, LIMIT)), stem, suffix))
    except FileNotFoundError:
        raise
    except Exception as error:  # one odd file must not end a run over many
        yield Rejected(str(path), "", "", _reason(error, path))
        return
    for item in items:
        if isinstance(item, Crystal):
            fault = fault_of(item, closest)
            yield Rejected(str(path), "", item.name, fault) if fault else item
        else:
            yield Rejected(str(path), "", "", _reason(item, path))


def decode(content: bytes) -> str:
    """Text of a file: UTF-8, with or without a mark in front, or Latin-1 where it is not.

    Raises:
        ValueError: bytes of zero, so it is no text.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    if b"\0" in content:
        raise ValueError("not a text file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _parsed(text: str, stem: str, suffix: str) -> Iterator[Crystal | Exception]:
    if not text.strip():
        raise ValueError("the file is empty")
    if suffix == ".poscar":
        yield parse_poscar(text, stem)
    elif suffix in (".xyz", ".extxyz"):
        yield from parse_extxyz(text, stem)
    elif suffix == ".cif" or _looks_like_cif(text):
        yield from cif_crystals(text, stem)
    else:
        raise ValueError(f"its format is not known; expected {', '.join(SUFFIXES)} (or .gz) or POSCAR")


def _looks_like_cif(text: str) -> bool:
    return any(line.lower().startswith(("data_", "_cell_length_a")) for line in text.split("\n")[:200])


def cif_crystals(text: str, stem: str, labels: dict[str, Any] | None = None) -> Iterator[Crystal | Exception]:
    """The crystals of all data blocks that list atoms; for a block that is none, why.

    Raises:
        ValueError: not a CIF file, or no block of it lists atoms.
    """
    blocks = parse_cif(text)
    able = [block for block in blocks if has_atoms(block)]
    if not able:
        raise ValueError("no data block lists atoms (_atom_site_fract_x)")
    for i, block in enumerate(able):
        name = stem if len(able) == 1 else f"{stem}:{block.name or i}"
        try:
            yield crystal_of(block, name, labels)
        except ValueError as error:
            yield error if len(able) == 1 else ValueError(f"block {block.name or i}: {error}")


def fault_of(crystal: Crystal, closest: float = CLOSEST) -> str:
    """Why a crystal cannot be used (atoms that overlap, an impossible cell); empty if it can."""
    if not (np.isfinite(crystal.frac).all() and np.isfinite(crystal.cell).all()):
        return "a coordinate or the cell is not finite"
    volume = abs(float(np.linalg.det(crystal.cell)))
    if not volume > 1e-6 * float(np.linalg.norm(crystal.cell, axis=1).prod()):
        return "the cell has no volume"
    if volume / len(crystal) > 1e6:
        return f"the cell has {volume / len(crystal):,.0f} cubic angstrom an atom"
    try:
        distance, i, j = closest_pair(crystal)
    except ValueError as error:
        return str(error)
    if distance < closest:
        a, b = (f"{symbol} {number + 1}" for symbol, number in zip(_names(crystal, i, j), (i, j), strict=True))
        return f"atoms overlap: {a} and {b} are {distance:.2f} A apart"
    return ""


def _names(crystal: Crystal, *rows: int) -> list[str]:
    from manifoldflow.tasks.crystals.elements import symbols_of

    return symbols_of(crystal.species[list(rows)])


_SHIFTS = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=3)))


def closest_pair(crystal: Crystal) -> tuple[float, int, int]:
    """The shortest distance between atoms, images among them, and the two atoms."""
    c = crystal.reduced()  # where the nearest image is at most one cell away
    best = (float(np.sqrt(c.metric.diagonal().min())), 0, 0)
    for start in range(0, len(c), 50):  # a bounded memory for large cells
        between = c.frac[start : start + 50, None] - c.frac
        between -= np.rint(between)
        square = (((between[..., None, :] + _SHIFTS) @ c.cell) ** 2).sum(-1).min(-1)
        rows = np.arange(len(square))
        square[rows, start + rows] = np.inf
        i, j = np.unravel_index(int(square.argmin()), square.shape)
        if square[i, j] < best[0] ** 2:
            best = (float(np.sqrt(square[i, j])), int(min(start + i, j)), int(max(start + i, j)))
    return best


def _reason(error: Exception, path: Path) -> str:
    text = " ".join(str(error).split()).removeprefix(f"{path}: ")
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def _column(names: list[str], given: str | None, usual: tuple[str, ...]) -> str | None:
    if given is not None:
        return given if given in names else None
    lower = {name.strip().lower(): name for name in names}
    return next((lower[word] for word in usual if word in lower), None)


def _label(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row of a table, None at its end. The most that a cell may hold is one number for the whole process, which other
    readers rely on: it is put back."""
    before = csv.field_size_limit(MOST_BYTES_A_CELL)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def _read_table(path: Path, column: str | None, name: str | None, closest: float) -> Iterator[Crystal | Rejected]:
    with _open_table(path) as file:
        try:
            header, reader = _header(file, column)
        except (csv.Error, UnicodeError) as error:
            raise ValueError(f"{path}: not a CSV table ({error})") from None
        if not header:
            raise ValueError(f"{path}: the table is empty; it needs a first line with the names of its columns")
        key = _column(header, column, CIF_COLUMNS)
        if key is None:
            wanted = (
                f"no column {column!r}"
                if column is not None
                else "no column of CIFs (expected 'cif'; name it with --column)"
            )
            raise ValueError(f"{path}: {wanted}; the columns are {', '.join(map(repr, header[:20]))}")
        named = _column(header, name, NAME_COLUMNS)
        if name is not None and named is None:
            raise ValueError(f"{path}: no column {name!r}; the columns are {', '.join(map(repr, header[:20]))}")
        at = header.index(key)
        where = header.index(named) if named is not None else None
        row = 0
        while True:
            row += 1
            try:
                cells = _row(reader)
            except (csv.Error, ValueError) as error:
                yield Rejected(str(path), str(row), "", _reason(ValueError(str(error)), path))
                if isinstance(error, csv.Error):
                    continue
                return  # packed data that are damaged cannot be followed
            if cells is None:
                return
            if not "".join(cells).strip():
                row -= 1
                continue
            cells = [_mended(cell) for cell in cells]
            label = cells[where].strip() if where is not None and where < len(cells) else ""
            if at >= len(cells):
                yield Rejected(str(path), str(row), label, f"{len(cells)} cells, expected {len(header)}")
                continue
            others = {
                n: _label(v) for i, (n, v) in enumerate(zip(header, cells, strict=False)) if n and i not in (at, where)
            }
            try:
                found = list(cif_crystals(cells[at], label or f"row-{row}", others))
            except Exception as error:
                yield Rejected(str(path), str(row), label, _reason(error, path))
                continue
            for item in found:
                fault = fault_of(item, closest) if isinstance(item, Crystal) else _reason(item, path)
                if fault:
                    yield Rejected(str(path), str(row), label, fault)
                else:
                    assert isinstance(item, Crystal)
                    yield item


def load_crystals(
    inputs: str | Path | Iterable[str | Path],
    *,
    column: str | None = None,
    name: str | None = None,
    closest: float = CLOSEST,
    reduce: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Crystal], list[Rejected]]:
    """All crystals of files and folders, Niggli-reduced, with names that differ, and what was rejected.

    Args:
        inputs: files or folders.
        column, name, closest: see :func:`read_crystals`.
        reduce: to the Niggli cell in standard orientation; otherwise cells stay as the files have them.
        progress: called with the number of files read.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: a table has no column of CIFs.
    """
    files = structure_files([inputs] if isinstance(inputs, (str, Path)) else inputs)
    crystals: list[Crystal] = []
    rejected: list[Rejected] = []
    for i, path in enumerate(files):
        for item in read_crystals(path, column=column, name=name, closest=closest):
            if isinstance(item, Rejected):
                rejected.append(item)
                continue
            try:
                crystals.append(item.reduced() if reduce else item)
            except ValueError as error:
                rejected.append(Rejected(str(path), "", item.name, str(error)))
        if progress is not None:
            progress(i + 1)
    return with_names(crystals), rejected


def with_names(crystals: list[Crystal]) -> list[Crystal]:
    """The same crystals; a name that occurred before gets a number behind it."""
    seen: dict[str, int] = {}
    taken = {crystal.name for crystal in crystals}
    result = []
    for crystal in crystals:
        name = crystal.name
        if name in seen:
            while name in seen or (name in taken and name != crystal.name):
                seen[crystal.name] += 1
                name = f"{crystal.name}-{seen[crystal.name]}"
        seen.setdefault(name, 1)
        result.append(crystal if name == crystal.name else replace(crystal, name=name))
    return result


def read_crystal(path: str | Path) -> Crystal:
    """The first crystal of a file, in the file's own cell.

    Raises:
        ValueError: the file holds none; says why.
    """
    first: Rejected | None = None
    for item in read_crystals(path):
        if isinstance(item, Crystal):
            return item
        first = first or item
    raise ValueError(str(first) if first is not None else f"{path}: it holds no crystal")


def parse_crystal(text: str, format: str = "cif", name: str = "") -> Crystal:
    """The first crystal of a text.

    Args:
        text: what the file would hold.
        format: ``"cif"``, ``"poscar"`` or ``"extxyz"``.
        name: of the crystal.

    Raises:
        ValueError: it holds none; says why.
    """
    for item in _parsed(text, name, f".{format}"):
        if isinstance(item, Exception):
            raise item
        if fault := fault_of(item):
            raise ValueError(fault)
        return item
    raise ValueError("it holds no crystal")
