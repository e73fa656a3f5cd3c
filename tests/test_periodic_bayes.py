"""Bayesian flows: beliefs against direct simulation, the bound against its definition, sampling with a perfect guess."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import manifoldflow as mf
from manifoldflow.manifolds.spd import LogEuclideanSPD
from manifoldflow.paths.periodic_bayes import _entropy, _knots

TORUS = mf.Torus(1)


def chain(alphas: np.ndarray, x: float, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and concentration after all observations of the angle ``x``, by the update of the paper, one observation at a time."""
    rng = np.random.default_rng(seed)
    m, c = rng.uniform(-np.pi, np.pi, draws), np.zeros(draws)
    for a in alphas:
        y = rng.vonmises(x, a, draws)
        m, c = (
            np.arctan2(a * np.sin(y) + c * np.sin(m), a * np.cos(y) + c * np.cos(m)),
            np.sqrt(a**2 + c**2 + 2 * a * c * np.cos(y - m)),
        )
    return m, c


@pytest.mark.parametrize(("steps", "done"), [(10, 1), (10, 4), (10, 10), (100, 3), (100, 40), (100, 100)])
def test_belief_from_the_bank_has_the_law_of_observations_one_by_one(steps, done):
    path = mf.PeriodicBayes(steps=steps).bind(TORUS)
    x, count = 0.3, 100_000
    point = path.sample(
        path.bound_source.sample((count,)),
        torch.full((count, 1), x),
        torch.full((count,), done / steps),
        generator=torch.Generator().manual_seed(1),
    )
    assert int(path.observations(point.t)[0]) == done
    mean, c = (v.squeeze(-1).double().numpy() for v in point.x.chunk(2, -1))
    true_mean, true_c = chain(path.accuracies()[:done].numpy(), 2 * np.pi * x, count, seed=2)
    off = np.angle(np.exp(1j * (2 * np.pi * mean - 2 * np.pi * x)))
    true_off = np.angle(np.exp(1j * (true_mean - 2 * np.pi * x)))
    limit = 1.95 * math.sqrt(2 / count)  # of the two-sample statistic at a level of 0.001
    assert stats.ks_2samp(off, true_off).statistic < limit
    if done > 1:  # the first concentration is a number
        assert stats.ks_2samp(c, true_c).statistic < limit
    assert stats.ks_2samp(c * np.cos(off), true_c * np.cos(true_off)).statistic < limit


@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_mean_entropy_of_beliefs_falls_linearly(steps):
    path = mf.PeriodicBayes(steps=steps, bank=2**20).bind(TORUS)
    for t in (0.1, 0.3, 0.5, 0.8, 1.0):
        x = torch.zeros(4096, 1)
        c = path.sample(torch.zeros(4096, 2), x, torch.full((4096,), t)).x[:, 1].double().numpy()
        start, end = math.log(2 * math.pi), float(_entropy(np.array(path.accuracy)))
        assert abs(_entropy(c).mean() - (start + t * (end - start))) < 0.06


def test_entropy_is_that_of_scipy():
    kappa = np.array([1e-3, 0.5, 3.0, 40.0, 900.0])
    assert np.allclose(_entropy(kappa), [stats.vonmises(k).entropy() for k in kappa], atol=1e-6)


def test_loss_is_the_divergence_of_the_two_observations():
    """n times the divergence of vM(x, alpha) from vM(guess, alpha), by quadrature."""
    path = mf.PeriodicBayes(steps=20, bank=2**14).bind(TORUS)
    x, guess = 0.2, 0.31
    for k in (0, 7, 19):
        point = path.sample(torch.zeros(1, 2), torch.tensor([[x]]), torch.tensor([k / 20]))
        alpha = float(path.accuracies()[k])
        angle = np.linspace(-np.pi, np.pi, 200_001)[:-1]
        p, q = (stats.vonmises(alpha, loc=2 * np.pi * v) for v in (x, guess))
        divergence = (p.pdf(angle) * (p.logpdf(angle) - q.logpdf(angle))).mean() * 2 * np.pi
        assert float(path.loss(torch.tensor([[guess]]), point)[0]) == pytest.approx(20 * divergence, rel=1e-4)


@pytest.mark.parametrize("resample", [True, False])
def test_beliefs_of_a_perfect_guess_have_the_law_of_training(resample):
    path = mf.PeriodicBayes(steps=50, resample=resample).bind(TORUS)
    g = torch.Generator().manual_seed(3)
    x1 = torch.full((50_000, 1), 0.9)
    x = path.bound_source.sample((50_000,), generator=g)
    times = torch.tensor([0.0, 0.3, 0.5, 0.8])
    for t, s in pairwise(times):
        x = path.advance(x1, x, t, s, generator=g).x
    want = path.sample(torch.zeros(50_000, 2), x1, torch.full((50_000,), 0.8), generator=g).x
    for ours, theirs in ((path.total(x), path.total(want)),):
        for part in range(2):
            assert stats.ks_2samp(ours[:, 0, part], theirs[:, 0, part]).statistic < 0.015
    end = path.advance(x1, x, times[-1], torch.tensor(1.0), generator=g).x
    assert (path.data_of(end) - x1).abs().max() < 1e-6


def test_size_of_the_bank_does_not_depend_on_the_number_of_observations():
    sizes = [mf.PeriodicBayes(steps=n, bank=2**14).bind(TORUS)._bank(torch.zeros(1)).numel() for n in (250, 1000, 3000)]
    assert len(set(sizes)) == 1
    assert _knots(1000, 250)[-1] == 1000 and len(_knots(20, 250)) == 21


