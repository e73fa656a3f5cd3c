"""Paths and kernels of tokens against the laws they stand for, written out on small state spaces."""

import itertools
import math

import numpy as np
import pytest
import torch

import manifoldflow as mf
from manifoldflow.discrete import Tokens, draw_categorical, probabilities
from manifoldflow.distributions import AllMasked, Categorical
from testkit.exact import CASES, ExactPosterior, Fixed, all_states, exact_flow, law, marginal, total_variation

DOUBLE = torch.float64
SCHEDULES = [mf.Linear(), mf.Polynomial(2.0), mf.Cosine()]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("corrector", [0.0, 2.0])
def test_rates_with_the_exact_posterior_carry_the_marginals(case, schedule, corrector):
    flow, table = exact_flow(case, schedule)
    path, space = flow.path["x"], flow.path["x"].space
    states, n = all_states(space), space.size

    def change(p, t):
        time = torch.full((len(states),), t, dtype=DOUBLE)
        pred = flow.model(states, time).exp()
        rates = path.rates(pred, states, time, corrector=corrector)
        assert rates.sum(-1).abs().max() < 1e-9
        first, second = rates.unbind(1)
        flat = p.flatten()
        out = torch.zeros(n, n, dtype=DOUBLE)
        out.index_add_(1, states[:, 1], (flat[:, None] * first).T)
        out.index_add_(0, states[:, 0], flat[:, None] * second)
        return out

    times = torch.linspace(0.02, 0.97, 20).tolist()
    p, now, worst = marginal(flow, table, times[0]), times[0], 0.0
    for after in times[1:]:
        pieces = 12
        h = (after - now) / pieces
        for i in range(pieces):
            t = now + i * h
            k1 = change(p, t)
            k2 = change(p + 0.5 * h * k1, t + 0.5 * h)
            k3 = change(p + 0.5 * h * k2, t + 0.5 * h)
            k4 = change(p + h * k3, t + h)
            p = p + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        now = after
        worst = max(worst, total_variation(p, marginal(flow, table, now)))
    assert worst < 1e-3


@every_case
def test_corrector_rates_leave_the_marginal_alone(case):
    flow, table = exact_flow(case)
    path, states = flow.path["x"], all_states(flow.path["x"].space)
    for t in (0.2, 0.5, 0.9):
        time = torch.full((len(states),), t, dtype=DOUBLE)
        pred = flow.model(states, time).exp()
        extra = path.rates(pred, states, time, corrector=1.0) - path.rates(pred, states, time)
        flow_in = torch.zeros(path.space.size, path.space.size, dtype=DOUBLE)
        p = marginal(flow, table, t).flatten()
        flow_in.index_add_(1, states[:, 1], (p[:, None] * extra[:, 0]).T)
        flow_in.index_add_(0, states[:, 0], p[:, None] * extra[:, 1])
        assert flow_in.abs().max() < 1e-12


@every_case
@pytest.mark.parametrize("corrector", [0.0, 1.0])
def test_samples_have_the_law(case, corrector):
    flow, table = exact_flow(case)
    space = flow.path["x"].space
    n, generator = 40_000, torch.Generator().manual_seed(0)
    made = flow.sample((n, 2), steps=64, method=mf.Jumps(corrector=corrector), generator=generator)
    space.check(made, with_mask=False)
    counts = torch.bincount(made[:, 0] * space.categories + made[:, 1], minlength=space.categories**2)
    drawn = torch.multinomial(table.flatten(), n, replacement=True, generator=generator)
    floor = total_variation(torch.bincount(drawn, minlength=space.categories**2) / n, table.flatten())
    assert total_variation(counts / n, table.flatten()) < 2 * floor + 0.01


@every_case
def test_half_way_samples_have_the_marginal(case):
    flow, table = exact_flow(case)
    space = flow.path["x"].space
    n, generator = 40_000, torch.Generator().manual_seed(0)
    made = flow.sample((n, 2), times=torch.linspace(0, 0.6, 49), generator=generator)
    counts = torch.bincount(made[:, 0] * space.size + made[:, 1], minlength=space.size**2)
    assert total_variation(counts / n, marginal(flow, table, 0.6).flatten()) < 0.02


