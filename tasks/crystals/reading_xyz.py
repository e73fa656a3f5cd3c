"""Extended XYZ files: frames of atoms with a lattice, arrays and key=value pairs."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from manifoldflow.tasks.crystals.elements import ELEMENTS, species_number
from manifoldflow.tasks.crystals.structure import Crystal, wrap

MOST_ATOMS = 10_000
_PAIR = re.compile(r"""([^\s=]+)\s*=\s*("(?:[^"\\]|\\.)*"|'[^']*'|\{[^}]*\}|\[[^=]*\]|\S+)""")


def parse_extxyz(text: str, name: str = "") -> Iterator[Crystal | ValueError]:
    """The crystals of the frames of an extended XYZ file; for a frame that holds none, why.

    A Lattice means periodic unless ``pbc`` says otherwise. Atoms' positions are Cartesian, in the columns that ``Properties``
    names; other arrays are read past, and single numbers beside the lattice (an energy) are labels.

    Yields:
        One item a frame. After a line that is no count of atoms the file cannot be followed, and that error is the last.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        yield ValueError("the file is empty")
        return
    at, frame = 0, 0
    starts: list[int] = []
    found: list[Crystal | ValueError] = []
    while at < len(lines):
        word = lines[at].strip()
        if not word:
            at += 1
            continue
        if word == "0":
            found.append(ValueError(f"line {at + 1}: a frame without atoms"))
            at += 2
            continue
        if not (word.isascii() and word.isdigit()) or int(word) < 1:
            found.append(ValueError(f"line {at + 1}: expected the number of atoms of a frame, got {word[:60]!r}"))
            break
        count = int(word)
        if at + 2 + count > len(lines):
            found.append(ValueError(f"line {at + 1}: it ends after {max(0, len(lines) - at - 2)} of {count:,} atoms"))
            break
        starts.append(at)
        try:
            found.append(_frame(lines[at + 1], lines[at + 2 : at + 2 + count], at + 3))
        except ValueError as error:
            found.append(error)
        at, frame = at + 2 + count, frame + 1
    for i, item in enumerate(found):
        if isinstance(item, Crystal):
            yield Crystal(item.species, item.frac, item.cell, name if len(found) == 1 else f"{name}:{i}", item.labels)
        else:
            yield ValueError(f"frame {i}: {item}" if len(found) > 1 else str(item))


def _unquoted(text: str) -> str:
    return text.strip("\"'{}[]").replace(",", " ").strip()


def _frame(comment: str, lines: list[str], first: int) -> Crystal:
    pairs = {key.lower(): value for key, value in _PAIR.findall(comment)}
    if "lattice" not in pairs:
        raise ValueError(f'line {first - 1}: no Lattice="...", so this is a molecule and no crystal')
    words = re.sub(r"[\[\]]", " ", _unquoted(pairs["lattice"])).split()
    try:
        cell = np.array([_float(word) for word in words]).reshape(3, 3)
    except ValueError:
        raise ValueError(f"line {first - 1}: Lattice holds {len(words)} words, expected 9 numbers") from None
    if "pbc" in pairs:
        flags = _unquoted(pairs["pbc"]).split()
        if not all(flag.lower() in ("t", "true", "1") for flag in flags):
            raise ValueError(f"line {first - 1}: not periodic in all directions (pbc={' '.join(flags)})")
    longest = float(np.linalg.norm(cell, axis=1).prod())
    if not (np.isfinite(cell).all() and abs(float(np.linalg.det(cell))) > 1e-6 * longest):
        raise ValueError("the cell has no volume: its vectors lie in a plane")
    start, kinds, width = {}, {}, 0
    properties = _unquoted(pairs.get("properties", "species:S:1:pos:R:3")).split(":")
    if len(properties) % 3:
        raise ValueError(f"line {first - 1}: Properties must be triples name:type:columns")
    for key, kind, size in zip(properties[::3], properties[1::3], properties[2::3], strict=True):
        if not size.isdigit():
            raise ValueError(f"line {first - 1}: Properties: {size!r} is no number of columns")
        start[key.lower()], kinds[key.lower()] = width, kind
        width += int(size)
    where = next((key for key in ("species", "symbol", "symbols", "element", "z", "numbers") if key in start), None)
    place = next((key for key in ("pos", "positions", "position") if key in start), None)
    if where is None or place is None:
        raise ValueError(f"line {first - 1}: Properties names no species or no pos")
    if len(lines) > MOST_ATOMS:
        raise ValueError(f"{len(lines):,} atoms, more than {MOST_ATOMS:,}")
    species, rows = [], []
    for i, line in enumerate(lines):
        words = line.split()
        if len(words) < width:
            raise ValueError(f"line {first + i}: {len(words)} columns, expected {width}")
        species.append(_species(words[start[where]], first + i))
        try:
            rows.append([_float(word) for word in words[start[place] : start[place] + 3]])
        except ValueError:
            raise ValueError(f"line {first + i}: positions are not numbers: {line.strip()[:60]!r}") from None
    positions = np.array(rows)
    if not np.isfinite(positions).all():
        raise ValueError("a position is not finite")
    labels: dict[str, Any] = {}
    for key, value in pairs.items():
        if key not in ("lattice", "properties", "pbc"):
            try:
                labels[key] = float(value)
            except ValueError:
                continue
    return Crystal(np.array(species, np.int64), wrap(positions @ np.linalg.inv(cell)), cell, "", labels)


def _float(word: str) -> float:
    return float(word.lower().replace("d", "e"))  # Fortran writes 1.0D0


def _species(word: str, line: int) -> int:
    if word.isdigit():
        if 1 <= int(word) <= ELEMENTS:
            return int(word) - 1
        raise ValueError(f"line {line}: {word} is no atomic number of an element")
    try:
        return species_number(word[:1].upper() + word[1:].lower())
    except ValueError:
        raise ValueError(f"line {line}: {word!r} is no element (a dummy or an unknown species)") from None
