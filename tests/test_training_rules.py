"""What ``fit`` promises of every step: own noise, averages of all there is, decay of matrices only, the best score kept."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manifoldflow as mf
from manifoldflow.training import TrainConfig, fit

SPACE = mf.Euclidean(2)


def config(**changes: Any) -> TrainConfig:
    quick = dict(
        log_every=1, checkpoint_every=1000, warmup_steps=0, progress=False, accelerator="cpu", schedule="constant"
    )
    return TrainConfig(**(quick | changes))


class Net(nn.Module):
    """A matrix and a bias; keeps what it sees, counts its training calls, and can be told to learn nothing."""

    def __init__(self, learns: bool = True) -> None:
        super().__init__()
        self.matrix, self.bias = nn.Parameter(torch.full((2, 2), 2.0)), nn.Parameter(torch.full((2,), 3.0))
        self.learns, self.seen = learns, []
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.seen.append((x.detach().clone(), t.detach().clone()))
            self.calls += 1
            self.largest.copy_(torch.maximum(self.largest, x.detach().abs().max()))
        return (x @ self.matrix + self.bias) * (1.0 if self.learns else 0.0)


def always_the_same(start: int) -> Any:
    while True:
        yield {"x": torch.zeros(16, 2)}


def trained(folder: Path, learns: bool = True, **changes: Any) -> tuple[mf.Flow, mf.Flow]:
    """The flow that was trained, and its average."""
    flow = mf.Flow(SPACE, Net(learns))
    return flow, fit(flow, always_the_same, config(**changes), out=folder)


def test_every_step_draws_noise_of_its_own_and_a_run_repeats_itself(tmp_path: Path) -> None:
    seen = [
        trained(tmp_path / name, max_steps=4, seed=seed)[0].model.seen for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    for number in range(2):  # noisy states, times
        a, b, c = ([step[number] for step in run] for run in seen)
        assert len(a) == 4
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        runs = [*a, *c]
        assert not any(torch.equal(x, y) for i, x in enumerate(runs) for y in runs[:i])


def test_a_continued_run_draws_the_noise_of_the_steps_it_makes(tmp_path: Path) -> None:
    whole = trained(tmp_path / "a", max_steps=4)[0].model.seen
    trained(tmp_path / "b", max_steps=2)
    flow = mf.Flow(SPACE, Net())
    fit(flow, always_the_same, config(max_steps=4), out=tmp_path / "b", resume=True)
    for (x, t), (y, s) in zip(whole[2:], flow.model.seen, strict=True):
        assert torch.equal(x, y) and torch.equal(t, s)


def test_the_average_has_the_buffers_of_the_last_step(tmp_path: Path) -> None:
    flow, averaged = trained(tmp_path, max_steps=3, ema=0.999)
    assert averaged is not flow and int(averaged.model.calls) == int(flow.model.calls) == 3
    assert torch.equal(averaged.model.largest, flow.model.largest) and float(flow.model.largest) > 0
    saved = mf.load(tmp_path / "model.safetensors", into=mf.Flow(SPACE, Net()))
    assert int(saved.model.calls) == 3


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weights_decay_in_matrices_and_not_in_biases(tmp_path: Path, decay: float) -> None:
    """Without a gradient all that AdamW does to a matrix is (1 - rate * decay) at every step."""
    flow, _ = trained(tmp_path, learns=False, max_steps=5, learning_rate=0.5, weight_decay=decay)
    torch.testing.assert_close(flow.model.matrix.detach(), torch.full((2, 2), 2.0 * (1 - 0.5 * decay) ** 5))
    assert torch.equal(flow.model.bias.detach(), torch.full((2,), 3.0))


# ---------------------------------------------------------------- scores


def scored(folder: Path, scores: list[float], resume: bool = False, **changes: Any) -> tuple[list[int], mf.Flow]:
    """The steps at which a run asks for a score, and what it returns; the scores are given one after the other."""
    asked: list[int] = []
    coming = iter(scores)

    def score(flow: mf.Flow) -> float:
        asked.append(int(flow.model.calls))
        return next(coming)

    made = fit(
        mf.Flow(SPACE, Net()),
        always_the_same,
        config(validate_every=2, **changes),
        out=folder,
        score=score,
        resume=resume,
    )
    return asked, made


def scores_of(folder: Path) -> list[tuple[int, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row["val_score"])) for row in csv.DictReader(file) if row.get("val_score")]


def test_a_run_stops_after_scores_without_a_better_one_and_gives_the_best(tmp_path: Path) -> None:
    asked, made = scored(tmp_path, [5.0, 3.0, 4.0, 3.5, 9.0, 0.0], patience=3, max_steps=100)
    assert asked == [2, 4, 6, 8, 10]
    assert scores_of(tmp_path) == [(2, 5.0), (4, 3.0), (6, 4.0), (8, 3.5), (10, 9.0)]
    assert int(made.model.calls) == 4
    assert int(mf.load(tmp_path / "model.safetensors", into=mf.Flow(SPACE, Net())).model.calls) == 4


@pytest.mark.parametrize("stop", [4, 6, 8])
def test_a_continued_run_knows_its_best_score_and_how_long_ago_it_was(tmp_path: Path, stop: int) -> None:
    scores = [5.0, 3.0, 4.0, 3.5, 9.0, 0.0]
    first, _ = scored(tmp_path, scores, patience=3, max_steps=stop)
    asked, made = scored(tmp_path, scores[len(first) :], resume=True, patience=3, max_steps=100)
    assert [*first, *asked] == [2, 4, 6, 8, 10]
    assert scores_of(tmp_path) == [(2, 5.0), (4, 3.0), (6, 4.0), (8, 3.5), (10, 9.0)]
    assert int(made.model.calls) == 4


def test_a_finished_run_that_is_continued_takes_no_further_score(tmp_path: Path) -> None:
    scored(tmp_path, [5.0, 3.0], max_steps=4)
    asked, made = scored(tmp_path, [0.0], resume=True, max_steps=4)
    assert asked == [] and int(made.model.calls) == 4
    assert scores_of(tmp_path) == [(2, 5.0), (4, 3.0)]
