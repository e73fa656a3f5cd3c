"""Sampling with noise keeps the marginals of the flow, on a field and a score that are known exactly."""

import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow.manifolds.rotation import quaternion_to_matrix
from manifoldflow.paths import Bump
from manifoldflow.sampling import SDEKernel, score, simulate

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
    flow = mf.Flow(space, model=torch.nn.Identity(), path=mf.StochasticInterpolant(Bump(0.4)))
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
    assert a.norm(dim=-1).max() < 0.2 and ode.norm(dim=-1).max() < 1e-4


def test_a_flow_without_a_score_says_so():
    flow = mf.Flow(mf.Sphere(2), model=mf.nn.TangentMLP(mf.Sphere(2), 8, 1))
    with pytest.raises(TypeError, match="score"):
        flow.sample(3, steps=2, method=mf.SDE(1.0))
    with pytest.raises(ValueError, match="at least 0"):
        mf.SDE(-1.0)
