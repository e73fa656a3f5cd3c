"""What guidance does to samples, on laws of one or two tokens that are known in closed form at every strength."""

import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow.discrete.counts import Counts
from manifoldflow.guidance import ClassifierFree, NoisyClassifier, Oracle, Particles
from testkit.exact import total_variation

P = torch.tensor([0.4, 0.3, 0.2, 0.1])
GAIN = torch.tensor([-1.0, 0.2, 1.0, 0.4])
PAIR = torch.tensor([[0.0, 2.0, -1.0, 0.5], [1.0, -2.0, 0.5, 0.0], [-1.5, 0.0, 2.0, 1.0], [0.3, 1.0, 0.0, -2.0]])
"""A score of two tokens that is no sum over them."""


class Prior(torch.nn.Module):
    """Logits of the law P for every token, whatever the others are; the times it is asked at are kept."""

    def __init__(self):
        super().__init__()
        self.times = []

    def forward(self, x, t, *, cond=None, cond_mask=None):
        self.times.append(float(t.flatten()[0]))
        return P.log().expand(*x.shape[:2], -1)


def frequencies(tokens, k=4):
    return torch.bincount(tokens.flatten(), minlength=k) / tokens.numel()


def tilted(p, log_factor):
    return (p.log() + log_factor).softmax(-1)


