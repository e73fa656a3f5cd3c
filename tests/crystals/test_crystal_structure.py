"""Crystals as arrays and batches: cells, images and contacts against brute force, pymatgen and spglib."""

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("spglib")

from manifoldflow.tasks.crystals.elements import ELEMENTS, SYMBOLS, period_and_group, species_number
from manifoldflow.tasks.crystals.splits import split_by_formula
from manifoldflow.tasks.crystals.store import CrystalDataset, write_dataset
from manifoldflow.tasks.crystals.structure import (
    Crystal,
    Crystals,
    cell_parameters,
    cell_vectors,
    cells_of,
    collate,
    contacts,
    densities,
    distances,
    minkowski_steps,
    parse_formula,
    shortest,
    volumes,
)


def random_cells(count: int, seed: int) -> torch.Tensor:
    """Cell vectors, many of them very skewed."""
    generator = torch.Generator().manual_seed(seed)
    cells = 3 * torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)
    times = torch.randint(-20, 21, (count, 2), generator=generator)
    cells[:, 0] += times[:, :1] * cells[:, 1]
    cells[:, 2] += times[:, 1:] * cells[:, 0]
    return cells[torch.linalg.det(cells).abs() > 3]


def random_crystal(seed: int, atoms: int = 6) -> Crystal:
    rng = np.random.default_rng(seed)
    cell = 4 * np.eye(3) + rng.normal(size=(3, 3))
    return Crystal(rng.integers(0, 80, atoms), rng.random((atoms, 3)), cell, f"c{seed}", {"energy": float(seed)})


def brute_force(difference: np.ndarray, cell: np.ndarray, reach: int = 4) -> np.ndarray:
    """Distances to the nearest of (2 reach + 1)^3 images, in a cell that spglib has reduced."""
    import spglib

    reduced = np.asarray(spglib.niggli_reduce(cell, eps=1e-6))
    frac = difference @ cell @ np.linalg.inv(reduced)
    frac -= np.round(frac)
    shifts = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    return np.linalg.norm((frac[:, None] + shifts) @ reduced, axis=-1).min(1)


