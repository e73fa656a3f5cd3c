"""Matching is pymatgen's on any number of processes; sets are measured as defined; the commands go on past what is broken."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("spglib")
pytest.importorskip("pymatgen")

from manifoldflow.tasks.crystals import baselines, evaluate_command, matching, metrics
from manifoldflow.tasks.crystals.baselines import (
    Substitution,
    exchange,
    ideal_prototype,
    predict,
    random_atoms,
    substitute,
)
from manifoldflow.tasks.crystals.elements import species_number, symbols_of
from manifoldflow.tasks.crystals.evaluate import judge, judge_set
from manifoldflow.tasks.crystals.evaluate_command import evaluate
from manifoldflow.tasks.crystals.matching import PUBLISHED, STRICT, best_of, crmse, in_parallel, match_pairs, rms_of
from manifoldflow.tasks.crystals.prepare_command import prepare
from manifoldflow.tasks.crystals.prototypes import NAMED, examples
from manifoldflow.tasks.crystals.store import CrystalDataset
from manifoldflow.tasks.crystals.structure import Crystal, wrap
from manifoldflow.tasks.crystals.writing import cif_text, write_crystals
from testkit.shared import SHARED_DATA, needs_shared_data
from testkit.sleepy import sleepy


def number(*symbols: str) -> list[int]:
    return [species_number(symbol) for symbol in symbols]


def shaken(crystal: Crystal, size: float, seed: int = 0) -> Crystal:
    """Turned, atoms in another order, each moved by about so many angstrom."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    moves = size * rng.normal(size=crystal.frac.shape) / np.sqrt(3)
    order = rng.permutation(len(crystal))
    frac = wrap(crystal.frac + moves @ np.linalg.inv(crystal.cell))
    return Crystal(crystal.species[order], frac[order], crystal.cell @ turn, crystal.name)


PAIRS = [
    (shaken(crystal, size, seed), crystal)
    for seed, crystal in enumerate(examples()[:8])
    for size in (0.05, 2.0)
] + [(examples()[0], examples()[1])]  # fmt: skip


def test_matching_is_pymatgens_and_the_same_on_one_process_and_on_two() -> None:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    found = match_pairs(PAIRS, workers=1)
    assert not found.timed_out.any() and np.isnan(found.rms[-1]).all()
    for (a, b), rms in zip(PAIRS, found.rms, strict=True):
        for k, m in enumerate((PUBLISHED, STRICT)):
            matcher = StructureMatcher(stol=m.stol, ltol=m.ltol, angle_tol=m.angle_tol)
            truth = matcher.get_rms_dist(a.to_pymatgen(), b.to_pymatgen())
            assert np.isnan(rms[k]) if truth is None else np.isclose(rms[k], truth[0], atol=1e-9)
    is_matched = ~np.isnan(found.rms)
    assert is_matched[:-1:2].all() and 0 < is_matched[1:-1:2].sum() < 16  # 0.05 A always, 2 A at times
    two = match_pairs(PAIRS, workers=2)
    assert np.array_equal(found.rms, two.rms, equal_nan=True)


def test_what_pymatgen_cannot_reduce_matches_nothing() -> None:
    flat = Crystal(np.array(number("Na", "Cl")), np.zeros((2, 3)), np.diag([4.0, 4.0, 1e-9]))
    assert np.isnan(match_pairs([(flat, examples()[0])], workers=1).rms).all()
    assert match_pairs([], workers=1).rms.shape == (0, 2)


def test_a_pair_that_takes_too_long_is_given_up_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(a: Crystal, b: Crystal, matchers: Any) -> list[float]:
        if a.name == "stuck":
            time.sleep(20)
        return [0.1] * len(matchers)

    monkeypatch.setattr(matching, "rms_of", slow)
    good = examples()[0]
    stuck = Crystal(good.species, good.frac, good.cell, "stuck")
    found = match_pairs([(good, good), (stuck, good), (good, good)], workers=1, timeout=0.2)
    assert found.timed_out.tolist() == [False, True, False]
    assert np.isnan(found.rms[1]).all() and (found.rms[[0, 2]] == 0.1).all()


def test_processes_that_hang_are_stopped_and_the_rest_is_done() -> None:
    found = in_parallel(sleepy, [600.0, 0.0, 0.0], workers=2, chunk=1, seconds=10.0, missing="given up")
    assert found == ["given up", "done", "done"]


def test_a_script_that_its_processes_would_run_again_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "from manifoldflow.tasks.crystals.matching import in_parallel\n"
        "def same(piece):\n    return piece\n"
        "print(in_parallel(same, [1, 2], workers=2, chunk=1))\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and ended.stderr.rstrip().splitlines()[-1].startswith("RuntimeError: the processes")


