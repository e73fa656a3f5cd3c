"""Relaxation in processes that may hang or die, shifts, energies of the surrogate, hulls."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from manifoldflow.tasks.crystals import energies, relax
from manifoldflow.tasks.crystals.energies import Hull, agreement, single_points
from manifoldflow.tasks.crystals.relax import Relaxer, shift_of
from manifoldflow.tasks.crystals.structure import Crystal, parse_formula

FACES = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def salt(a: float = 5.64, name: str = "salt") -> Crystal:
    return Crystal(
        np.array([10] * 4 + [16] * 4), np.concatenate([FACES, np.add(FACES, [0.5, 0, 0])]) % 1, a * np.eye(3), name
    )


def moved(crystal: Crystal, shift: np.ndarray, cell: np.ndarray | None = None) -> Crystal:
    return Crystal(crystal.species, (crystal.frac + shift) % 1, crystal.cell if cell is None else cell)


def test_a_drift_of_all_atoms_and_a_strained_cell_are_no_shift() -> None:
    assert shift_of(salt(), moved(salt(), np.array([0.4, -0.3, 0.77]))) < 1e-6
    assert shift_of(salt(), moved(salt(), np.zeros(3), np.array([[6.0, 0, 0], [0.3, 5, 0], [0, -1, 5.8]]))) < 1e-6


def test_the_shift_of_one_atom_is_what_it_moved_with_its_part_of_the_mean_taken_out() -> None:
    shift = np.zeros((8, 3))
    shift[0] = [-0.05, 0, 0]  # out of the cell through a face
    # d of one atom of n: (d - d/n)^2 + (n - 1) (d/n)^2, over n
    d, n = 0.05 * 5.64, 8
    wanted = np.sqrt(((d - d / n) ** 2 + (n - 1) * (d / n) ** 2) / n)
    assert shift_of(salt(), moved(salt(), shift + 0.31)) == pytest.approx(wanted, abs=1e-6)


def test_shifts_are_measured_in_skewed_cells() -> None:
    cell = np.array([[3.0, 0, 0], [2.6, 1.5, 0], [0.4, 0.2, 6.0]])
    crystal = Crystal(np.array([5, 5]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), cell)
    step = np.array([[0.1, -0.2, 0.03], [-0.1, 0.2, -0.03]])
    assert shift_of(crystal, moved(crystal, step)) == pytest.approx(np.linalg.norm(step[0] @ cell), abs=1e-6)


WORKER = """
import json, sys, time, os
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    r = json.loads(line)
    a = r["cell"][0][0] / 4
    if a == 1: time.sleep(600)
    if a == 2: os._exit(9)
    if a == 3: answer = {"fault": "ValueError: something"}
    elif a == 4: answer = {"frac": r["frac"], "cell": [[0.001, 0, 0], [0, 0.001, 0], [0, 0, 0.001]]}
    elif a == 6: answer = {"frac": [[float("nan")] * 3] * len(r["frac"])}
    else: answer = {}
    whole = {"frac": r["frac"], "cell": r["cell"], "before": -1.0, "energy": -2.0, "steps": 3, "converged": True}
    text = json.dumps({"id": r["id"], **whole, **answer}) + "\\n"
    sys.stdout.write(text[:20]); sys.stdout.flush(); sys.stdout.write(text[20:]); sys.stdout.flush()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relaxer that hangs, dies or fails as the cell's length says."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(relax, "WORKER", (sys.executable, str(script)))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_relaxer_that_hangs_or_dies_is_ended_and_the_others_go_on(stand_in: None, workers: int) -> None:
    crystals = [salt(4.0 * a) for a in (5, 1, 5, 2, 3, 4, 6, 5)]
    with Relaxer(timeout=0.7, workers=workers) as relaxer:
        found = dict(relaxer.map(crystals))
        processes = [worker._process for worker in relaxer._workers]
    assert sorted(found) == list(range(8))
    assert [bool(found[i].fault) for i in range(8)] == [False, True, False, True, True, True, True, False]
    words = {1: "more than 0.7 s", 3: "ended unexpectedly", 4: "something", 5: "collapsed", 6: "not finite"}
    assert all(word in found[i].fault for i, word in words.items())
    assert found[7].energy == -2 and found[7].before == -1 and found[7].crystal is not None
    assert all(process is None or process.poll() is not None for process in processes)


def test_a_relaxer_that_cannot_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    for text, error, words in (
        ('print(\'{"fault": "relaxation needs chgnet"}\')', ImportError, "needs chgnet"),
        ("raise SystemExit(3)", RuntimeError, "did not start"),
    ):
        script.write_text(text)
        monkeypatch.setattr(relax, "WORKER", (sys.executable, str(script)))
        with Relaxer() as relaxer, pytest.raises(error, match=words):
            relaxer.relax(salt())


