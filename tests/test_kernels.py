"""What kernels say of the probability of their moves, against densities and laws that are written down otherwise."""

import math

import pytest
import torch
from torch import nn

import manifoldflow as mf
from manifoldflow.sampling import FlowKernel, RandomWalk, simulate, trajectory_log_prob
from testkit.exact import CASES, exact_flow

DOUBLE = torch.float64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


class Turn(nn.Module):
    """A smooth field that mixes the coordinates."""

    def __init__(self, d, seed=0):
        super().__init__()
        self.a = nn.Parameter(0.5 * torch.randn(d, d, generator=gen(seed), dtype=DOUBLE))

    def forward(self, x, t):
        return torch.tanh(x @ self.a) * (1 + t.reshape(-1, *[1] * (x.ndim - 1)))


# ---------------------------------------------------------------- steps that draw nothing


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
def test_flow_steps_carry_the_density_of_the_discrete_flow(method):
    flow = mf.Flow(mf.Euclidean(3), Turn(3)).double()
    x0 = torch.randn(5, 3, generator=gen(), dtype=DOUBLE)
    path = flow.sample(x0=x0, steps=4, method=method, log_prob=True)
    ours = flow.source["x"].log_prob(x0) + path.log_prob.sum(0)
    # the whole map at once, by reverse mode
    whole = torch.stack(
        [
            torch.autograd.functional.jacobian(
                lambda x: flow.sample(x0=x[None], steps=4, method=method, differentiable=True)[0], row
            )
            for row in x0
        ]
    )
    truth = flow.source["x"].log_prob(x0) - torch.linalg.slogdet(whole)[1]
    assert (ours - truth).abs().max() < 1e-10
    assert torch.equal(path.end, flow.sample(x0=x0, steps=4, method=method))


@pytest.mark.parametrize("space", [mf.Sphere(2), mf.UnitQuaternion(), mf.SO3(), mf.Simplex(3), mf.Torus(2)], ids=str)
def test_many_flow_steps_carry_the_density_that_log_prob_solves_for(space):
    class Field(nn.Module):
        def forward(self, x, t):
            flat = x.flatten(-space.event_ndim)
            turn = 2 * math.pi if space.coordinate_period else 1.5
            out = [0.3 * torch.sin(flat[..., i % flat.shape[-1]] * turn + i + 0.2) for i in range(n)]
            return torch.stack(out, -1) * torch.cos(turn * flat[..., -1:])

    n = space.tangent_basis(space.origin(())).shape[-1]
    flow = mf.Flow(space, Field(), source=mf.Uniform()).double()
    x0 = space.sample_uniform((4,), generator=gen(1), dtype=DOUBLE)
    x0 = 0.2 + 0.4 * x0 if isinstance(space, mf.Simplex) else x0
    path = flow.sample(x0=x0, steps=40, method="rk4", log_prob=True)
    ours = flow.source["x"].log_prob(x0) + path.log_prob.sum(0)
    truth = flow.log_prob(path.end, steps=80, trace_every=1)
    assert (ours - truth).abs().max() < 1e-5


def test_mean_free_steps_have_the_factor_of_the_mean_free_part():
    flow = mf.Flow(mf.Centered(mf.Euclidean(2)), Turn(2)).double()
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    x0 = flow.draw_source((2, 4), mask=mask, generator=gen(), dtype=DOUBLE)
    path = flow.sample(x0=x0, mask=mask, steps=30, method="rk4", log_prob=True)
    ours = flow.source["x"].log_prob(x0, mask=mask) + path.log_prob.sum(0)
    truth = flow.log_prob(path.end, mask=mask, steps=60, trace_every=1)
    assert (ours - truth).abs().max() < 1e-6


# ---------------------------------------------------------------- steps with noise