def test_rates_are_counted_by_hand() -> None:
    nan = float("nan")
    rms = np.array([[0.3, 0.1], [nan, 0.2], [nan, nan], [0.4, nan]])
    assert np.array_equal(best_of(rms, 1), [0.3, nan, nan, 0.4], equal_nan=True)
    assert np.array_equal(best_of(rms, 2), [0.1, 0.2, nan, 0.4], equal_nan=True)
    assert np.isclose(crmse(best_of(rms, 1)), (0.3 + 0.5 + 0.5 + 0.4) / 4)


def test_judging_counts_best_samples_and_those_of_other_truths() -> None:
    salt = NAMED["rock_salt"].make(number("Na", "Cl"))
    blende = NAMED["zinc_blende"].make(number("Na", "Cl"))
    other = NAMED["cesium_chloride"].make(number("Cs", "Cl"))
    judged = judge("x", [[blende, salt], [salt, salt], []], [salt, blende, other], 2, workers=1)
    assert judged.missing == 1 and judged.timed_out == 0
    one, two = judged.numbers(1, 1), judged.numbers(2, 1)  # the published matcher takes one for the other
    assert one["match"] == 0 and two["match"] == pytest.approx(1 / 3) and two["rmse"] < 1e-6
    assert two["crmse"] == pytest.approx(1 / 3, abs=1e-6)
    assert judged.numbers(1, 0)["match"] == pytest.approx(1 / 3 * 2)
    assert "metre" not in one and two["metre"] == pytest.approx(2 / 3)  # blende was made, for the other truth
    assert judged.valid.tolist() == [True, True, False]
    with pytest.raises(ValueError, match="reference structures"):
        judge("x", [], [salt])


CHARGES = {
    "NaCl": True, "SrTiO3": True, "BaTiO2N": True, "Cu3Au": True, "C": True, "FeO3": True,
    "NaCl3": False, "Na2Cl": False, "OF": False,
}  # fmt: skip


@pytest.mark.parametrize("formula", CHARGES)
def test_charges_balance_as_a_chemist_says(formula: str) -> None:
    pytest.importorskip("smact")
    found = metrics.composition_of(formula)
    assert found.is_valid == CHARGES[formula] and found.is_known
    assert bool(found.reason) != found.is_valid


def test_elements_without_oxidation_states_are_said_so() -> None:
    pytest.importorskip("smact")
    found = metrics.composition_of("HeNa2")
    assert not found.is_known and "He" in found.reason


def test_validity_density_and_space_groups_of_known_crystals() -> None:
    salt = Crystal(
        np.array(number("Na", "Cl")),
        np.array([[0, 0, 0], [0.5] * 3]),
        2.82 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]]),
    )
    close = Crystal(salt.species, np.array([[0, 0, 0], [0.05] * 3]), salt.cell)
    found = metrics.geometry([salt, close])
    assert found.is_valid.tolist() == [True, False]
    assert found.density[0] == pytest.approx(2.164, abs=5e-3) and found.closest[0] == pytest.approx(2.82)
    assert metrics.space_groups([salt, *examples()[:3]], 0.01) == [
        (225, "Fm-3m"), (225, "Fm-3m"), (221, "Pm-3m"), (216, "F-43m"),
    ]  # fmt: skip
    systems = [metrics.crystal_system(n) for n in (2, 3, 15, 74, 75, 143, 194, 230)]
    assert [word[:4] for word in systems] == ["tric", "mono", "mono", "orth", "tetr", "trig", "hexa", "cubi"]


def test_copies_are_found_in_a_set_and_in_the_training_set() -> None:
    first, second = examples()[0], examples()[18]
    crystals = [first, second, shaken(first, 0.02, 1), shaken(second, 0.02, 2), examples()[2]]
    assert metrics.first_of_kind(crystals, workers=1).tolist() == [0, 1, 0, 1, 4]
    assert metrics.known_of(crystals, [examples()[3], second], workers=1) == [None, 1, None, 1, None]


def test_a_set_covers_itself_and_not_another() -> None:
    some, others = list(examples()[:10]), [Crystal(c.species, c.frac * 0.3, c.cell, c.name) for c in examples()[10:20]]
    assert metrics.coverage(some, some)[:2] == (1.0, 1.0)
    turned = [shaken(c, 0.0, i) for i, c in enumerate(some)]
    for a, b in zip(metrics.structure_fingerprints(some), metrics.structure_fingerprints(turned), strict=True):
        assert np.allclose(a, b, atol=1e-6)
    assert metrics.coverage(others, some, (0.1, 0.1))[:2] == (0.0, 0.0)
    found = judge_set(turned, some, some, workers=1)
    json.dumps(found)  # plain numbers: it goes into a file
    json.dumps(judge_set(turned, some, some[:1], workers=1))
    assert found["unique"] == 10 and found["novel"] == 0 and found["density_distance"] < 1e-4


