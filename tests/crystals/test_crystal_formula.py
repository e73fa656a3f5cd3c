"""Formulas as people write them, units in a cell, charges."""

import pytest

from manifoldflow.tasks.crystals.elements import SYMBOLS
from manifoldflow.tasks.crystals.formula import Composition, charges, parse_units, read_formula


def counts(text: str) -> dict[str, int]:
    return {SYMBOLS[number]: count for number, count in read_formula(text)}


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("NaCl", {"Na": 1, "Cl": 1}),
        ("SrTiO3", {"Sr": 1, "Ti": 1, "O": 3}),
        ("Ca(OH)2", {"Ca": 1, "O": 2, "H": 2}),
        ("K4[Fe(CN)6]", {"K": 4, "Fe": 1, "C": 6, "N": 6}),
        ("{Mg[SiO3]2}3", {"Mg": 3, "Si": 6, "O": 18}),
        ("CaSO4*2H2O", {"Ca": 1, "S": 1, "O": 6, "H": 4}),
        ("CaSO4·2H2O", {"Ca": 1, "S": 1, "O": 6, "H": 4}),
        ("CaSO4.2H2O", {"Ca": 1, "S": 1, "O": 6, "H": 4}),
        ("CuSO4.H2O", {"Cu": 1, "S": 1, "O": 5, "H": 2}),
        ("MgCl2 . 6 H2O", {"Mg": 1, "Cl": 2, "O": 6, "H": 12}),
        ("2MgO*SiO2", {"Mg": 2, "Si": 1, "O": 4}),
        ("H₂O", {"H": 2, "O": 1}),
        ("CO", {"C": 1, "O": 1}),
        ("Co", {"Co": 1}),
    ],
)
def test_formulas_as_people_write_them(text: str, wanted: dict[str, int]) -> None:
    assert counts(text) == wanted


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        ("Na0.5Cl", "'0.5' is not whole"),
        ("YBa2Cu3O6.95", "'6.95' is not whole"),
        ("Na0.5H2O", "'0.5' is not whole"),
        ("Xx2O", "'Xx'"),
        ("NaCl0", "'0'"),
        ("Ca(OH", "bracket"),
        ("Ca(OH]2", "cannot read"),
        ("nacl", "cannot read"),
        ("Na+Cl-", "neutral"),
        ("SO4^2-", "neutral"),
        ("CaSO4*", "no part"),
        ("0H2O", "no part"),
    ],
)
def test_what_is_no_formula_is_refused_and_says_why(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="formula") as found:
        read_formula(text)
    assert words in str(found.value) and str(found.value).count("formula '") <= 1


def test_a_composition_counts_the_atoms_of_all_units() -> None:
    cell = Composition(read_formula("SrTiO3"), 2)
    assert cell.atoms == 10 and cell.formula == "SrTiO3"
    assert sorted(SYMBOLS[s] for s in cell.species) == ["O"] * 6 + ["Sr"] * 2 + ["Ti"] * 2


@pytest.mark.parametrize(
    "text, wanted",
    [("4", [4]), (3, [3]), ("1..4", [1, 2, 3, 4]), ("1-3", [1, 2, 3]), ("2,1,2", [2, 1]), ("1..2,4", [1, 2, 4])],
)
def test_units(text: str, wanted: list[int]) -> None:
    assert parse_units(text, read_formula("NaCl")) == wanted


@pytest.mark.parametrize(
    "text, words", [("0", "at least one"), ("0..3", "at least one"), ("3..1", "empty"), ("x", "expected")]
)
def test_units_that_are_none(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_units(text, read_formula("NaCl"))


def test_units_stop_at_the_largest_cell() -> None:
    assert parse_units("1..40", read_formula("SrTiO3"), max_atoms=20) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="SrTiO3 with Z = 80 has 400 atoms"):
        parse_units("80", read_formula("SrTiO3"), max_atoms=100)


BALANCED = {"NaCl": True, "SrTiO3": True, "Fe3O4": True, "CuZn": True, "Si": True}
UNBALANCED = {"NaCl2": False, "Na2Cl": False, "Na3Cl2": False}


@pytest.mark.parametrize("text, wanted", (BALANCED | UNBALANCED).items())
def test_charges(text: str, wanted: bool) -> None:
    found = charges(read_formula(text))
    assert found.is_balanced is wanted
    if found.states:
        assert sum(found.states[k] * n for k, n in counts(text).items()) == 0
    assert (found.is_balanced is False) == ("add up" in found.note)


def test_mixed_valence_is_named() -> None:
    assert "Fe in two states, 2 and 3" in charges(read_formula("Fe3O4")).note
    assert charges(read_formula("Fe2O3")).states == {"Fe": 3, "O": -2}


def test_charges_of_an_element_without_states_are_not_known() -> None:
    found = charges(read_formula("HeO"))
    assert found.is_balanced in (None, False) and "He" in found.note


@pytest.mark.parametrize(
    ("formula", "states"),
    [
        ("SrTiO3", {"Sr": 2, "Ti": 4, "O": -2}),
        ("PbZrO3", {"Pb": 2, "Zr": 4, "O": -2}),
        ("LiFePO4", {"Li": 1, "Fe": 2, "P": 5, "O": -2}),
        ("Al2O3", {"Al": 3, "O": -2}),
    ],
)
def test_the_usual_states_come_before_odd_ones_that_balance_as_well(formula, states):
    assert charges(read_formula(formula)).states == states
