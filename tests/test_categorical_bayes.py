"""Bayesian flow of categories: beliefs against updates one by one, the bound against divergences and entropies, sampled laws."""

import itertools
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import manifoldflow as mf
from manifoldflow.guidance import ClassifierFree, Particles
from testkit.exact import law, total_variation

KS = 1.95  # times sqrt(2 / n): the two-sample statistic at a level of 0.001


def chain(alphas: np.ndarray, k: int, x: int, draws: int, seed: int) -> np.ndarray:
    """Log-beliefs ``(draws, K)`` after observations of the category ``x`` taken in one at a time by Bayes' rule."""
    rng = np.random.default_rng(seed)
    log_theta = np.full((draws, k), -math.log(k))
    mean = k * np.eye(k)[x] - 1
    for a in alphas:
        log_theta = log_theta + a * mean + math.sqrt(a * k) * rng.standard_normal((draws, k))
        log_theta -= np.logaddexp.reduce(log_theta, -1, keepdims=True)
    return log_theta


def read_offs(log_theta: np.ndarray, x: int) -> list[np.ndarray]:
    """Numbers of a belief: the odds of the truth, what two others have against each other, and the best rival of the truth."""
    others = np.delete(log_theta, x, -1)
    right = log_theta[:, x]
    return [right - np.logaddexp.reduce(others, -1), others[:, 0] - others[:, 1], others.max(-1) - right]


@pytest.mark.parametrize(("k", "accuracy"), [(3, None), (27, 0.75), (100, 3.0)])
@pytest.mark.parametrize("done", [1, 4, 10])
def test_belief_has_the_law_of_updates_one_by_one(k, accuracy, done):
    path = mf.CategoricalBayes(accuracy=accuracy).bind(mf.Tokens(k))
    steps, count, x = 10, 100_000 if k < 100 else 30_000, 1
    point = path.sample(
        torch.zeros(count, k),
        torch.full((count,), x),
        torch.full((count,), done / steps),
        generator=torch.Generator().manual_seed(1),
    )
    assert point.x.dtype == torch.float32 and point.x.mean(-1).abs().max() < 1e-4
    alphas = path.most * np.diff((np.arange(done + 1) / steps) ** 2)
    truth = chain(alphas, k, x, count, seed=2)
    for ours, theirs in zip(read_offs(point.x.double().log_softmax(-1).numpy(), x), read_offs(truth, x), strict=True):
        assert stats.ks_2samp(ours, theirs).statistic < KS * math.sqrt(2 / count)


@pytest.mark.parametrize("observe", ["drawn", "expected"])
@pytest.mark.parametrize("resample", [True, False])
def test_beliefs_of_a_perfect_guess_have_the_law_of_training(resample, observe):
    path = mf.CategoricalBayes(resample=resample, observe=observe).bind(mf.Tokens(5))
    g, count = torch.Generator().manual_seed(3), 50_000
    x1 = torch.full((count,), 2)
    x = path.bound_source.sample((count,))
    assert torch.equal(path.belief(x), torch.full((count, 5), 0.2))
    pred = path.certain(x1, x)
    for t, s in pairwise(torch.tensor([0.0, 0.2, 0.5, 0.7])):
        x = path.advance(pred, x, t, s, generator=g).x
    want = path.sample(x, x1, torch.full((count,), 0.7), generator=g).x
    for ours, theirs in zip(*(read_offs(v.double().log_softmax(-1).numpy(), 2) for v in (x, want)), strict=True):
        assert stats.ks_2samp(ours, theirs).statistic < KS * math.sqrt(2 / count)
    end = path.advance(pred, x, torch.tensor(0.7), torch.tensor(1.0), generator=g).x
    assert torch.equal(end, path.state_of(x1)) and torch.equal(path.data_of(end), x1)