# --- rows without a model ---------------------------------------------------------------------------------------------


def sites(crystal: Crystal) -> dict[str, list[float]]:
    return {s: x for s, x in zip(symbols_of(crystal.species), crystal.frac.tolist(), strict=True)}


@pytest.mark.parametrize("formula", ["SrTiO3", "TiSrO3", "SrTiO2N", "SrTiNO2", "SrTiOFN"])
def test_the_radius_rule_puts_the_larger_cation_between_the_octahedra(formula: str) -> None:
    first, second = ideal_prototype([formula], 2)[0]
    for crystal, cation in ((first, "Ti"), (second, "Sr")):
        distance = crystal.to_pymatgen().distance_matrix
        i = symbols_of(crystal.species).index(cation)
        nearest = np.sort(distance[i])[1]
        near = [s for k, s in enumerate(symbols_of(crystal.species)) if distance[i, k] < 1.01 * nearest and k != i]
        assert set(near) <= {"O", "N", "F"} and len(near) == 3  # six with images: the octahedron
        assert len(crystal) == 5
    assert first.labels["prototype"] == "perovskite"


def test_ideal_types_follow_counts_and_bonding() -> None:
    kinds = {
        f: [c.labels["prototype"] for c in ideal_prototype([f], 3)[0]]
        for f in ("NaCl", "CuAu", "CaF2", "MgAl2O4", "Al7W")
    }
    assert kinds["NaCl"][0] == "rock_salt" and kinds["CuAu"][0] in ("cesium_chloride", "gold_copper")
    assert kinds["CaF2"][0] == "fluorite" and kinds["MgAl2O4"] == ["spinel"] and kinds["Al7W"] == []
    assert [len(c) for c in ideal_prototype([number("Na", "Na", "Cl", "Cl")])] == [1]


