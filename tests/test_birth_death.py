"""Counts that grow from nothing against their binomial law, written out on small state spaces."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

import manifoldflow as mf
from manifoldflow.discrete.counts import Counts
from manifoldflow.paths.birth_death import BirthDeath, NoCounts

DOUBLE = torch.float64
SCHEDULES = [mf.Linear(), mf.Polynomial(2.0), mf.Exponential(3.0)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def law(size, seed=0):
    table = torch.rand(size, size, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) ** 3
    return table / table.sum()


def thinning(size, k):
    """Binomial probabilities ``[x1, x]`` by scipy."""
    x = np.arange(size)
    return torch.from_numpy(scipy.stats.binom.pmf(x[None, :], x[:, None], k))


class ExactPosterior(torch.nn.Module):
    """The clean counts given x_t for a law of two counts given as a table, as logits or as their mean."""

    def __init__(self, table, schedule, births=False):
        super().__init__()
        self.table, self.schedule, self.births = table, schedule, births

    def forward(self, x, t):
        n, k = len(self.table), float(self.schedule.k(t.to(DOUBLE)).flatten()[0])
        states = torch.tensor(list(itertools.product(range(n), repeat=2)))
        seen = thinning(n, k)[:, states].movedim(0, -1)  # (states, 2, x1)
        joint = seen[:, 0, :, None] * seen[:, 1, None, :] * self.table
        both = torch.stack([joint.sum(2), joint.sum(1)], 1)
        p = both / both.sum(-1, keepdim=True).clamp_min(1e-300)
        at = x[:, 0] * n + x[:, 1]
        if not self.births:
            return p.clamp_min(1e-300).log()[at]
        mean = ((torch.arange(n) - states[..., None]) * p).sum(-1).clamp_min(1e-12)
        return (mean + torch.log(-torch.expm1(-mean)))[at]


def exact_flow(size, schedule=None, predicts="logits"):
    table, schedule = law(size), schedule or mf.Linear()
    model = ExactPosterior(table, schedule, predicts == "births")
    return mf.Flow(Counts(size - 1), model, path=BirthDeath(schedule, predicts=predicts)), table


def marginal(table, schedule, t):
    one = thinning(len(table), float(schedule.k(torch.tensor(t, dtype=DOUBLE))))
    return torch.einsum("ab,ax,by->xy", table, one, one)


def total_variation(p, q):
    return float(0.5 * (p - q).abs().sum())


def histogram(x, size):
    return torch.bincount(x[:, 0] * size + x[:, 1], minlength=size**2) / len(x)


@every_schedule
@pytest.mark.parametrize("predicts", ["logits", "births"])
@pytest.mark.parametrize("size", [2, 5, 8])
def test_births_at_the_exact_rate_carry_the_marginals(size, schedule, predicts):
    flow, table = exact_flow(size, schedule, predicts)
    path, states = flow.path["x"], torch.tensor(list(itertools.product(range(size), repeat=2)))

    def change(p, t):
        time = torch.full((len(states),), t, dtype=DOUBLE)
        rate = path.rate(flow.model(states, time), states, time)
        leave = p * rate.T.reshape(2, size, size)
        leave[0, -1], leave[1, :, -1] = (
            0.0,
            0.0,
        )  # rates of impossible states are of no matter, but nothing may flow out
        out = -leave.sum(0)
        out[1:] += leave[0, :-1]
        out[:, 1:] += leave[1, :, :-1]
        return out

    times = torch.linspace(0.02, 0.97, 20).tolist()
    p, now, worst = marginal(table, schedule, times[0]), times[0], 0.0
    for after in times[1:]:
        h = (after - now) / 8
        for i in range(8):
            t = now + i * h
            k1 = change(p, t)
            k2 = change(p + 0.5 * h * k1, t + 0.5 * h)
            k3 = change(p + 0.5 * h * k2, t + 0.5 * h)
            k4 = change(p + h * k3, t + h)
            p = p + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        now = after
        worst = max(worst, total_variation(p, marginal(table, schedule, now)))
    assert worst < 1e-3


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("largest", [6, None])
def test_noisy_counts_are_thinned_data(t, largest):
    n = 40_000
    path = BirthDeath(mf.Polynomial(2.0), predicts="births").bind(Counts(largest))
    x1 = torch.full((n, 1), 6)
    point = path.sample(torch.zeros_like(x1), x1, torch.full((n,), t), generator=torch.Generator().manual_seed(0))
    assert point.x.dtype == torch.int64
    found = torch.bincount(point.x.flatten(), minlength=7).double() / n
    assert total_variation(found, thinning(7, t * t)[6]) < 0.008


@pytest.mark.parametrize(
    "predicts, how, steps, limit",
    [
        ("logits", mf.Jumps(), 32, 0.01),
        ("births", mf.Jumps(), 200, 0.03),
        ("logits", mf.Jumps(leap="tau"), 100, 0.03),
        ("births", mf.Jumps(leap="tau"), 200, 0.03),
    ],
)
def test_samples_have_the_law(predicts, how, steps, limit):
    flow, table = exact_flow(5, predicts=predicts)
    n, generator = 40_000, torch.Generator().manual_seed(0)
    x = flow.sample((n, 2), steps=steps, method=how, generator=generator)
    flow.spaces.check(x)
    drawn = torch.multinomial(table.flatten(), n, replacement=True, generator=generator)
    floor = total_variation(torch.bincount(drawn, minlength=25) / n, table.flatten())
    assert total_variation(histogram(x, 5), table.flatten()) < 2 * floor + limit
    half = flow.sample((n, 2), times=torch.linspace(0, 0.5, steps // 2 + 1), method=how, generator=generator)
    assert total_variation(histogram(half, 5), marginal(table, mf.Linear(), 0.5).flatten()) < 2 * floor + limit


def test_one_count_is_exact_at_any_number_of_steps():
    p = torch.tensor([0.1, 0.0, 0.3, 0.05, 0.0, 0.55], dtype=DOUBLE)

    class Prior(torch.nn.Module):
        def forward(self, x, t):
            return p.clamp_min(1e-300).log().expand(*x.shape, -1)

    flow = mf.Flow(Counts(5), Prior(), path=BirthDeath(own_evidence=True))
    for steps in (1, 3):
        x = flow.sample((50_000, 1), steps=steps, generator=torch.Generator().manual_seed(0))
        assert total_variation(torch.bincount(x.flatten(), minlength=6) / len(x), p) < 0.008
    half = flow.sample((50_000, 1), times=[0.0, 0.35, 0.7], generator=torch.Generator().manual_seed(1))
    truth = p @ thinning(6, 0.7)
    assert total_variation(torch.bincount(half.flatten(), minlength=6) / len(half), truth) < 0.008


@pytest.mark.parametrize("t", [0.2, 0.9])
def test_own_evidence_is_the_factor_of_bayes_rule(t):
    p = torch.tensor([0.4, 0.1, 0.2, 0.3], dtype=DOUBLE)
    path = BirthDeath(mf.Polynomial(2.0), own_evidence=True).bind(Counts(3))
    x, time = torch.arange(4)[:, None], torch.full((4,), t, dtype=DOUBLE)
    ours = path.logits(p.log().expand(4, 1, 4), x, time).softmax(-1)[:, 0]
    joint = (p[:, None] * thinning(4, t * t)).T
    assert (ours - joint / joint.sum(-1, keepdim=True)).abs().max() < 1e-6
    mean = path.births(p.log().expand(4, 1, 4), x, time)[:, 0]
    truth = ((torch.arange(4) - torch.arange(4)[:, None]) * joint).sum(-1) / joint.sum(-1)
    assert (mean - truth).abs().max() < 1e-6


@pytest.mark.parametrize("predicts", ["logits", "births"])
def test_elbo_of_the_exact_posterior_is_the_log_probability(predicts):
    flow, table = exact_flow(4, predicts=predicts)
    exact = flow.model

    class Each(torch.nn.Module):  # the exact posterior reads one time a batch
        def forward(self, x, t):
            return torch.cat([exact(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])

    path, x1 = flow.path["x"], torch.tensor([[0, 1], [3, 3], [2, 0]])
    nodes, shares = np.polynomial.legendre.leggauss(40)
    total = torch.zeros(3, dtype=DOUBLE)
    for left, part in zip(0.5 * (nodes + 1), 0.5 * shares, strict=True):
        t, share = 1 - left**2, 2 * left * part  # the integrand has a logarithm at t = 1
        one = thinning(4, t)
        for noisy in itertools.product(range(4), repeat=2):
            weight = one[x1[:, 0], noisy[0]] * one[x1[:, 1], noisy[1]]
            x, time = torch.tensor(noisy).expand(3, 2), torch.full((3,), t, dtype=DOUBLE)
            point = mf.paths.NoisyPoint(x, time, x1)
            value = path.bound(flow.model(x, time), point).sum(-1)
            total += share * torch.where(weight > 0, weight * value, 0.0)
    truth = -table[x1[:, 0], x1[:, 1]].log()
    assert (total - truth).abs().max() < 1e-4
    flow.model, n = Each(), 200
    value, error = flow.elbo(
        x1.repeat_interleave(n, 0), samples=20, generator=torch.Generator().manual_seed(0), return_error=True
    )
    value, error = value.reshape(3, n), error.reshape(3, n)
    assert ((value.mean(1) + truth).abs() < 4.5 * value.std(1) / n**0.5).all()
    # The error of one call is what the calls differ by, or more: even times hid rare values of many nats near t = 1.
    assert (value.std(1) < 1.3 * error.square().mean(1).sqrt()).all()
    assert float((value + truth[:, None] > 3 * error).double().mean()) < 0.03  # 0.13 with even times


@pytest.mark.parametrize("objective", ["elbo", "cross_entropy"])
def test_training_finds_the_posterior(objective):
    p, bins = torch.tensor([0.5, 0.1, 0.4]), 8

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(bins, 3, 3))

        def forward(self, x, t):
            return self.logits[(t * bins).long().clamp_max(bins - 1)[:, None], x]

    flow = mf.Flow(Counts(2), Table(), path=BirthDeath(objective=objective), time_range=(0.0, 0.95))
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for i in range(400):
        x = torch.multinomial(p, 4096, replacement=True, generator=generator)[:, None]
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - i / 400)
        optimiser.zero_grad()
        flow.loss(x, generator=generator).backward()
        optimiser.step()
    k, x = 4.5 / bins, torch.arange(3)
    joint = (p[:, None] * thinning(3, k).float()).T
    truth = joint / joint.sum(-1, keepdim=True)
    path = flow.path["x"]
    found = path.births(flow.model.logits[4], x, torch.full((3,), k))
    assert (found - ((x - x[:, None]) * truth).sum(-1)).abs().max() < 0.05
    if objective == "cross_entropy":
        assert (path.logits(flow.model.logits[4], x, torch.full((3,), k)).softmax(-1) - truth).abs().max() < 0.03


class Growing(torch.nn.Module):
    """A small network of counts, (B, N) -> (B, N, K) or (B, N)."""

    def __init__(self, size=None):
        super().__init__()
        self.net = torch.nn.Linear(2, size or 1)
        self.flat = size is None

    def forward(self, x, t, *, mask=None):
        t = t if t.ndim == 2 else t[:, None].expand(x.shape)
        y = self.net(torch.stack([x.to(t.dtype) / 10, t], -1).to(self.net.weight.dtype))
        return y.squeeze(-1) if self.flat else y


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("objective", ["elbo", "cross_entropy"])
@pytest.mark.parametrize("largest", [9, None])
def test_losses_and_gradients_are_finite_at_all_times(largest, objective, dtype):
    if largest is None and objective == "cross_entropy":
        return
    torch.manual_seed(0)
    path = BirthDeath(objective=objective, predicts="logits" if largest else "births")
    flow = mf.Flow(Counts(largest), Growing(largest and largest + 1).to(dtype), path=path)
    x = torch.randint(10, (64, 3))
    for t in (0.0, 1e-7, 0.5, 1 - 1e-6, 1.0):
        flow.zero_grad()
        loss = flow.loss(x, t=torch.full((64,), t, dtype=dtype))
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in flow.parameters())


@pytest.mark.parametrize("largest", [9, None])
@pytest.mark.parametrize("leap", ["exact", "tau"])
def test_padding_and_known_counts_stay_and_none_falls(largest, leap):
    torch.manual_seed(0)
    flow = mf.Flow(
        Counts(largest),
        Growing(largest and largest + 1),
        path=BirthDeath(predicts="logits" if largest else "births"),
        pin=lambda mask, g: torch.zeros_like(mask),
    )
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    known = torch.tensor([[1, 2, 3, 0, 0, 0, 0]]).expand(2, 7)
    known_mask = torch.tensor([[True] * 3 + [False] * 4]).expand(2, 7)
    states = flow.sample(
        (2, 7), mask=mask, known=known, known_mask=known_mask, steps=6, method=mf.Jumps(leap=leap), trajectory=True
    )
    assert (states[:, :, :3] == known[:, :3]).all() and (states[:, 1, 4:] == 0).all()
    assert (states.diff(dim=0) >= 0).all() and (states[0, :, 3:] == 0).all()
    flow.spaces.check(states)
    assert flow.loss(known, mask=mask).isfinite()


def test_a_rate_shift_multiplies_the_births():
    path = BirthDeath().bind(Counts(40))
    n, pred = 20_000, torch.full((41,), -1e4)
    pred[20] = 0.0
    x, shift = torch.zeros(n, 1, dtype=torch.int64), torch.full((n, 1, 41), math.log(1.5))
    t, s = torch.tensor(0.0), torch.tensor(0.2)
    g = torch.Generator().manual_seed(0)
    moved = path.advance(pred.expand(n, 1, 41), x, t, s, shift=shift, generator=g).x.float()
    assert abs(moved.mean() - 6.0) < 0.08 and abs(moved.var() - 6.0) < 0.3  # Poisson(1.5 * 0.2 * 20)
    plain = path.advance(pred.expand(n, 1, 41), x, t, s, generator=g).x.float()
    assert abs(plain.mean() - 4.0) < 0.06 and abs(plain.var() - 3.2) < 0.15  # Binomial(20, 0.2)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_mix_blends_births_geometrically(weight):
    path = BirthDeath(predicts="births").bind(Counts())
    a, b = torch.tensor([0.5, -3.0, 8.0]), torch.tensor([1.5, 2.0, 6.0])
    softplus = torch.nn.functional.softplus
    truth = softplus(b) ** (1 - weight) * softplus(a) ** weight
    torch.testing.assert_close(softplus(path.mix(a, b, weight)), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: Counts(0), ValueError, "at least 1"),
        (lambda: Counts(3).check(torch.tensor([1, 4])), ValueError, "at most 3"),
        (lambda: Counts().check(torch.tensor([-1])), ValueError, "at least 0"),
        (lambda: Counts(3).check(torch.tensor([1.0])), TypeError, "whole numbers"),
        (lambda: Counts().one_hot(torch.tensor([1])), ValueError, "largest"),
        (lambda: BirthDeath().bind(mf.Tokens(4)), TypeError, "Counts"),
        (lambda: BirthDeath().bind(Counts()), ValueError, "births"),
        (lambda: BirthDeath().bind(Counts(3), "velocity"), ValueError, "velocity"),
        (lambda: BirthDeath(predicts="births", own_evidence=True), ValueError, "logits"),
        (lambda: BirthDeath(objective="x"), ValueError, "objective"),
        (lambda: BirthDeath().bind(Counts(3), source=mf.distributions.Categorical()), ValueError, "0"),
        (
            lambda: BirthDeath(predicts="births").bind(Counts()).logits(torch.zeros(1), torch.zeros(1), torch.zeros(1)),
            ValueError,
            "no logits",
        ),
        (
            lambda: exact_flow(3)[0].sample((2, 2), steps=2, method=mf.Jumps(corrector=1.0)),
            ValueError,
            "no corrector",
        ),
        (
            lambda: exact_flow(3)[0].sample((2, 2), steps=2, method=mf.Jumps(leap="tau", temperature=0.5)),
            ValueError,
            "no temperature",
        ),
    ],
)
def test_mistakes_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_the_source_is_nothing():
    source = NoCounts().bind(Counts(3))
    x = source.sample((2, 3))
    assert (x == 0).all() and x.dtype == torch.int64 and (source.log_prob(x) == 0).all()
    assert source.log_prob(x + 1).max() == -math.inf and source.probabilities().tolist() == [1, 0, 0, 0]