def test_loss_is_the_limit_of_the_divergence_of_a_small_observation():
    """KL of the observation of the truth from the mixture that the prediction expects, by Gauss-Hermite quadrature."""
    k, x, t = 3, 0, 0.6
    path = mf.CategoricalBayes(accuracy=0.9).bind(mf.Tokens(k))
    logits = torch.tensor([[0.4, 0.1, -0.8]], dtype=torch.float64)
    p = logits.softmax(-1).numpy()[0]
    point = path.sample(torch.zeros(1, k), torch.tensor([x]), torch.tensor([t], dtype=torch.float64))
    nodes, weights = np.polynomial.hermite_e.hermegauss(14)
    z = np.array(list(itertools.product(nodes, repeat=k)))
    w = np.prod(list(itertools.product(weights, repeat=k)), -1) / weights.sum() ** k
    values = []
    for alpha in (2e-3, 1e-3):
        means = alpha * (k * np.eye(k) - 1)
        y = means[x] + math.sqrt(alpha * k) * z
        logs = np.stack([stats.multivariate_normal(m, alpha * k * np.eye(k)).logpdf(y) for m in means], -1)
        values.append(w @ (logs[:, x] - np.log(np.exp(logs) @ p)) / alpha)
    limit = 2 * values[1] - values[0]
    rate = 2 * 0.9 * t  # d beta / dt
    assert abs(values[1] - limit) < 0.01 * limit
    assert float(path.loss(logits, point)[0]) == pytest.approx(rate * limit, rel=1e-4)