@pytest.mark.parametrize("name, value", [("steps", 0), ("timeout", 0.0), ("force", -1.0), ("workers", 0)])
def test_settings_that_make_no_sense(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Relaxer(**{name: value})


def test_rock_salt_relaxes_to_its_lattice_constant(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("chgnet")
    squeezed = salt(5.5)
    alone = Crystal(np.array([1]), np.zeros((1, 3)), 40 * np.eye(3))
    with Relaxer(timeout=500) as relaxer:
        result = relaxer.relax(squeezed)
    assert result.crystal is not None and result.converged and result.shift < 1e-3
    assert result.crystal.parameters[0] == pytest.approx(5.70, abs=0.05)  # measured: 5.64
    assert result.energy < result.before and result.volume == pytest.approx((5.70 / 5.5) ** 3, rel=0.03)
    values = single_points([alone, squeezed, salt(5.7)])
    assert np.isnan(values[0]) and values[1] == pytest.approx(result.before, abs=1e-4) and values[2] < values[1]
    assert capfd.readouterr().out == ""  # CHGNet prints; we don't


def test_energies_above_the_hull_are_those_of_pymatgen() -> None:
    pytest.importorskip("pymatgen")
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    random = np.random.default_rng(3)
    symbols = ("Na", "Cl", "O")
    counts = [some for some in itertools.product(range(3), repeat=3) if sum(some) > 1]
    compounds = ["".join(f"{s}{n}" for s, n in zip(symbols, some, strict=True) if n) for some in counts]
    texts = [*symbols, *compounds]
    values = [0.0, 0.0, 0.0, *(-random.random(len(texts) - 3))]
    hull = Hull.of([parse_formula(t) for t in texts], values)
    diagram = PhaseDiagram(
        [PDEntry(Composition(t), v * Composition(t).num_atoms) for t, v in zip(texts, values, strict=True)]
    )
    for text in ("NaCl", "Na2O", "NaClO3", "Na3Cl2O7", "Na", "ClO9"):
        wanted = diagram.get_hull_energy_per_atom(Composition(text))
        assert hull.at(parse_formula(text)) == pytest.approx(wanted, abs=1e-9)


def test_a_composition_out_of_reach_has_no_hull() -> None:
    hull = Hull.of([parse_formula("NaCl"), parse_formula("Na"), parse_formula("Na2")], [-3.0, -1.0, float("nan")])
    assert np.isnan(hull.at(parse_formula("NaCl2"))) and np.isnan(hull.at(parse_formula("KCl")))
    assert hull.at(parse_formula("Na3Cl")) == pytest.approx(0.5 * -3 + 0.5 * -1)
    above = hull.above([salt(), Crystal(np.array([18]), np.zeros((1, 3)), np.eye(3))], [-2.9, -1.0])
    assert above[0] == pytest.approx(0.1) and np.isnan(above[1])


def test_the_embedded_hull_knows_the_training_structures_only() -> None:
    rows = energies.read_energies()
    assert {row.part for row in rows} == {"train", "val", "test", "mp_40"} and len(rows) > 3500
    formulas = {part: {row.formula for row in rows if row.part == part} for part in ("train", "test")}
    assert not formulas["train"] & formulas["test"]
    hull = energies.embedded_hull(("train",))
    assert len(hull.energies) == len(formulas["train"]) and np.isfinite(hull.energies).all()
    known = next(row for row in rows if row.part == "train")
    assert hull.at(parse_formula(known.formula)) <= known.energy + 1e-9


def test_agreement_is_that_of_known_numbers() -> None:
    found = agreement([0.0, 0.05, 0.3, float("nan")], [0.0, 0.2, 0.4, 0.1])
    assert found.crystals == 3 and found.spearman == pytest.approx(1)
    assert found.error == pytest.approx((0 + 0.15 + 0.1) / 3) and found.stable == pytest.approx(2 / 3)
    assert found.pearson == pytest.approx(np.corrcoef([0, 0.05, 0.3], [0, 0.2, 0.4])[0, 1])
    with pytest.raises(ValueError, match="three are the least"):
        agreement([0.0], [1.0])


def test_sun_counts_what_is_stable_unique_and_novel() -> None:
    from manifoldflow.tasks.crystals.denovo import sun

    above = [0.0, 0.1, 0.2, float("nan"), -0.5]
    found = sun(above, [True, True, True, True, False], [True, False, True, True, True])
    assert found == {"crystals": 5, "with_hull": 4, "stable": 3, "unique_and_novel": 3, "sun": 1}


def test_labels_are_compared_with_the_formula_that_they_belong_to() -> None:
    from manifoldflow.tasks.crystals.denovo import labels_agree

    hull = energies.embedded_hull()
    rows = [row for row in energies.read_energies() if row.part == "mp_40"]
    alone = [row for row in rows if sum(other.formula == row.formula for other in rows) == 1]
    above = [row.energy - hull.at(parse_formula(row.formula)) for row in alone]
    every, some = labels_agree(above, [row.formula for row in alone])
    assert every.crystals == len(alone) > 500 and every.error < 1e-9 and every.pearson > 0.999
    assert some is not None and 10 < some.crystals < 100 and some.spearman > 0.999
