"""Relative trajectory balance: any kernel with log-probabilities is tuned to a tilted law."""

import math

import pytest
import torch
from torch import nn

import manifoldflow as mf
from manifoldflow import gflownet as gf
from manifoldflow.training import TrainConfig, fit


def config(steps, rate):
    return TrainConfig(
        max_steps=steps,
        learning_rate=rate,
        weight_decay=0.0,
        ema=0.0,
        warmup_steps=1,
        gradient_clip=100.0,
        progress=False,
    )


class Push(nn.Module):
    """A drift that is the same everywhere."""

    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        return self.by.expand_as(x)


def walk():
    return gf.DriftedWalk(lambda drift: mf.RandomWalk(mf.Euclidean(1), 1.5, drift=drift), Push())


@pytest.mark.parametrize("loss", [gf.trajectory_balance, gf.log_partition_variance], ids=["balance", "variance"])
def test_a_walk_tilted_by_an_exponential_is_the_walk_with_a_drift(loss):
    """N(0, s^2) tilted by exp(b a x) is N(b a s^2, s^2), log Z is (b a s)^2 / 2; drift b a s^2 makes it exactly."""
    model = gf.RelativeBalance(
        walk(),
        walk(),
        lambda x: 0.4 * x[:, 0],
        lambda n: torch.zeros(n, 1),
        torch.linspace(0, 1, 9),
        beta=2.0,
        loss=loss,
    )
    model = fit(model, [{"size": 64}], config(80, 4e-2), out=None)
    assert abs(float(model.onward.network.by.detach()) - 0.8 * 1.5**2) < 0.05
    assert abs(float(model.log_z.detach()) - (0.8 * 1.5) ** 2 / 2) < 0.1
    value, share = model.log_z_estimate(500)
    assert abs(float(value) - (0.8 * 1.5) ** 2 / 2) < 0.05 and share > 0.95
    assert float(next(model.back.parameters()).detach()) == 0  # frozen


def tokens():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3 * 4, 32), nn.SiLU(), nn.Linear(32, 9))

        def forward(self, x, t, mask=None, cond=None):
            return self.net(nn.functional.one_hot(x, 4).flatten(1).float()).reshape(-1, 3, 3)

    return mf.Flow(mf.Tokens(3, mask=True), model=Table(), path=mf.Masking())


def noisy():
    space = mf.Sphere(2)
    path = mf.StochasticInterpolant()
    return mf.Flow(space, model=mf.nn.TangentMLP(space, 16, 1, heads=2), path=path)


FLOWS = {
    "jumps": (tokens, (3,), "euler", lambda x: (x == 0).sum(-1).float(), 0.25),
    "noise on a sphere": (noisy, (), mf.SDE(4.0), lambda x: 0.7 * x[:, 2], 0.7),
}


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_of_any_kind_is_its_own_answer_to_a_constant_reward_and_learns_others(name):
    torch.manual_seed(0)
    make, shape, method, reward, part = FLOWS[name]
    flow = make()
    with torch.no_grad():
        idle = gf.RelativeBalance.of_flow(flow, lambda x: torch.full((len(x),), 0.7), shape, steps=5, method=method)
        drawn = idle.draw(32)
        assert abs(float(idle.loss_of(drawn)["balance"]) - 0.49) < 1e-5
        idle.log_z.fill_(0.7)
        assert idle.loss_of(drawn)["balance"] < 1e-10
    before = [p.clone() for p in flow.parameters()]
    model = gf.RelativeBalance.of_flow(flow, reward, shape, steps=5, method=method, beta=1.5)
    base = flow.sample((4000, *shape), times=model.times, method=method)
    weight = (1.5 * reward(base)).softmax(0)
    truth = float((weight * reward(base)).sum())
    log_z = float((1.5 * reward(base)).logsumexp(0)) - math.log(4000)
    model = fit(model, [{"size": 64}], config(100, 1e-2), out=None)
    assert model.times[-1] == (1.0 if name == "jumps" else 0.98)
    tuned = model.sample(4000)
    plain = float(reward(base).mean())
    assert abs(float(reward(tuned).mean()) - truth) < part * abs(
        truth - plain
    )  # noise forgets a part of the start only
    assert abs(float(model.log_z_estimate(4000)[0]) - log_z) < 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True))


def test_a_flow_may_be_tuned_from_a_later_time_on_and_its_first_steps_stay_its_own():
    torch.manual_seed(0)
    flow = noisy()
    model = gf.RelativeBalance.of_flow(
        flow, lambda x: 0.7 * x[:, 2], steps=5, method=mf.SDE(4.0), since=0.3, until=0.9, beta=1.5
    )
    assert float(model.before[0]) == 0 and abs(float(model.before[-1]) - 0.3) < 1e-6 and len(model.before) == 3
    assert abs(float(model.times[0]) - 0.3) < 1e-6 and abs(float(model.times[-1]) - 0.9) < 1e-6
    torch.manual_seed(1)
    start = model.start(6)
    torch.manual_seed(1)
    assert torch.equal(start, flow.eval().sample((6,), times=model.before, method=mf.SDE(4.0)))
    plain = float(model.sample(2000)[:, 2].mean())
    model = fit(model, [{"size": 64}], config(60, 1e-2), out=None)
    assert float(model.sample(2000)[:, 2].mean()) > plain + 0.1
    with pytest.raises(ValueError, match="since must lie between 0 and until"):
        gf.RelativeBalance.of_flow(flow, lambda x: x[:, 2], method=mf.SDE(4.0), since=0.99)


def test_steps_that_draw_nothing_are_refused():
    space = mf.Torus(1)
    flow = mf.Flow(space, model=mf.nn.TangentMLP(space, 8, 1))
    with pytest.raises(TypeError, match=r"draw nothing.*mf\.SDE"):
        gf.RelativeBalance.of_flow(flow, lambda x: x[:, 0])