class Exact(nn.Module):
    """The posterior of two tokens whose law is a table, from the beliefs: these are likelihoods, since they start even."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("log_table", table.clamp_min(1e-300).log().float())
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, t):
        joint = self.log_table + x[:, 0, :, None] + x[:, 1, None, :]
        return self.weight * torch.stack([joint.logsumexp(2), joint.logsumexp(1)], 1)


def exact_flow(k=4, power=2, **options) -> tuple[mf.Flow, torch.Tensor]:
    table = law(mf.Tokens(k)) ** power  # with more of a dependence
    table = table / table.sum()
    return mf.Flow(mf.Tokens(k), Exact(table), path=mf.CategoricalBayes(**options)), table


def histogram(x: torch.Tensor, k: int = 4) -> torch.Tensor:
    return torch.bincount(x[:, 0] * k + x[:, 1], minlength=k * k).reshape(k, k).double() / len(x)


@pytest.mark.parametrize("accuracy", [0.3, None, 4.0])
def test_bound_and_what_it_leaves_open_add_up_to_the_entropy(accuracy):
    """What observations tell plus what they leave open is all there is to know: the bound of an exact network is tight."""
    flow, table = exact_flow(accuracy=accuracy)
    path, g, n = flow.path["x"], torch.Generator().manual_seed(0), 200_000
    drawn = torch.multinomial(table.flatten(), n, replacement=True, generator=g)
    x1 = torch.stack([drawn // 4, drawn % 4], -1)
    with torch.no_grad():
        told = 0.0
        for part in range(4):
            t = (torch.arange(n) + torch.rand(n, generator=g)) / n
            point = path.sample(torch.zeros(n, 2, 4), x1.roll(part * 1013, 0), t, generator=g)
            told += float(path.bound(flow.model(point.x, t), point).double().sum(-1).mean()) / 4
        # what is open at t = 1: tokens one by one from the posterior of both
        z = path.sample(torch.zeros(n, 2, 4), x1, torch.ones(n), generator=g).x
        joint = table.log() + z[:, 0, :, None] + z[:, 1, None, :]
        open_ = -(joint - joint.logsumexp((1, 2), keepdim=True))[torch.arange(n), x1[:, 0], x1[:, 1]].mean()
    entropy = -(table * table.log()).sum()
    assert told + float(open_) == pytest.approx(float(entropy), rel=0.01)


@pytest.mark.parametrize("observe", ["drawn", "expected"])
def test_dependent_tokens_have_their_law(observe):
    flow, table = exact_flow(observe=observe)
    n = 50_000
    floor = 0.5 * float((2 * table / (math.pi * n)).sqrt().sum())  # of so many draws
    found = {}
    for steps in (1, 100):
        x = flow.sample((n, 2), steps=steps, generator=torch.Generator().manual_seed(1))
        assert x.dtype == torch.int64 and x.shape == (n, 2)
        found[steps] = total_variation(histogram(x), table)
    assert found[1] > 0.2  # one step draws each token by itself
    assert found[100] < 0.006 + floor


def test_beliefs_that_are_drawn_anew_keep_most_of_a_dependence():
    """End-back steps have no limit that is exact: of drawn categories nearly, of expected ones not."""
    n = 50_000
    off = {}
    for observe in ("drawn", "expected"):
        flow, table = exact_flow(observe=observe, resample=True)
        x = flow.sample((n, 2), steps=100, generator=torch.Generator().manual_seed(1))
        off[observe] = total_variation(histogram(x), table)
    assert off["drawn"] < 0.03 < 0.05 < off["expected"] < 0.15


def test_known_tokens_are_certain_and_condition_the_rest():
    flow, table = exact_flow()
    seen, n = [], 50_000
    inner = flow.model.forward
    flow.model.forward = lambda x, t: (seen.append((x, t)), inner(x, t))[1]
    held = torch.tensor([True, False]).expand(n, 2)
    known = torch.full((n, 2), 3)
    flow.pin = lambda mask, generator: held
    x = flow.sample((n, 2), steps=60, known=known, known_mask=held, generator=torch.Generator().manual_seed(2))
    assert (x[:, 0] == 3).all()
    want = table[3] / table[3].sum()
    assert total_variation(torch.bincount(x[:, 1], minlength=4).double() / n, want) < 0.012
    for state, _ in seen:
        assert torch.equal(state[:, 0].softmax(-1), torch.eye(4)[3].expand(n, 4))  # one-hot, exactly
    whole = flow.sample((n, 2), steps=2, known=known, generator=torch.Generator().manual_seed(2))
    assert torch.equal(whole, known)
    flow.loss(x, generator=torch.Generator().manual_seed(3))
    state, t = seen[-1]
    assert torch.equal(state[:, 0].softmax(-1), torch.eye(4)[x[:, 0]]) and (t[:, 0] == 1).all() and t[:, 1].max() < 1


def test_padding_stays_out():
    flow, _ = exact_flow()
    mask = torch.tensor([[True, True], [True, False]]).repeat(8, 1)
    x = flow.sample((16, 2), mask=mask, steps=5, generator=torch.Generator().manual_seed(0))
    assert (x[~mask] == 0).all()
    sets, real = flow.sample(lengths=[2, 1, 2], steps=3, generator=torch.Generator().manual_seed(0))
    assert sets.shape == (3, 2) and (sets[~real] == 0).all()
    losses = [
        flow.loss(torch.where(mask, x, filler), mask=mask, generator=torch.Generator().manual_seed(3))
        for filler in (0, 10**6)
    ]
    losses[1].backward()
    assert torch.equal(*losses) and torch.isfinite(flow.model.weight.grad)


def test_single_tokens_without_sets():
    class Own(nn.Module):
        def forward(self, x, t):
            return x + torch.tensor([0.5, 0.3, 0.2]).log()

    flow = mf.Flow(mf.Tokens(3), Own(), path=mf.CategoricalBayes())
    x = flow.sample(20_000, steps=20, generator=torch.Generator().manual_seed(0))
    off = torch.bincount(x, minlength=3) / 20_000 - torch.tensor([0.5, 0.3, 0.2])
    assert x.shape == (20_000,) and off.abs().max() < 0.012
    with pytest.warns(UserWarning, match="pin="):
        held = flow.sample(4, steps=2, known=torch.tensor([0, 1, 2, 1]))
    assert held.tolist() == [0, 1, 2, 1]
    states = flow.sample(6, steps=4, trajectory=True)
    assert states.shape == (5, 6) and states.dtype == torch.int64


def test_beliefs_recover_from_a_certain_mistake_in_single_precision():
    """Odds of e^-300 underflow as probabilities; as logits they come back."""
    path = mf.CategoricalBayes(accuracy=3.0).bind(mf.Tokens(100))
    g = torch.Generator().manual_seed(0)
    wrong, right = torch.zeros(500, dtype=torch.int64), torch.ones(500, dtype=torch.int64)
    half = torch.tensor(math.sqrt(1 / 3))
    x = path.sample(torch.zeros(500, 100), wrong, half.expand(500), generator=g).x  # accuracy 1
    assert (path.belief(x)[:, 1] < 1e-15).all()
    x = path.follow(path.certain(right, x), x, half, torch.tensor(0.999), generator=g)  # accuracy 2 more
    assert (path.data_of(x) == 1).all() and x.dtype == torch.float32
    start = path.bound_source.sample((500,))
    y = path.follow(path.certain(wrong, start), start, torch.tensor(0.0), torch.tensor(0.8), generator=g)
    assert (path.belief(y)[:, 1] == 0).any()  # as it would have stayed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", ["elbo", "cross_entropy"])
def test_losses_of_logits_in_every_precision(dtype, objective):
    path = mf.CategoricalBayes(objective=objective, accuracy=1.5).bind(mf.Tokens(4))
    g = torch.Generator().manual_seed(0)
    pred = torch.randn(6, 4, generator=g).to(dtype)
    t, x1 = torch.rand(6, generator=g), torch.randint(4, (6,), generator=g)
    p, one = pred.double().softmax(-1), torch.eye(4, dtype=torch.float64)[x1]
    want = 4 * 1.5 * t * (p - one).square().sum(-1) if objective == "elbo" else -(p * one).sum(-1).log()
    loss = path.loss(pred, path.sample(torch.zeros(6, 4), x1, t))
    assert loss.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert torch.allclose(loss.double(), want.double(), atol=1e-5)


def test_network_learns_the_posterior():
    """Few hundred steps of a table over beliefs: the loss goes down to that of the exact network."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(9, 64), nn.SiLU(), nn.Linear(64, 8))

        def forward(self, x, t):
            both = torch.cat([x.softmax(-1).flatten(1), t[:, None]], -1)
            return self.net(both).unflatten(-1, (2, 4)) + x

    _, table = exact_flow()
    torch.manual_seed(0)
    flow = mf.Flow(mf.Tokens(4), Net(), path=mf.CategoricalBayes(objective="cross_entropy"))
    adam = torch.optim.Adam(flow.parameters(), 3e-3)
    for _ in range(400):
        drawn = torch.multinomial(table.flatten(), 512, replacement=True)
        loss = flow.loss(torch.stack([drawn // 4, drawn % 4], -1))
        adam.zero_grad()
        loss.backward()
        adam.step()
    x = flow.sample((20_000, 2), steps=50, generator=torch.Generator().manual_seed(1))
    assert total_variation(histogram(x), table) < 0.08


def test_guidance_of_beliefs():
    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x, t, *, cond=None, cond_mask=None):
            return x + self.weight + (0 if cond is None else torch.eye(4)[cond].unsqueeze(1))

    flow = mf.Flow(mf.Tokens(4), Told(), path=mf.CategoricalBayes(), cond_dropout=0.5)
    cond = torch.full((5_000,), 2)
    share = [
        float((guided.sample((5_000, 2), steps=20, cond=cond) == 2).double().mean())
        for guided in (flow, ClassifierFree(flow, 3.0))
    ]
    assert share[0] == pytest.approx(math.e / (math.e + 3), abs=0.03)
    assert share[1] == pytest.approx(math.e**3 / (math.e**3 + 3), abs=0.03)  # logits times 3
    plain, table = exact_flow()
    chosen = Particles(plain, lambda x: (x[:, 0] == 1).float(), scale=4.0, count=4)
    x = chosen.sample((2_000, 2), steps=20, generator=torch.Generator().manual_seed(0))
    assert (x[:, 0] == 1).double().mean() > table[1].sum() + 0.2


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="PeriodicBayes"):
        mf.CategoricalBayes().bind(mf.Simplex(4))
    with pytest.raises(ValueError, match="not a mask: use Tokens"):
        mf.CategoricalBayes().bind(mf.Tokens(4, mask=True))
    with pytest.raises(ValueError, match="logits"):
        mf.CategoricalBayes().bind(mf.Tokens(4), "velocity")
    with pytest.raises(ValueError, match="even belief"):
        mf.Flow(mf.Tokens(4), nn.Identity(), path=mf.CategoricalBayes(), source=mf.Categorical())
    with pytest.raises(ValueError, match="no coupling"):
        mf.Flow(mf.Tokens(4), nn.Identity(), path=mf.CategoricalBayes(), coupling=mf.MinibatchOT())
    for wrong in ({"accuracy": 0.0}, {"objective": "mse"}, {"observe": "mean"}):
        with pytest.raises(ValueError, match=f"CategoricalBayes: {next(iter(wrong))} must be"):
            mf.CategoricalBayes(**wrong)
    flow, _ = exact_flow()
    with pytest.raises(TypeError, match="closed form"):
        flow.sample((3, 2), steps=2, log_prob=True)
    with pytest.raises(ValueError, match="method"):
        flow.sample((3, 2), steps=2, method="heun")
