"""The commands of the density task, end to end on small tables."""

import csv
import json
import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow import cli
from manifoldflow.checkpoint import read_metadata
from manifoldflow.tasks.densities.data import load_data
from manifoldflow.tasks.densities.fitting import suited
from manifoldflow.tasks.densities.flow import DensityConfig, build


def run(capsys, *words):
    """What a command that must succeed prints."""
    code = cli.main([str(w) for w in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def fail(capsys, *words):
    """The one line that a command prints when it must fail."""
    code = cli.main([str(w) for w in words])
    err = capsys.readouterr().err
    assert code == 2, err
    assert err.startswith("error: ")
    return err


@pytest.fixture(scope="module")
def quakes(tmp_path_factory):
    """Two clusters on the earth, with a few exact copies."""
    generator = torch.Generator().manual_seed(0)
    lat = torch.randn(120, generator=generator) * 4 + torch.tensor([35.0, -20.0]).repeat(60)
    lon = torch.randn(120, generator=generator) * 4 + torch.tensor([139.0, -70.0]).repeat(60)
    rows = [f"{a:.3f},{b:.3f}" for a, b in zip(lat.tolist(), lon.tolist(), strict=True)]
    path = tmp_path_factory.mktemp("quakes") / "quakes.csv"
    path.write_text("\n".join(["latitude,longitude", *rows, *rows[:40]]) + "\n")
    return path


QUICK = (
    "--training.max_steps",
    60,
    "--training.validate_every",
    30,
    "--training.log_every",
    20,
    "--training.progress",
    "false",
)


@pytest.fixture(scope="module")
def trained(quakes, tmp_path_factory):
    """A run folder."""
    folder = tmp_path_factory.mktemp("run") / "quakes"
    words = ["train", "densities", "--data", quakes, "--manifold", "sphere", "--out", folder, "--model.width", 32]
    words += [*QUICK, "--evaluation_steps", 20]
    assert cli.main([str(w) for w in words]) == 0
    return folder


def test_training_scores_itself_beside_the_kernels_and_tells_of_copies(quakes, tmp_path, capsys):
    words = (
        "--data",
        quakes,
        "--manifold",
        "sphere",
        "--out",
        tmp_path / "run",
        "--model.width",
        32,
        "--evaluation_steps",
        20,
    )
    out = run(capsys, "train", "densities", *words, *QUICK)
    assert "kernel density, one scale" in out and "kernel density, two scales" in out and "uniform" in out
    assert "exact copies of training points" in out
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert abs(scores["uniform"] - math.log(4 * math.pi)) < 1e-6
    assert scores["nll"] < scores["uniform"]
    assert 0 < scores["seen"] < 1
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000


def test_a_run_can_be_evaluated_sampled_and_drawn(trained, tmp_path, capsys):
    out = run(
        capsys,
        "evaluate",
        "densities",
        "--checkpoint",
        trained,
        "--steps",
        20,
        "--mass",
        2000,
        "--out",
        tmp_path / "s.json",
    )
    scores = json.loads((tmp_path / "s.json").read_text())
    assert "integrates to" in out
    assert abs(scores["mass"] - 1) < 5 * scores["mass_error"] + 0.02
    run(
        capsys,
        "sample",
        "densities",
        "--checkpoint",
        trained,
        "--num",
        50,
        "--steps",
        10,
        "--out",
        tmp_path / "s.csv",
        "--log_prob",
        "true",
    )
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50
    assert list(rows[0]) == ["latitude", "longitude", "log_prob"]
    assert all(-90 <= float(r["latitude"]) <= 90 for r in rows)
    run(
        capsys,
        "plot",
        "densities",
        "--checkpoint",
        trained,
        "--out",
        tmp_path / "map.png",
        "--steps",
        6,
        "--samples",
        50,
    )
    assert (tmp_path / "map.png").stat().st_size > 20_000


def test_samples_are_the_same_for_the_same_seed(trained, tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(
            capsys,
            "sample",
            "densities",
            "--checkpoint",
            trained,
            "--num",
            5,
            "--steps",
            5,
            "--seed",
            seed,
            "--out",
            tmp_path / f"{name}.csv",
        )
    a, b, c = ((tmp_path / f"{n}.csv").read_text() for n in "abc")
    assert a == b != c


def test_the_checkpoint_brings_landmarks_source_and_split(trained):
    flow = mf.load(trained / "model.safetensors")
    assert flow.config["features"] == "landmarks"
    assert len(flow.model.features.places) > 10
    facts = read_metadata(trained / "model.safetensors")["training"]
    assert facts["source"]["manifold"] == "sphere"
    assert facts["source"]["split"] == "published"
    assert facts["rows"] == [128, 16, 16]
    assert "score" in facts


def test_the_best_weights_are_kept_not_the_last(trained):
    with (trained / "metrics.csv").open() as file:
        scores = [float(row["val_score"]) for row in csv.DictReader(file) if row.get("val_score")]
    assert len(scores) == 2
    assert abs(read_metadata(trained / "model.safetensors")["training"]["score"] - min(scores)) < 1e-9


def test_features_suit_the_data(tmp_path):
    def set_of(manifold, n):
        space = {"sphere:2": mf.Sphere(2), "torus:4": mf.Torus(4, 2 * math.pi)}[manifold]
        from manifoldflow.tasks.densities.data import DataSet

        return DataSet("x", space, space.sample_uniform((n,), dtype=torch.float64), [])

    few, many, wide = set_of("sphere:2", 50), set_of("sphere:2", 9000), set_of("torus:4", 50)
    kinds = [suited(DensityConfig(), d, d.x).features for d in (few, many, wide)]
    assert kinds[0] == "landmarks"
    assert kinds[1] != "landmarks" and kinds[2] != "landmarks"
    told = suited(DensityConfig(features="coordinates"), few, few.x)
    assert told.features == "coordinates" and told.manifold == "sphere:2"


def test_bad_options_are_one_line(trained, quakes, tmp_path, capsys):
    assert "where its points live" in fail(capsys, "train", "densities", "--data", quakes, "--out", tmp_path / "a")
    assert "did you mean" in fail(capsys, "train", "densities", "--data", "volcno", "--out", tmp_path / "a")
    assert "--num" in fail(capsys, "sample", "densities", "--checkpoint", trained, "--num", 0)
    assert ".csv or .npz" in fail(capsys, "sample", "densities", "--checkpoint", trained, "--out", "a.txt")
    assert "no checkpoint" in fail(capsys, "evaluate", "densities", "--checkpoint", tmp_path / "none.safetensors")
    words = ("--data", quakes, "--manifold", "sphere", "--split_by", "chain", "--out", tmp_path / "a")
    assert "--group-column" in fail(capsys, "train", "densities", *words)


def test_another_place_of_the_data_can_be_named(trained, quakes, tmp_path, capsys):
    moved = tmp_path / "moved.csv"
    moved.write_text(quakes.read_text())
    assert "kernel density" in run(
        capsys, "evaluate", "densities", "--checkpoint", trained, "--data", moved, "--steps", 10
    )
    with pytest.raises(ValueError, match="auto"):
        build(DensityConfig())
    assert len(load_data(str(moved), "sphere")) == 160
