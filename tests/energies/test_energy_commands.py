"""The commands of the energies task: what they write, and how they end when an energy fails."""

import csv
import json
import re

import numpy as np
import pytest
import torch

import manifoldflow as mf
from manifoldflow import cli
from manifoldflow.tasks.common.tables import Kept
from manifoldflow.tasks.energies import commands, study
from manifoldflow.tasks.energies.montecarlo import measured, run_monte_carlo
from manifoldflow.tasks.energies.targets import load_target
from manifoldflow.training import TrainConfig

MINE = """
import time
import torch

calls = 0

def energy(x):
    return 0.5 * (x ** 2).sum(-1)

def _later(x):
    global calls
    calls += 1
    return calls > 12

def nan(x):
    return torch.where(torch.tensor(_later(x)), torch.nan, energy(x))

def short(x):
    return energy(x)[:-1] if _later(x) else energy(x)

def raises(x):
    if _later(x):
        raise OSError("the licence server is gone")
    return energy(x)

def hangs(x):
    if _later(x):
        time.sleep(30)
    return energy(x)
"""


def small(steps=16, **options):
    return TrainConfig(
        max_steps=steps, learning_rate=3e-3, weight_decay=0.0, warmup_steps=0, ema=0.5, precision="32-true",
        progress=False, log_every=4, checkpoint_every=4, **options,
    )  # fmt: skip


def run(words, capsys):
    code = cli.main(words)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sphere"
    commands.train(
        "sphere3", out=str(folder), training=small(), batch_size=32, evaluations=2, evaluation_size=200, final_size=300
    )
    return folder


