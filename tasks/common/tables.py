"""Tables that people read: measures with names and units, shares with their intervals, and runs that go on."""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from manifoldflow.files import write_json

Z = 1.959963984540054
"""Of 95 %."""


def wilson(count: float, total: float) -> tuple[float, float]:
    r"""The 95 % interval of a share (Wilson 1927): all p with :math:`|\hat p - p| \le z \sqrt{p (1 - p) / n}`.

    Args:
        count, total: what was counted, of how many; from 0 to 1 for none.
    """
    if total <= 0:
        return 0.0, 1.0
    p, s = count / total, Z * Z / total
    middle, half = p + s / 2, Z * math.sqrt((p * (1 - p) + s / 4) / total)
    return max(0.0, (middle - half) / (1 + s)), min(1.0, (middle + half) / (1 + s))


def share(count: float, total: float) -> str:
    """A share with its 95 % interval and what it was counted of: ``"1.2 % (0.6-2.6; 6 of 500)"``."""
    if total <= 0:
        return "- (none counted)"
    low, high = wilson(count, total)
    digits = 0 if min(count, total - count) >= 100 else 1
    text = f"{100 * count / total:.{digits}f} % ({100 * low:.{digits}f}-{100 * high:.{digits}f}"
    return f"{text}; {count:,.0f} of {total:,.0f})"


def share_within(value: float, total: float) -> str:
    """:func:`share` of a share that was measured over so many."""
    return share(round(value * total), total)


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean and standard deviation, ``"1.24 ± 0.03"``; the value alone where there is one, and ``-`` where none."""
    some = list(values)
    if not some:
        return "-"
    deviation = f" ± {statistics.stdev(some):.{digits}f}" if len(some) > 1 else ""
    return f"{statistics.fmean(some):.{digits}f}{deviation}"


def number(value: Any, digits: int = 4) -> str:
    """A cell: floats by their leading digits, anything else as it is."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def show(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None, notes: Sequence[str] = ()
) -> None:
    """Print a table, numbers to the right, and below it what a reader must know.

    Args:
        columns: headings, with units.
        rows: cells; floats are shown by four digits.
        title: above it.
        notes: below it, a line each.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(number, row))
    console = Console()
    console.print(table)
    for line in notes:
        console.print(line, highlight=False, soft_wrap=True)  # one line each, for grep too


def plural(count: int, one: str, many: str | None = None) -> str:
    """``"1 backbone"``, ``"2 backbones"``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def span(names: Sequence[Any]) -> str:
    """What a list of files is called in one line: the one, or the first and the last."""
    return str(names[0]) if len(names) == 1 else f"{names[0]} ... {names[-1]}"


class Kept:
    """Results of a protocol in a JSON file, one row per finished run: what was stopped goes on with what is missing.

    Args:
        file: read anew before every row is added, so two processes may fill one table; None keeps nothing.
    """

    def __init__(self, file: str | Path | None) -> None:
        self.file = None if file is None else Path(file)
        self._rows: dict[str, Any] = {}

    def rows(self) -> dict[str, Any]:
        """All rows by name."""
        if self.file is not None and self.file.exists():
            try:
                return json.loads(self.file.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise ValueError(f"{self.file}: not a table of results ({error})") from None
        return self._rows

    def __contains__(self, name: str) -> bool:
        return name in self.rows()

    def add(self, name: str, row: Any) -> None:
        """Keep one row; another of the same name is replaced."""
        self._rows = self.rows() | {name: row}
        if self.file is not None:
            write_json(self.file, self._rows)
