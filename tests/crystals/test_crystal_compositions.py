"""Compositions of de novo crystals, counted by hand."""

import numpy as np
import pytest

pytest.importorskip("smact")

from manifoldflow.tasks.crystals.compositions import by_frequency, composition_row, usual_pattern
from manifoldflow.tasks.crystals.elements import species_number
from manifoldflow.tasks.crystals.structure import Crystal


def crystal(*symbols: str, edge: float = 4.0) -> Crystal:
    frac = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])[: len(symbols)]
    return Crystal(np.array([species_number(s) for s in symbols]), frac, edge * np.eye(3))


KNOWN = [crystal("Sr", "Ti", "O", "O", "O"), crystal("Ca", "Ti", "O", "O", "O"), crystal("Cs", "Cl")]


def test_rows_are_counted_by_hand():
    made = [
        KNOWN[0],
        crystal("Ba", "Ti", "O", "O", "O"),
        crystal("Ba", "Ti", "O", "O", "O", edge=1.5),
        crystal("Na", "Na", "O", "O", "O"),  # no charges balance, two elements
        Crystal(np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros((3, 3))),  # no cell
    ]
    assert usual_pattern(KNOWN) == (1, 1, 3)
    row = composition_row(made, KNOWN, KNOWN[:2])
    assert row[0] == "5" and row[2] == "0.250"  # 3, 3, 3, 2 elements beside 3, 3
    counts = [int(cell.split("; ")[1].split(" of")[0]) for cell in (row[1], *row[3:])]
    assert counts == [3, 3, 3, 3, 3]  # valid, pattern, different, new, apart


def test_elements_by_frequency_keep_places_and_shares():
    made = by_frequency(KNOWN, 3000, seed=1)
    species = np.concatenate([c.species for c in made])
    assert (species == species_number("O")).mean() == pytest.approx(6 / 12, abs=0.02)
    assert (species == species_number("Cs")).mean() == pytest.approx(1 / 12, abs=0.02)
    assert {len(c) for c in made} == {2, 5} and all(any(np.array_equal(c.frac, k.frac) for k in KNOWN) for c in made)
