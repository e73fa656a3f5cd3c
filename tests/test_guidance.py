"""Guided samples against the laws they should have, written out on small state spaces."""

import pytest
import torch

import manifoldflow as mf
from manifoldflow.guidance import ClassifierFree, NoisyClassifier, Oracle, Particles
from testkit.exact import CASES, DirichletPosterior, ExactPosterior, exact_flow, law, marginal, total_variation

DOUBLE = torch.float64
TOKEN_CASES = {name: CASES[name] for name in ("masking", "uniform", "unequal source")}


def counts_of(x, k):
    return torch.bincount(x[:, 0] * k + x[:, 1], minlength=k * k).double() / len(x)


@pytest.mark.parametrize("case", TOKEN_CASES.values(), ids=TOKEN_CASES)
def test_the_exact_classifier_gives_the_conditional_law(case):
    flow, table = exact_flow(case)
    space = flow.path["x"].space
    k = space.categories
    chance = torch.rand(k, k, generator=torch.Generator().manual_seed(4), dtype=DOUBLE)  # p(c | x)

    def log_p(x, t):
        time = float(t[0])
        both, alone = marginal(flow, table * chance, time), marginal(flow, table, time)
        return (both[x[:, 0], x[:, 1]] / alone[x[:, 0], x[:, 1]].clamp_min(1e-300)).clamp_min(1e-300).log()

    n = 20_000
    generator = torch.Generator().manual_seed(0)
    made = NoisyClassifier(flow, log_p, chunk=10**6).sample((n, 2), steps=100, generator=generator)
    truth = (table * chance / (table * chance).sum()).flatten()
    assert total_variation(truth, table.flatten()) > 0.1
    # For tokens that may be noise the factors are not quite those of the conditional law (see the docstring).
    assert total_variation(counts_of(made, k), truth) < (0.03 if space.mask else 0.05)


def independent_flow(kind, p):
    """Two independent tokens of law p, with the exact posterior."""
    k = len(p)
    if kind == "dirichlet":
        flow = mf.Flow(mf.Simplex(k), torch.nn.Identity(), path=mf.DirichletPath(most=30.0))
        flow.model = DirichletPosterior(flow.path["x"], p)
    else:
        space = mf.Tokens(k, mask=kind == "masking")
        flow = mf.Flow(space, torch.nn.Identity())
        flow.model = ExactPosterior(p[:, None] * p[None], flow.path["x"])
    flow._takes = set()
    return flow


@pytest.mark.parametrize("kind", ["masking", "uniform", "dirichlet"])
def test_an_additive_oracle_tilts_the_law(kind):
    p = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=DOUBLE)
    gain = torch.tensor([[-1.0, 0.0, 0.5, 1.5], [0.7, 0.0, 0.0, -0.7]], dtype=DOUBLE)
    flow = independent_flow(kind, p)

    def score(probabilities):
        return (probabilities * gain.to(probabilities.dtype)).sum((1, 2))

    n = 8_000
    generator = torch.Generator().manual_seed(0)
    method = "midpoint" if kind == "dirichlet" else "euler"
    made = Oracle(flow, score, 1.2).sample((n, 2), steps=50, method=method, generator=generator)
    made = made.argmax(-1) if kind == "dirichlet" else made
    one = (p * (1.2 * gain).exp()) / (p * (1.2 * gain).exp()).sum(-1, keepdim=True)
    truth = (one[0][:, None] * one[1][None]).flatten()
    # The predictions of a token that is there already do not matter: with noisy tokens the oracle is of first order.
    assert total_variation(counts_of(made, 4), truth) < (0.06 if kind == "uniform" else 0.03)


