"""Symmetry operations: as CIF files write them, and those of a space group that is only named."""

import re
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Operations = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Rotations ``(S, 3, 3)`` and translations ``(S, 3)``: x becomes W x + w, in fractional coordinates."""

_TERM = re.compile(r"([+-]?)(?:(\d+(?:\.\d*)?|\.\d+)(?:/(\d+(?:\.\d*)?))?)?\*?([xyz]?)")
_TWELFTHS = 24
MOST_OPERATIONS = 2_000
"""A space group has at most 192; larger cells of one may list more."""


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


def parse_operations(texts: list[str], most: int = 192) -> Operations:
    """The group of the operations of a list: each once, the identity and all products among them, which some lists leave out.

    Args:
        texts: one an operation.
        most: operations that a group may have, if the list does not have more: a space group has at most 192.

    Raises:
        ValueError: a text is no operation, or the products do not end.
    """
    return _group_of(tuple(texts), min(max(most, 2 * len(texts)), MOST_OPERATIONS))


@lru_cache(maxsize=256)
def _group_of(texts: tuple[str, ...], most: int) -> Operations:
    found: dict[bytes, tuple[Any, Any]] = {}

    def added(rotations: Any, translations: Any) -> list[tuple[Any, Any]]:
        fresh = []
        keys = np.concatenate([rotations.reshape(-1, 9), _modulo(translations)], 1)
        for key, rotation, translation in zip(np.round(keys, 4) + 0.0, rotations, translations, strict=True):
            if key.tobytes() not in found:
                found[key.tobytes()] = (rotation, translation)
                fresh.append((rotation, translation))
        return fresh

    given = [parse_operation(text) for text in texts]
    fresh = added(np.stack([g[0] for g in given]), np.stack([g[1] for g in given]))
    fresh += added(np.eye(3)[None], np.zeros((1, 3)))
    while fresh and len(found) <= most:
        rotations, translations = (np.stack(list(part)) for part in zip(*found.values(), strict=True))
        some = fresh[: max(1, 200_000 // len(found))]
        new = [np.stack(list(part)) for part in zip(*some, strict=True)]
        turned = new[0][:, None] @ rotations  # those that came last, after each of all
        shifted = (new[0][:, None] @ translations[..., None])[..., 0] + new[1][:, None]
        fresh = fresh[len(some) :] + added(turned.reshape(-1, 3, 3), shifted.reshape(-1, 3))
    if len(found) > most:
        raise ValueError(f"the {len(texts)} symmetry operations are no space group: their products do not end")
    return np.stack([rotation for rotation, _ in found.values()]), np.stack([shift for _, shift in found.values()])


def _modulo(translations: Any) -> Any:
    """Translations in [0, 1), where 0.99999 is 0."""
    inside = translations % 1.0
    return np.where(inside > 1 - 1e-4, 0.0, inside)


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
def _settings() -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Settings (their number in spglib's list of 530) by what they may be called, blanks and underscores left out; and by their
    Hall symbols, in which blanks count: ``P 4 2`` is another group than the Hermann-Mauguin symbol ``P 42``."""
    import spglib

    found: dict[str, list[int]] = {}
    halls: dict[str, list[int]] = {}
    for hall in range(1, 531):
        kind = spglib.get_spacegroup_type(hall)
        assert kind is not None
        halls.setdefault(_words(kind.hall_symbol), []).append(hall)
        full = kind.international_full
        names = {kind.international_short, full, str(kind.number), *kind.international.split("=")}
        # The short name of a monoclinic setting leaves the ones out: P 1 21/n 1 is called P 21/n.
        words = full.split()
        if len(words) == 4 and words.count("1") == 2:
            names.add(words[0] + next(word for word in words[1:] if word != "1"))
        names |= set(_before_1992(kind.number, full, kind.choice))
        if kind.number >= 200:  # P m 3 m, as it was written before the bar of the 3 was
            names |= {name.replace("-3", "3", 1) for name in names}
        if kind.choice == "H":  # H -3 m, of the Protein Data Bank
            names |= {"H" + name.strip()[1:] for name in names if name.strip().startswith("R")}
        for name in {_plain(name) for name in names}:
            found.setdefault(name, []).append(hall)
            # '2bca' is origin 2 on axes bca, which the name tells already
            for choice in {kind.choice, kind.choice[:1] if kind.choice[:1] in ("1", "2") else ""} - {""}:
                found.setdefault(f"{name}:{choice.lower()}", []).append(hall)
    return found, halls


_GLIDE = {39: "b", 41: "b", 64: "a", 67: "a", 68: "a"}
"""Groups with a glide plane e, and the letter that it had in the standard setting before 1992."""


def _before_1992(number: int, full: str, choice: str) -> list[str]:
    """Names with the glide plane e written as one of the two that it is: C m c a for C m c e.

    ``choice`` says which axes of the standard setting are a, b and c here (``cab``), and so how the letter changes.
    """
    if number not in _GLIDE:
        return []
    axes = choice.strip("12").replace("-", "") or "abc"
    letter = "abc"[axes.index(_GLIDE[number])]
    new = full.replace("e", letter).split()
    return [" ".join(new), " ".join(word.split("/")[-1] for word in new)]


_BARS = re.compile("\\\\bar\\{?(\\d)\\}?|(\\d)[\u0304\u0305]|[\u0304\u0305](\\d)")


def _plain(name: str) -> str:
    barred = _BARS.sub(lambda found: "-" + "".join(filter(None, found.groups())), name.replace("\u2212", "-"))
    return re.sub(r"[\s_~]", "", barred).lower()


def _words(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).lower()


def settings_of(name: str) -> list[int]:
    """The settings, by spglib's numbers, that a name (Hermann-Mauguin, Hall) or a number may mean; none if it is unknown.

    Several remain for groups with two origins or two kinds of axes, unless the name says which (``F d -3 m :2``).
    """
    return hermann_mauguin(name) or hall_settings(name)


def hall_settings(name: str) -> list[int]:
    """The settings with a Hall symbol; several only where they are the same operations."""
    return _settings()[1].get(_words(name), [])


def hermann_mauguin(name: str) -> list[int]:
    """The settings that a Hermann-Mauguin symbol or a number may mean, old and new, short and full."""
    plain = _plain(name)
    known, _ = _settings()
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
    return leaves(operations_of(hall), metric, tolerance)


def leaves(operations: Operations, metric: NDArray[np.float64], tolerance: float = 2e-2) -> bool:
    """Whether the rotations leave a metric tensor as it is, but for a share of its largest entry."""
    rotations = operations[0]
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