def test_noisy_steps_of_a_linear_flow_are_one_gaussian():
    """Source N(0, c^2), all data at 0: the exact field is -x / (1 - t), and every step is linear with Gaussian noise."""
    source = mf.Normal(scale=2.0)

    class ToZero(nn.Module):
        def forward(self, x, t):
            return -x / (1 - t).clamp_min(1e-9)[:, None]

    flow = mf.Flow(mf.Euclidean(2), ToZero(), source=source).double()
    times = torch.linspace(0, 0.8, 5, dtype=DOUBLE)
    x0 = 2 * torch.randn(3, 2, generator=gen(), dtype=DOUBLE)
    path = simulate(FlowKernel(flow, method=mf.SDE(1.5), log_prob=True), x0, times, generator=gen(2), log_prob=True)
    # the same chain, written down: mean a x, deviation s
    total = torch.zeros(3, dtype=DOUBLE)
    for i in range(4):
        t, s = times[i], times[i + 1]
        level = 2 * (1 - 0.5 * (t + s))
        q = 1 - math.exp(-1.5 * (s - t))
        eta = path.at(i) / 2 / (1 - t) * (1 - t) / (1 - t)  # x_0 / c, with x_0 = x / (1 - t)
        mean = path.at(i) - (s - t) / (1 - t) * path.at(i) - level * q * eta
        law = torch.distributions.Normal(mean, level * math.sqrt(2 * q))
        total += law.log_prob(path.at(i + 1)).sum(-1)
    assert (path.log_prob.sum(0) - total).abs().max() < 1e-10


WALKS = [
    mf.Euclidean(2),
    mf.Torus(1, period=2.0),
    mf.Sphere(2),
    mf.SO3(),
    mf.UnitQuaternion(),
    mf.Box((0.0, -1.0), (1.0, 1.0)),
    mf.PoincareBall(2),
]


@pytest.mark.parametrize("space", WALKS, ids=str)
def test_a_walks_density_is_what_its_steps_are_drawn_from(space):
    """The expectation of p(y) q / p over the walk is that of q: here q is uniform or a wrapped normal, and its mass is 1."""
    n = 40_000
    walk = RandomWalk(space, 0.9, drift=lambda x, t: space.to_tangent(x, torch.full_like(space.log(x, x), 0.3)))
    x = space.origin((n,), dtype=DOUBLE)
    t, s = torch.tensor(0.0, dtype=DOUBLE), torch.tensor(0.8, dtype=DOUBLE)
    y = walk(x, None, t, s, generator=gen(3)).x
    ours = walk.log_prob(x, y, t, s)
    try:
        other = torch.full((n,), -space.log_volume, dtype=DOUBLE)
    except ValueError:
        other = mf.WrappedNormal(space, scale=0.6).log_prob(y)
    weight = (other - ours).exp()
    assert abs(float(weight.mean()) - 1) < 5 * float(weight.std()) / n**0.5 + 1e-6
    assert weight.std() > 0.03  # the laws differ, so a wrong density would show


def test_a_walk_and_its_reverse_balance():
    """A walk without drift is reversible with respect to the volume: p(x, y) = p(y, x)."""
    for space in (mf.Sphere(2), mf.SO3(), mf.Torus(2), mf.Box((0.0,), (1.0,))):
        x, y = space.sample_uniform((2, 6), generator=gen(), dtype=DOUBLE)
        walk = RandomWalk(space, 0.7)
        t, s = torch.tensor(0.0, dtype=DOUBLE), torch.tensor(1.0, dtype=DOUBLE)
        assert (walk.log_prob(x, y, t, s) - walk.log_prob(y, x, s, t)).abs().max() < 1e-9


def test_forward_over_backward_probability_has_mean_one():
    """E[p_0(x_T) p(x | y) / p_0(x_0) p(y | x)] = 1 over trajectories of a walk with drift, p_0 uniform on the torus."""
    space = mf.Torus(2)
    forward = RandomWalk(space, 0.4, drift=lambda x, t: torch.sin(2 * math.pi * x))
    backward = RandomWalk(space, 0.4)
    x0 = space.sample_uniform((20_000,), generator=gen(), dtype=DOUBLE)
    path = simulate(forward, x0, torch.linspace(0, 1, 6), generator=gen(1), log_prob=True)
    ratio = (trajectory_log_prob(backward, path.reversed()) - path.log_prob.sum(0)).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / len(ratio) ** 0.5
    assert ratio.std() > 0.05
    assert (trajectory_log_prob(forward, path) - path.log_prob.sum(0)).abs().max() < 1e-12


# ---------------------------------------------------------------- jumps


