"""Sampling with noise keeps the marginals of the flow, on a field and a score that are known exactly."""

import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow.manifolds.rotation import quaternion_to_matrix
from manifoldflow.paths import BumpNoise
from manifoldflow.sampling import SDEKernel, langevin, score, simulate

DOUBLE = torch.float64
EARLY, LATE = 0.15, 0.75
SPACES = [mf.Euclidean(2), mf.Torus(2, 2 * math.pi), mf.Sphere(2), mf.SO3(), mf.UnitQuaternion()]


class ExactModel(torch.nn.Module):
    """Velocity and noise of a stochastic interpolant between K pairs of points: a mean over the pairs with the weights of
    the noise's density at x, which is known."""

    def __init__(self, path, x0, x1):
        super().__init__()
        self.path, self.x0, self.x1 = path, x0, x1

    def forward(self, x, t):
        path, space = self.path, self.path.space
        centre, direction = space.geodesic(self.x0, self.x1, path.schedule.k(t[:1]).expand(len(self.x0)))
        centre = centre.expand(len(x), *centre.shape)
        direction = direction.expand(len(x), *direction.shape)
        u = space.log(centre, x.unsqueeze(1))
        level = path.noise.level(t[:1]).clamp_min(1e-9)
        weight = (-0.5 * (u * u).sum(-1) / level**2 - space.log_exp_volume(centre, u)).softmax(-1).unsqueeze(-1)
        point = path.around(centre, direction, u / level, t[:1].expand(len(x), centre.shape[1]), self.x1)
        return torch.stack([(weight * point.drift).sum(1), (weight * point.noise).sum(1)], 1)


def exact(space):
    """A flow with that model, and a function that draws from its marginal at a time."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(space, mf.Euclidean):
        x0, x1 = (torch.randn(12, 2, generator=generator, dtype=DOUBLE) for _ in range(2))
    else:
        x0, x1 = (space.sample_uniform((12,), generator=generator, dtype=DOUBLE) for _ in range(2))
    flow = mf.Flow(space, model=torch.nn.Identity(), path=mf.StochasticInterpolant(BumpNoise(0.4)))
    path = flow.path["x"]
    flow.model = ExactModel(path, x0, x1)
    flow._takes = set()

    def draw(t, n, generator):
        pair = torch.randint(12, (n,), generator=generator)
        return path.sample(x0[pair], x1[pair], torch.full((n,), t, dtype=DOUBLE), generator=generator).x

    return flow, draw


def energy_distance(space, x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'| in an embedding: 0 for equal laws (Szekely & Rizzo 2013)."""

    def embed(z):
        if isinstance(space, mf.Torus):
            return torch.cat([z.cos(), z.sin()], -1)
        if isinstance(space, mf.UnitQuaternion):
            return quaternion_to_matrix(z).flatten(-2)
        return z.flatten(1)

    a, b = embed(x), embed(y)
    n, m = len(a), len(b)
    inside = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return float(2 * torch.cdist(a, b).mean() - inside)


@pytest.mark.parametrize("diffusion", [0.0, 2.0, lambda t: 0.2 + 0 * t], ids=["ode", "renewed twice", "constant"])
@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
def test_noise_keeps_the_marginals(space, diffusion):
    flow, draw = exact(space)
    generator = torch.Generator().manual_seed(1)
    n = 1000
    truth = draw(LATE, n, generator)
    floor = torch.tensor(
        [energy_distance(space, draw(LATE, n, generator), draw(LATE, n, generator)) for _ in range(12)]
    )
    start = draw(EARLY, n, generator)
    grid = torch.linspace(EARLY, LATE, 51, dtype=DOUBLE)
    made = simulate(SDEKernel(flow, diffusion), start, grid, generator=generator)
    limit = float(floor.mean() + 5 * floor.std())
    assert energy_distance(space, start, truth) > 5 * limit  # there is something to do
    assert energy_distance(space, made, truth) < limit


