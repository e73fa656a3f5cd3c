"""Formulas as people write them, how many units a cell holds, and whether the charges of the elements can add up to nothing."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import product
from math import gcd
from typing import NamedTuple

from manifoldflow.tasks.crystals.elements import SYMBOLS
from manifoldflow.tasks.crystals.structure import formula_of, parse_formula

__all__ = ["MAX_ATOMS", "Charges", "Composition", "charges", "parse_units", "read_formula"]

MAX_ATOMS = 100
"""Atoms in a cell that are asked for at most: beyond this nothing of the task was measured."""
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_DOTS = "·•⋅∙*"


class Composition(NamedTuple):
    """What a cell is to hold.

    Args:
        counts: ``(species, count)`` of one formula unit, as it was written, sorted by species.
        units: formula units in the cell, Z.
    """

    counts: tuple[tuple[int, int], ...]
    units: int = 1

    @property
    def atoms(self) -> int:
        """Atoms in the cell."""
        return self.units * sum(count for _, count in self.counts)

    @property
    def species(self) -> list[int]:
        """The species of every atom of the cell, in the order of the formula units' sorted species."""
        return [number for number, count in self.counts for _ in range(count * self.units)]

    @property
    def formula(self) -> str:
        """The reduced formula."""
        return formula_of(self.counts, gcd(*(count for _, count in self.counts)))


def read_formula(text: str) -> tuple[tuple[int, int], ...]:
    """``(species, count)`` of one formula unit, sorted by species.

    Brackets of three kinds, small digits (``H₂O``) and hydrates (``CaSO4·2H2O``, ``CaSO4*2H2O``, ``CaSO4.2H2O``) are read. A
    leading number multiplies its part.

    Raises:
        ValueError: not a formula; says where: an unknown element, a count that is fractional or zero, an open bracket, a charge.
    """
    compact = "".join(text.split()).translate(_SUBSCRIPTS)
    if not compact:
        raise ValueError("the formula is empty; write it like SrTiO3, Ca(OH)2 or CaSO4*2H2O")
    if found := re.search(r"(?:\^?\d*[+-]|[+-]\d*)$", compact):
        if found[0].strip("^0123456789"):
            raise ValueError(f"formula {text!r}: crystals are neutral; leave out the charge {found[0]!r}")
    for dot in _DOTS:
        compact = compact.replace(dot, "|")
    # A point begins a part of its own before a letter, or before water; anywhere else it is that of a fraction.
    compact = re.sub(r"(?<![^\d]0)\.(?=[A-Z(\[{]|\d*[HD]2O(?:$|[|.]))", "|", compact)
    if found := re.search(r"\d*\.\d*", compact):
        raise ValueError(
            f"formula {text!r}: the count {found[0]!r} is not whole; a crystal has whole numbers of atoms, so multiply all "
            "counts until they are"
        )
    total: Counter[int] = Counter()
    for part in compact.split("|"):
        lead = re.match(r"\d+", part)
        times, body = (int(lead[0]), part[lead.end() :]) if lead else (1, part)
        if not body or times == 0 or times >= 100_000:
            raise ValueError(f"formula {text!r}: {part!r} is no part of a formula; write it like CaSO4*2H2O")
        try:
            counts = parse_formula(body)
        except ValueError as error:
            raise ValueError(f"formula {text!r}: {_without_head(str(error))}") from None
        for number, count in counts:
            total[number] += times * count
    return tuple(sorted(total.items()))


def _without_head(text: str) -> str:
    return text.partition(": ")[2] if text.startswith("formula ") else text


