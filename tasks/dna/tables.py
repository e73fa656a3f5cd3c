"""Tables of sequences: whatever parts their columns, with a line of names above or without."""

import csv
import io
import re
from collections.abc import Sequence

from manifoldflow.tasks.dna.alphabet import IUPAC
from manifoldflow.tasks.dna.headers import NO_CLASSES, Records

DELIMITERS = "\t,;|"
SEQUENCES = ("sequence", "seq", "dna", "sequences", "dna_sequence", "nucleotide_sequence")
CLASSES = ("label", "class", "tag", "labels", "classes", "cell_type", "celltype")
NAMES = ("id", "name", "seq_id", "sequence_id", "sequence_name", "peak")
"""Names by which columns are found, in this order, in either case."""


def read_table(
    text: str, column: str | None = None, label_column: str | None = None, species: str | None = None
) -> Records:
    """The rows of a table as records.

    Commas, tabs, semicolons, bars or spaces part the columns: those that part all lines into the same number. Without a line of
    names the longest column of letters is that of the sequences, and classes come from ``label_column`` alone, a number
    from 1.

    Args:
        text: the table, one row a line; lines that begin with # are left out, but for a header.
        column, label_column: names (or numbers from 1) of the columns; label_column "none" for no classes.
        species: keep only rows with this value in the column ``species``.

    Raises:
        ValueError: no such column, or a row without a sequence.
        csv.Error: the table is damaged.
    """
    header, rows = _rows(text)
    there = header or [str(i + 1) for i in range(len(rows[0]) if rows else 0)]
    letters = _sequences(there, rows, column, bool(header))
    label = None
    if label_column != NO_CLASSES:
        label = _find(there, label_column, CLASSES)
    if label_column is not None and label is None and label_column != NO_CLASSES:
        raise ValueError(f"no column {label_column!r}; it has {', '.join(there)}")
    name = _find(there, None, NAMES) if header else _key(rows, letters)
    kind = _find(there, "species", ()) if species is not None else None
    if species is not None and kind is None:
        raise ValueError(f"no column 'species'; it has {', '.join(there)}")
    made = Records([], [], [])
    for number, row in enumerate(rows, 2 if header else 1):
        if kind is not None and (row[kind] if kind < len(row) else "") != species:
            continue
        if len(row) <= letters or not row[letters]:
            raise ValueError(f"row {number}: no sequence")
        made.names.append((row[name] if name is not None else "") or str(number - (2 if header else 1)))
        made.sequences.append(row[letters])
        made.labels.append(row[label] if label is not None and label < len(row) else "")
    if species is not None and not made.sequences:
        raise ValueError(f"no rows of species {species!r}")
    given = label_column is not None
    if label is not None and not given and len(made.labels) > 10 and len(set(made.labels)) == len(made.labels):
        made.labels = [""] * len(made.labels)
        made.note = f"no classes: the column {there[label]} differs in every row"
    elif label is not None:
        made.note = f"classes from the column {there[label]}"
    elif len(there) > 1:
        made.note = f"no classes; the columns are {', '.join(there)} (label_column takes one of them)"
    if not header or (column is None and there[letters].lower() not in SEQUENCES):
        made.note = f"sequences from the column {there[letters]}" + (f"; {made.note}" if made.note else "")
    return made


def _rows(text: str) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, empty if the table has none, and the cells below them."""
    lines = text.split("\n")
    while lines and (not lines[0].strip() or lines[0].startswith(("##", "track ", "browser "))):
        lines.pop(0)
    while len(lines) > 1 and lines[0].startswith("#") and lines[1].startswith("#"):
        lines.pop(0)
    if lines and lines[0].startswith("#"):  # a comment, or the header of a BED file
        parted = _delimiter([line for line in lines[1:51] if line.strip()])
        first, second = (line.split(parted) for line in (lines[0].lstrip("# "), "".join(lines[1:2])))
        lines[0] = lines[0].lstrip("# ") if 1 < len(first) == len(second) else ""
    body = "\n".join(line for line in lines if line.strip() and not line.startswith("#"))
    delimiter = _delimiter(body.split("\n", 51)[:50])
    if delimiter is None:
        cells = [line.split() for line in body.split("\n")]
        if len({len(row) for row in cells}) != 1:
            cells = [[line.strip()] for line in body.split("\n")]
    else:
        cells = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(body), delimiter=delimiter)]
    cells = [row for row in cells if row]
    if not cells:
        return [], []
    # Names such as "start" are made of codes, so that only letters tell names from sequences.
    is_named = any(cell.lower() in SEQUENCES for cell in cells[0])
    if is_named or not any(len(cell) >= 4 and set(cell.upper()) <= set("ACGTN") for cell in cells[0]):
        return cells[0], cells[1:]
    return [], cells


def _key(rows: Sequence[Sequence[str]], letters: int) -> int | None:
    """The first column, but for that of the sequences, that differs in every row and is no number."""
    for i in range(min(map(len, rows), default=0)):
        cells = {row[i] for row in rows}
        if i != letters and len(cells) == len(rows) and not all(re.fullmatch(r"[-+.\d]*", cell) for cell in cells):
            return i
    return None


def _delimiter(lines: Sequence[str]) -> str | None:
    """What parts these lines into the same number of cells, as many as possible; None if nothing does.

    Where it is the first line that differs from the others (a comma in a name), the others decide.
    """
    best, most = None, (0.0, 1)
    for sign in DELIMITERS:
        widths = [len(row) for row in csv.reader(lines, delimiter=sign) if row]
        usual = max(set(widths), key=widths.count, default=1)
        share = widths.count(usual) / max(1, len(widths))
        if usual > 1 and share > 0.5 and (share, usual) > most:
            best, most = sign, (share, usual)
    return best


def _is_dna(cell: str) -> bool:
    return bool(cell) and set(cell.upper()) <= set(IUPAC)


def _find(there: Sequence[str], wanted: str | None, usual: Sequence[str]) -> int | None:
    """The number of a column by its name, or its place from 1; else of the first with a usual name."""
    if wanted is not None:
        if wanted in there:
            return list(there).index(wanted)
        lower = [name.lower() for name in there]
        if lower.count(wanted.lower()) == 1:
            return lower.index(wanted.lower())
        if re.fullmatch(r"\d+", wanted) and 1 <= int(wanted) <= len(there):
            return int(wanted) - 1
        return None
    lower = [name.lower() for name in there]
    return next((lower.index(name) for name in usual if name in lower), None)


def _sequences(there: Sequence[str], rows: Sequence[Sequence[str]], wanted: str | None, has_names: bool) -> int:
    """The number of the column of sequences: by its name, or where names say nothing the longest one of letters alone."""
    found = _find(there, wanted, SEQUENCES)
    if found is not None:
        return found
    if wanted is not None:
        raise ValueError(f"no column {wanted!r}; it has {', '.join(there)}")
    some = rows[:200]
    able = [
        (min(len(row[i]) for row in some), i)
        for i in range(len(there))
        if some and all(i < len(row) and _is_dna(row[i]) for row in some)
    ]
    if able and max(able)[0] >= (5 if has_names else 1):
        return max(able)[1]
    raise ValueError(f"no column of sequences ({' or '.join(SEQUENCES[:3])}); it has {', '.join(there)}")