def test_noise_without_the_score_does_not_keep_them():
    """The test above can fail: without its score the noise spreads the law."""
    space = mf.Sphere(2)
    flow, draw = exact(space)
    generator = torch.Generator().manual_seed(1)
    truth, start = draw(LATE, 1000, generator), draw(EARLY, 1000, generator)
    inner = flow.model.forward
    flow.model.forward = lambda x, t: inner(x, t) * torch.tensor([1.0, 0.0], dtype=DOUBLE).reshape(1, 2, 1)
    made = simulate(SDEKernel(flow, 10.0), start, torch.linspace(EARLY, LATE, 51, dtype=DOUBLE), generator=generator)
    assert energy_distance(space, made, truth) > 0.01


def test_score_of_a_gaussian_source_is_in_closed_form():
    """Data at one point: the law at time t is N(t m, (1 - t)^2 c^2)."""
    space, m, c, t = mf.Euclidean(2), torch.tensor([1.0, -2.0]), 1.5, 0.3
    flow = mf.Flow(space, model=_Towards(m), source=mf.Normal(scale=c))
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    truth = -(x - t * m) / ((1 - t) ** 2 * c**2)
    assert (score(flow, x, torch.tensor(t)) - truth).abs().max() < 1e-4


class _Towards(torch.nn.Module):
    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward(self, x, t):
        return (self.m - x) / (1 - t[:, None])


def test_a_flow_samples_with_noise_by_its_method():
    flow = mf.Flow(mf.Euclidean(2), model=_Towards(torch.zeros(2)), source=mf.Normal())
    a, b, ode = (
        flow.sample(200, steps=30, method=method, generator=torch.Generator().manual_seed(seed))
        for method, seed in ((mf.SDE(2.0), 0), (mf.SDE(2.0), 0), ("euler", 0))
    )
    assert torch.equal(a, b)
    assert a.norm(dim=-1).max() < 1e-4 and ode.norm(dim=-1).max() < 1e-4  # the last step adds no noise


LINEAR = mf.Linear()
C, M, S = 1.5, torch.tensor([1.0, -2.0]), 0.4
"""Source N(0, C^2), data N(M, S^2) in the plane: everything about the flow between them is a formula."""


class Gaussians(torch.nn.Module):
    """The exact prediction: E[x1 | x_t] = M + t S^2 (x - t M) / v with v = t^2 S^2 + (1 - t)^2 C^2, or the velocity to it."""

    def __init__(self, predicts, mean=M, schedule=LINEAR):
        super().__init__()
        self.predicts, self.mean, self.schedule = predicts, mean, schedule

    def forward(self, x, t, *, mask=None):
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        k = self.schedule.k(t)
        end = self.mean + k * S**2 * (x - k * self.mean) / variance(k)
        return end if self.predicts == "endpoint" else self.schedule.dk(t) * (end - x) / (1 - k)


def variance(t):
    return t**2 * S**2 + (1 - t) ** 2 * C**2


def gaussians(predicts, schedule=LINEAR):
    path = mf.Geodesic(schedule=schedule)
    model = Gaussians(predicts, schedule=schedule)
    return mf.Flow(mf.Euclidean(2), model, source=mf.Normal(scale=C), path=path, predicts=predicts)


every_prediction = pytest.mark.parametrize("predicts", ["velocity", "endpoint"])


@every_prediction
@pytest.mark.parametrize("schedule", [mf.Linear(), mf.Polynomial(2.0)], ids=["linear", "squared"])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_score_is_that_of_the_marginal_whatever_the_network_predicts(predicts, t, schedule):
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    k = float(schedule.k(torch.tensor(t)))
    truth = -(x - k * M) / variance(k)
    assert ((score(gaussians(predicts, schedule), x, torch.tensor(t)) - truth) / truth.abs().amax()).abs().max() < 1e-4


@every_prediction
def test_samples_with_noise_have_the_law_of_the_data(predicts):
    made = gaussians(predicts).sample(20_000, steps=100, method=mf.SDE(3.0), generator=torch.Generator().manual_seed(0))
    assert (made.mean(0) - M).abs().max() < 0.02
    assert (made.std(0) - S).abs().max() < 0.02