class Guess(nn.Module):
    """Knows that the data are one point up to a common shift, and finds the shift from the beliefs."""

    def __init__(self, shape: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("target", shape)

    def forward(self, x, t, *, mask=None, cond=None):
        assert x["pos"].shape[-1] == 6 and x["cell"].shape[-2:] == (3, 3)
        mean, c = x["pos"].chunk(2, -1)
        gap, c = 2 * math.pi * (mean - self.target), c + 1e-3
        shift = torch.atan2((c * gap.sin()).sum(-2, keepdim=True), (c * gap.cos()).sum(-2, keepdim=True)) / (
            2 * math.pi
        )
        cell = torch.eye(3).mul(2.0).expand(x["cell"].shape) * (1 + self.weight)
        return {"pos": (self.target + shift + self.weight).remainder(1), "cell": cell}


def bayes_flow() -> mf.Flow:
    return mf.Flow(
        {"pos": mf.Torus(3), "cell": mf.Field(LogEuclideanSPD(3), per="graph")},
        Guess(torch.rand(4, 3, generator=torch.Generator().manual_seed(0))),
        path={"pos": mf.PeriodicBayes(steps=100, bank=2**17), "cell": mf.GaussianBayes(scale=0.3)},
    )


@pytest.mark.parametrize("steps", [2, 10, 300])
def test_flow_samples_points_of_the_data_from_beliefs(steps):
    flow = bayes_flow()
    x = flow.sample((32, 4), steps=steps, generator=torch.Generator().manual_seed(1))
    assert x["pos"].shape == (32, 4, 3) and x["cell"].shape == (32, 3, 3)
    gap = mf.Torus(3).log(flow.model.target.expand_as(x["pos"]), x["pos"])
    assert (gap - gap[:, :1]).abs().max() < 1e-5  # the shape
    assert gap[:, 0].std() > 0.2  # in a place of its own
    assert (x["cell"] - 2 * torch.eye(3)).abs().max() < 1e-5


def test_known_points_and_padding_stay_in_a_flow_of_beliefs():
    flow = bayes_flow()
    g = torch.Generator().manual_seed(2)
    known = {"pos": torch.rand(5, 4, 3, generator=g)}
    held = torch.tensor([True, False, True, False]).expand(5, 4)
    x = flow.sample((5, 4), steps=5, known=known, known_mask={"pos": held}, generator=g)
    assert (x["pos"][held] - known["pos"][held]).abs().max() < 1e-6
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[:, 3] = False
    batch = {"pos": torch.rand(5, 4, 3, generator=g), "cell": torch.eye(3).expand(5, 3, 3)}
    losses = []
    for filler in (0.0, float("nan")):
        data = {**batch, "pos": torch.where(mask.unsqueeze(-1), batch["pos"], filler)}
        losses.append(flow.loss(data, mask=mask, generator=torch.Generator().manual_seed(3)))
    losses[1].backward()
    assert torch.isfinite(losses[1]) and losses[0] == losses[1]
    assert flow.sample((5, 4), mask=mask, steps=3, generator=g)["pos"][:, 3].abs().max() == 0


@pytest.mark.parametrize("resample", [True, False])
def test_gaussian_beliefs_of_a_perfect_guess_have_the_law_of_training(resample):
    path = mf.GaussianBayes(noise=0.05, scale=(1.0, 2.0), centre=(0.5, -1.0), resample=resample).bind(mf.Euclidean(2))
    x1 = torch.tensor([1.5, 2.0]).expand(100_000, 2)
    g = torch.Generator().manual_seed(0)
    x = path.bound_source.sample((100_000,))
    assert (x == torch.tensor([0.5, -1.0])).all()
    for t, s in ((0.0, 0.2), (0.2, 0.5), (0.5, 0.7)):
        x = path.advance(x1, x, torch.tensor(t), torch.tensor(s), generator=g).x
    gamma = 1 - 0.05**1.4
    prior = torch.tensor([0.5, -1.0])
    assert torch.allclose(x.mean(0), prior + gamma * (x1[0] - prior), atol=0.01)
    assert torch.allclose(x.std(0), torch.tensor([1.0, 2.0]) * math.sqrt(gamma * (1 - gamma)), rtol=0.02)


def test_gaussian_loss_integrates_to_the_bound_of_a_constant_guess():
    r"""Of a guess that is off by e (in units of the prior) all the time the bound is :math:`e^2 (\sigma_1^{-2} - 1) / 2`."""
    path = mf.GaussianBayes(noise=0.1, scale=2.0).bind(mf.Euclidean(1))
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    x1 = torch.zeros(20_000, 1, dtype=torch.float64)
    point = path.sample(x1, x1, t)
    assert float(path.loss(x1 + 0.3, point).mean()) == pytest.approx(0.5 * (0.3 / 2.0) ** 2 * (0.1**-2 - 1), rel=1e-4)


def test_bayesian_paths_refuse_other_spaces_and_predictions():
    with pytest.raises(TypeError, match="GaussianBayes"):
        mf.PeriodicBayes().bind(mf.Euclidean(3))
    with pytest.raises(ValueError, match="data point"):
        mf.PeriodicBayes().bind(TORUS, "velocity")
    with pytest.raises(TypeError, match="flat"):
        mf.GaussianBayes().bind(mf.Sphere(2))
    with pytest.raises(ValueError, match="no coupling"):
        mf.Flow(mf.Torus(3), nn.Linear(3, 3), path=mf.PeriodicBayes(bank=2), coupling=mf.MinibatchOT())