@every_case
def test_elbo_is_the_integral_of_the_rates_divergence(case):
    """By quadrature over t and all states of one token, from the definition; for masking it is log p itself."""
    space, kind, source = case
    p = law(space)[0] / law(space)[0].sum()

    class Model(torch.nn.Module):
        def forward(self, x, t):
            path = flow.path["x"]
            k = path.schedule.k(t.to(DOUBLE))[:, None, None]
            p0 = path.source.probabilities(dtype=DOUBLE)
            eye = torch.eye(space.categories, space.size, dtype=DOUBLE)
            seen = (1 - k) * p0[x][..., None] + k * eye[:, x].movedim(0, -1)
            return (seen * p).clamp_min(1e-300).log()

    flow = mf.Flow(space, Model(), path=kind(), source=source)
    x = torch.arange(space.categories)[:, None].repeat_interleave(2000, 0)
    value = flow.elbo(x, samples=64, generator=torch.Generator().manual_seed(0)).reshape(space.categories, -1)
    error = value.double().std(1) / value.shape[1] ** 0.5
    path, truth = flow.path["x"], torch.zeros(space.categories, dtype=DOUBLE)
    nodes, shares = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(200))
    states, p0 = torch.arange(space.size), path.source.probabilities(dtype=DOUBLE)
    for t, share in zip(0.5 * (nodes + 1), 0.5 * shares, strict=True):
        posterior = flow.model(states[:, None], t.expand(space.size)).softmax(-1)
        ours = path.rates(posterior, states[:, None], t.expand(space.size))[:, 0]
        for x1 in range(space.categories):
            weight = (1 - t) * p0 + t * (states == x1)
            towards = ((states == x1).double() / (1 - t)).expand(space.size, -1)  # rates of the conditional process
            kl = torch.where(towards > 0, towards * (towards / ours).log(), 0.0) - towards + ours
            kl = kl.masked_fill(torch.eye(space.size, dtype=torch.bool), 0.0).sum(-1)
            truth[x1] -= share * (weight * torch.where(weight > 0, kl, 0.0)).sum()
    assert ((value.double().mean(1) - truth).abs() < 4.5 * error + 5e-3).all()
    assert (truth <= p.log() + 1e-6).all()
    if space.mask:
        assert (truth - p.log()).abs().max() < 1e-6


def test_elbo_is_below_the_log_probability():
    flow, table = exact_flow(CASES["masking"])
    x = torch.tensor([[0, 1], [2, 2], [3, 0]]).repeat_interleave(3000, 0)
    value = flow.elbo(x, samples=32, generator=torch.Generator().manual_seed(0)).reshape(3, -1)
    mean, error = value.mean(1), value.std(1) / value.shape[1] ** 0.5
    truth = torch.stack([table[0, 1], table[2, 2], table[3, 0]]).log()
    assert (mean < truth + 4 * error).all()
    worst = mf.Flow(mf.Tokens(4, mask=True), _Constant(4)).elbo(x[:4], samples=256).mean()
    assert abs(float(worst) + 2 * math.log(4)) < 0.3


class _Constant(torch.nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x, t):
        return torch.zeros(*x.shape, self.k)


@pytest.mark.parametrize("source", [None, Categorical((0.6, 0.3, 0.1))], ids=["uniform", "unequal"])
def test_own_evidence_is_the_factor_of_bayes_rule(source):
    """Two independent tokens: the network need only return the law of the data."""
    table = torch.tensor([0.5, 0.3, 0.2], dtype=DOUBLE)[:, None] * torch.tensor([0.2, 0.2, 0.6], dtype=DOUBLE)
    space = mf.Tokens(3)
    flow = mf.Flow(space, torch.nn.Identity(), path=mf.UniformJump(own_evidence=True), source=source)
    path = flow.path["x"]
    prior = torch.stack([table.sum(1), table.sum(0)]).log()
    x = all_states(space)
    t = torch.full((len(x),), 0.7, dtype=DOUBLE)
    ours = path.logits(prior.expand(len(x), 2, 3), x, t).log_softmax(-1)
    assert (ours - ExactPosterior(table, path)(x, t).log_softmax(-1)).abs().max() < 1e-9
    flow.model, flow._takes = Fixed(prior), set()
    n = 20_000
    made = flow.sample((n, 2), steps=20, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(made[:, 0] * 3 + made[:, 1], minlength=9) / n
    assert total_variation(counts, table.flatten()) < 0.015


@pytest.mark.parametrize("objective", ["cross_entropy", "elbo"])
@pytest.mark.parametrize("space", [mf.Tokens(3, mask=True), mf.Tokens(3)], ids=["masking", "uniform"])
def test_training_finds_the_posterior(space, objective):
    """One token, a table for every time bin: the minimiser is the posterior, by Bayes."""
    p = torch.tensor([0.5, 0.3, 0.2])
    bins = 10

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(bins, space.size, 3))

        def forward(self, x, t):
            return self.logits[(t * bins).long().clamp_max(bins - 1)[:, None], x]

    path = (mf.Masking if space.mask else mf.UniformJump)(objective=objective)
    flow = mf.Flow(space, Table(), path=path, time_range=(0.0, 0.9))
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for i in range(400):
        x = torch.multinomial(p, 4096, replacement=True, generator=generator)[:, None]
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - i / 400)
        optimiser.zero_grad()
        flow.loss(x, generator=generator).backward()
        optimiser.step()
    found = flow.model.logits.softmax(-1)[5]
    if space.mask:
        assert (found[3] - p).abs().max() < 0.02
    else:
        k = 0.55
        seen = (1 - k) / 3 + k * torch.eye(3)  # [clean, present]
        truth = (seen * p[:, None] / (seen * p[:, None]).sum(0)).T
        assert (found - truth).abs().max() < 0.03


