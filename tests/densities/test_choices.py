"""What is chosen, and by what: scales and weights never by the test part, features and detail by the data.

A baseline that wins is named.
"""

import csv
import json
import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow import cli
from manifoldflow.tasks.common.splits import Split
from manifoldflow.tasks.densities.data import DataSet
from manifoldflow.tasks.densities.fitting import clumping, detail, fit_density, suited
from manifoldflow.tasks.densities.flow import DensityConfig, build
from manifoldflow.tasks.densities.kde import fit_kde
from manifoldflow.tasks.densities.scores import baselines, remarks
from manifoldflow.training import TrainConfig

SPHERE = mf.Sphere(2)


def two_sets_that_differ_in_the_test_rows() -> tuple[DataSet, DataSet, Split]:
    g = torch.Generator().manual_seed(0)
    law = mf.WrappedNormal(SPHERE, scale=0.3)
    x = law.sample((90,), generator=g, dtype=torch.float64)
    parts = Split(torch.arange(50), torch.arange(50, 70), torch.arange(70, 90))
    other = x.clone()
    other[parts.test] = mf.WrappedNormal(SPHERE, scale=0.003).sample((20,), generator=g, dtype=torch.float64)
    return DataSet("a", SPHERE, x, []), DataSet("a", SPHERE, other, []), parts


def test_scales_of_kernels_are_chosen_by_validation_points_alone():
    one, other, parts = two_sets_that_differ_in_the_test_rows()
    assert baselines(one, parts, parts.val) == baselines(other, parts, parts.val)
    law = fit_kde(
        SPHERE, one.x[parts.train], one.x[parts.val], "one"
    )  # the validation part, not just anything but the test
    assert baselines(one, parts)["kde_one"] == pytest.approx(-float(law.log_prob(one.x[parts.test]).mean()), abs=1e-9)


def test_weights_are_chosen_by_validation_points_alone(tmp_path):
    one, other, parts = two_sets_that_differ_in_the_test_rows()
    training = TrainConfig(
        max_steps=4, validate_every=2, checkpoint_every=4, log_every=2, progress=False, learning_rate=0.01
    )
    config = DensityConfig(features="coordinates", width=8, depth=1)
    flows = [fit_density(d, parts, config, training, tmp_path / n) for d, n in ((one, "one"), (other, "other"))]
    for a, b in zip(flows[0].parameters(), flows[1].parameters(), strict=True):
        assert torch.equal(a, b)
    with (tmp_path / "one" / "metrics.csv").open() as file:
        kept = [float(row["val_score"]) for row in csv.DictReader(file) if row.get("val_score")]
    truth = -float(flows[0].log_prob(one.x[parts.val].float(), steps=400).detach().mean())
    assert min(kept) == pytest.approx(truth, abs=0.02)


def clumped(places: int, each: int, scale: float) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    centres = SPHERE.sample_uniform((places,), generator=g, dtype=torch.float64).repeat_interleave(each, 0)
    step = scale * torch.randn(centres.shape, generator=g, dtype=torch.float64)
    return SPHERE.exp(centres, SPHERE.to_tangent(centres, step))


def set_of(x: torch.Tensor) -> DataSet:
    return DataSet("x", SPHERE, x, [])


def test_detail_is_that_of_the_data_and_clumps_are_told_from_smooth_laws():
    g = torch.Generator().manual_seed(0)
    smooth = SPHERE.sample_uniform((10_000,), generator=g, dtype=torch.float64)
    assert 0.5 < clumping(SPHERE, smooth) < 1.2
    assert clumping(SPHERE, clumped(300, 30, 3e-4)) > 50
    assert clumping(SPHERE, clumped(300, 30, 0.1)) < 2  # wider than what waves resolve
    assert detail(SPHERE, smooth) == 1e-3
    fine = detail(
        SPHERE, clumped(300, 30, 1e-3)
    )  # 30 points in a disc of 1e-3: the nearest is 2e-4 away, a tenth below 1e-4
    assert 1e-4 <= fine < 3e-4


def test_many_points_get_landmarks_where_they_are_clumped_and_waves_where_not():
    g = torch.Generator().manual_seed(0)
    smooth = suited(DensityConfig(), set_of(SPHERE.sample_uniform((9000,), generator=g)), smooth_points(9000))
    assert (smooth.features, smooth.finest) == ("waves", 0.03)
    x = clumped(300, 30, 3e-4)
    fires = suited(DensityConfig(), set_of(x), x)
    assert fires.features == "landmarks" and fires.nearest == 0 and fires.finest < 3e-4
    more = clumped(700, 30, 3e-4)
    assert suited(DensityConfig(), set_of(more), more).nearest == 32
    few = suited(DensityConfig(), set_of(x[:900]), x[:900])
    assert few.features == "landmarks" and few.nearest == 0


def smooth_points(count: int) -> torch.Tensor:
    return SPHERE.sample_uniform((count,), generator=torch.Generator().manual_seed(1))


def test_landmarks_alone_are_enough_to_ask_for():
    x = clumped(20, 10, 1e-3).float()
    config = suited(DensityConfig(features="landmarks"), set_of(x), x)
    assert 0 < config.finest < 1
    assert torch.isfinite(build(config, x).log_prob(x[:3], steps=2)).all()
    assert suited(DensityConfig(features="landmarks", finest=0.2), set_of(x), x).finest == 0.2
    with pytest.raises(ValueError, match="landmarks need the data's finest detail"):
        build(DensityConfig("sphere:2", features="landmarks"))


def test_a_flow_that_loses_to_a_baseline_says_so():
    scores = {"nll": 1.0, "kde_one": 2.0, "kde_two": 0.25, "uniform": 2.5, "seen": 0.0, "rows": 9, "solver_error": 0.0}
    (line,) = remarks(scores)
    assert "'kernel density, two scales' is better than the flow here, by 0.75 nats" in line
    assert remarks(scores | {"kde_two": 1.5}) == []
    assert "'uniform' is better" in remarks({k: v for k, v in scores.items() if "kde" not in k} | {"nll": 3.0})[0]


def test_a_run_in_double_precision_trains_scores_samples_and_draws(tmp_path, capsys):
    rows = "\n".join(f"{p:.2f},{q:.2f}" for p, q in (torch.randn(60, 2) * 20).tolist())
    (tmp_path / "a.csv").write_text(f"phi,psi\n{rows}\n")
    words = ["train", "densities", "--data", f"{tmp_path}/a.csv", "--manifold", "torus", "--out", f"{tmp_path}/run"]
    words += ["--training.precision", "64-true", "--training.max_steps", "4", "--training.validate_every", "2"]
    words += ["--training.progress", "false", "--model.width", "8", "--evaluation_steps", "4"]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert math.isfinite(json.loads((tmp_path / "run" / "scores.json").read_text())["nll"])
    for verb in (["sample", "densities", "--num", "1", "--log_prob", "true", "--out", f"{tmp_path}/s.csv"],):
        assert cli.main([*verb, "--checkpoint", f"{tmp_path}/run", "--steps", "2"]) == 0, capsys.readouterr().err
    assert "wrote 1 point on torus:2" in capsys.readouterr().out