def test_random_atoms_depend_on_the_seed_alone() -> None:
    a, b, c = (random_atoms(["NaCl", "SrTiO3"], 2, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(x.frac, y.frac) for s, t in zip(a, b, strict=True) for x, y in zip(s, t, strict=True))
    assert not np.allclose(a[0][0].frac, c[0][0].frac) and not np.allclose(a[0][0].frac, a[0][1].frac)
    assert a[1][0].formula == "SrTiO3" and np.allclose(a[1][0].cell, a[1][0].cell[0, 0] * np.eye(3))


def test_substitution_exchanges_like_for_like_and_holds_the_formula_back() -> None:
    perovskite = NAMED["perovskite"]
    known = [
        perovskite.make(number("Ba", "Zr", "O")),
        perovskite.make(number("La", "Al", "O")),
        perovskite.make(number("Sr", "Ti", "O")),
        NAMED["rock_salt"].make(number("K", "Br")),
        NAMED["cesium_chloride"].make(number("Ni", "Al")),
    ]
    (first, second), (salt,) = substitute(["SrTiO3", "NaCl"], known, 2)[0], substitute(["NaCl"], known, 1)[0]
    truth = perovskite.make(number("Sr", "Ti", "O"))
    assert rms_of(first, truth)[1] < 1e-6 and first.formula == "SrTiO3" and second.formula == "SrTiO3"
    assert rms_of(salt, NAMED["rock_salt"].make(number("Na", "Cl")))[0] < 1e-6
    assert all(row != 2 for _, row, _ in Substitution(known).nearest("SrTiO3", 5, np.arange(5) == 2))
    assert Substitution(known).nearest("SrTiO3")[0][0] == 0.0
    assert substitute(["Al7W"], known)[0] == []
    bigger = exchange(known[3], {number("K")[0]: number("Cs")[0], number("Br")[0]: number("I")[0]})
    assert bigger.volume > known[3].volume and bigger.formula == "CsI"
    with pytest.raises(ValueError, match="training set with --data"):
        predict("substitute", ["NaCl"])
    with pytest.raises(ValueError, match="rule must be one of"):
        predict("best", ["NaCl"])  # type: ignore[arg-type]


@needs_shared_data
def test_the_radius_rule_has_the_rate_that_was_measured_on_perov_5() -> None:
    data = CrystalDataset(SHARED_DATA / "crystals" / "perov_5.csv.gz")
    truth = [data[i] for i in range(0, 3780, 95)]
    judged = judge("radius", ideal_prototype([c.species.tolist() for c in truth], 2), truth, 2, workers=1)
    assert 0.35 < judged.numbers(1, 0)["match"] < 0.7  # 51 % of 1,000
    assert judged.numbers(2, 0)["match"] > 0.9  # either order: 98 %


# --- commands ---------------------------------------------------------------------------------------------------------


def broken_folder(folder: Path) -> Path:
    folder.mkdir()
    write_crystals(folder, examples()[:4])
    (folder / "broken.cif").write_text(cif_text(examples()[0])[:200])
    grid = np.array([(i, j, k) for i in range(8) for j in range(10) for k in range(5)]) / [8, 10, 5]
    large = Crystal(np.zeros(400, np.int64) + 28, grid, np.diag([24.0, 30, 15]), "large")
    write_crystals(folder, [large])
    return folder


def test_preparing_goes_on_past_bad_files_and_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = broken_folder(tmp_path / "in")
    (folder / "again").mkdir()
    write_crystals(folder / "again", examples()[:1])
    made = prepare(str(folder), str(tmp_path / "set"))
    assert made.crystals == 5 and {Path(r.source).name for r in made.rejected} == {"broken.cif", "large.cif"}
    data = CrystalDataset(tmp_path / "set")
    assert sorted(data.names) == ["cesium_chloride", "rock_salt", "rock_salt-2", "wurtzite", "zinc_blende"]
    with open(tmp_path / "set" / "rejected.csv") as file:
        rows = list(csv.DictReader(file))
    assert any("400 atoms, more than max_atoms = 64" in row["reason"] for row in rows)
    printed = capsys.readouterr().out
    assert "5 crystals" in printed and "2 left out" in printed
    assert prepare(str(folder), str(tmp_path / "set"), max_atoms=400).crystals == 6
    with pytest.raises(ValueError, match="no crystal is left of 1 file;"):
        prepare(str(folder / "broken.cif"), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="max_atoms must be at least 1"):
        prepare(str(folder), str(tmp_path / "x"), max_atoms=0)


def test_a_rule_is_judged_on_any_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = broken_folder(tmp_path / "in")
    (folder / "large.cif").unlink()
    evaluate(str(folder), rule="radius", num=2, workers=1, out=str(tmp_path / "table.csv"))
    printed = capsys.readouterr().out
    assert "left out" in printed and "broken.cif" in printed and "published" in printed and "strict" in printed
    with open(tmp_path / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} == {"cesium_chloride", "rock_salt", "wurtzite", "zinc_blende"}
    summary = json.loads((tmp_path / "table.json").read_text())
    assert set(summary["methods"]) == {"rule: radius"} and len(summary["left_out"]) == 1
    assert set(summary["methods"]["rule: radius"]) >= {"published@1", "published@2", "strict@1"}


def test_samples_are_paired_by_formula_and_measured_as_a_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("smact")
    write_crystals(tmp_path / "truth", examples()[:4])
    write_crystals(tmp_path / "made", [shaken(examples()[0], 0.05), examples()[18]])
    evaluate(
        str(tmp_path / "truth"), samples=str(tmp_path / "made"), beside=False, workers=1, out=str(tmp_path / "t.csv")
    )
    printed = capsys.readouterr().out
    assert "made: no sample for 3 of 4 structures" in printed and "valid structures" in printed
    summary = json.loads((tmp_path / "t.json").read_text())
    assert summary["methods"]["made"]["published@1"]["match"] == 0.25 and summary["set"]["samples"] == 2


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"rule": "radius", "samples": "x"}, "--samples and --rule exclude each other"),
        ({"num": 0}, "num >= 1"),
        ({"rule": "radius", "out": "table.json"}, "expected the name of a CSV file"),
        ({"rule": "radius", "part": "val"}, "no structure is left"),
    ],
)
def test_mistakes_are_said_in_one_line(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_crystals(tmp_path, examples()[:1])
    with pytest.raises(ValueError, match=reason):
        evaluate(str(tmp_path), **options)
    with pytest.raises(FileNotFoundError):
        evaluate(str(tmp_path / "none.csv"))


def test_modules_are_those_that_the_commands_use() -> None:
    assert evaluate_command.RULES == baselines.RULES == ("random", "radius", "substitute")


def test_a_formula_of_many_elements_does_not_take_for_ever() -> None:
    """Ten elements with many oxidation states each; nothing is said of them, at once."""
    found = metrics.composition_of("FeMnCrVMoWOsRuReS")
    assert not found.is_valid and not found.is_known and "too many" in found.reason
    assert metrics.composition_of("SrTiO3").is_valid