def test_every_order_unmasks_each_token_once():
    space = mf.Tokens(5, mask=True)
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Embedding(6, 5)

        def forward(self, x, t):
            return self.net(x) + torch.arange(x.shape[1])[None, :, None] * torch.tensor([1.0, 0, 0, 0, 0])

    flow = mf.Flow(space, Model())
    for how in (mf.Jumps(), mf.Jumps(order="confidence"), mf.Jumps(order="confidence", confidence_noise=1.0)):
        states = flow.sample((6, 9), steps=10, method=how, trajectory=True, generator=torch.Generator().manual_seed(0))
        assert (states[0] == 5).all() and (states[-1] < 5).all()
        for before, after in itertools.pairwise(states):
            assert (before[before != 5] == after[before != 5]).all()


def test_confident_tokens_come_first():
    space = mf.Tokens(2, mask=True)

    class Model(torch.nn.Module):
        def forward(self, x, t):
            sure = torch.arange(x.shape[1], dtype=torch.float32).expand(x.shape)
            return torch.stack([sure, torch.zeros_like(sure)], -1)

    flow = mf.Flow(space, Model())
    states = flow.sample((20, 8), steps=6, method=mf.Jumps(order="confidence"), trajectory=True)
    for state in states:
        known = state != 2
        assert (known.int().diff(dim=1) >= 0).all()  # known ones are a tail of the sequence


@pytest.mark.parametrize("noise, s", [(0.7, 0.25), (2.0, 0.5)])
def test_confidence_noise_is_gumbel_noise(noise, s):
    """Of those that unmask one token, it is token i with probability ~ confidence_i^(1 / (c (1 - s))): the Gumbel maximum."""
    space = mf.Tokens(2, mask=True)
    sure = torch.tensor([0.0, 1.0, 2.5])

    class Model(torch.nn.Module):
        def forward(self, x, t):
            return torch.stack([sure.expand(x.shape), torch.zeros(x.shape)], -1)

    how = mf.Jumps(order="confidence", confidence_noise=noise)
    made = mf.Flow(space, Model()).sample(
        (40_000, 3), times=[0.0, s], method=how, generator=torch.Generator().manual_seed(0)
    )
    known = made[(made != 2).sum(1) == 1] != 2
    assert len(known) > 10_000
    expected = (sure.sigmoid().log() / (noise * (1 - s))).softmax(-1)
    assert (known.float().mean(0) - expected).abs().max() < 0.015


def test_padding_and_known_tokens_stay():
    flow = mf.Flow(mf.Tokens(4, mask=True), _Constant(4), pin=lambda mask, g: torch.zeros_like(mask))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    known = torch.tensor([[1, 2, 3, 0, 0, 0, 0]]).expand(2, 7)
    known_mask = torch.tensor([[True] * 3 + [False] * 4]).expand(2, 7)
    x = flow.sample((2, 7), mask=mask, known=known, known_mask=known_mask, steps=5)
    assert (x[:, :3] == known[:, :3]).all() and (x[1, 4:] == 0).all() and (x < 4).all()