HOWS = {"plain": mf.Jumps(), "corrector": mf.Jumps(corrector=1.5), "cold": mf.Jumps(temperature=0.7, top_p=0.9)}


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_jumps_have_the_probabilities_they_are_drawn_with(case, how):
    flow, _ = exact_flow(case)
    size = case[0].size
    kernel = FlowKernel(flow, method=how)
    t, s = torch.tensor(0.3), torch.tensor(0.7)
    n = 60_000
    x = flow.draw_source((n, 2), generator=gen())[:1].expand(n, 2)
    y = kernel(x, None, t, s, generator=gen(1)).x
    every = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    law = kernel.log_prob(x[:1].expand(len(every), 2), every, t, s).exp()
    assert abs(float(law.sum()) - 1) < 1e-5
    seen = torch.bincount(y[:, 0] * size + y[:, 1], minlength=size * size) / n
    assert 0.5 * (seen - law).abs().sum() < 3 * (len(every) / n) ** 0.5


@pytest.mark.parametrize("time", [(0.2, 0.6), (0.5, 1.0)])
def test_metric_jumps_and_births_have_the_probabilities_they_are_drawn_with(time):
    t, s = torch.tensor(time[0]), torch.tensor(time[1])
    n = 60_000
    for path, space, how in (
        (mf.MetricJump(), mf.Tokens(5), None),
        (mf.BirthDeath(), mf.Counts(6), None),
        (mf.BirthDeath(predicts="births"), mf.Counts(6), None),
    ):
        bound = path.bind(space)
        pred = torch.tensor([1.3]) if bound.predicts == "births" else torch.linspace(-1, 1, space.size)[None]
        x = torch.full((n,), 1)
        y = bound.advance(pred.expand(n, *pred.shape[1:]), x, t, s, generator=gen(1), how=how).x
        every = torch.arange(12 if bound.predicts == "births" else space.size)
        one = pred.expand(len(every), *pred.shape[1:])
        law = bound.log_prob(one, torch.full_like(every, 1), every, t, s, how=how).exp()
        assert abs(float(law.sum()) - 1) < 1e-4
        seen = torch.bincount(y, minlength=len(every))[: len(every)] / n
        assert 0.5 * (seen - law).abs().sum() < 3 * (len(every) / n) ** 0.5


def test_a_trajectory_of_jumps_has_the_probability_of_its_steps():
    flow, _ = exact_flow(CASES["masking"])
    made = flow.sample((7, 2), steps=5, log_prob=True, generator=gen())
    assert made.log_prob.shape == (5, 7)
    again = trajectory_log_prob(flow.kernel(), made)
    assert (made.log_prob.sum(0) - again).abs().max() < 1e-6


# ---------------------------------------------------------------- the contract itself


def test_a_kernel_may_be_used_for_two_trajectories_at_once():
    """Self-conditioning travels in the carry: a kernel that remembered it would leak from one trajectory to the next."""

    class Model(nn.Module):
        def forward(self, x, t, *, previous=None):
            return x + 1 if previous is None else 0.5 * previous

    flow = mf.Flow(mf.Euclidean(1), Model(), self_condition=0.5)
    kernel, x0 = flow.kernel(), torch.zeros(2, 1)
    first = simulate(kernel, x0, [0.0, 0.5, 1.0])
    assert torch.equal(first, simulate(kernel, x0, [0.0, 0.5, 1.0]))
    assert torch.equal(first, flow.sample(x0=x0, steps=2))


def test_samples_are_differentiable_where_asked():
    flow = mf.Flow(mf.Sphere(2), mf.nn.TangentMLP(mf.Sphere(2), width=8, depth=1))
    x0 = mf.Sphere(2).sample_uniform((3,))
    assert not flow.sample(x0=x0, steps=2).requires_grad
    flow.sample(x0=x0, steps=2, differentiable=True)[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.model.parameters())


def test_a_plain_function_is_a_kernel():
    made = simulate(lambda x, t, s, **_: x + (s - t), torch.zeros(2, 1), [0.0, 0.5, 1.0])
    assert torch.equal(made, torch.ones(2, 1))
    with pytest.raises(TypeError, match="log-probabilities"):
        simulate(lambda x, t, s, **_: x, torch.zeros(2, 1), [0.0, 1.0], log_prob=True)