@every_prediction
@pytest.mark.parametrize("t", [0.3, 0.8])
def test_langevin_steps_approach_the_marginal_at_the_rate_of_their_formula(predicts, t):
    """A step is x - q g^2 (x - t M) / v + g sqrt(2 q) noise with g = C (1 - t), q = 1 - e^-r: mean and variance by recursion."""
    steps, r, mean, spread = 12, 0.3, torch.full((2,), 3.0), 0.0
    made = langevin(
        gaussians(predicts), torch.full((20_000, 2), 3.0), t, steps=steps, renewed=r,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    q, level, v = 1 - math.exp(-r), C * (1 - t), variance(t)
    for _ in range(steps):
        keep = 1 - q * level**2 / v
        mean, spread = t * M + keep * (mean - t * M), keep**2 * spread + 2 * q * level**2
    assert (made.mean(0) - mean).abs().max() < 0.02
    assert (made.var(0) / spread - 1).abs().max() < 0.04


@pytest.mark.parametrize("centred", [False, True])
def test_noise_leaves_padding_alone_and_moves_what_is_real(centred):
    space = mf.Centered(mf.Euclidean(2)) if centred else mf.Euclidean(2)
    flow = mf.Flow(space, Gaussians("endpoint", torch.zeros(2)), source=mf.Normal(scale=C), predicts="endpoint")
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    x = flow.draw_source((2, 6), mask=mask, generator=torch.Generator().manual_seed(0))
    x = torch.where(mask.unsqueeze(-1), x, 0.0)
    made = {
        "langevin": langevin(flow, x, 0.5, steps=3, mask=mask, generator=torch.Generator().manual_seed(1)),
        "sde": flow.sample(
            x0=x, times=[0.2, 0.5], method=mf.SDE(2.0), mask=mask, generator=torch.Generator().manual_seed(1)
        ),
    }
    for name, value in made.items():
        assert value[~mask].abs().max() == 0, name
        assert (value - x)[mask].abs().amin() > 0, name
        if centred:
            assert value.sum(1).abs().max() < 1e-5


@every_prediction
@pytest.mark.parametrize("diffusion", [4.0, lambda t: 2.0 + 0 * t], ids=["renewed", "constant"])
def test_the_last_step_of_an_sde_adds_no_noise(predicts, diffusion):
    """From the same points at t = 0.9 two draws of the noise end at the same place: where the prediction says."""
    flow = gaussians(predicts)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    ends = [
        flow.sample(x0=x, times=[0.9, 1.0], method=mf.SDE(diffusion), generator=torch.Generator().manual_seed(seed))
        for seed in (1, 2)
    ]
    expected = M + 0.9 * S**2 * (x - 0.9 * M) / variance(0.9)
    assert (ends[0] - ends[1]).abs().max() < 1e-5
    assert (ends[0] - expected).abs().max() < 1e-4


@every_prediction
@pytest.mark.parametrize("is_rate", [False, True], ids=["renewed", "constant"])
def test_one_step_of_an_sde_is_its_formula(predicts, is_rate):
    """The flow's step, - g q eta, and noise of deviation g sqrt(2 q), with g = C (1 - t) in the middle of the step."""
    t, s, strength = 0.2, 0.6, 1.3
    level = C * (1 - 0.4)
    q = 1 - math.exp(-strength * (s - t) / (level**2 if is_rate else 1.0))
    x = torch.tensor([0.5, -1.5])
    end = M + t * S**2 * (x - t * M) / variance(t)
    eta = C * (1 - t) * (x - t * M) / variance(t)
    mean = x + (s - t) / (1 - t) * (end - x) - level * q * eta
    method = mf.SDE((lambda time: strength + 0 * time) if is_rate else strength)
    made = gaussians(predicts).sample(
        x0=x.expand(40_000, 2), times=[t, s], method=method, generator=torch.Generator().manual_seed(0)
    )
    assert (made.mean(0) - mean).abs().max() < 0.02
    assert (made.std(0) / (level * math.sqrt(2 * q)) - 1).abs().max() < 0.02


class Listens(torch.nn.Module):
    """A model that keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, x, t, *, mask=None, cond=None, previous=None):
        self.told.append({"x": x, "t": t, "mask": mask, "cond": cond, "previous": previous})
        return x + cond[:, None]


@pytest.mark.parametrize("method", [mf.SDE(2.0), "euler", "midpoint"], ids=["sde", "euler", "midpoint"])
def test_every_sampler_tells_the_model_the_same(method):
    """Mask, condition, the last prediction from the second step on, and t = 1 where elements are known; known ones stay."""
    model = Listens()
    flow = mf.Flow(mf.Euclidean(2), model, predicts="endpoint", self_condition=0.5, pin=lambda mask, g: mask & False)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    known_mask = torch.tensor([[True, False, False], [False, True, False]])
    cond, known = torch.ones(2, 1), torch.full((2, 3, 2), 7.0)
    made = flow.sample(
        (2, 3), times=[0.0, 0.5, 0.75], method=method, mask=mask, cond=cond, known=known, known_mask=known_mask,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert (made[known_mask] == 7.0).all() and (made[~known_mask] != 7.0).all()
    clock = {"midpoint": [0.0, 0.25, 0.5, 0.625]}.get(method if isinstance(method, str) else "", [0.0, 0.5])
    assert len(model.told) == len(clock)
    for number, (told, t) in enumerate(zip(model.told, clock, strict=True)):
        assert torch.equal(told["mask"], mask) and torch.equal(told["cond"], cond)
        assert torch.allclose(told["t"], torch.where(known_mask, 1.0, t))
        assert (told["x"][known_mask] == 7.0).all()
        if number == 0 or number >= len(clock) // 2:
            assert (told["previous"] is None) == (number == 0)


@every_prediction
@pytest.mark.parametrize("method", [mf.SDE(2.0), "euler", "midpoint", "heun", "rk4"], ids=str)
def test_padding_stays_under_every_sampler(method, predicts):
    """At its place, whatever the network answers there, for a network that cares for no mask."""
    flow = mf.Flow(mf.Euclidean(2), Gaussians(predicts), source=mf.Normal(scale=C), predicts=predicts)
    mask, x = torch.tensor([[True, False]]), torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(0))
    made = flow.sample(x0=x, times=[0.2, 0.4], method=method, mask=mask, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made[~mask], x[~mask]) and (made[mask] != x[mask]).all()


def test_langevin_steps_tell_the_model_mask_and_condition():
    model = Listens()
    flow = mf.Flow(mf.Euclidean(2), model, predicts="endpoint")
    mask, cond = torch.tensor([[True, False]]), torch.ones(1, 1)
    langevin(flow, torch.zeros(1, 2, 2), 0.4, steps=2, mask=mask, cond=cond)
    assert len(model.told) == 2
    for told in model.told:
        assert torch.equal(told["mask"], mask) and torch.equal(told["cond"], cond)
        assert torch.allclose(told["t"], torch.full((1,), 0.4))


@pytest.mark.parametrize("warp", [None, mf.Polynomial(2.0)], ids=["even", "warped"])
@pytest.mark.parametrize(
    "predicts, t_max, t", [("velocity", 0.6, 0.6), ("endpoint", 0.6, 0.6), ("endpoint", None, 0.99)]
)
def test_the_density_is_that_of_the_marginal_at_the_time_of_the_points(predicts, t_max, t, warp):
    """log N(x; t M, t^2 S^2 + (1 - t)^2 C^2); endpoint predictions stop at 0.99, before their pole."""
    path = mf.Flow(mf.Euclidean(2), Gaussians(predicts), source=mf.Normal(scale=C), predicts=predicts, time_warp=warp)
    x = torch.tensor([[0.5, -1.0], [1.2, -2.4]])
    v = variance(t)
    truth = -((x - t * M) ** 2).sum(-1) / (2 * v) - math.log(2 * math.pi * v)
    assert (path.log_prob(x, t_max=t_max, steps=100) - truth).abs().max() < 2e-3


def test_a_flow_without_a_score_says_so():
    flow = mf.Flow(mf.Sphere(2), model=mf.nn.TangentMLP(mf.Sphere(2), 8, 1))
    with pytest.raises(TypeError, match="score"):
        flow.sample(3, steps=2, method=mf.SDE(1.0))
    with pytest.raises(ValueError, match="at least 0"):
        mf.SDE(-1.0)