def test_training_leaves_a_model_its_curve_over_calls_and_a_report(trained):
    with (trained / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    report = json.loads((trained / "report.json").read_text())
    assert [int(r["step"]) for r in rows] == [8, 16] and {"calls", "log_z", "share", "modes", "off"} <= set(rows[0])
    assert report["training_calls"] == 32 * 8 == int(rows[-1]["calls"])  # every other step is one of the buffer
    assert report["target"] == "sphere3" and report["calls"] == 300 and report["best_step"] in (8, 16)
    model = mf.load(trained)
    assert model.builder == commands.BUILDER and model.config["target"] == "sphere3"
    assert model.sample(5).shape == (5, 3)


def test_a_checkpoint_is_sampled_measured_and_drawn(trained, tmp_path, capsys):
    out = tmp_path / "made.npz"
    code, text, error = run(
        ["sample", "energies", "--checkpoint", str(trained), "--num", "50", "--out", str(out)], capsys
    )
    assert code == 0, error
    made = np.load(out)
    assert made["x"].shape == (50, 3) and made["log_weight"].shape == made["log_reward"].shape == (50,)
    known = load_target("sphere3").log_density(torch.from_numpy(made["x"]))
    assert np.abs(made["log_reward"] - known.numpy()).max() < 1e-5 and "log Z" in text
    table = tmp_path / "rows.json"
    words = ["evaluate", "energies", "--checkpoint", str(trained), "--num", "60", "--seeds", "0-1", "--out", str(table)]
    assert run(words, capsys)[0] == 0
    rows = json.loads(table.read_text())
    assert len(rows) == 2 and all({"off", "tv_floor", "modes", "training_calls"} <= set(r) for r in rows.values())
    assert run(words, capsys)[0] == 0 and json.loads(table.read_text()) == rows  # nothing is made again
    picture = tmp_path / "seen.png"
    assert run(["plot", "energies", "--checkpoint", str(trained), "--num", "80", "--out", str(picture)], capsys)[0] == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_stopped_run_goes_on_with_its_buffer_and_its_count(trained, tmp_path):
    folder = tmp_path / "run"
    for steps in (8, 16):
        commands.train(
            "sphere3", out=str(folder), training=small(steps), batch_size=32, evaluations=2, evaluation_size=200,
            final_size=300, resume=steps > 8,
        )  # fmt: skip
    report = json.loads((folder / "report.json").read_text())
    assert report["training_calls"] == 32 * 8
    with (folder / "curve.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == [4, 8, 16]  # every 4 steps of 8 in all, then every 8 of 16: the first run's rows stay


def test_seeds_that_cannot_be_read_are_a_mistake_of_the_input(capsys):
    for seeds in ("x", "3-1"):
        code, _, error = run(["evaluate", "energies", "--target", "mixture9", "--seeds", seeds], capsys)
        assert code == 2 and error == f"error: seeds must look like 0-4 or 0,3,7, got {seeds!r}\n"


@pytest.mark.parametrize("method", ["smc", "pt"])
def test_monte_carlo_writes_samples_of_any_energy_of_the_user(method, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    out = tmp_path / "made.csv"
    words = [
        "sample",
        "energies",
        "--target",
        f"{tmp_path / 'mine.py'}:energy",
        "--space",
        "euclidean:2",
        "--scale",
        "2",
    ]
    code, text, error = run([*words, "--method", method, "--calls", "4000", "--out", str(out)], capsys)
    assert code == 0, error
    rows = np.loadtxt(out, delimiter=",", skiprows=1)
    assert rows.shape[1] == 4 and np.abs(rows[:, 3] + 0.5 * (rows[:, :2] ** 2).sum(1)).max() < 1e-4 and "log Z" in text


def test_monte_carlo_keeps_to_its_budget():
    target = load_target("mixture9")
    for method in ("smc", "pt"):
        made = run_monte_carlo(target, method, 20_000, 0)
        row = measured(target, made)
        assert 0.7 * 20_000 < made.calls < 1.1 * 20_000 and row["modes_in_all"] == 9 and row["off"] == row["log_z"]
    with pytest.raises(ValueError, match="at least 2000"):
        run_monte_carlo(target, "smc", 100, 0)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", "the energy of nan is nan for sample 0 of 16, x ="),
        ("short", r"must return one number a sample, shape \(16,\), got shape \(15,\)"),
        ("raises", "raised OSError: the licence server is gone"),
        ("hangs", "gave no answer within 0.5 s for 16 samples"),
    ],
)
def test_a_training_that_an_energy_ends_says_why_and_keeps_its_checkpoint(kind, words, tmp_path, capsys):
    (tmp_path / f"{kind}_file.py").write_text(MINE)
    folder = tmp_path / "run"
    code, _, error = run(
        ["train", "energies", "--target", f"{tmp_path / f'{kind}_file.py'}:{kind}", "--space", "euclidean:2", "--out",
         str(folder),
         "--training.max_steps", "40", "--training.log_every", "4", "--training.checkpoint_every", "4", "--batch_size", "16",
         "--evaluations", "1", "--training.progress", "false", "--sampler.replayed", "0.0", "--sampler.search_every", "0",
         "--timeout", "0.5" if kind == "hangs" else "0"], capsys,
    )  # fmt: skip
    assert code == 2 and len(error.strip().splitlines()) == 1
    assert re.search(words, error), error
    assert "its last checkpoint is kept" in error and (folder / "last.ckpt").is_file()
    assert mf.load(folder).config["target"].endswith(f":{kind}")


def test_a_checkpoint_never_imports_the_energy_it_was_trained_on(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    name, folder = f"{file}:energy", tmp_path / "run"
    commands.train(
        name, out=str(folder), space="euclidean:2", training=small(4), batch_size=16, evaluations=1, evaluation_size=50,
        final_size=50,
    )  # fmt: skip
    file.write_text("raise SystemExit('imported')")
    model = mf.load(folder)
    assert model.sample(3).shape == (3, 2)
    with pytest.raises(ValueError, match="function of yours, which a checkpoint does not hold"):
        model.weighted(3)
    code, _, error = run(["sample", "energies", "--checkpoint", str(folder), "--out", str(tmp_path / "a.npz")], capsys)
    assert code == 2 and "name it with --target" in error
    file.write_text(MINE)
    words = ["sample", "energies", "--checkpoint", str(folder), "--target", name, "--num", "20"]
    assert run([*words, "--out", str(tmp_path / "a.npz")], capsys)[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "energies", "--target", "mixture10"], "no target 'mixture10'; there are mixture9"),
        (["train", "energies", "--target", "funnel", "--method", "boltzmann"], "boltzmann is there for"),
        (["sample", "energies", "--out", "a.npz"], "which target"),
        (["sample", "energies", "--target", "funnel", "--out", "a.txt"], "must end in .npz or .csv"),
        (["sample", "energies", "--target", "funnel", "--out", "a.npz", "--calls", "10"], "at least 2000"),
        (["evaluate", "energies", "--checkpoint", "nowhere"], "nowhere"),
        (["plot", "energies", "--target", "mixture9", "--out", "a.gif", "--calls", "2000"], "must end in one of"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(words, capsys)
    assert code == 2 and said in error and len(error.strip().splitlines()) == 1


def test_the_study_reads_runs_beside_monte_carlo_and_marks_the_best(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "BUDGETS", (2000, 4000))
    kept = Kept(tmp_path / "table.json")
    study.monte_carlo_rows(kept, ["sphere3"], [0], budgets=(2000, 4000))
    study.run_rows(kept, trained.parent)
    text = study.table(kept.rows())
    assert {"sphere3 smc 0", "sphere3 pt 0", "sphere3 tb 0"} == set(kept.rows())
    assert text.count("**") == 2 and text.count("sphere3") == 3
    words = ["plot", "energies", "--curves", str(tmp_path / "table.json"), "--out", str(tmp_path / "curves.png")]
    assert run(words, capsys)[0] == 0 and (tmp_path / "curves.png").stat().st_size > 5000


def test_boltzmann_generators_are_trained_by_their_study(tmp_path, monkeypatch):
    from manifoldflow.tasks.energies import alanine_study

    asked = []
    monkeypatch.setattr(alanine_study, "main", asked.append)
    commands.train("alanine", "boltzmann", out=str(tmp_path / "a"), training=small(seed=3))
    assert asked == [["--out", str(tmp_path / "a"), "--seed", "3"]]
    with pytest.raises(ValueError, match="cannot go on"):
        commands.train("alanine", "boltzmann", out=str(tmp_path / "a"), resume=True)


@pytest.mark.parametrize(
    "words", [["train", "energies", "--target", "alanine"], ["sample", "energies", "--target", "alanine"]]
)
def test_without_openmm_one_line_says_what_to_install(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "openmm", None)
    code, _, error = run([*words, "--out", "a.npz"], capsys)
    assert code == 2 and len(error.strip().splitlines()) == 1 and "pip install 'manifoldflow[energies]'" in error
