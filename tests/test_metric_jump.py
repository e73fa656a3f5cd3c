"""The path along a distance of categories against its law, written out on small state spaces."""

import math
from dataclasses import replace

import pytest
import torch

import manifoldflow as mf
from testkit.exact import total_variation

DOUBLE = torch.float64
K = 6
PATHS = {
    "ordinal": mf.MetricJump(distance="ordinal"),
    "cyclic": mf.MetricJump(distance="cyclic", scale=4.0, power=1.5),
    "own": mf.MetricJump(distance=lambda x, y: (x - y).abs().float().sqrt(), scale=3.0),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
LAW = torch.tensor([0.3, 0.05, 0.2, 0.05, 0.25, 0.15], dtype=DOUBLE)


class Posterior(torch.nn.Module):
    """The clean token given x_t for the law of one token, by Bayes."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, x, t):
        return (LAW.log() + self.of_all(t[0]).log()[:, x].movedim(0, -1)).to(t.dtype)

    def of_all(self, t):
        """p_t(x | x1), ``(x1, x)``."""
        d = self.path.distances(torch.arange(K), DOUBLE)
        return torch.softmax(-self.path.beta(t.to(DOUBLE)) * d, -1)


def flow_of(path):
    flow = mf.Flow(mf.Tokens(K), torch.nn.Identity(), path=path)
    flow.model, flow._takes = Posterior(flow.path["x"]), set()
    return flow


@every_path
def test_rates_with_the_exact_posterior_carry_the_marginals(path):
    flow = flow_of(path)
    bound, x = flow.path["x"], torch.arange(K)[:, None]

    def change(p, t):
        time = torch.tensor(t, dtype=DOUBLE).expand(K)
        rates = bound.rates(flow.model(x, time).softmax(-1), x, time)[:, 0]
        assert rates.sum(-1).abs().max() < 1e-9
        return p @ rates

    def marginal(t):
        return LAW @ flow.model.of_all(torch.tensor(t))

    times = torch.linspace(0.02, 0.9, 20).tolist()
    p, now, worst = marginal(times[0]), times[0], 0.0
    for after in times[1:]:
        h = (after - now) / 20
        for i in range(20):
            t = now + i * h
            k1 = change(p, t)
            k2 = change(p + 0.5 * h * k1, t + 0.5 * h)
            k3 = change(p + 0.5 * h * k2, t + 0.5 * h)
            k4 = change(p + h * k3, t + h)
            p = p + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        now = after
        worst = max(worst, total_variation(p, marginal(now)))
    assert worst < 1e-3


@every_path
def test_samples_have_the_law_at_the_end_and_on_the_way(path):
    flow, n = flow_of(path), 20_000
    generator = torch.Generator().manual_seed(0)
    made = flow.sample((n, 1), steps=100, generator=generator).flatten()
    assert total_variation(torch.bincount(made, minlength=K) / n, LAW) < 0.015
    half = flow.sample((n, 1), times=torch.linspace(0, 0.5, 61), generator=generator).flatten()
    truth = LAW @ flow.model.of_all(torch.tensor(0.5))
    assert total_variation(torch.bincount(half, minlength=K) / n, truth) < 0.02


@every_path
def test_own_evidence_is_the_factor_of_bayes_rule(path):
    bound = flow_of(replace(path, own_evidence=True)).path["x"]
    x, t = torch.arange(K)[:, None], torch.full((K,), 0.3, dtype=DOUBLE)
    ours = bound.logits(LAW.log().expand(K, 1, K), x, t).softmax(-1)
    assert (ours - Posterior(bound)(x, t).softmax(-1)).abs().max() < 1e-9


@every_path
def test_tokens_only_move_nearer(path):
    bound = path.bind(mf.Tokens(K))
    x, x1 = torch.meshgrid(torch.arange(K), torch.arange(K), indexing="ij")
    rates = bound.conditional_rates(x, x1, torch.tensor(0.4, dtype=DOUBLE))
    d = bound.distances(x1, DOUBLE)
    assert (rates[d >= d.gather(-1, x.unsqueeze(-1))] == 0).all()
    drawn = bound.sample(x1, x1, torch.ones(K, dtype=DOUBLE))
    assert (drawn.x == x1).all()


@pytest.mark.parametrize("times, tolerance", [([0.9, 0.98], 0.07), ([0.9, 0.95, 0.98], 0.03)])
def test_a_coarse_step_pulls_as_much_as_beta_grows(times, tolerance):
    """Two tokens: one that is not yet right at t is not yet at s with probability p_s(wrong) / p_t(wrong), p(wrong) =
    1 / (1 + e^beta). Near the end beta grows much faster than a step times its rate in the middle."""

    class Knows(torch.nn.Module):
        def forward(self, x, t):
            return torch.tensor([0.0, 100.0]).expand(*x.shape, 2)

    scale = 0.05
    flow = mf.Flow(mf.Tokens(2), Knows(), path=mf.MetricJump(scale=scale))
    x0 = torch.zeros(20_000, 1, dtype=torch.int64)
    made = flow.sample(x0=x0, times=times, generator=torch.Generator().manual_seed(0))
    wrong = [1 / (1 + math.exp(scale * t / (1 - t))) for t in (times[0], times[-1])]
    assert abs(float((made == 0).float().mean()) - wrong[1] / wrong[0]) < tolerance


def test_elbo_of_the_exact_posterior_is_below_the_log_probability_and_near():
    flow = flow_of(PATHS["ordinal"])
    x = torch.arange(K)[:, None].repeat_interleave(300, 0)
    value = flow.elbo(x, samples=64, generator=torch.Generator().manual_seed(0)).reshape(K, -1).double()
    error = value.std(1) / value.shape[1] ** 0.5
    assert (value.mean(1) < LAW.log() + 4 * error + 0.02).all()
    assert (value.mean(1) > LAW.log() - 1.5).all()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: mf.MetricJump(distance="euclid"), "ordinal"),
        (lambda: mf.MetricJump(scale=0.0), "positive"),
        (lambda: mf.MetricJump().bind(mf.Tokens(3, mask=True)), "no mask"),
        (lambda: flow_of(PATHS["ordinal"]).sample((2, 1), steps=2, method=mf.Jumps(corrector=1.0)), "no corrector"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
