"""Diffusion on tori: targets against autograd of the wrapped density, sampling with the exact score, annealed schedules."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import manifoldflow as mf


@pytest.mark.parametrize("level", [0.003, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("period", [1.0, 2 * math.pi])
def test_target_is_the_score_of_the_wrapped_normal(level, period):
    space = mf.Torus(2, period=period)
    path = mf.WrappedDiffusion(most=0.6 * period).bind(space)
    g = torch.Generator().manual_seed(0)
    x1 = space.sample_uniform((200,), generator=g, dtype=torch.float64)
    scale = torch.tensor(level * period, dtype=torch.float64)
    x = space.exp(x1, scale * torch.randn(200, 2, generator=g, dtype=torch.float64)).requires_grad_()
    density = space.log_wrapped_normal(x1, x, float(scale)).sum()
    (score,) = torch.autograd.grad(density, x)
    seen = path.visible(x.detach(), x1, scale) * path.size(scale)
    assert (seen + scale * score).abs().max() < 1e-7


@pytest.mark.parametrize("level", [0.01, 0.1, 0.3, 0.5])
def test_targets_are_of_size_one_at_every_level(level):
    path = mf.WrappedDiffusion(most=0.6).bind(mf.Torus(1))
    x1 = torch.zeros(200_000, 1)
    scale = torch.tensor(level)
    x = path.space.exp(x1, scale * torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0)))
    assert float(path.visible(x, x1, scale).square().mean()) == pytest.approx(1.0, abs=0.02)


class TwoPoints(nn.Module):
    """The exact noise of data that are two points of the circle, with weights 1 : 3."""

    def __init__(self, path: mf.WrappedDiffusion) -> None:
        super().__init__()
        self.path = path.bind(mf.Torus(1))
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        level = self.path.level(t).unsqueeze(-1)
        points, weights = torch.tensor([0.2, 0.6]), torch.tensor([0.25, 0.75])
        images = x.unsqueeze(-1) - points + torch.arange(-3, 4).reshape(-1, 1, 1, 1)
        log = -0.5 * (images / level.unsqueeze(-1)) ** 2 + weights.log()
        share = log.transpose(0, 1).flatten(1).softmax(-1).unflatten(1, (7, 1, 2)).transpose(0, 1)
        seen = (share * images).sum((0, -1)) / level
        return seen / self.path.size(level) + self.weight


@pytest.mark.parametrize("method", ["euler", "heun", mf.SDE(2.0)], ids=str)
def test_exact_noise_samples_the_data(method):
    path = mf.WrappedDiffusion(most=0.6, least=0.004)
    flow = mf.Flow(mf.Torus(1), TwoPoints(path), path=path)
    x = flow.sample(4000, steps=200, method=method, generator=torch.Generator().manual_seed(0))
    near = torch.stack([mf.Torus(1).dist(x, torch.tensor([p])) for p in (0.2, 0.6)], -1)
    assert float(near.amin(-1).max()) < 0.02
    assert float((near.argmin(-1) == 1).float().mean()) == pytest.approx(0.75, abs=0.03)


def test_diffusion_pins_and_refuses_what_it_cannot():
    path = mf.WrappedDiffusion().bind(mf.Torus(3))
    x1 = torch.rand(4, 3)
    point = path.sample(x1, x1, torch.ones(4))
    assert (point.x - x1).abs().max() == 0 and point.noise.abs().max() == 0
    with pytest.raises(TypeError, match="Interpolant"):
        mf.WrappedDiffusion().bind(mf.Sphere(2))
    with pytest.raises(ValueError, match="noise"):
        mf.WrappedDiffusion().bind(mf.Torus(3), "velocity")
    with pytest.raises(ValueError, match="least"):
        mf.WrappedDiffusion(most=0.1, least=0.2)


@pytest.mark.parametrize("slope", [0.0, 2.0, 10.0])
def test_annealed_velocity_is_the_velocity_times_one_plus_slope_t(slope):
    space, g = mf.Torus(3), torch.Generator().manual_seed(0)
    plain = mf.Geodesic().bind(space)
    annealed = mf.Geodesic(sample_schedule=mf.Annealed(slope)).bind(space)
    x, v = space.sample_uniform((5,), generator=g), 0.1 * torch.randn(5, 3, generator=g)
    for t in (0.0, 0.3, 0.7, 0.95):
        time = torch.full((5,), t)
        want = (1 + slope * t) * plain.velocity(v, x, time)
        assert torch.allclose(annealed.velocity(v, x, time), want, rtol=1e-4)


@pytest.mark.parametrize("slope", [0.0, 2.0, 10.0])
def test_annealed_steps_follow_the_field_and_never_overshoot(slope):
    """With the exact velocity of one data point, k steps or one end there, and the way left is that of the schedule."""
    space = mf.Euclidean(2)
    path = mf.Geodesic(sample_schedule=mf.Annealed(slope)).bind(space)
    end, x = torch.tensor([[1.0, -2.0]]), torch.zeros(1, 2)
    times = torch.linspace(0, 1, 6)
    for t, s in pairwise(times):
        x = path.advance((end - x) / (1 - t), x, t, s).x
        left = float((end - x).norm() / end.norm())
        assert left == pytest.approx(float((1 - s) ** (1 + slope) * math.exp(slope * s)), abs=1e-5)
    assert torch.allclose(x, end, atol=1e-6)


@pytest.mark.parametrize("slope", [0.0, 0.5, 7.0])
def test_annealed_schedule_keeps_the_promises_of_a_schedule(slope):
    schedule = mf.Annealed(slope)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    k = schedule.k(t)
    assert k[0] == 0 and k[-1] == 1 and (k.diff() >= 0).all()
    slope_there = (schedule.k(t[1:-1] + 1e-6) - schedule.k(t[1:-1] - 1e-6)) / 2e-6
    assert torch.allclose(slope_there, schedule.dk(t[1:-1]), atol=1e-5)
    s = torch.tensor(0.4, dtype=torch.float64)
    want = (schedule.k(torch.tensor(0.6)) - schedule.k(s)) / (1 - schedule.k(s))
    assert float(schedule.fraction(s, torch.tensor(0.6))) == pytest.approx(float(want), abs=1e-6)
