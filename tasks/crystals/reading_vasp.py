"""POSCAR files, as VASP 5 writes them."""

import re

import numpy as np

from manifoldflow.tasks.crystals.elements import SYMBOLS, species_number
from manifoldflow.tasks.crystals.structure import Crystal, wrap

MOST_ATOMS = 10_000


def _floats(line: str, count: int, where: str) -> list[float]:
    words = line.lower().replace("d", "e").split()[:count]
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) < count or not np.isfinite(values).all():
        raise ValueError(f"{where}: expected {count} numbers, got {line.strip()[:60]!r}")
    return values


def parse_poscar(text: str, name: str = "") -> Crystal:
    """The crystal of a POSCAR or CONTCAR.

    A negative scale is the volume of the cell, three scales are one per Cartesian axis, ``Selective dynamics`` and its flags
    are read past, and so is what follows the atoms (velocities). Potential names such as ``Ti_sv`` are their element's.

    Files of VASP 4 have no line of elements: they are read where every atom's line ends with its own, as some programs write.

    Raises:
        ValueError: not such a file, cut short, or without elements (VASP 4): which they are is not guessed.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if len(lines) < 7:
        raise ValueError("not a POSCAR: it has fewer than 7 lines")
    scales = _scales(lines[1])
    cell = np.array([_floats(lines[i], 3, f"line {i + 1} (cell vector)") for i in (2, 3, 4)])
    volume = abs(float(np.linalg.det(cell)))
    longest = float(np.linalg.norm(cell, axis=1).prod())
    if not volume > 1e-6 * longest:
        raise ValueError("the cell has no volume: its vectors lie in a plane")
    if len(scales) == 3:
        scale = np.array(scales)
    else:
        scale = np.full(3, scales[0] if scales[0] > 0 else (-scales[0] / volume) ** (1 / 3))
    cell = cell * scale
    symbols = _words(lines[5])
    if not symbols:
        raise ValueError("line 6: expected the element symbols, got nothing")
    if all(re.fullmatch(r"\d+", word) for word in symbols):
        symbols = _behind(lines, [int(word) for word in symbols])
        lines = [*lines[:5], " ".join(symbols), *lines[5:]]
    counts = _words(lines[6])
    if not counts or not all(word.isascii() and word.isdigit() for word in counts) or len(counts) != len(symbols):
        raise ValueError(
            f"line 7: expected {len(symbols)} counts, one for each of {' '.join(symbols)}, got {lines[6]!r}"
        )
    species = []
    for symbol, count in zip(symbols, map(int, counts), strict=True):
        try:
            number = species_number(re.split(r"[_/.]", symbol)[0])
        except ValueError as error:
            raise ValueError(f"line 6: {error}") from None
        if count > MOST_ATOMS:
            raise ValueError(f"line 7: {count:,} atoms, more than {MOST_ATOMS:,}")
        species += [number] * count
    if not 0 < len(species) <= MOST_ATOMS:
        raise ValueError(f"line 7: {len(species):,} atoms, expected 1 to {MOST_ATOMS:,}")
    at = 7
    if lines[at].strip()[:1].lower() == "s":
        at += 1
    kind = (lines[at].strip() if at < len(lines) else "")[:1].lower()
    if not kind or not kind.isalpha():
        raise ValueError(
            f"line {at + 1}: expected 'Direct' or 'Cartesian', got {lines[at][:60] if at < len(lines) else ''!r}"
        )
    at += 1
    rows = []
    for i in range(len(species)):
        if at + i >= len(lines) or not lines[at + i].strip():
            raise ValueError(f"line {at + i + 1}: it ends after {i} of {len(species)} atoms")
        rows.append(_floats(lines[at + i], 3, f"line {at + i + 1} (atom {i + 1})"))
    frac = np.array(rows)
    if kind in "ck":
        frac = (frac * scale) @ np.linalg.inv(cell)
    return Crystal(np.array(species, np.int64), wrap(frac), cell, name)


def _words(line: str) -> list[str]:
    return re.split("[!#]", line)[0].split()


def _behind(lines: list[str], counts: list[int]) -> list[str]:
    """The elements of a file of VASP 4, one for each count, from behind the coordinates."""
    start = 6 + (lines[6].strip()[:1].lower() == "s")
    width = 6 if start == 7 else 3
    rows = [line.split() for line in lines[start + 1 : start + 1 + min(sum(counts), MOST_ATOMS)]]
    symbols: list[str] = []
    at = 0
    for count in counts:
        found = {row[width] if len(row) > width else "" for row in rows[at : at + count]}
        if len(found) != 1 or not found <= _KNOWN:
            raise ValueError(
                "it has no line of elements (VASP 4): line 6 holds the counts already; write the symbols on a line above them"
            )
        symbols += found
        at += count
    return symbols


_KNOWN = {*SYMBOLS, "D", "T"}


def _scales(line: str) -> list[float]:
    words = _words(line)
    try:
        values = [float(word.lower().replace("d", "e")) for word in words[:3]]
    except ValueError:
        values = []
        for word in words[:1]:  # a remark may follow the scale
            try:
                values = [float(word)]
            except ValueError:
                pass
    if len(values) == 2:
        values = values[:1]
    if not values or not np.isfinite(values).all() or 0 in values or (len(values) == 3 and min(values) < 0):
        raise ValueError(
            f"line 2: expected a scale (a negative one is the volume) or three positive ones, got {line.strip()!r}"
        )
    return values
