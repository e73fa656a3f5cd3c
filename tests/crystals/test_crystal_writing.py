"""Files of all formats hold the same crystal; symmetrised ones hold the asymmetric unit. Prototypes have their space groups."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("spglib")
pytest.importorskip("pymatgen")

from manifoldflow.tasks.crystals.prototypes import NAMED, PROTOTYPES, examples, generated
from manifoldflow.tasks.crystals.reading import read_crystal
from manifoldflow.tasks.crystals.structure import Crystal, collate, contacts, wrap
from manifoldflow.tasks.crystals.writing import cif_text, symmetrized, symmetry_of, write_crystal, write_crystals

NAMES = [prototype.name for prototype in PROTOTYPES]


def shaken(crystal: Crystal, size: float, seed: int = 0) -> Crystal:
    """Turned, and every atom moved by about so many angstrom."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    moves = size * rng.normal(size=crystal.frac.shape) / np.sqrt(3)
    return Crystal(
        crystal.species, wrap(crystal.frac + moves @ np.linalg.inv(crystal.cell)), crystal.cell @ turn, crystal.name
    )


def same(a: Crystal, b: Crystal, tolerance: float) -> bool:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(stol=tolerance, ltol=tolerance, angle_tol=1, scale=False)
    return bool(matcher.fit(a.to_pymatgen(), b.to_pymatgen()))


def test_there_are_at_least_twelve_prototypes_with_the_right_space_groups() -> None:
    assert len(PROTOTYPES) >= 12
    for prototype, crystal in zip(PROTOTYPES, examples(), strict=True):
        assert symmetry_of(crystal, 1e-3).number == prototype.number, prototype.name
        assert np.isclose(float(contacts(collate([crystal]))[0]), 1.0, atol=1e-4)
    wanted = ("rock_salt", "cesium_chloride", "zinc_blende", "wurtzite", "fluorite", "antifluorite")
    assert {*wanted, "perovskite", "spinel", "rutile"} <= set(NAMES)
    assert [c.formula for c in examples()[:3]] == ["NaCl", "CsCl", "ZnS"]
    assert examples()[NAMES.index("perovskite")].formula == "SrTiO3" and examples()[NAMES.index("spinel")].units == 2


def test_the_generated_set_has_names_that_differ_and_no_overlaps() -> None:
    made = generated(most=3)
    assert len({c.name for c in made}) == len(made) > 60
    assert (contacts(collate(made)) > 0.999).all()


@pytest.mark.parametrize("name", NAMES[::2])
def test_cif_poscar_and_extxyz_hold_the_same_crystal(name: str, tmp_path: Path) -> None:
    given = shaken(examples()[NAMES.index(name)], 0.02)
    read = [read_crystal(write_crystal(tmp_path / f"a{end}", given)) for end in (".cif", ".vasp", ".extxyz")]
    for crystal in read:
        assert np.allclose(crystal.cell, read[0].cell, atol=1e-8) and sorted(crystal.species) == sorted(given.species)
        order, other = np.argsort(crystal.species, kind="stable"), np.argsort(given.species, kind="stable")
        shift = crystal.frac[order] - given.frac[other]
        assert np.abs(shift - np.round(shift)).max() < 1e-8
        assert np.allclose(crystal.metric, given.metric, atol=1e-7)


def test_other_programs_read_what_is_written(tmp_path: Path) -> None:
    import ase.io
    from pymatgen.core import Structure

    given = shaken(NAMED["spinel"].make([11, 12, 7]), 0.02)
    for end in (".cif", ".vasp"):
        found = Structure.from_file(str(write_crystal(tmp_path / f"a{end}", given)), primitive=False)
        assert same(Crystal.from_pymatgen(found), given, 1e-3)
    atoms = ase.io.read(write_crystal(tmp_path / "a.extxyz", given))
    assert atoms.pbc.all() and np.allclose(atoms.cell.array @ atoms.cell.array.T, given.metric, atol=1e-6)
    assert np.allclose(sorted(atoms.numbers - 1), sorted(given.species))


@pytest.mark.parametrize(
    "name", ["rock_salt", "wurtzite", "spinel", "rutile", "corundum", "barium_aluminide", "diamond"]
)
def test_symmetrised_files_hold_the_asymmetric_unit_and_the_exact_symmetry(name: str, tmp_path: Path) -> None:
    given = shaken(examples()[NAMES.index(name)], 2e-3)
    assert symmetry_of(given, 1e-5).number <= 2  # two atoms of one element have an inversion between them
    path = write_crystal(tmp_path / "a.cif", given, symmetrize=0.05)
    crystal = read_crystal(path)
    assert symmetry_of(crystal, 1e-4).number == NAMED[name].number
    assert same(crystal, given, 0.02)
    text = path.read_text()
    assert "symmetry within 0.05 A (spglib)" in text
    sites = [line for line in text.splitlines() if line.split()[:1] and line.endswith(" 1") and line[0].isalpha()]
    assert len(sites) == len(NAMED[name].sites)
    assert sum(int(line.split()[2]) for line in sites) == len(crystal)
    for end in (".vasp", ".extxyz"):
        other = read_crystal(write_crystal(tmp_path / f"a{end}", given, symmetrize=0.05))
        assert np.allclose(other.cell, crystal.cell, atol=1e-7) and len(other) == len(crystal)


def test_a_crystal_without_symmetry_is_written_as_it_is() -> None:
    crystal = shaken(examples()[0], 0.3)
    ideal, symmetry = symmetrized(crystal, 1e-3)
    assert symmetry.number == 1 and "'x, y, z'" in cif_text(ideal, symmetry)
    with pytest.raises(ValueError, match="positive length"):
        symmetrized(crystal, 0)


def test_files_are_never_replaced(tmp_path: Path) -> None:
    first = write_crystals(tmp_path, [examples()[0]], ("cif", "poscar"))
    second = write_crystals(tmp_path, [examples()[0]], ("cif", "poscar"))
    assert [p.name for p in first + second] == [
        "rock_salt.cif",
        "rock_salt.vasp",
        "rock_salt-2.cif",
        "rock_salt-2.vasp",
    ]
    with pytest.raises(ValueError, match="cif, poscar or extxyz"):
        write_crystals(tmp_path, [], ("pdb",))
    with pytest.raises(ValueError, match="must end in one of"):
        write_crystal(tmp_path / "a.pdb", examples()[0])


def test_the_embedded_set_is_what_the_code_makes() -> None:
    from manifoldflow.tasks.crystals.store import CrystalDataset

    found = CrystalDataset("prototypes")
    assert len(found) > 1000 and len(set(found.names)) == len(found)
    fresh = {c.name: c for c in generated(most=2)}
    for i, name in enumerate(found.names):
        if name in fresh:
            assert np.allclose(found[i].metric, fresh[name].metric, atol=1e-6)
            assert found[i].labels["space_group_number"] == NAMED[str(found[i].labels["prototype"])].number
