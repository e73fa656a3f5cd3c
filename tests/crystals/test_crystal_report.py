"""The page and the picture about crystals, and what they say of each."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pymatgen")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from manifoldflow import cli
from manifoldflow.tasks.crystals.describe import COLUMNS, describe
from manifoldflow.tasks.crystals.nearest import Known, embedded_known, fingerprints
from manifoldflow.tasks.crystals.powder import pattern
from manifoldflow.tasks.crystals.relax import Relaxed
from manifoldflow.tasks.crystals.report import Entry, conventional, write_report
from manifoldflow.tasks.crystals.structure import Crystal
from manifoldflow.tasks.crystals.writing import write_crystal

FACES = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
SALT = Crystal(
    np.array([10] * 4 + [16] * 4), np.concatenate([FACES, FACES + np.array([0.5, 0, 0])]) % 1, 5.64 * np.eye(3), "salt"
)
CUBE = Crystal(
    np.array([37, 21, 7, 7, 7]),
    np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]),
    3.905 * np.eye(3),
    "cube",
)
PRIMITIVE = Crystal(
    np.array([10, 16]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), 2.82 * (np.ones((3, 3)) - np.eye(3)), "primitive"
)


def test_facts_are_those_of_handbooks() -> None:
    salt, cube = describe([SALT, CUBE], files=["a.cif", "b.cif"], known=Known.of([SALT]))
    assert (salt.formula, salt.units, salt.atoms, salt.space_group, salt.space_group_number) == (
        "NaCl",
        4,
        8,
        "Fm-3m",
        225,
    )
    assert salt.density == pytest.approx(2.163, abs=0.003) and cube.density == pytest.approx(5.12, abs=0.01)
    assert salt.contact == pytest.approx(2.82 / (1.66 + 1.02), abs=1e-3) and cube.space_group == "Pm-3m"
    assert salt.nearest == "salt" and salt.nearest_distance < 1e-6 < 1 < cube.nearest_distance + 0.2
    assert (
        len(salt.row()) == len(COLUMNS)
        and salt.row()[0] == "a.cif"
        and salt.row()[COLUMNS.index("relaxation_shift_A")] == ""
    )


def test_fingerprints_do_not_see_the_choice_of_cell_or_its_size() -> None:
    double = Crystal(
        np.tile(SALT.species, 2),
        np.concatenate([SALT.frac, np.add(SALT.frac, [1, 0, 0])]) / [2, 1, 1],
        SALT.cell * [[2], [1], [1]],
    )
    stretched = replace(SALT, cell=SALT.cell * 1.3)
    prints = fingerprints([SALT, PRIMITIVE, double, stretched, CUBE])
    assert np.abs(prints[1:4] - prints[0]).max() < 1e-6 < 0.3 < np.abs(prints[4] - prints[0]).max()
    assert prints[0][-5:].mean() == pytest.approx(1, abs=0.4)


def test_a_flat_cell_costs_nothing() -> None:
    assert not fingerprints([replace(SALT, cell=np.diag([1e-4, 200.0, 200.0]))]).any()


def test_known_crystals_survive_their_table(tmp_path: Path) -> None:
    known = Known.of([SALT, CUBE])
    again = Known.load(known.save(tmp_path / "known.npz"))
    assert again.names == known.names and np.abs(again.prints - known.prints).max() < 0.04
    assert [near.name for near in again.nearest([PRIMITIVE, CUBE])] == ["salt", "cube"]
    assert [near.same_formula for near in again.nearest([PRIMITIVE])] == [1]
    for name, least in (("mp_3dsc_20", 2000), ("perov_5", 2500)):
        table = embedded_known(name)
        assert table is not None and len(table.names) > least and np.allclose(table.elements.sum(1), 1)
    assert embedded_known("nothing") is None


def test_lines_of_rock_salt_are_where_bragg_says() -> None:
    assert not len(pattern(replace(SALT, cell=1e3 * SALT.cell)).lines)  # at once: a failure of a model, of any size
    made = pattern(SALT)
    planes = np.array([[1, 1, 1], [2, 0, 0], [2, 2, 0], [3, 1, 1], [2, 2, 2]])
    wanted = 2 * np.degrees(np.arcsin(1.54184 / 2 * np.linalg.norm(planes, axis=1) / 5.64))
    assert np.abs(made.lines[:5] - wanted).max() < 0.02
    assert made.angle[made.intensity.argmax()] == pytest.approx(wanted[1], abs=0.1) and made.intensity.max() == 1


def test_conventional_cells_are_shown() -> None:
    shown = conventional(PRIMITIVE, 0.01)
    assert len(shown) == 8 and shown.parameters == pytest.approx((5.64,) * 3 + (90,) * 3)
    broken = replace(SALT, frac=np.random.default_rng(0).random((8, 3)))
    assert len(conventional(broken, 0.01)) == 8


def test_a_page_shows_the_made_the_relaxed_and_the_known(tmp_path: Path) -> None:
    evil = replace(SALT, name="</script ><b>x")
    rows = describe(
        [evil, CUBE], relaxed=[Relaxed(SALT, -3.4, -3.5, 0.12, 1.01, 9, True), Relaxed(fault="it hung")], seed=4
    )
    entries = [Entry(evil, rows[0], Relaxed(SALT, -3.4, -3.5, 0.12), SALT, 0.02), Entry(CUBE, rows[1], None, SALT)]
    path = write_report(
        entries, tmp_path / "r.html", title="<b>", command="manifoldflow sample", info={"seed": 4}, reference=[SALT]
    )
    page = path.read_text()
    scenes = json.loads(re.search(r'id="mol-data">(.*?)</script>', page)[1])["scenes"]  # type: ignore[index]
    assert len(scenes) == 5 and page.count('<figure class="mol">') == 5
    for words in (
        "RMSE 0.020",
        "no match",
        "-3.500 eV/atom, shift 0.12",
        "failed: it hung",
        "1 of 2",
        "&lt;b&gt;",
        "surrogate of DFT",
    ):
        assert words in page, words
    assert "<b>x" not in page and "http://" not in re.sub(
        r"http://www\.w3\.org/\S+|<!--.*?-->", "", page, flags=re.DOTALL
    )
    with pytest.raises(ValueError, match="at least one"):
        write_report([], tmp_path / "none.html")


def test_the_plot_command_reads_what_sample_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = replace(SALT, frac=(SALT.frac + 0.02 * np.random.default_rng(1).normal(size=(8, 3))) % 1, name="a_000")
    write_crystal(tmp_path / "in" / "a_000.cif", moved)
    write_crystal(tmp_path / "in" / "a_000_relaxed.cif", SALT)
    (tmp_path / "in" / "broken.cif").write_text("data_x\n")
    truth = write_crystal(tmp_path / "truth.cif", SALT)
    words = ["plot", "crystals", "--structures", str(tmp_path / "in")]
    assert cli.main([*words, "--truth", str(truth), "--out", str(tmp_path / "p.html")]) == 0
    page = (tmp_path / "p.html").read_text()
    assert "1 of 1" in page and "shift 0." in page and "broken.cif" in page and "1 crystal" in capsys.readouterr().out
    assert cli.main([*words, "--out", str(tmp_path / "p.png"), "--reference", str(truth)]) == 0
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main([*words, "--out", str(tmp_path / "p.txt")]) == 2 and "ends in .html" in capsys.readouterr().err


def test_rows_of_a_table_can_be_read_again() -> None:
    (fact,) = describe([SALT], files=["a,b.cif"], seed=7)
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, fact.row()])
    (row,) = csv.DictReader(io.StringIO(text.getvalue()))
    assert (
        row["file"] == "a,b.cif"
        and row["seed"] == "7"
        and float(row["density_g_cm3"]) == pytest.approx(fact.density, abs=1e-4)
    )
