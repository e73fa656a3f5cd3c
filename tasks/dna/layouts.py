"""Rows of numbers as the matrix of a motif: which way round they lie, and whether they can be what they look like.

Files of motifs differ in whether places or letters are rows, in what leads a row (a letter, the place, a letter of the
consensus) and in what the numbers are. None of it is guessed from one sign: every reading that the rows allow is made, and
what makes no sense (totals that differ from place to place, a consensus that is not there) is refused.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from manifoldflow.tasks.dna.alphabet import IUPAC, LETTERS

AGREE = 0.03
"""Totals of two places agree when they differ by no more than this share: numbers are written with two or three digits."""

FARTHEST = 10.0
"""Totals of counts differ, as sites are cut off at the ends of sequences, but hardly by more than this factor (JASPAR: 4)."""


class Row(NamedTuple):
    """A line of numbers.

    Attributes:
        lead: the letter that leads them, or nothing.
        numbers: as they stand.
        tail: the letter behind them, or nothing.
        is_boxed: whether a bracket or a bar parts the letter from the numbers: then it names the row.
    """

    lead: str
    numbers: list[float]
    tail: str = ""
    is_boxed: bool = False


@dataclass
class Block:
    """One motif as it lies in a file.

    Args:
        identifier, name: from what stands above the numbers.
        order: letters of the columns, where the file names them; is_numbered: with a column of places before them.
        rows: the lines of numbers.
        sites: number of sites that the numbers are shares of, where the file says it.
        consensus: that the file names, or nothing.
    """

    identifier: str = ""
    name: str = ""
    order: str = ""
    is_numbered: bool = False
    rows: list[Row] = field(default_factory=list)
    sites: float | None = None
    consensus: str = ""


def row_of(line: str) -> Row | None:
    """A line of numbers with what leads and follows them; None for any other line."""
    words = re.sub(r"[|\[\],;]", " ", line).split()
    lead = tail = ""
    if words and words[0].rstrip(":=").upper() in IUPAC:
        lead = words.pop(0).rstrip(":=").upper()
    elif words and re.fullmatch(r"[ACGTUacgtu][:=]?[-+.\d]\S*", words[0]):  # the bracket stuck to the letter: A[0
        lead, words[0] = words[0][0].upper(), words[0][1:].lstrip(":=")
    if len(words) > 1 and words[-1].upper() in IUPAC:
        tail = words.pop().upper()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return None
    return Row(lead, numbers, tail, bool(re.search(r"[|\[]", line))) if numbers else None


def columns_of(line: str) -> tuple[str, bool] | None:
    """The letters of the columns where a line names all four and nothing else, and whether a word stands before them."""
    words = re.sub(r"[|\[\],;]", " ", line).upper().replace("U", "T").split()
    for start in (0, 1):
        if len(words) <= 5 + start and sorted(words[start : start + 4]) == sorted(LETTERS):
            return "".join(words[start : start + 4]), start == 1
    return None


def matrix_of(block: Block) -> np.ndarray:
    """Counts or probabilities ``(W, 4)`` of A, C, G, T.

    Raises:
        ValueError: there is no way to read the rows as a motif that makes sense, or two that say different things.
    """
    readings = _readings(block)
    good, faults = [], []
    for how, table, consensus in readings:
        try:
            good.append((how, _checked(table, consensus, strict=len(readings) > 1)))
        except ValueError as error:
            faults.append(f"{error}" if len(readings) == 1 else f"as {how}: {error}")
    if not good:
        raise ValueError("; ".join(faults))
    tables = [table for _, table in good]
    if len(good) > 1 and any(t.shape != tables[0].shape or not np.allclose(t, tables[0]) for t in tables[1:]):
        raise ValueError(
            f"it can be read as {' or '.join(how for how, _ in good)}, and both make sense: name the letters, "
            "as in 'A [ 1 2 3 ]' or in a line 'A C G T' above the columns"
        )
    return tables[0]


def _readings(block: Block) -> list[tuple[str, np.ndarray, str]]:
    """Every way to read the rows: what it is called, ``(W, 4)``, and a consensus that stands beside it."""
    rows = block.rows
    if len(rows) == 5 and not rows[0].lead and sorted(row.lead for row in rows[1:]) in (list("ACGT"), list("ACGU")):
        numbers = rows[0].numbers  # a line that counts the places
        rows = rows[1:] if numbers == [numbers[0] + i for i in range(len(numbers))] else rows
    leads = "".join(row.lead or "-" for row in rows).replace("U", "T")
    tails = "".join(row.tail for row in rows)
    widths = [len(row.numbers) for row in rows]
    if len(set(widths)) != 1:
        if sorted(set(leads)) == sorted(LETTERS) and len(rows) == 4:
            have = ", ".join(f"{c} {n}" for c, n in zip(leads, widths, strict=True))
            raise ValueError(f"it needs rows A, C, G, T of one length; it has {have}")
        usual = max(set(widths), key=widths.count)
        place = next(i for i, n in enumerate(widths) if n != usual)
        few = "fewer" if widths[place] < usual else "more"
        raise ValueError(f"row {place + 1} has {few} numbers than the others: {widths[place]} instead of {usual}")
    table = np.array([row.numbers for row in rows], dtype=float)
    is_led, is_bare = "-" not in leads and not all(row.is_boxed for row in rows), set(leads) == {"-"}
    found = []
    if len(rows) == 4 and not block.order and (is_bare or sorted(leads) == sorted(LETTERS)):
        order = LETTERS if is_bare else leads
        found.append(("four rows of letters", table[[order.index(c) for c in LETTERS]].T, ""))
    index = table[:, 0] - table[0, 0]
    is_counted = bool((index == np.arange(len(rows))).all()) and table[0, 0] in (0, 1)
    order = block.order or LETTERS
    columns = [order.index(c) for c in LETTERS]
    beside = leads if is_led else (tails if len(tails) == len(rows) else "")
    if block.is_numbered and (short := [i for i, n in enumerate(widths) if n < 5]) and not is_led:
        raise ValueError(f"row {short[0] + 1} has fewer than four counts behind the number of its place")
    if widths[0] == 4 and (is_bare or is_led):
        found.append(("four columns of letters", table[:, columns], beside))
    if widths[0] == 5 and is_counted and (is_bare or is_led):
        found.append(("numbered places with four columns of letters", table[:, 1:][:, columns], beside))
    if not found:
        led = f" led by {leads}" if not is_bare else ""
        raise ValueError(
            f"it needs rows A, C, G, T of one length, or four numbers a place; it has {len(rows)} rows of {widths[0]}{led}"
        )
    return found


def _checked(table: np.ndarray, consensus: str, *, strict: bool) -> np.ndarray:
    """The table if its places have totals that make sense and the letters of the consensus; log-odds as probabilities.

    Args:
        table: ``(W, 4)``.
        consensus: a code for every place, or nothing.
        strict: totals must agree, not only be near: for tables that can be read in two ways.
    """
    if not np.isfinite(table).all():
        raise ValueError("it holds numbers that are not finite")
    if (table < 0).any():
        table = _from_log_odds(table)
    total = table.sum(1)
    usual = float(np.median(total))
    if (total <= 0).any():
        raise ValueError(f"every place needs four counts, not all of them 0; place {int(total.argmin()) + 1} has none")
    if table.max() <= 1 and not (table == table.round()).all():
        off = np.abs(total - 1)
        if off.max() > AGREE + 0.02:
            place = int(off.argmax())
            raise ValueError(
                f"the probabilities of place {place + 1} sum to {total[place]:.3g}, not to 1: "
                "neither counts nor probabilities of four letters"
            )
    elif max(total.max() / usual, usual / total.min()) > FARTHEST:
        place = int(np.abs(np.log(total / usual)).argmax())
        raise ValueError(f"place {place + 1} counts {total[place]:g} sites where others count {usual:g}")
    elif strict and (np.abs(total / usual - 1) <= AGREE).mean() < 0.7:
        raise ValueError(f"the places count from {total.min():g} to {total.max():g} sites")
    if wrong := disagreements(table, consensus):
        raise ValueError(f"its consensus says {wrong[0]}")
    return table


def _from_log_odds(table: np.ndarray) -> np.ndarray:
    """Probabilities from scores log(p / 0.25), where the places sum to 1 for one of the usual bases."""
    for base in (2.0, np.e, 10.0):
        table_p = 0.25 * base**table
        if (np.abs(table_p.sum(1) - 1) <= AGREE + 0.02).all():
            return table_p
    raise ValueError(
        "it holds numbers below 0, and they are no log-odds against letters of 1/4 each (their probabilities do not sum to 1): "
        "give counts or probabilities"
    )


def disagreements(table: np.ndarray, consensus: str) -> list[str]:
    """What a consensus says that the numbers do not; nothing while it is right nearly everywhere (rules differ)."""
    if len(consensus) != len(table):
        return []
    found = []
    for place, (code, row) in enumerate(zip(consensus, table, strict=True)):
        best = {LETTERS[i] for i in np.flatnonzero(row >= row.max() * 0.99)}
        if not best & set(IUPAC[code.upper()]):
            found.append(f"{code} at place {place + 1}, the numbers {'/'.join(sorted(best))}")
    return found if len(found) > len(table) / 4 else []
