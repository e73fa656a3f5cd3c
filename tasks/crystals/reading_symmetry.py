"""Symmetry operations: as CIF files write them, and those of a space group that is only named."""

import re
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Operations = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Rotations ``(S, 3, 3)`` and translations ``(S, 3)``: x becomes W x + w, in fractional coordinates."""

_TERM = re.compile(r"([+-]?)(?:(\d+(?:\.\d*)?|\.\d+)(?:/(\d+(?:\.\d*)?))?)?\*?([xyz]?)")
_TWELFTHS = 24


def parse_operation(text: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """An operation such as ``x-y, -y+1/2, z`` or ``1/2+x,y,-z``; translations near a 24th are that.

    Raises:
        ValueError: not an operation.
    """
    parts = re.sub(r"\s", "", text).lower().strip("'\"").split(",")
    if len(parts) == 4 and parts[3] in ("+1", "-1", "1"):  # of a magnetic group, with time reversal
        parts = parts[:3]
    rotation, translation = np.zeros((3, 3)), np.zeros(3)
    if len(parts) != 3:
        raise ValueError(f"{text!r} is no symmetry operation such as 'x, y+1/2, -z'")
    for row, part in enumerate(parts):
        at = 0
        while at < len(part):
            found = _TERM.match(part, at)
            if found is None or found.end() == at or (found[2] is None and not found[4]):
                raise ValueError(f"{text!r} is no symmetry operation such as 'x, y+1/2, -z'")
            sign = -1.0 if found[1] == "-" else 1.0
            if found[3] is not None and float(found[3]) == 0:
                raise ValueError(f"{text!r} divides by zero")
            value = float(found[2]) / float(found[3] or 1) if found[2] is not None else 1.0
            if found[4]:
                rotation[row, "xyz".index(found[4])] += sign * value
            else:
                translation[row] += sign * value
            at = found.end()
    if abs(abs(np.linalg.det(rotation)) - 1) > 1e-6:
        raise ValueError(f"{text!r} is no symmetry operation: it changes the volume")
    near = np.rint(translation * _TWELFTHS) / _TWELFTHS
    return rotation, np.where(np.abs(translation - near) < 4e-3, near, translation)


def parse_operations(texts: list[str]) -> Operations:
    """All operations of a list, each once."""
    found: dict[tuple[float, ...], tuple[Any, Any]] = {}
    for text in texts:
        rotation, translation = parse_operation(text)
        key = (*rotation.ravel().tolist(), *np.round(translation % 1.0, 5).tolist())
        found.setdefault(key, (rotation, translation))
    rotations, translations = zip(*found.values(), strict=True)
    return np.stack(rotations), np.stack(translations)


def write_operation(rotation: Any, translation: Any) -> str:
    """The text of an operation, such as ``x-y, -y+1/2, z``."""
    parts = []
    for row, shift in zip(np.asarray(rotation), np.asarray(translation) % 1.0, strict=True):
        text = ""
        for value, letter in zip(row, "xyz", strict=True):
            if round(float(value)):
                text += ("-" if value < 0 else "+" if text else "") + letter
        fraction = Fraction(float(shift)).limit_denominator(_TWELFTHS) % 1
        parts.append(f"{text}+{fraction}" if fraction else text)
    return ", ".join(parts)


@cache
def _settings() -> dict[str, list[int]]:
    """Hall numbers by what a setting may be called, blanks and underscores left out."""
    import spglib

    found: dict[str, list[int]] = {}
    for hall in range(1, 531):
        kind = spglib.get_spacegroup_type(hall)
        assert kind is not None
        full = kind.international_full
        names = {kind.international_short, full, kind.hall_symbol, str(kind.number)}
        names |= set(kind.international.split("="))
        # The short name of a monoclinic setting leaves the ones out: P 1 21/n 1 is called P 21/n.
        words = full.split()
        if len(words) == 4 and words.count("1") == 2:
            names.add(words[0] + next(word for word in words[1:] if word != "1"))
        for name in {_plain(name) for name in names}:
            found.setdefault(name, []).append(hall)
            if kind.choice:
                found.setdefault(f"{name}:{kind.choice.lower()}", []).append(hall)
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s_]", "", name).lower()


def settings_of(name: str) -> list[int]:
    """Hall numbers of the settings that a name (Hermann-Mauguin, Hall) or a number may mean; none if it is unknown.

    Several remain for groups with two origins or two kinds of axes, unless the name says which (``F d -3 m :2``).
    """
    plain = _plain(name)
    known = _settings()
    choice = re.search(r"[:(]?([12srhz])\)?$", plain)
    tried = [plain]
    if choice and len(plain) > len(choice[0]):
        stem, letter = plain[: -len(choice[0])], choice[1]
        tried.append(f"{stem}:{ {'s': '1', 'z': '2'}.get(letter, letter) }")
        if letter in "szhr":  # a letter that says nothing where the group has one setting
            tried.append(stem)
    for key in tried:
        if key in known:
            return known[key]
    return []


def operations_of(hall: int) -> Operations:
    """The operations of a setting."""
    import spglib

    found: Any = spglib.get_symmetry_from_database(hall)
    return np.array(found["rotations"], np.float64), np.array(found["translations"], np.float64)


def fits_cell(hall: int, metric: NDArray[np.float64], tolerance: float = 2e-2) -> bool:
    """Whether the rotations of a setting leave a metric tensor as it is."""
    rotations, _ = operations_of(hall)
    turned = rotations.transpose(0, 2, 1) @ metric @ rotations
    return bool(np.abs(turned - metric).max() <= tolerance * np.abs(metric).max())


def expand(
    frac: NDArray[np.float64], cell: NDArray[np.float64], operations: Operations, tolerance: float = 0.1
) -> NDArray[np.float64]:
    """All images of a site inside one cell.

    The site is moved onto its special position first: the mean of all images closer to it than the tolerance, so that a
    coordinate written as 0.333 gives one atom and not three.

    Args:
        frac: ``(3,)``.
        cell: ``(3, 3)``, rows.
        operations: rotations and translations.
        tolerance: in angstrom.

    Returns:
        ``(M, 3)`` in [0, 1).
    """
    rotations, translations = operations
    images = rotations @ frac + translations
    shift = images - frac
    near = shift - np.rint(shift)
    is_same = np.linalg.norm(near @ cell, axis=1) < tolerance
    exact = frac + near[is_same].mean(0) if is_same.any() else frac
    images = rotations @ exact + translations
    images -= np.floor(images)
    between = images[:, None] - images[None]
    between -= np.rint(between)
    close = np.linalg.norm(between @ cell, axis=-1) < tolerance
    first = close.argmax(1)  # the first image that this one equals
    images = images[first == np.arange(len(images))]
    return np.where(images > 1 - 1e-9, 0.0, images)