def parse_units(text: str | int, formula: tuple[tuple[int, int], ...], max_atoms: int = MAX_ATOMS) -> list[int]:
    """Numbers of formula units: ``"4"``, ``"1..4"`` or ``"1,2,4"``, all or as many as ``max_atoms`` lets pass.

    Args:
        text: what was asked for.
        formula: one unit, from :func:`read_formula`.
        max_atoms: of a cell.

    Raises:
        ValueError: not such a range, zero units, or none fits.
    """
    words = str(text).strip()
    wanted: list[int] = []
    for part in words.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:(?:\.\.+|-|:)\s*(\d+))?\s*", part)
        if found is None:
            raise ValueError(f"--z {words!r}: expected numbers of formula units such as 4, 1..4 or 1,2,4")
        first, last = int(found[1]), int(found[2] or found[1])
        if first < 1:
            raise ValueError(f"--z {words!r}: a cell holds at least one formula unit, got {first}")
        if last < first:
            raise ValueError(f"--z {words!r}: {first}..{last} is empty")
        if last > 10_000:
            raise ValueError(f"--z {words!r}: {last} formula units in a cell are beyond all crystals")
        wanted += range(first, last + 1)
    size = sum(count for _, count in formula)
    fits = [z for z in dict.fromkeys(wanted) if z * size <= max_atoms]
    if not fits:
        raise ValueError(
            f"{formula_of(formula)} with Z = {min(wanted)} has {min(wanted) * size} atoms in the cell, more than the {max_atoms} "
            "that this model makes (--max-atoms)"
        )
    return fits


class Charges(NamedTuple):
    """Whether common oxidation states can add up to zero.

    Args:
        is_balanced: None where that cannot be said: an element without tabulated states.
        states: one combination that does, by symbol.
        note: in words, empty where it is balanced.
    """

    is_balanced: bool | None
    states: dict[str, int]
    note: str


METALS_ALONE = "all elements are metals: an alloy has no charges to balance"


def _usual_first(names: list[str], states: list[list[int]]) -> Iterator[list[list[int]]]:
    """The states to try: the common ones of every element, then those seen in crystals, then all that are tabulated."""
    from pymatgen.core import Element

    elements = [Element(name) for name in names]
    yield [[q for q in some if q in e.common_oxidation_states] for e, some in zip(elements, states, strict=True)]
    yield [[q for q in some if q in e.icsd_oxidation_states] for e, some in zip(elements, states, strict=True)]
    yield states


def charges(counts: tuple[tuple[int, int], ...]) -> Charges:
    """Can oxidation states, of those that smact tabulates, add up to zero: one of each element, or two of a metal (Fe3O4)?

    Elements alone and alloys of metals need no charges and count as balanced, as in the published validity of compositions,
    which knows one state an element only.

    Args:
        counts: ``(species, count)`` of a formula unit.
    """
    import smact

    whole = gcd(*(count for _, count in counts))
    names = [SYMBOLS[number] for number, _ in counts]
    amounts = [count // whole for _, count in counts]
    if len(names) == 1:
        return Charges(True, {}, "")
    if all(name in smact.metals for name in names):
        return Charges(True, {}, METALS_ALONE)
    known = smact.element_dictionary(names)
    states = [list(known[name].oxidation_states or []) for name in names]
    unknown = [name for name, some in zip(names, states, strict=True) if not some]
    if unknown:
        return Charges(None, {}, f"no oxidation states are tabulated for {', '.join(unknown)}")
    for choice in _usual_first(names, states):  # Sr2+ and Ti4+ before Sr4+ and Ti2+, which balance as well
        for combination in product(*choice):
            if sum(q * n for q, n in zip(combination, amounts, strict=True)) == 0:
                return Charges(True, dict(zip(names, combination, strict=True)), "")
    for k, name in enumerate(names):
        mixed = [q for q in states[k] if q > 0] if name in smact.metals else []
        others = [some if i != k else [0] for i, some in enumerate(states)]
        totals = {sum(q * n for q, n in zip(row, amounts, strict=True)) for row in product(*others)}
        pairs = sorted(((a, b) for a in mixed for b in mixed if a < b), key=lambda pair: (pair[1] - pair[0], pair))
        for total in sorted(totals):  # the most negative first: O2- before O-
            for low, high in pairs:
                if any(low * m + high * (amounts[k] - m) + total == 0 for m in range(1, amounts[k])):
                    return Charges(True, {}, f"with {name} in two states, {low} and {high}")
    return Charges(False, {}, f"no oxidation states of {', '.join(names)} add up to zero")
