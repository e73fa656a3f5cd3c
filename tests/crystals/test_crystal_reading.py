"""Readers of crystals do not guess: awkward files of many kinds, each with its right answer or its reason."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest

from testkit.shared import SHARED_DATA

pytest.importorskip("spglib")

from manifoldflow.tasks.crystals.elements import symbols_of
from manifoldflow.tasks.crystals.reading import Rejected, load_crystals, parse_crystal, read_crystal, read_crystals
from manifoldflow.tasks.crystals.reading_symmetry import (
    hall_settings,
    hermann_mauguin,
    operations_of,
    parse_operation,
    parse_operations,
    write_operation,
)
from manifoldflow.tasks.crystals.structure import Crystal
from manifoldflow.tasks.crystals.writing import symmetry_of

CELL = """_cell_length_a {a}
_cell_length_b {b}
_cell_length_c {c}
_cell_angle_alpha {alpha}
_cell_angle_beta {beta}
_cell_angle_gamma {gamma}
"""


def cif(
    atoms: str,
    cell: tuple[object, ...] = (4, 4, 4, 90, 90, 90),
    symmetry: str = "",
    columns: str = "label type_symbol fract_x fract_y fract_z",
    head: str = "data_test\n",
) -> str:
    text = head + CELL.format(**dict(zip(("a", "b", "c", "alpha", "beta", "gamma"), cell, strict=True))) + symmetry
    return text + "loop_\n" + "".join(f"_atom_site_{c}\n" for c in columns.split()) + atoms + "\n"


CSCL = "Cs1 Cs 0 0 0\nCl1 Cl 0.5 0.5 0.5"


def facts(crystal: Crystal) -> tuple[str, int]:
    return crystal.formula, len(crystal)


GOOD = {
    "plain": (cif(CSCL), ("CsCl", 2)),
    "uncertainties": (
        cif("Cs1 Cs 0.0000(0) 0 0\nCl1 Cl .5(1) 5.0e-1 0.5000(12)", ("4.000(3)", 4, 4, "90.0(1)", 90, 90)),
        ("CsCl", 2),
    ),
    "charges": (cif("F1 Fe3+ 0 0 0\nO1 O2- .5 0 0\nO2 O-2 0 .5 0\nO3 O2-1 0 0 .5"), ("FeO3", 4)),
    "upper case symbols": (cif("A1 CS 0 0 0\nA2 CL .5 .5 .5"), ("CsCl", 2)),
    "lower case symbols": (cif("A1 cs 0 0 0\nA2 cl .5 .5 .5"), ("CsCl", 2)),
    "deuterium": (cif("D1 D 0 0 0\nLi1 Li .5 .5 .5"), ("LiH", 2)),
    "isotopes": (cif("D1 2H 0 0 0\nLi1 7Li .5 .5 .5"), ("LiH", 2)),
    "labels alone": (cif("Fe1 0 0 0\nO1A 0.5 0.5 0.5", columns="label fract_x fract_y fract_z"), ("FeO", 2)),
    "unknown type, known label": (cif("Fe1 ? 0 0 0\nOW . 0.5 0.5 0.5"), ("FeO", 2)),
    "type column last": (
        cif("0 0 0 X1 Cs\n.5 .5 .5 X2 Cl", columns="fract_x fract_y fract_z label type_symbol"),
        ("CsCl", 2),
    ),
    "carriage returns and tabs": (cif(CSCL).replace("\n", "\r\n").replace(" ", "\t"), ("CsCl", 2)),
    "old Macintosh lines": (cif(CSCL).replace("\n", "\r"), ("CsCl", 2)),
    "no end of line": (cif(CSCL).rstrip("\n"), ("CsCl", 2)),
    "tags in upper case": (
        cif(CSCL).replace("_cell_length_a", "_CELL_LENGTH_A").replace("loop_", "LOOP_"),
        ("CsCl", 2),
    ),
    "tags with dots": (cif(CSCL).replace("_atom_site_", "_atom_site.").replace("_cell_", "_cell."), ("CsCl", 2)),
    "comments": ("# a remark\n#data_no\n" + cif(CSCL + " # the anion"), ("CsCl", 2)),
    "text field": (cif(CSCL, head="data_x\n_publ_title\n;\n it's a loop_ 'of _cell_length_a\n;\n"), ("CsCl", 2)),
    "quotes in values": (cif(CSCL, head="data_x\n_a 'it's here'\n_b \"a 'b' # c\"\n_c 'x\n"), ("CsCl", 2)),
    "empty block first": ("data_global\n_a ?\n\n" + cif(CSCL), ("CsCl", 2)),
    "empty loop": (cif(CSCL, head="data_x\nloop_\n_geom_bond_distance\nloop_\n_geom_angle\n\n"), ("CsCl", 2)),
    "tag without a value": (cif(CSCL, head="data_x\n_journal_name\n_other .\n"), ("CsCl", 2)),
    "occupancy one": (
        cif("Cs1 Cs 0 0 0 1.00(2)\nCl1 Cl .5 .5 .5 .", columns="label type_symbol fract_x fract_y fract_z occupancy"),
        ("CsCl", 2),
    ),
    "outside the cell": (cif("Cs1 Cs -1.0 2.0 0.0\nCl1 Cl 1.5 -0.5 0.5"), ("CsCl", 2)),
    "umlauts": (cif(CSCL, head="data_Möß\n_publ_author 'Müller, Å.'\n"), ("CsCl", 2)),
    "fractions": (cif("Cs1 Cs 0 0 0\nCl1 Cl 1/2 1/2 1/2"), ("CsCl", 2)),
    "Cartesian": (cif("Cs1 Cs 0 0 0\nCl1 Cl 2 2 2", columns="label type_symbol Cartn_x Cartn_y Cartn_z"), ("CsCl", 2)),
    "a blank before the uncertainty": (cif("Cs1 Cs 0 0 0\nCl1 Cl '0.5 (1)' 0.5 0.5"), ("CsCl", 2)),
    "angles left out are right": (
        cif(CSCL).replace("_cell_angle_beta 90\n", "").replace("alpha 90", "alpha ."),
        ("CsCl", 2),
    ),
    "the end of a DOS file": (cif(CSCL) + "\x1a", ("CsCl", 2)),
    "ends of line escaped": (cif(CSCL).replace("\n", "\\n"), ("CsCl", 2)),
    "a line in front": ("Downloaded from somewhere\n" + cif(CSCL), ("CsCl", 2)),
    "a save frame": (cif(CSCL) + "save_x\n_cell_length_a 9\nsave_\n", ("CsCl", 2)),
    "a site that is marked as none": (
        cif(
            "Cs1 Cs 0 0 0 d\nCl1 Cl .5 .5 .5 ?\nX1 X .1 .1 .1 dum",
            columns="label type_symbol fract_x fract_y fract_z calc_flag",
        ),
        ("CsCl", 2),
    ),
    "no attached hydrogens": (
        cif(
            "Cs1 Cs 0 0 0 0\nCl1 Cl .5 .5 .5 .", columns="label type_symbol fract_x fract_y fract_z attached_hydrogens"
        ),
        ("CsCl", 2),
    ),
    "the formula with deuterium": (
        cif("Li1 Li 0 0 0\nH1 H .5 .5 .5", head="data_x\n_chemical_formula_sum 'D1 Li1'\n"),
        ("LiH", 2),
    ),
    "one atom without loop": (
        "data_Po\n"
        + CELL.format(a=3.3, b=3.3, c=3.3, alpha=90, beta=90, gamma=90)
        + "_atom_site_label Po1\n_atom_site_fract_x 0\n_atom_site_fract_y 0\n_atom_site_fract_z 0\n",
        ("Po", 1),
    ),
}


@pytest.mark.parametrize("kind", GOOD)
def test_awkward_cif_files_are_read_right(kind: str) -> None:
    text, wanted = GOOD[kind]
    crystal = parse_crystal(text)
    assert facts(crystal) == wanted
    assert (0 <= crystal.frac).all() and (crystal.frac < 1).all()
    if wanted == ("CsCl", 2):
        assert np.allclose(crystal.cell, 4 * np.eye(3)) and np.allclose(crystal.frac[1] - crystal.frac[0], 0.5)


OCCUPANCY = "label type_symbol fract_x fract_y fract_z occupancy"
BAD = {
    "shared site": (
        cif("Na1 Na 0 0 0 0.5\nK1 K 0 0 0 0.5\nCl1 Cl 0.5 0.5 0.5 1", columns=OCCUPANCY),
        r"site \(0, 0, 0\) is shared by Na 0.5 and K 0.5",
    ),
    "half a site": (
        cif("Na1 Na 0 0 0 0.5(1)\nCl1 Cl 0.5 0.5 0.5 1", columns=OCCUPANCY),
        r"site \(0, 0, 0\) is occupied by Na to 0.5",
    ),
    "too much of a site": (cif("Na1 Na 0 0 0 1.5", columns=OCCUPANCY), "1.5, more than 1"),
    "disorder groups": (
        cif(
            "Na1 Na 0 0 0 1\nCl1 Cl .5 .5 .5 2\nCl2 Cl .3 .5 .5 .",
            columns="label type_symbol fract_x fract_y fract_z disorder_group",
        ),
        "disorder group",
    ),
    "dummy": (cif("X1 X 0 0 0\nCl1 Cl .5 .5 .5"), "site X1: 'X' is no element"),
    "vacancy": (cif("V1 Vac 0 0 0\nCl1 Cl .5 .5 .5"), "names no element|no element"),
    "unknown element": (cif("Xx1 Xx 0 0 0"), "'Xx' is no element"),
    "water as a site": (cif("Wat1 0 0 0", columns="label fract_x fract_y fract_z"), "Wat1"),
    "flat cell": (cif(CSCL, (4, 4, 4, 90, 90, 180)), "the cell has no volume"),
    "length of zero": (cif(CSCL, (4, 0, 4, 90, 90, 90)), "the cell has no volume"),
    "negative length": (cif(CSCL, (4, -4, 4, 90, 90, 90)), "must be positive"),
    "impossible angles": (cif(CSCL, (4, 4, 4, 130, 130, 130)), "the cell has no volume"),
    "overlap": (cif("Cs1 Cs 0 0 0\nCl1 Cl 0.01 0 0"), "Cs 1 and Cl 2 are 0.04 A apart"),
    "overlap across the border": (cif("Cs1 Cs 0.001 0 0\nCl1 Cl 0.999 0 0"), "0.01 A apart"),
    "no cell": (cif(CSCL).replace("_cell_length_b 4\n", ""), "no cell: _cell_length_b is missing"),
    "unknown cell": (cif(CSCL, (4, "?", 4, 90, 90, 90)), "_cell_length_b is missing or unknown"),
    "cell of words": (cif(CSCL, (4, "four", 4, 90, 90, 90)), "_cell_length_b is 'four'"),
    "unknown coordinate": (cif("Cs1 Cs 0 0 0\nH1 H ? ? ?"), "site H1 .* coordinate x is unknown"),
    "coordinate of letters": (cif("Cs1 Cs 0 0 a"), "coordinate z is 'a'"),
    "cut short": (cif("Cs1 Cs 0 0 0\nCl1 Cl 0.5"), "a row is not whole"),
    "no atoms": ("data_x\n_cell_length_a 4\n", "no data block lists atoms"),
    "empty list of atoms": (cif(""), "no data block lists atoms"),
    "no CIF": ("hello world", "not a CIF file: it begins with 'hello world'"),
    "HTML": ("<!DOCTYPE html><html><body>404</body></html>", "not a CIF file"),
    "text without end": ("data_x\n_a\n;\nabc\n", "does not end"),
    "a group of atoms as a type": (cif("N1 NH4+ 0 0 0\nCl1 Cl .5 .5 .5"), "'NH4' is a group of atoms"),
    "water as a type": (cif("Ca1 Ca 0 0 0\nO1 H2O .5 .5 .5"), "'H2O' is a group of atoms"),
    "hydrogens attached and not listed": (
        cif("Ca1 Ca 0 0 0 0\nO1 O .5 .5 .5 1", columns="label type_symbol fract_x fract_y fract_z attached_hydrogens"),
        "site O1: 1 attached hydrogens are not listed",
    ),
    "an element of the formula without a site": (
        cif(CSCL, head="data_x\n_chemical_formula_sum 'Cs Cl H2 O'\n"),
        "'Cs Cl H2 O', and no site lists H or O: atoms are missing",
    ),
    "modulated": (cif(CSCL, head="data_x\n_cell_modulation_dimension 1\n"), "a modulated structure"),
    "a cell given twice": (cif(CSCL, head="data_x\n_cell_length_a 5\n"), "_cell_length_a is given twice: 5 and 4"),
    "two lists of atoms": (
        cif(CSCL)
        + "loop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\nBr1 .2 .2 .2\n",
        "_atom_site_label is given twice",
    ),
    "a cell that its operations change": (
        cif(CSCL, (4, 4, 5, 90, 90, 90), "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-y,x-y,z\n-x+y,-x,z\n"),
        "the cell does not have the symmetry of the operations that are listed",
    ),
    "operations without an end": (
        cif(CSCL, symmetry="loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'x+0.137,y,z'\n"),
        "no space group: their products do not end",
    ),
    "unknown group": (cif(CSCL, symmetry="_symmetry_space_group_name_H-M 'Q 7'\n"), "space group 'Q 7' is not known"),
    "a group that the cell has not": (
        cif(CSCL, (4, 5, 6, 90, 90, 90), "_symmetry_space_group_name_H-M 'F m -3 m'\n"),
        "does not have the symmetry",
    ),
    "a bad operation": (cif(CSCL, symmetry="loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,w'\n"), "no symmetry operation"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_ordered_crystal_is_rejected_with_the_reason(kind: str) -> None:
    text, reason = BAD[kind]
    with pytest.raises(ValueError, match=reason):
        parse_crystal(text)


ROCK_SALT = "loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'x,1/2+y,1/2+z'\n'1/2+x,y,1/2+z'\n'1/2+x,1/2+y,z'\n"
CUBE = (5.64, 5.64, 5.64, 90, 90, 90)
SALT = "Na1 Na 0 0 0\nCl1 Cl .5 .5 .5"
GROUPS = {
    # name of the kind: symmetry lines, cell, atoms, formula, atoms in the cell, space group
    "centrings listed": (ROCK_SALT, CUBE, SALT, "NaCl", 8, 225),
    "Hermann-Mauguin": (
        "_symmetry_space_group_name_H-M 'F m -3 m'\n", CUBE, SALT, "NaCl", 8, 225,
    ),
    "short, underscored": (
        "_space_group_name_H-M_alt P4_2/mnm\n", (4.59, 4.59, 2.96, 90, 90, 90),
        "Ti1 Ti 0 0 0\nO1 O .305 .305 0", "TiO2", 6, 136,
    ),
    "number": ("_symmetry_Int_Tables_number 221\n", (3.9, 3.9, 3.9, 90, 90, 90),
        "Sr Sr 0 0 0\nTi Ti .5 .5 .5\nO O .5 .5 0", "SrTiO3", 5, 221),
    "Hall": (
        "_space_group_name_Hall '-F 4 2 3'\n", (5.46,) * 3 + (90,) * 3, "Ca1 Ca 0 0 0\nF1 F .25 .25 .25", "CaF2", 12, 225,
    ),
    "hexagonal, thirds as decimals": (
        "_symmetry_space_group_name_H-M 'P 63 m c'\n", (3.25, 3.25, 5.2, 90, 90, 120),
        "Zn Zn 0.3333 0.6667 0\nO O 0.333 0.667 0.38", "ZnO", 4, 186,
    ),
    "rhombohedral on hexagonal axes": (
        "_symmetry_space_group_name_H-M 'R -3 c'\n", (4.76, 4.76, 12.99, 90, 90, 120),
        "Al Al 0 0 .352\nO O .306 0 .25", "Al2O3", 30, 167,
    ),
    "rhombohedral axes": (
        "_symmetry_space_group_name_H-M 'R -3 c :R'\n", (5.13, 5.13, 5.13, 55.27, 55.27, 55.27),
        "Al Al .352 .352 .352\nO O .556 .944 .25", "Al2O3", 10, 167,
    ),
    "rhombohedral axes, by the cell": (
        "_symmetry_space_group_name_H-M R-3c\n", (5.13, 5.13, 5.13, 55.27, 55.27, 55.27),
        "Al Al .352 .352 .352\nO O .556 .944 .25", "Al2O3", 10, 167,
    ),
    "origin 2 in the name": (
        "_symmetry_space_group_name_H-M 'F d -3 m :2'\n", (3.567,) * 3 + (90,) * 3, "C C .125 .125 .125", "C", 8, 227,
    ),
    "origin by the formula": (
        "_symmetry_space_group_name_H-M 'F d -3 m'\n_chemical_formula_sum 'Al2 Mg O4'\n", (8.08,) * 3 + (90,) * 3,
        "Mg Mg .125 .125 .125\nAl Al .5 .5 .5\nO O .2625 .2625 .2625", "MgAl2O4", 56, 227,
    ),
    "monoclinic, another setting": (
        "_symmetry_space_group_name_H-M 'P 21/n'\n", (5, 6, 7, 90, 95, 90), "Fe Fe .1 .2 .3", "Fe", 4, 14,
    ),
    "operations beat the name": (
        "_symmetry_space_group_name_H-M 'P 1'\n" + ROCK_SALT, CUBE, SALT, "NaCl", 8, 225,
    ),
    "operations in other words": (
        "loop_\n_space_group_symop_id\n_space_group_symop_operation_xyz\n"
        "1 X,Y,Z\n2 'x, +y + .5, z+ 0.5'\n3 x+1/2,y,z+1/2\n4 1/2+x,1/2+y,z\n",
        CUBE, SALT, "NaCl", 8, 225,
    ),
    "a list without the identity": ("_symmetry_equiv_pos_as_xyz -x,-y,-z\n", (5, 6, 7, 80, 85, 95), "Fe Fe .1 .2 .3", "Fe", 2, 2),
    "generators": (ROCK_SALT.replace("'1/2+x,1/2+y,z'\n", ""), CUBE, SALT, "NaCl", 8, 225),
    "magnetic, its centring in a loop of its own": (
        "loop_\n_space_group_symop_magn_operation.id\n_space_group_symop_magn_operation.xyz\n1 x,y,z,+1\n2 -x,-y,-z,+1\n"
        "loop_\n_space_group_symop_magn_centering.id\n_space_group_symop_magn_centering.xyz\n"
        "1 x,y,z,+1\n2 x,y+1/2,z+1/2,-1\n3 x+1/2,y,z+1/2,-1\n4 x+1/2,y+1/2,z,+1\n",
        CUBE, SALT, "NaCl", 8, 225,
    ),
    "the name of before 1992": (
        "_symmetry_space_group_name_H-M 'C m c a'\n", (4.52, 7.66, 4.53, 90, 90, 90), "Ga Ga 0 .155 .081", "Ga", 8, 64,
    ),
    "a three without its bar": ("_symmetry_space_group_name_H-M 'F m 3 m'\n", CUBE, SALT, "NaCl", 8, 225),
    "a bar above the three": ("_symmetry_space_group_name_H-M 'F m 3\u0305 m'\n", CUBE, SALT, "NaCl", 8, 225),
    "subscripts of a typesetter": (
        "_symmetry_space_group_name_H-M 'P 2~1~/c'\n", (5, 6, 7, 90, 95, 90), "Fe Fe .1 .2 .3", "Fe", 4, 14,
    ),
    "a Hall symbol that is another Hermann-Mauguin": (
        "_space_group_name_Hall 'P 4 2'\n", (4, 4, 6, 90, 90, 90), "Fe Fe .1 .2 .3", "Fe", 8, 89,
    ),
    "origin by the number of formula units": (
        "_symmetry_Int_Tables_number 227\n_chemical_formula_sum Si\n_cell_formula_units_Z 8\n", (5.43,) * 3 + (90,) * 3,
        "Si Si 0 0 0", "Si", 8, 227,
    ),
    "origin 1 or 2 of another choice of axes": (
        "_symmetry_space_group_name_H-M 'P c n a :2'\n", (5, 6, 7, 90, 90, 90), "Fe Fe .1 .2 .3", "Fe", 8, 50,
    ),
    "an operation without quotes": (
        "_symmetry_equiv_pos_as_xyz x,y,z\n", (4,) * 3 + (90,) * 3, CSCL, "CsCl", 2, 221,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", GROUPS)
def test_symmetry_is_expanded_and_special_positions_are_one_atom(kind: str) -> None:
    symmetry, cell, atoms, formula, count, group = GROUPS[kind]
    crystal = parse_crystal(cif(atoms, cell, symmetry))
    assert facts(crystal) == (formula, count)
    assert symmetry_of(crystal, 0.02).number == group


def test_every_name_of_a_setting_is_the_group_that_gemmi_knows() -> None:
    gemmi = pytest.importorskip("gemmi")

    def group(rotations: np.ndarray, translations: np.ndarray) -> set[tuple[int, ...]]:
        found = np.concatenate([rotations.reshape(-1, 9), translations * 24 % 24], 1)
        return {tuple(row) for row in np.rint(found).astype(int).tolist()}

    known = 0
    for setting in gemmi.spacegroup_table():
        theirs = group(*parse_operations([op.triplet() for op in setting.operations()]))
        if not (ours := hall_settings(setting.hall)) or setting.hm == "A b a m":
            continue  # one of the settings beyond the 530 of the tables
        known += 1
        assert all(group(*operations_of(hall)) == theirs for hall in ours), setting.hall
        for name in (setting.hm, setting.xhm(), setting.short_name()):
            named = hermann_mauguin(name)
            assert theirs in [group(*operations_of(hall)) for hall in named], name
            if name == setting.xhm():
                assert len({frozenset(group(*operations_of(hall))) for hall in named}) == 1, name
    assert known == 530


def test_rounded_coordinates_are_put_onto_their_special_position() -> None:
    symmetry, cell, atoms, *_ = GROUPS["hexagonal, thirds as decimals"]
    crystal = parse_crystal(cif(atoms, cell, symmetry))
    assert np.allclose(np.sort(crystal.frac[:2, 0]), [1 / 3, 2 / 3], atol=1e-12)


def test_two_origins_are_not_guessed() -> None:
    text = cif("Fe Fe .11 .23 .37", (8,) * 3 + (90,) * 3, "_symmetry_space_group_name_H-M 'F d -3 m'\n")
    with pytest.raises(ValueError, match="two origins"):
        parse_crystal(text)


@pytest.mark.parametrize(
    "text", ["x,y,z", "-x+1/2, y, z+3/4", "y-x,-x,z+1/3", "x-y,x,z+5/6", ".5-x,y+.25,-z", "1/2+x,y,z-1/4"]
)
def test_operations_survive_being_written(text: str) -> None:
    rotation, translation = parse_operation(text)
    again, shift = parse_operation(write_operation(rotation, translation))
    assert (again == rotation).all() and np.allclose((shift - translation) % 1, 0)


def test_a_symmetric_cif_is_what_pymatgen_reads() -> None:
    pytest.importorskip("pymatgen")
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    matcher = StructureMatcher(stol=0.02, ltol=0.01, angle_tol=0.5)
    for kind in ("centrings listed", "operations in other words", "short, underscored", "number"):
        symmetry, cell, atoms, *_ = GROUPS[kind]
        text = cif(atoms, cell, symmetry)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = Structure.from_str(text, fmt="cif")
        ours = parse_crystal(text).to_pymatgen()
        assert len(theirs) == len(ours) and matcher.fit(theirs, ours), kind


POSCAR = "CsCl\n{scale}\n1 0 0\n0 1 0\n0 0 1\n{elements}1 1\n{kind}\n0 0 0{flags}\n{half}{flags}\n"


def poscar(
    scale: str = "4", elements: str = "Cs Cl\n", kind: str = "Direct", half: str = ".5 .5 .5", flags: str = ""
) -> str:
    return POSCAR.format(scale=scale, elements=elements, kind=kind, half=half, flags=flags)


@pytest.mark.parametrize(
    "text",
    [
        poscar(),
        poscar("-64.0"),
        poscar("4 4 4"),
        poscar("4.0d0"),
        poscar("4.0 ! the scale"),
        poscar(kind="Cartesian"),
        poscar(kind="cart", scale="-64"),
        poscar(kind="Selective dynamics\nDirect", flags=" T T F"),
        poscar(flags=" Cs"),
        poscar(elements="Cs_sv Cl/abc12\n"),
        poscar(elements="Cs Cl # the elements\n").replace("1 1\n", "1 1 # their counts\n"),
        poscar(elements="", flags=" {}").replace("{}", "Cs", 1).replace("{}", "Cl"),
        poscar(elements="", kind="Selective\nDirect", flags=" T T F {}").replace("{}", "Cs", 1).replace("{}", "Cl"),
        poscar() + "\n0 0 0\n0.1 0 0\n",
        poscar().replace("\n", "\r\n"),
        poscar(half="1.5 -0.5 2.5"),
    ],
)
def test_poscar_files_of_all_kinds_are_read(text: str) -> None:
    crystal = parse_crystal(text, "poscar")
    assert symbols_of(crystal.species) == ["Cs", "Cl"]
    assert np.allclose(crystal.cell, 4 * np.eye(3)) and np.allclose(crystal.frac, [[0, 0, 0], [0.5] * 3])


@pytest.mark.parametrize(
    "text, reason",
    [
        (poscar(elements=""), r"no line of elements \(VASP 4\)"),
        (poscar("0"), "line 2: expected a scale"),
        (poscar("four"), "line 2: expected a scale"),
        (poscar(elements="Cs Xx\n"), "'Xx' is no element"),
        (poscar(elements="Cs\n"), "line 7: expected 1 counts"),
        (poscar().replace("1 1\n", "1 2\n"), "it ends after 2 of 3 atoms"),
        (poscar().replace("0 1 0", "1 0 0", 1), "no volume"),
        (poscar(kind="0.1 0.2 0.3"), "expected 'Direct' or 'Cartesian'"),
        (poscar(half="nan 0 0"), "expected 3 numbers"),
        (poscar(half="0 0 0"), "Cs 1 and Cl 2 are 0.00 A apart"),
        ("one\ntwo", "fewer than 7 lines"),
    ],
)
def test_bad_poscar_files_say_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_crystal(text, "poscar")


FRAME = '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 energy=-1.5\nCs 0 0 0\nCl 2 2 2\n'


@pytest.mark.parametrize(
    "text",
    [
        FRAME,
        FRAME.replace("Properties=species:S:1:pos:R:3 ", ""),
        FRAME.replace(" energy", ' pbc="T T T" comment="a = b" energy'),
        FRAME.replace("pos:R:3", "pos:R:3:forces:R:3:tag:I:1")
        .replace("2 2 2", "2 2 2 0 0 0 1").replace("0 0 0\n", "0 0 0 0 0 0 2\n"),
        FRAME.replace("species:S:1:pos:R:3", "id:I:1:Z:I:1:pos:R:3").replace("Cs ", "1 55 ").replace("Cl ", "2 17 "),
        FRAME.replace("Lattice", "lattice").replace("Properties", "properties"),
        FRAME.replace('"4 0 0 0 4 0 0 0 4"', "[[4,0,0],[0,4,0],[0,0,4]]"),
        FRAME.replace("Cl 2 2 2", "Cl -2 6 2"),
        FRAME.replace("Cl 2 2 2", "Cl 2.0D0 2.0d+00 0.2E1"),
        FRAME.replace("\n", "\r\n") + "\r\n",
        "\n" + FRAME,
    ],
)  # fmt: skip
def test_extended_xyz_files_of_all_kinds_are_read(text: str) -> None:
    crystal = parse_crystal(text, "extxyz")
    assert symbols_of(crystal.species) == ["Cs", "Cl"] and crystal.labels["energy"] == -1.5
    assert np.allclose(crystal.cell, 4 * np.eye(3)) and np.allclose(crystal.frac, [[0, 0, 0], [0.5] * 3])


@pytest.mark.parametrize(
    "text, reason",
    [
        ("2\nmolecule\nC 0 0 0\nO 0 0 1.1\n", "no Lattice"),
        (FRAME.replace(" energy", ' pbc="T T F" energy'), r"not periodic in all directions \(pbc=T T F\)"),
        (FRAME.replace("4 0 0 0 4 0", "4 0 0 4 0 0"), "no volume"),
        (FRAME.replace('Lattice="4 ', 'Lattice="'), "expected 9 numbers"),
        (FRAME.replace("Cl 2 2 2", "X 2 2 2"), "line 4: 'X' is no element"),
        (FRAME.replace("Cl 2 2 2", "Cl 2 2"), "line 4: 3 columns, expected 4"),
        (FRAME.replace("Cl 2 2 2", "Cl 2 2 b"), "line 4: positions are not numbers"),
        (FRAME.replace("2\nLat", "3\nLat"), "it ends after 2 of 3 atoms"),
        (FRAME.replace("2\nLat", "two\nLat"), "expected the number of atoms"),
    ],
)
def test_bad_frames_say_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_crystal(text, "extxyz")


def test_frames_are_crystals_of_their_own_and_a_bad_one_is_passed(tmp_path: Path) -> None:
    path = tmp_path / "run.xyz"
    path.write_text(FRAME + FRAME.replace("Cl 2 2 2", "X 2 2 2") + FRAME)
    found = list(read_crystals(path))
    empty = tmp_path / "empty.xyz"
    empty.write_text(FRAME + "0\n\n" + FRAME)
    assert [type(item) for item in read_crystals(empty)] == [Crystal, Rejected, Crystal]
    assert [type(item) for item in found] == [Crystal, Rejected, Crystal]
    assert [c.name for c in found if isinstance(c, Crystal)] == ["run:0", "run:2"] and "frame 1" in str(found[1])


def test_a_table_gives_its_crystals_labels_and_rejected_rows(tmp_path: Path) -> None:
    good = cif(CSCL).replace('"', '""')
    rows = ["material_id,cif,gap,note", f'x1,"{good}",0.5,soft', 'x2,"not a cif",0.1,', "x3", f'x4,"{good}",,', ""]
    path = tmp_path / "set.csv.gz"
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    crystals, rejected = load_crystals(path)
    assert [c.name for c in crystals] == ["x1", "x4"]
    assert crystals[0].labels == {"gap": 0.5, "note": "soft"} and crystals[1].labels == {"gap": "", "note": ""}
    assert [(item.row, item.name) for item in rejected] == [("2", "x2"), ("3", "x3")]
    assert "row 2 (x2): not a CIF file" in str(rejected[0]) and "1 cells, expected 4" in str(rejected[1])
    with pytest.raises(ValueError, match="no column 'structure'; the columns are 'material_id'"):
        load_crystals(path, column="structure")
    with pytest.raises(ValueError, match="no column 'key'"):
        load_crystals(path, name="key")
    renamed = tmp_path / "other.csv"
    renamed.write_text(f'key,content\na,"{good}"\n')
    assert load_crystals(renamed, column="content", name="key")[0][0].name == "a"
    with pytest.raises(ValueError, match="name it with --column"):
        load_crystals(renamed)


@pytest.mark.parametrize(
    "name, text, encoding",
    [
        ("a.csv", "material_id;cif;note\nx1;{};Müller\n", "utf-8"),
        ("a.csv", "material_id,cif,note\nx1,{},Müller\n", "latin-1"),
        ("a.csv", "# made by hand\n\nmaterial_id,cif,note\n\n,,\nx1,{},Müller\n", "utf-8-sig"),
        ("a.tsv", "material_id\tCIF\tnote\nx1\t{}\tMüller\n", "utf-16"),
        ("a.csv", "a,b;c\tmaterial_id\tcif\tnote\n1\tx1\t{}\tMüller\n", "utf-8"),
    ],
)
def test_tables_of_other_separators_and_encodings_are_read(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text.format('"' + cif(CSCL) + '"').encode(encoding))
    (crystal,), rejected = load_crystals(tmp_path)
    assert facts(crystal) == ("CsCl", 2) and crystal.name == "x1" and not rejected
    assert crystal.labels["note"] == "Müller"


@pytest.mark.parametrize("name", ["POSCAR.orig", "CsCl_POSCAR", "run1.CONTCAR", "CONTCAR-relaxed", "x.VASP"])
def test_poscar_files_are_told_by_their_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(poscar())
    assert facts(read_crystal(tmp_path / name)) == ("CsCl", 2)


def test_a_folder_gives_what_it_holds_and_says_what_it_does_not(tmp_path: Path) -> None:
    (tmp_path / "a.cif").write_text(cif(CSCL))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.cif.gz").write_bytes(gzip.compress(cif(CSCL).encode()))
    (tmp_path / "POSCAR").write_text(poscar())
    (tmp_path / "broken.cif").write_text(cif(CSCL)[:150])
    (tmp_path / "empty.cif").write_text("")
    (tmp_path / "bytes.cif").write_bytes(b"data_\x00\x01\x02")
    (tmp_path / "cut.cif.gz").write_bytes(gzip.compress(cif(CSCL).encode())[:60])
    (tmp_path / "notes.txt").write_text("no structure")
    (tmp_path / "results.csv").write_text("formula,energy\nNaCl,1\n")
    crystals, rejected = load_crystals(tmp_path)
    assert sorted(c.name for c in crystals) == ["POSCAR", "a", "a-2"]
    reasons = {Path(item.source).name: item.reason for item in rejected}
    assert set(reasons) == {"broken.cif", "empty.cif", "bytes.cif", "cut.cif.gz"}
    assert (
        "empty" in reasons["empty.cif"]
        and "not a text file" in reasons["bytes.cif"]
        and "gzip" in reasons["cut.cif.gz"]
    )
    with pytest.raises(FileNotFoundError):
        load_crystals(tmp_path / "none.cif")
    with pytest.raises(ValueError, match=r"notes\.txt: its format is not known"):
        read_crystal(tmp_path / "notes.txt")


def test_several_blocks_are_several_crystals(tmp_path: Path) -> None:
    path = tmp_path / "two.cif"
    path.write_text(cif(CSCL, head="data_one\n") + cif("Na1 Na 0 0 0\nCl1 Cl .5 .5 .5", head="data_two\n"))
    found = list(read_crystals(path))
    assert [item.name for item in found] == ["two:one", "two:two"]
    assert [item.formula for item in found if isinstance(item, Crystal)] == ["CsCl", "NaCl"]


def test_large_cells_are_read_and_endless_ones_refused() -> None:
    grid = [(i / 8, j / 8, k / 8) for i in range(8) for j in range(8) for k in range(7)]
    atoms = "\n".join(f"A{n} Cu {x} {y} {z}" for n, (x, y, z) in enumerate(grid[:400]))
    assert len(parse_crystal(cif(atoms, (20, 20, 20, 90, 90, 90)))) == 400
    many = poscar().replace("1 1\n", "1 99999999\n")
    with pytest.raises(ValueError, match="more than 10,000"):
        parse_crystal(many, "poscar")
    with pytest.raises(ValueError, match="longer than"):
        parse_crystal("data_x\n" + "'a " * 100_000)


CASES = SHARED_DATA.parent / "cases"
ANSWERS = {
    "c01_uncertainty_brackets": ("NaCl", 8, 225),
    "c02_oxidation_labels": ("FeO3", 4, None),
    "c03_partial_occupancy": "site (0, 0, 0) is shared by Na 0.5 and K 0.5",
    "c04_blocks_first_empty": ("CsCl", 2, 221),
    "c05_crlf_tabs": ("CsCl", 2, 221),
    "c07_outside_the_cell": ("CsCl", 2, 221),
    "c08_poscar_negative_scale": ("CsCl", 2, 221),
    "c11_extxyz_arrays": ("CsCl", 2, 221),
    "c14_zero_volume": "the cell has no volume",
    "c15_overlap": "0.04 A apart",
    "c16_csv_column": ("CsCl", 2, 221),
}


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases at {CASES}")
@pytest.mark.parametrize("name", ANSWERS)
def test_the_acceptance_files_give_their_answers(name: str) -> None:
    (path,) = [p for p in (CASES / name).iterdir() if p.name != "expected.txt"]
    found = list(read_crystals(path))
    answer = ANSWERS[name]
    if isinstance(answer, str):
        assert [type(item) for item in found] == [Rejected] and answer in str(found[0])
        return
    first = found[0]
    assert isinstance(first, Crystal) and facts(first) == answer[:2]
    assert answer[2] is None or symmetry_of(first).number == answer[2]
    if name.startswith("c16"):
        assert len(found) == 2 and "row 2 (x2)" in str(found[1])


def test_reading_a_table_leaves_the_limits_of_other_readers(tmp_path):
    import csv

    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("id,cif\nx1,nothing\n")
    load_crystals(tmp_path / "a.csv")
    assert csv.field_size_limit() == before


def test_an_empty_table_says_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.write_text("")
    with pytest.raises(ValueError, match="the table is empty; it needs a first line"):
        load_crystals(path)