def test_a_mixed_state_of_tokens_and_points():
    spaces = {"place": mf.Torus(3), "kind": mf.Tokens(5, mask=True)}

    class Model(torch.nn.Module):
        def forward(self, x, t, *, mask=None):
            assert t.dtype == torch.float32
            return {"place": torch.zeros_like(x["place"]), "kind": torch.zeros(*x["kind"].shape, 5)}

    for order in (["place", "kind"], ["kind", "place"]):
        flow = mf.Flow({n: spaces[n] for n in order}, Model())
        data = {"place": torch.rand(4, 6, 3), "kind": torch.randint(5, (4, 6))}
        assert flow.loss({n: data[n] for n in order}).isfinite()
        made = flow.sample((3, 6), steps=4)
        spaces["place"].check(made["place"])
        spaces["kind"].check(made["kind"], with_mask=False)
        with pytest.raises(TypeError, match="log_prob_bound"):
            flow.elbo(data)
        with pytest.raises(ValueError, match="log_prob_bound"):
            flow.log_prob(data)


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("k", [2, 4, 20, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_draws_have_the_probabilities(k, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(k, generator=generator)).to(dtype)
    n = 200_000
    drawn = draw_categorical(logits.expand(n, k), generator=generator)
    p = logits.double().softmax(-1)
    counts = torch.bincount(drawn, minlength=k).double()
    seen = p * n > 10
    chi2 = float(((counts - n * p).square() / (n * p))[seen].sum())
    assert chi2 < int(seen.sum()) + 6 * (2 * int(seen.sum())) ** 0.5


def test_draws_do_not_depend_on_the_chunk_and_skip_what_is_impossible():
    logits = torch.randn(50, 7, 9, generator=torch.Generator().manual_seed(0))
    logits[..., -1] = logits[..., 3] = -torch.inf
    draws = [draw_categorical(logits, generator=torch.Generator().manual_seed(1), chunk=c) for c in (1, 100, 10**6)]
    assert draws[0].shape == (50, 7) and (draws[0] == draws[1]).all() and (draws[0] == draws[2]).all()
    assert not ((draws[0] == 3) | (draws[0] == 8)).any()
    at = torch.tensor([3, 3, 200])
    some = draw_categorical(logits, at=at, generator=torch.Generator().manual_seed(1), chunk=9)
    again = draw_categorical(logits.reshape(-1, 9)[at], generator=torch.Generator().manual_seed(1))
    assert (some == again).all()
    assert draw_categorical(logits, at=at[:0]).shape == (0,)


def test_temperature_and_top_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert (draw_categorical(logits.expand(99, 4), temperature=0) == 0).all()
    assert torch.allclose(probabilities(logits, 1.0, 0.6), torch.tensor([0.5, 0.3, 0, 0]))
    assert torch.allclose(probabilities(logits, 1.0, 0.5), torch.tensor([0.5, 0, 0, 0]))
    assert torch.allclose(probabilities(logits, 0.5), logits.mul(2).softmax(-1))
    drawn = draw_categorical(logits.expand(9999, 4), top_p=0.7, generator=torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {0, 1}
    assert abs(float((drawn == 0).float().mean()) - 0.625) < 0.02


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: Tokens(1), ValueError, "at least 2"),
        (lambda: Tokens(4).mask_token, ValueError, "mask=True"),
        (lambda: Tokens(4).check(torch.rand(3)), TypeError, "whole numbers"),
        (lambda: Tokens(4).check(torch.tensor([[0, 4]])), ValueError, r"token 4 at \[0, 1\]"),
        (lambda: mf.Flow(mf.Tokens(4), _Constant(4), path=mf.Masking()), ValueError, "mask=True"),
        (lambda: mf.Flow(mf.Sphere(2), _Constant(4), path=mf.Masking()), TypeError, "Tokens"),
        (lambda: mf.Flow(mf.Tokens(4), _Constant(4), predicts="endpoint"), ValueError, "logits"),
        (
            lambda: mf.Flow(mf.Tokens(4, mask=True), _Constant(4), path=mf.Masking(), source=Categorical()),
            ValueError,
            "UniformJump",
        ),
        (lambda: mf.UniformJump(objective="mse"), ValueError, "cross_entropy"),
        (lambda: Categorical((0.5, -0.1)), ValueError, "not negative"),
        (lambda: Categorical((0.5, 0.5)).bind(Tokens(3)), ValueError, "2 weights for 3"),
        (lambda: AllMasked().space, ValueError, "no space"),
        (lambda: mf.Jumps(corrector=-1.0), ValueError, "corrector"),
        (lambda: mf.Jumps(top_p=0.0), ValueError, "top_p"),
        (lambda: mf.Jumps(order="confidence", corrector=1.0), ValueError, "no corrector"),
        (lambda: mf.Flow(mf.Tokens(4), _Constant(4)).sample((2, 3), method="rk4"), ValueError, "Jumps"),
        (
            lambda: mf.Flow(mf.Tokens(4), _Constant(4)).sample((2, 3), method=mf.Jumps(order="confidence")),
            ValueError,
            "for Masking",
        ),
        (lambda: mf.Flow(mf.Sphere(2), _Constant(4)).sample(3, method=mf.Jumps()), ValueError, "this flow has none"),
        (lambda: mf.Flow(mf.Tokens(4), _Constant(4)).sample((2, 3), times=[1.0, 0.5]), ValueError, "backward"),
    ],
)
def test_mistakes_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_logits_that_are_no_numbers_are_an_error_and_not_the_last_category():
    logits = torch.zeros(3, 4)
    logits[1, 2] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        draw_categorical(logits)
    with pytest.raises(FloatingPointError, match="-inf"):
        draw_categorical(torch.full((1, 4), -torch.inf))