def test_nearest_images_are_those_of_brute_force_in_cells_of_any_shape() -> None:
    cells = random_cells(120, 0)
    metric = cells @ cells.mT
    difference = 6 * torch.rand(len(cells), 8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 3
    found, image = shortest(difference, metric)
    for i in range(len(cells)):
        truth = brute_force(difference[i].numpy(), cells[i].numpy())
        assert np.allclose(found[i], truth, atol=1e-7)
        assert np.allclose(np.linalg.norm(image[i].numpy() @ cells[i].numpy(), axis=-1), truth, atol=1e-7)
    shift = image - difference
    assert (shift - shift.round()).abs().max() < 1e-9


def test_the_three_shortest_vectors_are_a_minkowski_reduced_basis() -> None:
    cells = random_cells(200, 2)
    metric = cells @ cells.mT
    steps = minkowski_steps(metric)
    assert torch.equal(steps, steps.round())
    assert (torch.linalg.det(steps).abs() - 1).abs().max() < 1e-9
    reduced = steps @ metric @ steps.mT
    size = reduced.diagonal(dim1=-2, dim2=-1)
    assert (size[:, 1:] >= size[:, :-1] * (1 - 1e-9)).all()
    combinations = torch.tensor(
        [c for c in itertools.product((-1.0, 0.0, 1.0), repeat=3) if any(c)], dtype=torch.float64
    )
    length = ((combinations @ reduced) * combinations).sum(-1)
    for k in range(3):  # no sum that holds vector k is shorter than it
        assert (length[:, combinations[:, k] != 0] >= size[:, k : k + 1] * (1 - 1e-9)).all()


def test_distances_are_pymatgens_and_padding_changes_nothing() -> None:
    pytest.importorskip("pymatgen")
    crystals = [random_crystal(seed, 3 + seed) for seed in range(5)]
    batch = collate(crystals, dtype=torch.float64)
    found = distances(batch)
    for i, crystal in enumerate(crystals):
        n = len(crystal)
        truth = crystal.to_pymatgen().distance_matrix
        off = ~np.eye(n, dtype=bool)
        assert np.allclose(found[i, :n, :n].numpy()[off], truth[off], atol=1e-8)
        assert found[i, n:].isinf().all() and found[i, :, n:].isinf().all()
        alone = collate([crystal], dtype=torch.float64)
        assert torch.allclose(contacts(alone)[0], contacts(batch)[i])
        assert np.isclose(float(densities(alone)[0]), crystal.to_pymatgen().density, rtol=1e-3)
        assert np.isclose(float(volumes(alone.lattice)[0]), crystal.volume)


def test_an_atom_touches_its_own_image() -> None:
    alone = Crystal(np.array([28]), np.zeros((1, 3)), np.diag([2.0, 5, 5]))
    assert np.isclose(float(contacts(collate([alone], dtype=torch.float64))[0]), 2.0 / (2 * 1.32))


@pytest.mark.parametrize("seed", range(4))
def test_reduction_keeps_the_crystal_and_its_hand(seed: int) -> None:
    crystal = random_crystal(seed)
    skewed = Crystal(
        crystal.species,
        crystal.frac @ np.linalg.inv(np.array([[1, 3, 0], [0, 1, 0], [2, 0, 1.0]])),
        np.array([[1, 3, 0], [0, 1, 0], [2, 0, 1]]) @ crystal.cell,
    )
    for given in (crystal, skewed, Crystal(crystal.species, crystal.frac, crystal.cell @ np.diag([1, 1, -1.0]))):
        reduced = given.reduced()
        assert np.linalg.det(reduced.cell) > 0 and (0 <= reduced.frac).all() and (reduced.frac < 1).all()
        assert np.allclose(np.triu(reduced.cell, 1), 0)
        # Turned by a rotation, no reflection: the signed volumes of vectors between atoms are equal.
        rows = itertools.combinations(range(1, 5), 3)
        for i, j, k in rows:
            parts = []
            for c in (given, reduced):
                metric = torch.from_numpy(c.metric)[None]
                step, image = shortest(torch.from_numpy(c.frac[[i, j, k]] - c.frac[0])[None], metric)
                parts.append(float(np.linalg.det(image[0].numpy() @ c.cell)))
                parts.append(float(step.sum()))
            assert np.isclose(parts[0], parts[2], atol=1e-6) and np.isclose(parts[1], parts[3], atol=1e-6)


def test_skewed_cells_of_one_lattice_reduce_to_one_cell() -> None:
    crystal = random_crystal(7)
    wanted = crystal.reduced().metric
    for rows in (
        [[1, 2, 0], [0, 1, 0], [0, 3, 1]],
        [[0, 1, 0], [1, 0, 0], [0, 0, -1]],
        [[1, 0, 0], [5, 1, 0], [0, 0, 1]],
    ):
        steps = np.array(rows, float)
        other = Crystal(crystal.species, crystal.frac @ np.linalg.inv(steps), steps @ crystal.cell)
        assert np.allclose(other.reduced().metric, wanted, atol=1e-8)


def test_a_batch_gives_the_crystals_back() -> None:
    crystals = [random_crystal(seed, 2 + seed).standard() for seed in range(4)]
    batch = collate(crystals, size=9, dtype=torch.float64)
    assert (
        batch.mask.shape == (4, 9) and (batch.species[~batch.mask] == 0).all() and (batch.frac[~batch.mask] == 0).all()
    )
    for crystal, back in zip(crystals, batch.crystals([c.name for c in crystals]), strict=True):
        assert (back.species == crystal.species).all() and back.name == crystal.name
        assert np.allclose(back.frac, crystal.frac) and np.allclose(back.cell, crystal.cell)
    assert torch.allclose(cells_of(batch.lattice) @ cells_of(batch.lattice).mT, batch.lattice)
    broken = batch._replace(lattice=batch.lattice * torch.tensor([1.0, 1.0, -1.0, 1.0])[:, None, None])
    with pytest.raises(ValueError, match="crystal 2: its lattice is not positive definite"):
        broken.crystals()
    with pytest.raises(ValueError, match="more than 3"):
        collate(crystals, size=3)


def test_cells_from_lengths_and_angles_and_back() -> None:
    for values in (
        (3, 4, 5, 90, 90, 90),
        (3, 3, 5, 90, 90, 120),
        (4, 5, 6, 80, 95.5, 101),
        (2.5, 2.5, 2.5, 60, 60, 60),
    ):
        assert np.allclose(cell_parameters(cell_vectors(*values)), values)
    with pytest.raises(ValueError, match="no volume"):
        cell_vectors(4, 4, 4, 90, 90, 180)
    with pytest.raises(ValueError, match="no volume"):
        cell_vectors(4, 4, 4, 120, 120, 120)
    with pytest.raises(ValueError, match="must be positive"):
        cell_vectors(4, -4, 4, 90, 90, 90)


@pytest.mark.parametrize(
    "text, counts",
    [
        ("SrTiO3", {"Sr": 1, "Ti": 1, "O": 3}),
        ("Ca(OH)2", {"Ca": 1, "O": 2, "H": 2}),
        ("K4[Fe(CN)6]", {"K": 4, "Fe": 1, "C": 6, "N": 6}),
        ("Al2 (SO4)3", {"Al": 2, "S": 3, "O": 12}),
        ("CO", {"C": 1, "O": 1}),
        ("Co", {"Co": 1}),
        ("D2O", {"H": 2, "O": 1}),
    ],
)
def test_formulas_are_read(text: str, counts: dict[str, int]) -> None:
    assert {SYMBOLS[s]: n for s, n in parse_formula(text)} == counts


@pytest.mark.parametrize("text", ["", "nacl", "Na(Cl", "NaCl)", "Xx2", "Na0", "Na1.5Cl", "Na-Cl", "12", "Ca²"])
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="formula"):
        parse_formula(text)


