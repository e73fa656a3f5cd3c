"""Every measure fails on what it is there to find, on chains made here; `evaluate` leaves nothing out in silence."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manifoldflow.cli import main
from manifoldflow.tasks.proteins import metrics
from manifoldflow.tasks.proteins.backbones import collect, is_trajectory, numbering, read_backbones
from manifoldflow.tasks.proteins.reading import read_structure
from testkit.peptide import HELIX, STRAND, helix, pdb_lines, peptide

Captured = pytest.CaptureFixture[str]
HAIRPIN = peptide([STRAND] * 8 + [(-60.0, 30.0), (-90.0, 0.0)] + [STRAND] * 8)


def per_chain(coords: Any, index: torch.Tensor | None = None) -> dict[str, float]:
    coords = torch.as_tensor(np.asarray(coords), dtype=torch.float64)[None]
    table = metrics.per_chain(coords, torch.ones(coords.shape[:2], dtype=torch.bool), index)
    return {name: float(column[0]) for name, column in table.items()}


def turned(coords: np.ndarray, begin: int, axis: tuple[np.ndarray, np.ndarray], degrees: float) -> np.ndarray:
    """Everything from residue ``begin`` on, turned about an axis through two points."""
    start, end = axis
    k = (end - start) / np.linalg.norm(end - start)
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    t = math.radians(degrees)
    rotation = np.eye(3) + math.sin(t) * cross + (1 - math.cos(t)) * cross @ cross
    moved = coords.copy()
    moved[begin:] = (coords[begin:] - start) @ rotation.T + start
    return moved


def test_an_ideal_helix_is_sound_by_every_measure() -> None:
    row = per_chain(helix(20))
    for name in ("ca_ca_within", "c_n_within", "o_n_within", "inner_within", "omega_trans"):
        assert row[name] == 1, name
    for name in ("breaks", "has_break", "gaps", "omega_twisted", "atom_clashes", "has_atom_clash", "clashes"):
        assert row[name] == 0, name
    assert row["helix"] == pytest.approx(0.9)


def shifted_half(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[10:] += np.array([10.0, 0.0, 0.0])
    return x


def inner(atom: int) -> Any:
    def change(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[7, atom] += 0.4 * (x[7, atom] - x[7, 1 if atom != 1 else 0]) / 1.5 + 0.2
        return x

    return change


def mirrored_oxygen(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    ca, c, o = x[:, 1], x[:, 2], x[:, 3]
    along = (c - ca) / np.linalg.norm(c - ca, axis=-1, keepdims=True)
    x[:, 3] = c + 2 * ((o - c) * along).sum(-1, keepdims=True) * along - (o - c)  # half a turn about CA-C
    return x


def twisted(x: np.ndarray) -> np.ndarray:
    return turned(x, 11, (x[10, 2], x[11, 0]), 70)


def on_top(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[15:] += x[3, 3] - x[18, 0] + np.array([0.0, 0.0, 1.5])  # an N lies 1.5 A from an O
    return x


@pytest.mark.parametrize(
    ("damage", "measure", "sound"),
    [
        (shifted_half, "breaks", 0),
        (shifted_half, "c_n_within", 1),
        (shifted_half, "ca_ca_within", 1),
        (twisted, "omega_trans", 1),
        (twisted, "omega_twisted", 0),
        (mirrored_oxygen, "o_n_within", 1),
        (inner(0), "inner_within", 1),
        (inner(2), "inner_within", 1),
        (inner(3), "inner_within", 1),
        (on_top, "atom_clashes", 0),
        (lambda x: x * 0.5, "clashes", 0),
        (lambda x: x * np.array([1, 1, -1]), "phi_positive", 0),
        (mirrored_oxygen, "helix", 0.9),
        (lambda x: x * 1.05, "rg", per_chain(helix(20))["rg"]),
    ],
)
def test_a_measure_fails_on_the_damage_that_it_measures(damage: Any, measure: str, sound: float) -> None:
    before, after = per_chain(helix(20)), per_chain(damage(helix(20)))
    assert before[measure] == pytest.approx(sound) and abs(after[measure] - sound) > 0.02


def test_half_a_design_that_is_10_angstrom_away_scores_by_the_numbers() -> None:
    row = per_chain(shifted_half(helix(60)))
    assert row["breaks"] == 1 and row["c_n_within"] == row["ca_ca_within"] == pytest.approx(58 / 59)
    coords = torch.tensor(np.stack([helix(60), shifted_half(helix(60))]))
    summary = metrics.summarize(coords, torch.ones(2, 60, dtype=torch.bool))
    assert summary["broken_chains"] == summary["breaks_per_chain"] == 0.5
    assert summary["c_n_within"] == pytest.approx(117 / 118)


def test_a_break_is_a_bond_above_1_75_angstrom() -> None:
    for gap, broken in ((1.74, 0), (1.76, 1)):
        coords = helix(6)
        bond = coords[3, 0] - coords[2, 2]
        coords[3:] += bond / np.linalg.norm(bond) * gap - bond
        assert per_chain(coords)["breaks"] == broken


@pytest.mark.parametrize("atoms", [(a, b) for a in range(4) for b in range(4)])
def test_any_two_backbone_atoms_that_no_bond_holds_can_clash(atoms: tuple[int, int]) -> None:
    a, b = atoms
    for distance, count in ((2.15, 1), (2.25, 0)):
        coords = torch.zeros(1, 5, 4, 3)
        coords[0] = 100 * torch.arange(20).reshape(5, 4, 1)  # nothing near anything
        coords[0, 4, b] = coords[0, 1, a] + torch.tensor([distance, 0.0, 0.0])
        mask = torch.ones(1, 5, dtype=torch.bool)
        assert metrics.atom_clashes(coords, mask).tolist() == [count]
        assert metrics.atom_clashes(coords, mask & (torch.arange(5) < 4)).tolist() == [0]


def test_neighbours_clash_where_the_numbering_promises_no_bond() -> None:
    coords, mask = torch.tensor(helix(4))[None], torch.ones(1, 4, dtype=torch.bool)
    assert metrics.atom_clashes(coords, mask).tolist() == [0]
    index = torch.tensor([[0, 1, 35, 36]])
    assert metrics.atom_clashes(coords, mask, index).tolist() == [1]  # C and N, 1.33 A apart; O and N are at 2.25
    assert metrics.gaps(mask, index).tolist() == [1] and metrics.breaks(coords, mask, index).tolist() == [0]


def test_clash_counts_do_not_depend_on_how_the_batch_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    coords = 3 * torch.randn(6, 9, 4, 3)
    mask = torch.rand(6, 9) < 0.8
    whole, of_ca = metrics.atom_clashes(coords, mask), metrics.clashes(coords, mask)
    monkeypatch.setattr("manifoldflow.tasks.proteins.secondary_structure.CELLS", 2 * 81)
    assert whole.sum() > 20 and metrics.atom_clashes(coords, mask).tolist() == whole.tolist()
    assert of_ca.sum() > 5 and metrics.clashes(coords, mask).tolist() == of_ca.tolist()


# ---------------------------------------------------------------- files


def put(path: Path, *groups: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line for group in groups for line in group) + "\nEND\n")
    return path


def models(*states: np.ndarray) -> list[str]:
    return [line for k, x in enumerate(states, 1) for line in (f"MODEL     {k:4d}", *pdb_lines(x), "ENDMDL")]


def evaluate(capsys: Captured, *words: Any, code: int = 0) -> str:
    assert main(["evaluate", "proteins", *map(str, words)]) == code
    streams = capsys.readouterr()
    return " ".join((streams.out if not code else streams.err).split())


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_promise_bonds_and_atoms_keep_them_or_not(tmp_path: Path) -> None:
    def index(numbers: list[int], icodes: list[str] | None = None, x: np.ndarray | None = None) -> list[int]:
        lines = pdb_lines(helix(5) if x is None else x, numbers=numbers, icodes=icodes)
        return numbering(read_structure(put(tmp_path / "x.pdb", lines))[0]).tolist()

    apart = helix(5)
    apart[3:] += 10
    assert index([1, 2, 3, 4, 5]) == [0, 1, 2, 3, 4]
    assert index([1, 2, 3, 4, 5], x=apart) == [0, 1, 2, 3, 4]  # a broken bond, not a gap
    assert index([1, 2, 3, 7, 8], x=apart) == [0, 1, 2, 36, 37]  # residues are left out
    assert index([1, 2, 3, 7, 8]) == [0, 1, 2, 3, 4]  # a numbering that skips, as of antibodies
    assert index([1, 2, 2, 2, 3], ["", "", "A", "B", ""], apart) == [0, 1, 2, 3, 4]


def test_a_broken_design_is_broken_in_table_summary_and_print(tmp_path: Path, capsys: Captured) -> None:
    put(tmp_path / "d" / "broken.pdb", pdb_lines(shifted_half(helix(60))))
    text = evaluate(capsys, "--designs", tmp_path / "d", "--out", tmp_path / "m.csv")
    (row,) = rows(tmp_path / "m.csv")
    assert (row["breaks"], row["has_break"], row["chain"]) == ("1", "True", "A")
    assert float(row["c_n_within"]) == float(row["ca_ca_within"]) == pytest.approx(58 / 59)
    summary = json.loads((tmp_path / "m.json").read_text())
    assert summary["broken_chains"] == 1 and summary["intervals_95"]["broken_chains"] == pytest.approx([0.20655, 1])
    assert "100.0 (20.7-100.0)" in text and "natives (1,751)" in text and "degrees" in text


def test_natives_stand_beside_the_designs_with_and_without_a_data_set(tmp_path: Path, capsys: Captured) -> None:
    put(tmp_path / "d" / "a.pdb", pdb_lines(helix(20)))
    text = evaluate(capsys, "--designs", tmp_path / "d")
    assert "36.9" in text  # helix of the embedded statistics, %
    assert "phi, psi: from natives" in text and "chains, native size" in text


def test_bad_files_are_named_and_the_rest_is_measured(tmp_path: Path, capsys: Captured) -> None:
    put(tmp_path / "d" / "good.pdb", pdb_lines(helix(20)))
    put(tmp_path / "d" / "deep" / "er" / "good.pdb", pdb_lines(helix(30)))
    (tmp_path / "d" / "bad.cif").write_text("this is no structure")
    put(tmp_path / "d" / "one.pdb", pdb_lines(helix(1)))
    put(tmp_path / "d" / ".hidden" / "x.pdb", pdb_lines(helix(9)))
    text = evaluate(capsys, "--designs", tmp_path / "d", "--out", tmp_path / "m.csv")
    assert [row["file"] for row in rows(tmp_path / "m.csv")] == ["deep/er/good.pdb", "good.pdb"]
    assert "left out: bad.cif: " in text
    assert "left out: one.pdb: the first chain has one residue only" in text
    assert len(json.loads((tmp_path / "m.json").read_text())["left_out"]) == 2
    (tmp_path / "d" / "good.pdb").unlink(), (tmp_path / "d" / "deep" / "er" / "good.pdb").unlink()
    assert "none of 2 files can be measured; the first, bad.cif" in evaluate(
        capsys, "--designs", tmp_path / "d", code=2
    )


def test_trajectories_are_left_out_of_a_folder_and_measured_when_named(tmp_path: Path, capsys: Captured) -> None:
    d = tmp_path / "d"
    put(d / "design_0.pdb", pdb_lines(helix(20)))
    noise = np.random.default_rng(0).normal(scale=10, size=(20, 4, 3))
    for name in ("design_0_pX0_traj.pdb", "sample_1_trajectory.pdb", "bb_traj_1.pdb", "ensemble.pdb"):
        put(d / name, models(noise, helix(20)))
    put(d / "short_Xt-1_traj.pdb", models(noise))
    text = evaluate(capsys, "--designs", d, "--out", tmp_path / "m.csv")
    assert [row["file"] for row in rows(tmp_path / "m.csv")] == ["design_0.pdb"]
    assert "left out: ensemble.pdb: 2 models" in text and text.count("a trajectory by its name") == 4
    evaluate(capsys, "--designs", d / "ensemble.pdb", "--out", tmp_path / "m.csv")
    table = rows(tmp_path / "m.csv")
    assert [(row["file"], row["model"]) for row in table] == [("ensemble.pdb", "1"), ("ensemble.pdb", "2")]
    assert float(table[0]["c_n_within"]) < 0.5 and float(table[1]["c_n_within"]) == 1
    assert len(collect(d, "each").chains) == 1 + 4 * 2 + 1 and len(collect(d, "last").chains) == 6
    last = collect(d / "ensemble.pdb", "last").chains[0]
    assert np.abs(last.coords - helix(20)).max() < 1e-3
    assert not any(map(is_trajectory, map(Path, ("trajan.pdb", "mytraject.pdb", "sample.pdb", "contraj.pdb"))))


def test_tm_scores_are_of_as_many_chains_as_asked_for_and_of_files_not_models(tmp_path: Path, capsys: Captured) -> None:
    for k in range(4):
        put(tmp_path / "d" / f"{k}.pdb", pdb_lines(peptide([HELIX] * (12 + k))))
    for words, note in (((), False), (("--tm-chains", 3), True)):
        text = evaluate(capsys, "--designs", tmp_path / "d", "--out", tmp_path / "m.csv", *words)
        assert json.loads((tmp_path / "m.json").read_text())["pairwise_tm"] > 0.3
        assert ("all pairs of 3 of them" in text) is note
    states = put(tmp_path / "m.pdb", models(helix(12), helix(12)))
    for words in ((tmp_path / "d", "--tm-chains", 0), (states,)):
        evaluate(capsys, "--designs", *words, "--out", tmp_path / "m.csv")
        assert "pairwise_tm" not in json.loads((tmp_path / "m.json").read_text())


def test_further_chains_are_named_or_measured(tmp_path: Path, capsys: Captured) -> None:
    file = put(tmp_path / "x.pdb", pdb_lines(helix(9)), ["TER"], pdb_lines(helix(7) + 50, chain="B"))
    assert "hold 1 further chains, which are not measured" in evaluate(capsys, "--designs", file)
    evaluate(capsys, "--designs", file, "--chains", "all", "--out", tmp_path / "m.csv")
    assert [(row["chain"], row["length"]) for row in rows(tmp_path / "m.csv")] == [("A", "9"), ("B", "7")]


def test_the_summary_replaces_no_other_file(tmp_path: Path, capsys: Captured) -> None:
    file = put(tmp_path / "x.pdb", pdb_lines(helix(9)))
    (tmp_path / "m.json").write_text('{"thesis": 1}')
    text = evaluate(capsys, "--designs", file, "--out", tmp_path / "m.csv", code=2)
    assert "m.json, which is something else" in text and not (tmp_path / "m.csv").exists()
    assert "expected the name of a CSV file" in evaluate(
        capsys, "--designs", file, "--out", tmp_path / "a.json", code=2
    )
    for _ in range(2):
        evaluate(capsys, "--designs", file, "--out", tmp_path / "n.csv")


def test_a_table_on_a_stream_has_no_summary_beside_it(tmp_path: Path, capsys: Captured) -> None:
    file = put(tmp_path / "x.pdb", pdb_lines(helix(9)))
    evaluate(capsys, "--designs", file, "--out", "/dev/null")
    assert Path("/dev/null").is_char_device() and not Path("/dev/null.json").exists()


def test_missing_atoms_are_in_the_table(tmp_path: Path, capsys: Captured) -> None:
    lines = pdb_lines(helix(9))
    file = put(tmp_path / "x.pdb", lines[:12] + lines[13:])  # residue 4 has no N
    evaluate(capsys, "--designs", file, "--out", tmp_path / "m.csv")
    (row,) = rows(tmp_path / "m.csv")
    assert (row["length"], row["missing_atoms"], row["gaps"]) == ("8", "1", "1")


def test_the_old_reader_of_a_list_gives_the_promised_numbering(tmp_path: Path) -> None:
    file = put(tmp_path / "x.pdb", pdb_lines(shifted_half(helix(20))))
    _, mask, index = read_backbones([file])
    assert mask.sum() == 20 and index[0].tolist() == list(range(20))


def test_secondary_structure_of_ideal_chains() -> None:
    assert per_chain(helix(20))["helix"] == pytest.approx(0.9) and per_chain(HAIRPIN)["helix"] < 0.3
    assert HELIX == (-57.8, -47.0)