@pytest.mark.parametrize("method", ["exact", "gradient"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("space", [mf.Tokens(4, mask=True), mf.Tokens(4)], ids=["masking", "uniform"])
def test_a_classifier_of_strength_w_tilts_the_law_by_its_power_w(space, scale, method):
    """In one step to t = 1 every token is drawn anew, so its law is p(y) p(c | y)^w whatever it was before."""
    gain = torch.cat([GAIN, torch.tensor([0.7])])  # the last is the mask token

    def log_p(x, t):
        return (x * gain[: x.shape[-1]]).sum((1, 2)) if method == "gradient" else gain[x].sum(1)

    flow = mf.Flow(space, Prior())
    guided = NoisyClassifier(flow, log_p, scale, method=method)
    made = guided.sample((20_000, 2), steps=1, generator=torch.Generator().manual_seed(0))
    assert total_variation(frequencies(made), tilted(P, scale * GAIN)) < 0.015


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_classifier_of_masked_tokens_has_its_strength_at_any_number_of_steps(scale):
    """One token from the mask: when it jumps depends on the classifier, what it becomes is p(y) p(c | y)^w."""
    gain = torch.cat([GAIN, torch.zeros(1)])
    guided = NoisyClassifier(mf.Flow(mf.Tokens(4, mask=True), Prior()), lambda x, t: gain[x].sum(1), scale)
    made = guided.sample((20_000, 1), steps=7, generator=torch.Generator().manual_seed(0))
    assert total_variation(frequencies(made), tilted(P, scale * GAIN)) < 0.015


@pytest.mark.parametrize("method", ["exact", "gradient"])
def test_classifiers_change_the_rates_of_masked_tokens_and_not_only_where_they_lead(method):
    """From t = 0 to s a token stays masked with probability (1 - s)^Z, Z = sum_y p(y) (p(c | y) / p(c | mask))^w."""
    gain, scale, s = torch.cat([GAIN, torch.tensor([-0.5])]), 1.5, 0.3

    def log_p(x, t):
        return (x * gain).sum((1, 2)) if method == "gradient" else gain[x].sum(1)

    guided = NoisyClassifier(mf.Flow(mf.Tokens(4, mask=True), Prior()), log_p, scale, method=method)
    made = guided.sample((40_000, 1), times=[0.0, s], generator=torch.Generator().manual_seed(0))
    z = float((P * (scale * (GAIN + 0.5)).exp()).sum())
    assert abs(float((made == 4).float().mean()) - (1 - s) ** z) < 0.01


@pytest.mark.parametrize("method", ["exact", "gradient"])
def test_a_classifier_is_asked_at_the_time_of_the_tokens_it_sees(method):
    seen = []

    def log_p(x, t):
        seen.append(t)
        return x.sum((1, 2)) if method == "gradient" else x.sum(1).float()

    flow = mf.Flow(mf.Tokens(4), Prior())
    guided = NoisyClassifier(flow, log_p, method=method)
    guided.sample((3, 2), times=[0.1, 0.4, 0.9], generator=torch.Generator().manual_seed(0))
    assert sorted({round(float(v), 6) for t in seen for v in t}) == [0.1, 0.4]


def pair_score(p):
    return torch.einsum("bi,ij,bj->b", p[:, 0], PAIR.to(p), p[:, 1])


@pytest.mark.parametrize("there", range(4))
def test_an_oracle_knows_the_tokens_that_are_there(there):
    """A masked token beside a known one: its law is p(y) exp(w f(y, known)), exactly."""
    flow = mf.Flow(mf.Tokens(4, mask=True), Prior())
    x0 = torch.tensor([4, there]).expand(20_000, 2)
    made = Oracle(flow, pair_score, 0.8).sample(x0=x0, steps=3, generator=torch.Generator().manual_seed(0))
    assert (made[:, 1] == there).all()
    assert total_variation(frequencies(made[:, 0]), tilted(P, 0.8 * PAIR[:, there])) < 0.015


@pytest.mark.parametrize("there", range(4))
def test_an_oracle_counts_what_a_noisy_token_says_of_itself(there):
    """f is taken at the posterior q of the noisy tokens, which Bayes' rule gives: q(y) ~ p(y) [(1 - k) / 4 + k 1(x = y)]."""
    k, scale = 0.6, 0.8
    flow = mf.Flow(mf.Tokens(4), Prior(), path=mf.UniformJump(own_evidence=True))

    def posterior(x):
        q = P * ((1 - k) / 4 + k * torch.nn.functional.one_hot(torch.tensor(x), 4))
        return q / q.sum()

    x0 = torch.tensor([0, there]).expand(20_000, 2)
    guided = Oracle(flow, pair_score, scale)
    made = guided.sample(x0=x0, times=[k, 1.0], generator=torch.Generator().manual_seed(0))
    first, second = posterior(0), posterior(there)
    assert total_variation(frequencies(made[:, 0]), tilted(first, scale * PAIR @ second)) < 0.015
    assert total_variation(frequencies(made[:, 1]), tilted(second, scale * PAIR.T @ first)) < 0.015


@pytest.mark.parametrize("there", [0, 2])
def test_an_oracle_counts_what_a_point_of_the_simplex_says_of_its_corner(there):
    """Two points near the corners 1 and ``there`` at t = 0.9: their own evidence rules the other corners out."""
    flow = mf.Flow(mf.Simplex(4), Prior(), path=mf.Geodesic(predicts="logits", own_evidence=True))
    x0 = torch.eye(4)[torch.tensor([1, there])]
    x0 = (0.997 * x0 + 0.003 / 4).expand(500, 2, 4)
    seen = []

    def score(p):
        seen.append(p.detach())
        return pair_score(p)

    made = Oracle(flow, score, 0.5).sample(x0=x0, times=[0.9, 1.0], generator=torch.Generator().manual_seed(0))
    corners = torch.eye(4)[torch.tensor([1, there])]
    assert (seen[0] - corners).abs().max() < 1e-3
    assert (made - corners).abs().max() < 1e-6


@pytest.mark.parametrize("x", [0, 1, 2])
def test_guided_births_use_the_classifier_at_one_more_count(x):
    """From t to s the number of births is Poisson with mean f m exp(w [g(x + 1) - g(x)]), f = (s - t) / (1 - t)."""
    up = torch.tensor([1.2, -0.9, 0.4, 2.0])
    value = torch.cat([torch.zeros(1), up.cumsum(0), torch.full((16,), -3.0)])  # g(0) .. g(20)
    missing, t, s, scale, n = 3, 0.2, 0.35, 1.5, 20_000

    class Clean(torch.nn.Module):
        def forward(self, x, t):
            return -1e4 * (torch.arange(21) != (x + missing).unsqueeze(-1)).float()

    flow = mf.Flow(Counts(20), Clean(), path=mf.BirthDeath())
    guided = NoisyClassifier(flow, lambda x, t: value[x].sum(1), scale)
    x0 = torch.full((n, 1), x)
    made = guided.sample(x0=x0, times=[t, s], generator=torch.Generator().manual_seed(0))
    mean = (s - t) / (1 - t) * missing * math.exp(scale * float(up[x]))
    assert abs(float((made - x).float().mean()) - mean) < 5 * math.sqrt(mean / n)


class Clocked(torch.nn.Module):
    """A model that keeps the times it is asked at."""

    def __init__(self, k):
        super().__init__()
        self.k, self.times = k, []

    def forward(self, x, t, *, cond=None, cond_mask=None):
        self.times.append(float(t.flatten()[0]))
        return torch.zeros(*x.shape[:2], self.k)


GUIDES = {
    "classifier-free": lambda flow: ClassifierFree(flow, 2.0),
    "oracle": lambda flow: Oracle(flow, lambda p: p[:, 0, 0]),
    "classifier": lambda flow: NoisyClassifier(flow, lambda x, t: x[:, 0].float()),
    "particles": lambda flow: Particles(flow, lambda x: x[:, 0].float(), count=2),
}
every_guide = pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)


@every_guide
def test_a_guided_flow_keeps_the_warp_of_the_times(guide):
    warp, model = mf.Late(0.05), Clocked(4)
    flow = mf.Flow(mf.Tokens(4), model, time_warp=warp)
    guide(flow).sample((3, 2), steps=5, cond=torch.zeros(3, 1), generator=torch.Generator().manual_seed(0))
    expected = warp.k(torch.linspace(0, 1, 6, dtype=torch.float64))[:-1]
    seen = torch.tensor(sorted(set(model.times)), dtype=torch.float64)
    assert (seen - expected).abs().max() < 1e-6
    assert abs(expected - torch.linspace(0, 1, 6)[:-1]).max() > 0.3


@pytest.mark.parametrize("count", [2, 5])
def test_the_strength_of_particles_is_the_power_of_the_tilt(count):
    """One token, one step, two to five particles: the law of the chosen one by enumerating the particles."""
    scale = 1.3
    weight = (scale * GAIN).exp()
    truth = torch.zeros(4)
    for draws in torch.cartesian_prod(*[torch.arange(4)] * count):
        chance = P[draws].prod()
        truth.index_add_(0, draws, chance * weight[draws] / weight[draws].sum())
    flow = mf.Flow(mf.Tokens(4, mask=True), Prior())
    guided = Particles(
        flow, lambda x: torch.cat([GAIN, torch.zeros(1)])[x].sum(1), scale, count=count, resample_below=0.0
    )
    made = guided.sample((20_000, 1), steps=1, generator=torch.Generator().manual_seed(0))
    assert total_variation(frequencies(made), truth) < 0.015


class Listens(torch.nn.Module):
    """A model that keeps what every call is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, x, t, *, mask=None, cond=None, cond_mask=None, previous=None):
        self.told.append({"mask": mask, "cond": cond, "previous": previous})
        return t[:, None, None] + torch.zeros(*x.shape[:2], 4)


@every_guide
def test_every_call_of_a_guided_model_is_told_what_an_unguided_one_would_be(guide):
    """The mask and, after the first step, the last prediction always; the condition unless the call is there to go without."""
    model = Listens()
    flow = mf.Flow(mf.Tokens(4, mask=True), model, self_condition=0.5, cond_dropout=0.1)
    mask, cond = torch.tensor([[True, True], [True, False]]), torch.tensor([[1.0], [2.0]])
    guide(flow).sample((2, 2), mask=mask, cond=cond, steps=3, generator=torch.Generator().manual_seed(0))
    calls = len(model.told) // 3
    assert len(model.told) == 3 * calls and calls == (2 if guide is GUIDES["classifier-free"] else 1)
    for number, told in enumerate(model.told):
        rows = torch.arange(2).repeat_interleave(len(told["mask"]) // 2)  # particles have several a sample
        assert torch.equal(told["mask"], mask[rows])
        assert (told["previous"] is None) == (number < calls)
        if number % calls == 0:
            assert torch.equal(told["cond"], cond[rows])
        else:
            assert told["cond"] is None


@every_guide
def test_guided_samples_repeat_with_the_generator_alone(guide):
    guided = guide(mf.Flow(mf.Tokens(4, mask=True), Prior()))

    def draw(seed):
        return guided.sample((20, 5), steps=3, cond=torch.zeros(20, 1), generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    assert torch.equal(draw(0), draw(0))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(draw(0), draw(1))