def test_formulas_of_polymorphs_and_supercells_are_equal() -> None:
    perovskite = Crystal(
        np.array([species_number(s) for s in ("O", "Ti", "O", "Sr", "O")]), np.random.rand(5, 3), 4 * np.eye(3)
    )
    double = Crystal(np.tile(perovskite.species, 2), np.random.rand(10, 3), 5 * np.eye(3))
    assert perovskite.formula == double.formula == "SrTiO3" and double.units == 2
    assert perovskite.anonymous == double.anonymous == (1, 1, 3)


def test_the_table_of_elements_is_pymatgens() -> None:
    core = pytest.importorskip("pymatgen.core")
    period, group = period_and_group()
    for i in range(ELEMENTS):
        element = core.Element.from_Z(i + 1)
        assert (element.symbol, element.row, element.group) == (SYMBOLS[i], period[i], group[i])


def test_a_prepared_set_gives_back_what_was_written(tmp_path) -> None:  # type: ignore[no-untyped-def]
    crystals = [random_crystal(seed, 2 + seed).reduced() for seed in range(5)]
    folder = write_dataset(crystals, tmp_path / "set", "here")
    found = CrystalDataset(folder)
    assert (
        len(found) == 5
        and found.formulas == [c.formula for c in crystals]
        and found.lengths.tolist() == [2, 3, 4, 5, 6]
    )
    for crystal, back in zip(crystals, found, strict=True):
        assert back.name == crystal.name and back.labels == crystal.labels
        assert (back.species == crystal.species).all() and (back.frac == crystal.frac).all()
        assert (back.cell == crystal.cell).all()
    assert found.label("energy").tolist() == [0, 1, 2, 3, 4]
    assert isinstance(found.batch([3, 1]), Crystals) and found.batch([3, 1]).mask.sum(1).tolist() == [5, 3]
    with pytest.raises(ValueError, match="no crystal has the label 'gap'; there are energy"):
        found.label("gap")
    (folder / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"beside the data set also holds note\.txt"):
        write_dataset(crystals, folder)
    with pytest.raises(FileNotFoundError):
        CrystalDataset(tmp_path / "none")


def test_splits_share_no_formula_and_do_not_depend_on_the_rest() -> None:
    formulas = [f"A{i % 300}" for i in range(900)]
    parts = split_by_formula(formulas, 0.1, 0.2)
    sets = [{formulas[i] for i in part.tolist()} for part in parts]
    assert sum(map(len, parts)) == 900 and not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    assert 0.1 < len(parts.test) / 900 < 0.3
    few = split_by_formula(formulas[:50], 0.1, 0.2)
    assert {formulas[i] for i in few.test.tolist()} <= sets[2]
