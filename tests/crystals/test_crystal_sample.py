"""The command that makes crystals: what it writes, what it keeps, and what it refuses."""

import csv
import errno
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pymatgen")
pytest.importorskip("smact")

from manifoldflow import checkpoint, cli
from manifoldflow.tasks.crystals import book, relax
from manifoldflow.tasks.crystals.describe import COLUMNS
from manifoldflow.tasks.crystals.elements import SYMBOLS
from manifoldflow.tasks.crystals.flow import CrystalConfig, build
from manifoldflow.tasks.crystals.formula import read_formula
from manifoldflow.tasks.crystals.model import NetworkConfig
from manifoldflow.tasks.crystals.predicting import fitting, predict
from manifoldflow.tasks.crystals.reading import load_crystals
from manifoldflow.tasks.crystals.sample_command import parse_sizes, sublattice
from manifoldflow.tasks.crystals.sampling import Wanted, batches_of, draw
from manifoldflow.tasks.crystals.structure import Crystal
from manifoldflow.tasks.crystals.writing import write_crystal

FACES = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
SALT = Crystal(
    np.array([10] * 4 + [16] * 4), np.concatenate([FACES, FACES + np.array([0.5, 0, 0])]) % 1, 5.64 * np.eye(3), "salt"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Untrained flows with large cells: they make nothing sensible, in every way that a trained one makes sense."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name, share in (("joint", 0.5), ("csp", 1.0), ("denovo", 0.0)):
        torch.manual_seed(0)
        network = NetworkConfig(width=16, layers=1)
        flow = build(CrystalConfig(network=network, given_species=share, cell_mean=(3.0, 3.0, 3.0, 0, 0, 0)))
        made[name] = str(checkpoint.save(flow, folder / f"{name}.safetensors", {"data": "mp_3dsc_20.csv.gz"}))
    return made


def run(*words: str) -> int:
    return cli.main(["sample", "crystals", *words])


def read(path: Path) -> Crystal:
    """As it was written, though atoms of an untrained flow overlap."""
    (crystal,), _ = load_crystals(path, closest=0.0, reduce=False)
    return crystal


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "structures.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def composition(path: Path) -> dict[str, int]:
    return {SYMBOLS[s]: n for s, n in read(path).composition}


def test_a_row_and_a_file_for_each_and_another_run_adds(models, tmp_path: Path, capsys) -> None:
    words = [
        "--checkpoint",
        models["joint"],
        "--formula",
        "SrTiO3",
        "--z",
        "1..2",
        "--num",
        "2",
        "--steps",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert run(*words) == 0
    names = [f"SrTiO3_Z{z}_{i:03d}.cif" for z in (1, 2) for i in (0, 1)]
    rows = rows_of(tmp_path)
    assert [row["file"] for row in rows] == names and tuple(rows[0]) == COLUMNS
    assert [(row["Z"], row["atoms"], row["formula"]) for row in rows] == [("1", "5", "SrTiO3")] * 2 + [
        ("2", "10", "SrTiO3")
    ] * 2
    assert all(
        row["charge_balanced"] == "yes" and row["nearest_training"] and float(row["contact_ratio"]) > 0 for row in rows
    )
    assert all(composition(tmp_path / f"SrTiO3_Z{z}_000.cif") == {"Sr": z, "Ti": z, "O": 3 * z} for z in (1, 2))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.cif")}
    assert "note:" not in capsys.readouterr().err
    assert run(*words, "--seed", "1") == 0
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    assert len(rows_of(tmp_path)) == 8 and (tmp_path / "SrTiO3_Z2_003.cif").exists()
    assert run(*words) == 0  # the same seed once more: it says so, and the structures are the same
    assert "seed 0" in capsys.readouterr().err
    first, again = (read(tmp_path / f"SrTiO3_Z1_{i:03d}.cif") for i in (0, 4))
    assert np.allclose(first.frac, again.frac) and np.allclose(first.cell, again.cell)


@pytest.mark.parametrize("format, suffix", [("poscar", ".vasp"), ("extxyz", ".extxyz")])
def test_compositions_of_the_flow_own_choice(models, tmp_path: Path, format: str, suffix: str) -> None:
    words = ["--checkpoint", models["denovo"], "--num-atoms", "3..5", "--num", "6", "--steps", "2", "--format", format]
    assert run(*words, "--out", str(tmp_path)) == 0
    sizes = [len(read(path)) for path in sorted(tmp_path.glob(f"*{suffix}"))]
    assert len(sizes) == 6 and set(sizes) <= {3, 4, 5} and len(set(sizes)) > 1
    assert sorted(map(int, (row["atoms"] for row in rows_of(tmp_path)))) == sorted(sizes)


def test_a_sublattice_stays_where_it_is_with_its_cell(models, tmp_path: Path) -> None:
    guess = write_crystal(tmp_path / "guess.cif", SALT)
    words = ["--checkpoint", models["joint"], "--from", str(guess), "--fixed", "Cl", "--num", "2", "--steps", "3"]
    assert run(*words, "--out", str(tmp_path / "made")) == 0
    made = read(tmp_path / "made" / "NaCl_fixed_000.cif")
    assert np.allclose(made.parameters, SALT.parameters, atol=1e-4)
    gap = made.frac[4:] - SALT.frac[4:]
    assert np.abs(gap - np.rint(gap)).max() < 1e-5 and np.abs(made.frac[:4] - SALT.frac[:4]).max() > 0.01


def test_a_guess_takes_the_elements_of_the_formula_and_stays_near(models, tmp_path: Path) -> None:
    guess = write_crystal(tmp_path / "guess.cif", SALT)
    words = ["--checkpoint", models["csp"], "--from", str(guess), "--formula", "KBr", "--num", "1", "--steps", "3"]
    assert run(*words, "--out", str(tmp_path / "made")) == 0
    assert composition(tmp_path / "made" / "KBr_refined_000.cif") == {"K": 4, "Br": 4}


def test_a_rule_that_knows_fewer_says_so(tmp_path: Path, capsys) -> None:
    assert run("--formula", "SrTiO3", "--rule", "radius", "--num", "3", "--out", str(tmp_path)) == 0
    assert "knows 2 structures, not 3" in capsys.readouterr().err and len(rows_of(tmp_path)) == 2


def test_rules_need_no_model(tmp_path: Path) -> None:
    assert (
        run("--formula", "SrTiO3", "--rule", "radius", "--num", "1", "--out", str(tmp_path), "--symmetrise", "0.01")
        == 0
    )
    (row,) = rows_of(tmp_path)
    assert row["space_group"] == "Pm-3m" and float(row["contact_ratio"]) == pytest.approx(1, abs=1e-3)
    assert "221" in (tmp_path / row["file"]).read_text()
    assert run("--formula", "NaCl", "--rule", "random", "--z", "2", "--num", "2", "--out", str(tmp_path)) == 0
    assert [row["atoms"] for row in rows_of(tmp_path)][1:] == ["4", "4"]


@pytest.mark.parametrize(
    "words, message",
    [
        ("--formula Xx2O", "'Xx' is no element"),
        ("--formula NaCl --z 0", "at least one formula unit"),
        ("--formula SrTiO3 --z 80", "400 atoms"),
        ("--formula Na0.5Cl", "not whole"),
        ("", "say what to make"),
        ("--num-atoms 0", "at least one atom"),
        ("--num-atoms 400", "more than the 100"),
        ("--num-atoms 4 --formula NaCl", "cannot be combined"),
        ("--formula NaCl --num 0", "--num must be at least 1"),
        ("--formula NaCl --fixed Cl", "--from FILE"),
        ("--from GUESS --fixed Ti", "has no Ti"),
        ("--from GUESS --fixed 1-8", "none is left"),
        ("--from GUESS --fixed 9", "atoms 1 to 8"),
        ("--from GUESS --formula CaF2", "the counts differ"),
        ("--from nowhere.cif", "nowhere.cif"),
        ("--formula NaCl --band-gap 2", "trained without conditions"),
        ("--formula NaCl --symmetrise 0", "positive length"),
        ("--formula NaCl --out GUESS", "is a file"),
        ("--formula NaCl --rule random", "uses no model"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(models, tmp_path: Path, capsys, words: str, message: str) -> None:
    guess = write_crystal(tmp_path / "guess.cif", SALT)
    given = [str(guess) if word == "GUESS" else word for word in words.split()]
    out = [] if "--out" in given else ["--out", str(tmp_path / "made")]
    assert run("--checkpoint", models["joint"], *given, *out) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("error:") == 1 and len(error.strip().splitlines()) == 1
    assert not list((tmp_path / "made").glob("*")) if (tmp_path / "made").exists() else True


def test_models_that_cannot_say_so(models, tmp_path: Path, capsys) -> None:
    assert run("--checkpoint", models["csp"], "--num-atoms", "4", "--out", str(tmp_path)) == 2
    assert "structure prediction alone" in capsys.readouterr().err
    assert run("--checkpoint", models["denovo"], "--formula", "NaCl", "--out", str(tmp_path)) == 2
    assert "cannot be given one" in capsys.readouterr().err


def test_a_formula_without_balance_is_made_and_flagged(models, tmp_path: Path, capsys) -> None:
    assert (
        run("--checkpoint", models["csp"], "--formula", "NaCl2", "--num", "1", "--steps", "1", "--out", str(tmp_path))
        == 0
    )
    assert "add up to zero" in capsys.readouterr().err and rows_of(tmp_path)[0]["charge_balanced"].startswith("no")


def test_a_full_disk_in_mid_run_is_one_message_and_what_is_written_stays(
    models, tmp_path: Path, capsys, monkeypatch
) -> None:
    real, calls = book.write_crystal, []

    def full(path, *args):
        calls.append(path)
        if len(calls) > 70:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *args)

    monkeypatch.setattr(book, "write_crystal", full)
    words = ["--checkpoint", models["csp"], "--formula", "NaCl", "--num", "80", "--steps", "1", "--out", str(tmp_path)]
    assert run(*words) == 2
    error = capsys.readouterr().err.strip()
    assert "the disk is full; 70 structures of this run" in error and len(error.splitlines()) == 1
    assert len(list(tmp_path.glob("*.cif"))) == 70
    assert len(rows_of(tmp_path)) == 70  # each as its file came
    monkeypatch.setattr(book, "write_crystal", real)
    assert run(*words) == 0 and len(rows_of(tmp_path)) == 150


def test_runs_that_fill_one_folder_at_once_take_numbers_of_their_own(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from manifoldflow.tasks.crystals.describe import describe

    def fill(_: int) -> list[str]:
        made, names = book.Book(tmp_path), []
        for _ in range(25):
            names.append(made.write(SALT, "NaCl"))
            made.add(describe([SALT], files=names[-1:]))
        return names

    with ThreadPoolExecutor(4) as pool:
        names = [name for some in pool.map(fill, range(4)) for name in some]
    assert len(set(names)) == 100 == len(list(tmp_path.glob("*.cif")))
    assert sorted(row["file"] for row in rows_of(tmp_path)) == sorted(names)


def test_a_row_that_was_cut_off_stays_alone(tmp_path: Path) -> None:
    from manifoldflow.tasks.crystals.describe import describe

    made = book.Book(tmp_path)
    made.add(describe([SALT, SALT], files=["a.cif", "b.cif"]))
    made.table.write_bytes(made.table.read_bytes()[:-30])  # as a machine that lost its power leaves it
    again = book.Book(tmp_path)
    assert [row["file"] for row in again.older] == ["a.cif"]
    again.add(describe([SALT], files=["c.cif"]))
    rows = rows_of(tmp_path)
    assert [row["file"] for row in rows] == ["a.cif", "b.cif", "c.cif"] and rows[2]["formula"] == "NaCl"
    made.table.write_bytes("\ufeff".encode() + made.table.read_bytes())  # a table that was opened in a spreadsheet
    assert len(book.Book(tmp_path).older) == 2


def test_a_row_that_does_not_fit_on_the_disk_is_not_there_in_part(tmp_path: Path, monkeypatch) -> None:
    made = book.Book(tmp_path)
    from manifoldflow.tasks.crystals.describe import describe

    made.add(describe([SALT], files=["a.cif"]))
    before = made.table.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(book.os, "fsync", full)
    with pytest.raises(OSError, match="the disk is full"):
        made.add(describe([SALT], files=["b.cif"]))
    assert made.table.read_bytes() == before


def test_a_hanging_relaxer_is_named_and_the_rest_goes_on(models, tmp_path: Path, capsys, monkeypatch) -> None:
    import sys

    script = tmp_path / "worker.py"
    script.write_text(
        "import json, sys, time\nprint(json.dumps({'ready': True}), flush=True)\n"
        "for line in sys.stdin:\n    r = json.loads(line)\n    time.sleep(600 if r['id'] == 1 else 0)\n"
        "    print(json.dumps({**r, 'before': -1.0, 'energy': -2.0, 'steps': 4, 'converged': True}), flush=True)\n"
    )
    monkeypatch.setattr(relax, "WORKER", (sys.executable, str(script)))
    words = [
        "--checkpoint",
        models["csp"],
        "--formula",
        "NaCl",
        "--num",
        "3",
        "--steps",
        "1",
        "--relax",
        "--timeout",
        "1",
    ]
    assert run(*words, "--out", str(tmp_path / "made"), "--report") == 0
    assert "NaCl_Z1_001.cif: the relaxer took more than 1 s" in capsys.readouterr().err
    found = {row["file"]: row for row in rows_of(tmp_path / "made")}
    assert [found[f"NaCl_Z1_{i:03d}.cif"]["relaxation"][:9] for i in range(3)] == [
        "converged",
        "failed: t",
        "converged",
    ]
    assert (
        found["NaCl_Z1_000.cif"]["chgnet_energy_eV_per_atom"] == "-2.0000"
        and found["NaCl_Z1_001.cif"]["relaxation_shift_A"] == ""
    )
    there = {path.name for path in (tmp_path / "made").iterdir()}
    assert {"NaCl_Z1_000_relaxed.cif", "NaCl_Z1_002_relaxed.cif", "report.html", "overview.png"} <= there
    assert "NaCl_Z1_001_relaxed.cif" not in there


def test_batches_hold_one_kind_in_order() -> None:
    kinds = [Wanted(4, (1,) * 4)] * 70 + [Wanted(5)] * 2 + [Wanted(8, SALT.species, SALT)] * 2
    parts = list(batches_of(kinds))
    assert [len(part) for part in parts] == [64, 6, 2, 2] and [i for part in parts for i in part] == list(range(74))


def test_a_batch_has_the_species_in_the_order_wanted(models) -> None:
    flow = checkpoint.load(models["csp"])
    wanted = [Wanted(2, (10, 16)), Wanted(3, (16, 10, 16))]
    made = draw(flow, wanted, steps=2, seed=3)
    assert [tuple(c.species.tolist()) for c in made] == [(10, 16), (16, 10, 16)]
    again = draw(flow, wanted, steps=2, seed=3)
    assert all(np.array_equal(a.frac, b.frac) for a, b in zip(made, again, strict=True))
    assert not np.array_equal(made[0].frac, draw(flow, wanted, steps=2, seed=3, number=1)[0].frac)


def test_choosing_makes_as_many_as_were_asked_for(models, tmp_path: Path, capsys) -> None:
    words = ["--checkpoint", models["joint"], "--steps", "1", "--num", "2", "--choose", "3", "--out", str(tmp_path)]
    assert run(*words, "--formula", "NaCl") == 0 and len(rows_of(tmp_path)) == 2
    assert run(*words, "--num-atoms", "3") == 2 and "one composition" in capsys.readouterr().err


def test_crystals_with_close_contacts_are_drawn_again(models, tmp_path: Path, capsys) -> None:
    words = ["--checkpoint", models["joint"], "--steps", "2", "--num", "6", "--num-atoms", "3", "--seed", "1"]
    assert run(*words, "--out", str(tmp_path / "plain")) == 0
    plain = [float(row["contact_ratio"]) for row in rows_of(tmp_path / "plain")]
    limit = float(np.median(plain))  # every second draw is good
    assert run(*words, "--contact", f"{limit}", "--out", str(tmp_path / "apart")) == 0
    apart = [float(row["contact_ratio"]) for row in rows_of(tmp_path / "apart")]
    assert len(plain) == len(apart) == 6 and sum(value < limit - 1e-3 for value in apart) == 0
    assert all(
        any(abs(value - other) < 1e-3 for other in apart) for value in plain if value > limit
    )  # what was good stays
    assert run(*words, "--contact", "2", "--out", str(tmp_path / "no")) == 2 and "--contact" in capsys.readouterr().err


def test_a_flow_trained_on_guesses_begins_at_them(models, tmp_path: Path) -> None:
    flow = checkpoint.load(models["joint"])
    model = str(checkpoint.save(flow, tmp_path / "m.safetensors", {"pairs": 3}))
    guess = write_crystal(tmp_path / "guess.cif", SALT)
    assert (
        run("--checkpoint", model, "--from", str(guess), "--num", "2", "--steps", "2", "--out", str(tmp_path / "made"))
        == 0
    )
    assert composition(tmp_path / "made" / "NaCl_refined_001.cif") == {"Na": 4, "Cl": 4}


def test_sizes_and_sublattices() -> None:
    assert parse_sizes("4..6", 20) == [4, 5, 6] and parse_sizes("8", 20) == [8]
    assert sublattice("Na", SALT) == [True] * 4 + [False] * 4 and sublattice("1-2, 8", SALT) == [True] * 2 + [
        False
    ] * 5 + [True]
    with pytest.raises(ValueError, match="neither an element"):
        sublattice("Qq", SALT)


def test_perovskites_are_made_by_the_model_of_perovskites() -> None:
    both = ["crystals_mp", "crystals_perov"]
    for text in ("SrTiO3", "BaTiO2F", "OsRhNOF"):  # the anions may differ
        assert fitting(both, read_formula(text)) == "crystals_perov", text
    for text in ("NaCl", "UXeO3", "CaF2", "CsPbI3", "NaNO3", "Sr2Ti2O6"):
        expected = (
            "crystals_perov" if text == "Sr2Ti2O6" and sum(n for _, n in read_formula(text)) == 5 else "crystals_mp"
        )
        assert fitting(both, read_formula(text)) == expected, text
    assert (
        fitting(both, None) == "crystals_mp" and fitting(["crystals_other"], read_formula("SrTiO3")) == "crystals_other"
    )


def test_each_cell_is_predicted_by_the_embedded_model_that_fits() -> None:
    cells = [[10, 16], [7, 37, 7, 21, 7], [11, 7]]  # NaCl, SrTiO3 in an order of its own, MgO
    made = predict(None, cells, 2, steps=2, choose=1, progress=False)
    assert [sorted(c.species.tolist()) for some in made for c in some] == [sorted(cell) for cell in cells for _ in "ab"]
    alone = predict("crystals_perov", cells[1:2], 2, steps=2, choose=1, progress=False)
    assert np.array_equal(made[1][0].frac, alone[0][0].frac) and [c.name for c in made[1]] == ["1_0", "1_1"]


def test_a_full_disk_names_the_data_set_that_did_not_fit(tmp_path: Path) -> None:
    from manifoldflow.tasks.crystals.store import CrystalWriter

    with pytest.raises(OSError, match=r"No space left on device: '.*a\.set'"):
        with CrystalWriter(tmp_path / "a.set") as writer:
            writer.add(SALT)
            raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
