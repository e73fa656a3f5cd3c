"""The commands behind the published tables run, at a tiny size; what they print has a row for what was asked."""

import json
import math

import numpy as np
import pytest
import torch

import manifoldflow as mf
from manifoldflow.tasks.densities import fitting, make_embedded, meshes, protocol, so3_toy, swissroll
from manifoldflow.tasks.densities.data import DataSet
from manifoldflow.tasks.densities.flow import DensityConfig


def test_the_protocol_trains_what_is_missing_keeps_it_and_shows_its_table(tmp_path, monkeypatch, capsys):
    space = mf.Torus(2, 2 * math.pi)
    few = DataSet("few", space, space.sample_uniform((60,), dtype=torch.float64), [])
    monkeypatch.setattr(protocol, "load_data", lambda _: few)
    monkeypatch.setattr(fitting, "CHOOSING_ROWS", 8)
    monkeypatch.setattr(fitting, "CHOOSING_STEPS", 4)
    runs = [protocol.Run("torus_mixture", "published", "plain", seed) for seed in (0, 1)]
    monkeypatch.setitem(protocol.RECIPES, "plain", DensityConfig(features="coordinates", width=8, depth=1))
    monkeypatch.setattr(protocol, "TABLES", {"main": lambda seeds: runs[:seeds]})
    words = ["--out", str(tmp_path), "--factor", "0.001", "--steps", "4", "--test", "10", "--table", "main"]
    protocol.main([*words, "--seeds", "1"])
    first = json.loads((tmp_path / "table.json").read_text())
    assert list(first) == [runs[0].key] and np.isfinite(first[runs[0].key]["nll"])
    protocol.main([*words, "--seeds", "2"])
    both = json.loads((tmp_path / "table.json").read_text())
    assert list(both) == [run.key for run in runs] and both[runs[0].key] == first[runs[0].key]
    capsys.readouterr()
    protocol.main([*words, "--show"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith("| torus_mixture | published | plain | 2 | **") and "±" in lines[2]
    assert all(len(make(2)) > 2 for make in (protocol.main_runs, protocol.torsion_runs, protocol.ablation_runs))


def test_the_generated_sets_are_those_that_are_embedded(tmp_path, monkeypatch, capsys):
    from manifoldflow.checkpoint import data_path

    truth = np.load(data_path("densities") / "sphere_mixture.npz")
    monkeypatch.setattr(make_embedded, "data_path", lambda _: tmp_path)
    monkeypatch.setattr(make_embedded, "embedded_names", lambda: ["sphere_mixture"])
    make_embedded.main()
    made = np.load(tmp_path / "sphere_mixture.npz")
    # To round-off, which differs between versions and machines.
    assert all(np.allclose(made[part], truth[part], atol=2e-5) for part in ("train", "test"))
    assert "sphere_mixture: " in capsys.readouterr().out


def test_the_swiss_roll_command(tmp_path, capsys):
    words = ["--seeds", "0", "--kinds", "linear", "--steps", "3", "--nll-steps", "2", "--repeats", "1"]
    swissroll.main([*words, "--out", str(tmp_path / "a.json")])
    row = json.loads((tmp_path / "a.json").read_text())["linear"]["0"]
    assert np.isfinite(row["exact"]) and np.isfinite(row["W2_to_training_points"])
    assert "| linear (1 seeds) | " in capsys.readouterr().out


def test_training_on_the_swiss_roll_is_plain_adam_on_all_points():
    torch.manual_seed(0)
    flow, data = swissroll.build("linear"), swissroll.swiss_roll(100)
    before = -float(swissroll.log_density(flow, data, steps=8).detach().mean())
    flow = swissroll.train(flow, data, 60)
    assert -float(swissroll.log_density(flow, data, steps=8).detach().mean()) < before - 0.1


def test_the_rotation_command(tmp_path, capsys):
    pytest.importorskip("ot")
    words = ["--seeds", "0", "--models", "UnitQuaternion", "--steps", "2", "--reflow-steps", "2"]
    so3_toy.main([*words, "--pairs", "64", "--count", "54", "--out", str(tmp_path / "a.json")])
    row = json.loads((tmp_path / "a.json").read_text())["UnitQuaternion, cube"]["0"]
    assert 0 < row["reflow@4"]["W2"] < 3.2
    out = capsys.readouterr().out
    assert "| UnitQuaternion, cube, base | 1 | " in out and "| UnitQuaternion, cube, reflow | 1 | " in out


def test_the_mesh_command(tmp_path, monkeypatch, capsys):
    pytest.importorskip("robust_laplacian")
    monkeypatch.setenv("MANIFOLDFLOW_CACHE", str(tmp_path / "cache"))
    words = ["--mesh", "torus", "--seconds", "60", "--steps", "2", "--points", "4", "--out", str(tmp_path / "a.json")]
    meshes.main(words)
    row = json.loads((tmp_path / "a.json").read_text())
    assert row["farthest_from_surface"] < 1e-5 and 2 <= row["training_steps"] <= 4
    with pytest.raises(SystemExit):
        meshes.main(["--mesh", "none.obj"])
    assert "none.obj" in capsys.readouterr().err
