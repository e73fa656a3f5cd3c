"""Diffusion as a path, against Gaussians whose diffusion is known in closed form."""

import math

import pytest
import torch
from torch import nn

import manifoldflow as mf

LAWS = [mf.VariancePreserving(), mf.VarianceExploding(0.02, 40.0)]
MEAN, SPREAD = 0.7, 0.4


class OfGaussian(nn.Module):
    """The exact noise (or data) expected in x_t where the data are N(MEAN, SPREAD^2)."""

    def __init__(self, law, predicts="noise"):
        super().__init__()
        self.law, self.predicts = law, predicts

    def forward(self, x, t, *, mask=None):
        t = t.reshape(-1, *(1,) * (x.ndim - 1)).double()
        a, s = self.law.signal(t), self.law.level(t).clamp_min(1e-9)
        clean = MEAN + a * SPREAD**2 / (a**2 * SPREAD**2 + s**2) * (x - a * MEAN)
        return (clean if self.predicts == "endpoint" else (x - a * clean) / s).to(x.dtype)


def flow_of(law, predicts="noise"):
    return mf.Flow(mf.Euclidean(1), OfGaussian(law, predicts), path=mf.Diffusion(law=law), predicts=predicts).double()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_the_coefficients_solve_the_forward_equation(law):
    """d(a)/d tau = -shrinking a, and d(s^2)/d tau = g^2 - 2 shrinking s^2."""
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64, requires_grad=True)
    a, s2 = law.signal(t), law.level(t) ** 2
    (da,) = torch.autograd.grad(a.sum(), t, retain_graph=True) if a.requires_grad else (torch.zeros_like(t),)
    (ds2,) = torch.autograd.grad(s2.sum(), t)
    assert torch.allclose(-da, -law.shrinking(t) * a, rtol=1e-9)
    assert torch.allclose(-ds2, law.rate(t) - 2 * law.shrinking(t) * s2, rtol=1e-9)
    assert law.level(torch.ones(1)) == 0 and law.signal(torch.ones(1)) == 1


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("predicts", ["noise", "endpoint"])
@pytest.mark.parametrize("how", ["flow", "reverse equation", "heun", "corrected"])
def test_every_sampler_ends_in_the_data(law, predicts, how):
    flow = flow_of(law, predicts)
    g = torch.Generator().manual_seed(0)
    method = {"flow": "euler", "heun": "heun"}.get(how, mf.SDE(law.reverse))
    x0 = flow.draw_source((4000,), generator=g)
    kernel = mf.PredictorCorrector(flow, method, steps=1, renewed=0.1) if how == "corrected" else flow.kernel(method)
    x = mf.simulate(kernel, x0, mf.linear_grid(100, dtype=torch.float64), generator=g)
    assert abs(float(x.mean()) - MEAN) < 0.03 and abs(float(x.std()) - SPREAD) < 0.02
    moved = (x - x0 * SPREAD / x0.std()).std()
    assert moved < 0.8 if how in ("flow", "heun") else moved > 0.4


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_score_and_density_are_those_of_the_gaussian(law):
    flow = flow_of(law)
    x, t = torch.linspace(-1, 2, 7, dtype=torch.float64).reshape(-1, 1), torch.tensor(0.6, dtype=torch.float64)
    a, s = float(law.signal(t)), float(law.level(t))
    exact = -(x - a * MEAN) / (a**2 * SPREAD**2 + s**2)
    assert torch.allclose(mf.sampling.score(flow, x, t), exact, atol=1e-9)
    truth = torch.distributions.Normal(MEAN, SPREAD).log_prob(x).squeeze(-1)
    grid = 1 - (1 - mf.linear_grid(150, dtype=torch.float64)) ** 2  # the noise level falls like a root at the data
    off = (flow.log_prob(x, times=grid.flip(0)) - truth).abs()
    # The source does not know the mean of the data that is left in the noise: to first order z times its share of a deviation.
    left = float(law.signal(torch.zeros(1)) / law.level(torch.zeros(1))) * MEAN
    assert (off < 0.03 + left * ((x.squeeze(-1) - MEAN) / SPREAD).abs()).all(), off


def test_training_finds_the_noise():
    law = mf.VariancePreserving()
    flow = mf.Flow(mf.Euclidean(1), OfGaussian(law), path=mf.Diffusion(law=law)).double()
    x1 = MEAN + SPREAD * torch.randn(20000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.full((20000,), 0.7, dtype=torch.float64)
    best = float(flow.loss(x1, t=t, generator=torch.Generator().manual_seed(2)))
    a, s = float(law.signal(t[0])), float(law.level(t[0]))
    assert best == pytest.approx(
        a**2 * SPREAD**2 / (a**2 * SPREAD**2 + s**2), rel=0.03
    )  # the variance of the noise given x_t


def test_what_does_not_fit_is_named():
    for space, options, words in (
        (mf.Sphere(2), {}, "flat space"),
        (mf.Tokens(3), {}, "flat space"),
        (mf.Euclidean(1), {"source": mf.Normal(3.0)}, "the noise of its law"),
        (mf.Euclidean(1), {"predicts": "velocity"}, "'noise' or 'endpoint'"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            mf.Flow(space, nn.Identity(), path=mf.Diffusion(), **options)
    with pytest.raises(ValueError, match="low"):
        mf.VarianceExploding(1.0, 0.5)
    with pytest.raises(ValueError, match="low"):
        mf.VariancePreserving(0.0, 0.5)
    flow = flow_of(LAWS[0])
    with pytest.raises(ValueError, match="steps >= 1"):
        mf.PredictorCorrector(flow, steps=0)
    with pytest.raises(TypeError, match="no score"):
        mf.PredictorCorrector(mf.Flow(mf.Sphere(2), nn.Identity()))
    with pytest.raises(TypeError, match="log-probability"):
        mf.simulate(mf.PredictorCorrector(flow), flow.draw_source((2,)), [0.0, 0.5], log_prob=True)


def test_nodes_and_edges_are_noised_by_equations_of_their_own():
    """A system of two equations, as GDSS has one; padding stays at the origin."""
    node, edge = mf.VariancePreserving(), mf.VarianceExploding(0.05, 3.0)

    class Zero(nn.Module):
        def forward(self, x, t, *, mask=None):
            return {n: torch.zeros_like(v) for n, v in x.items()}

    flow = mf.Flow(
        {"node": mf.Euclidean(4), "edge": mf.Field(mf.Euclidean(1), per="edge")},
        Zero(),
        path={"node": mf.Diffusion(law=node), "edge": mf.Diffusion(law=edge)},
    )
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    start = flow.draw_source((2, 5), mask=mask, generator=torch.Generator().manual_seed(0))
    assert start["edge"].shape == (2, 10, 1)
    method = {"node": mf.SDE(node.reverse), "edge": mf.SDE(edge.reverse)}
    kernel = mf.PredictorCorrector(flow, method)
    made = mf.simulate(kernel, start, mf.linear_grid(8), mask=mask, generator=torch.Generator().manual_seed(1))
    assert (made["node"][1, 3:] == 0).all() and made["node"][0].abs().min() > 0
    inside = flow.fields["edge"].spread(mask)
    assert (made["edge"][~inside] == 0).all() and math.isfinite(float(made["edge"].sum()))