@pytest.mark.parametrize("case", TOKEN_CASES.values(), ids=TOKEN_CASES)
def test_particles_need_no_gradient(case):
    flow, table = exact_flow(case)
    k = flow.path["x"].space.categories
    f = 2 * torch.rand(k, k, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    truth = (table * (2 * f).exp() / (table * (2 * f).exp()).sum()).flatten()
    generator = torch.Generator().manual_seed(0)
    gaps = []
    for count in (2, 64):
        guided = Particles(flow, lambda x: f[x[:, 0], x[:, 1]], 2.0, count=count)
        made = guided.sample((2_000, 2), steps=20, generator=generator)
        gaps.append(total_variation(counts_of(made, k), truth))
    assert total_variation(truth, table.flatten()) > 0.2
    assert gaps[1] < 0.05 < gaps[0]


def test_particles_steer_points_on_a_manifold():
    space = mf.Sphere(2)

    class Still(torch.nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    flow = mf.Flow(space, Still())
    guided = Particles(flow, lambda x: x[:, 2], 3.0, count=64)
    x = guided.sample(2_000, steps=4, generator=torch.Generator().manual_seed(0))
    truth = 1 / torch.tanh(torch.tensor(3.0)) - 1 / 3.0  # mean of a von Mises-Fisher law
    assert abs(float(x[:, 2].mean() - truth)) < 0.02


class Conditional(torch.nn.Module):
    """Logits of a table by class; the mean law without one."""

    def __init__(self, table):
        super().__init__()
        self.table, self.seen = table, []

    def forward(self, x, t, *, cond=None, cond_mask=None):
        shape = x.shape[:2]
        bare = self.table.mean(0).log().expand(*shape, -1)
        if cond is None:
            return bare
        made = self.table[cond].log()[:, None].expand(*shape, -1)
        if cond_mask is not None:
            self.seen.append(cond_mask)
            made = torch.where(cond_mask[:, None, None], made, bare)
        return made


TABLE = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_classifier_free_guidance_of_tokens_multiplies_laws(scale):
    flow = mf.Flow(mf.Tokens(3, mask=True), Conditional(TABLE), cond_dropout=0.2)
    cond = torch.zeros(20_000, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    made = ClassifierFree(flow, scale).sample((20_000, 1), steps=10, cond=cond, generator=generator)
    truth = TABLE[0] ** scale * TABLE.mean(0) ** (1 - scale)
    found = torch.bincount(made.flatten(), minlength=3) / len(made)
    assert total_variation(found, truth / truth.sum()) < 0.015


def test_classifier_free_guidance_takes_a_scale_per_sample_or_a_function_of_time():
    flow = mf.Flow(mf.Simplex(3), Conditional(TABLE), path=mf.DirichletPath(), cond_dropout=0.5)
    cond = torch.tensor([0, 1])
    x, t = torch.full((2, 4, 3), 1 / 3), torch.full((2,), 0.5)
    each = ClassifierFree(flow, torch.tensor([1.0, 0.0])).predict(x, t, cond=cond).softmax(-1)
    assert torch.allclose(each[0, 0], TABLE[0], atol=1e-5)
    assert torch.allclose(each[1, 0], TABLE.mean(0), atol=1e-5)
    late = ClassifierFree(flow, lambda t: (t > 0.7).float())
    assert torch.allclose(late.predict(x, t, cond=cond).softmax(-1)[0, 0], TABLE.mean(0), atol=1e-5)
    made = late.sample((2, 5), steps=4, cond=cond)
    flow.spaces.check(made)


def test_conditions_are_hidden_at_the_given_rate():
    model = Conditional(TABLE)
    flow = mf.Flow(mf.Tokens(3, mask=True), model, cond_dropout=0.3)
    flow.loss(torch.zeros(5000, 2, dtype=torch.int64), cond=torch.zeros(5000, dtype=torch.int64))
    assert abs(float(model.seen[0].float().mean()) - 0.7) < 0.03


class Plain(torch.nn.Module):
    def forward(self, x, t):
        return torch.zeros(*x.shape, 3)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: mf.Flow(mf.Tokens(3), Plain(), cond_dropout=0.2), ValueError, "cond_mask"),
        (lambda: ClassifierFree(mf.Flow(mf.Tokens(3), Plain())), ValueError, "takes cond="),
        (
            lambda: ClassifierFree(mf.Flow(mf.Tokens(3), Conditional(TABLE))).sample((2, 2), steps=2),
            ValueError,
            "give cond=",
        ),
        (lambda: mf.Flow(mf.Tokens(3), Plain()).sample((2, 2), cond=torch.zeros(2)), ValueError, "takes no condition"),
        (lambda: Oracle(mf.Flow(mf.Sphere(2), Plain()), lambda p: p), ValueError, "none predicts logits"),
        (
            lambda: Oracle(mf.Flow(mf.Tokens(3), Plain()), lambda p: p.sum((1, 2))[:1]).sample((2, 2), steps=1),
            ValueError,
            "one number a sample",
        ),
        (
            lambda: NoisyClassifier(mf.Flow(mf.Simplex(3), Plain(), path=mf.DirichletPath()), lambda x, t: t),
            TypeError,
            "for tokens",
        ),
        (lambda: Particles(mf.Flow(mf.Tokens(3), Plain()), lambda x: x, count=1), ValueError, "at least 2"),
        (
            lambda: Particles(mf.Flow(mf.Tokens(3), Plain()), lambda x: x).sample((2, 2)),
            ValueError,
            "one number a sample",
        ),
        (
            lambda: Oracle(mf.Flow(mf.Tokens(3), Plain()), lambda p: p).loss(torch.zeros(2, 2)),
            TypeError,
            "only samples",
        ),
    ],
)
def test_mistakes_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_the_reference_law_is_normalised():
    assert abs(float(law(mf.Tokens(4)).sum()) - 1) < 1e-12


def test_another_layer_of_guidance_keeps_the_shift_of_the_rates_below_it():
    flow, _ = exact_flow(CASES["masking"])
    below = NoisyClassifier(flow, lambda x, t: x.sum(1).to(DOUBLE), chunk=10**6)
    x, t = torch.tensor([[0, 1], [2, 2]]), torch.tensor(0.3, dtype=DOUBLE)
    alone = below.rate_shift("x", x, t, None, None)
    layered = Oracle(below, lambda p: p.sum((1, 2)))
    assert torch.equal(layered.rate_shift("x", x, t, None, None), alone)
    twice = NoisyClassifier(below, lambda x, t: x.sum(1).to(DOUBLE), chunk=10**6)
    assert torch.allclose(twice.rate_shift("x", x, t, None, None), 2 * alone)


def test_a_resampled_particle_is_shown_its_own_last_prediction():
    seen = []

    class Remembers(torch.nn.Module):
        """Endpoint = the present point, so that a prediction tells which particle it belongs to."""

        def forward(self, x, t, previous=None):
            if previous is not None:
                seen.append((previous - x).norm(dim=-1).max().item())
            return x

    space = mf.Euclidean(2)
    flow = mf.Flow(space, Remembers(), predicts="endpoint", self_condition=0.5)
    generator = torch.Generator().manual_seed(0)
    Particles(flow, lambda x: x[..., 0], 5.0, count=8, resample_below=1.0).sample(4, steps=5, generator=generator)
    # A particle whose endpoint is where it stands never moves, so its last prediction is where it stands still.
    assert len(seen) == 4 and max(seen) < 1e-6
