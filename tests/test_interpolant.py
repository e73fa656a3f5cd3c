"""The stochastic interpolant: its targets are derivatives of the path and of the density, and what regresses on them."""

import math

import pytest
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.distributions import WrappedNormal
from manifoldflow.manifolds.base import Manifold
from manifoldflow.numerics import cot_slope
from manifoldflow.paths.interpolant import BridgeNoise, BumpNoise, StochasticInterpolant

DOUBLE = torch.float64
SPACES = [
    mf.Euclidean(3),
    mf.Torus(2, period=2 * math.pi),
    mf.Sphere(1),
    mf.Sphere(2),
    mf.Sphere(5),
    mf.SO3(),
    mf.UnitQuaternion(),
]
LEVELS = [BumpNoise(0.3), BridgeNoise(0.3)]


def points(space: Manifold, count: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    if isinstance(space, mf.Euclidean):
        return torch.randn(count, space.dim, generator=g, dtype=DOUBLE)
    return space.sample_uniform((count,), generator=g, dtype=DOUBLE)


def unit_tangents(space: Manifold, x: Tensor, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    basis = space.tangent_basis(x)
    weights = torch.randn(*basis.shape[:-1], generator=g, dtype=DOUBLE)
    u = (weights.unsqueeze(-1) * basis).sum(-2)
    return u / u.norm(dim=-1, keepdim=True)


def carry(space: Manifold, x: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """The noise as the path carries it from x to y: fixed in the body frame on rotations, parallel elsewhere."""
    return z if isinstance(space, mf.SO3 | mf.UnitQuaternion) else space.transport(x, z, y)


def ids(value: object) -> str:
    return type(value).__name__ + str(getattr(value, "dim", ""))


@pytest.mark.parametrize("length", [0.0, 1e-8, 1e-3, 1.0, 3.0, math.pi - 1e-3])
@pytest.mark.parametrize("level", LEVELS, ids=ids)
@pytest.mark.parametrize("space", SPACES, ids=ids)
def test_the_velocity_is_the_derivative_of_the_noisy_path(space, level, length):
    """For noise of any length up to the conjugate point, and pairs near and far: a central difference in float64."""
    path = StochasticInterpolant(noise=level, schedule=mf.Cosine()).bind(space)
    x0 = points(space, 16, 0)
    reach = torch.linspace(0, math.pi - 1e-3, 16, dtype=DOUBLE).unsqueeze(-1)
    x1 = space.exp(x0, reach * unit_tangents(space, x0, 1))
    at, h = 0.37, 1e-5
    centre, direction = space.geodesic(x0, x1, path.schedule.k(torch.tensor(at, dtype=DOUBLE)))
    z = unit_tangents(space, centre, 2) * length / level.level(torch.tensor(at, dtype=DOUBLE))

    def x_at(time: float) -> Tensor:
        t = torch.tensor(time, dtype=DOUBLE)
        there, _ = space.geodesic(x0, x1, path.schedule.k(t))
        return space.exp(there, level.level(t) * carry(space, centre, z, there))

    point = path.around(centre, direction, z, torch.full((16,), at, dtype=DOUBLE), x1)
    slope = (space.log(point.x, x_at(at + h)) - space.log(point.x, x_at(at - h))) / (2 * h)
    pred = torch.stack([point.drift, point.noise], -2)
    assert space.dist(point.x, x_at(at)).max() < 1e-12
    assert (path.velocity(pred, point.x, torch.tensor(at, dtype=DOUBLE)) - point.velocity).abs().max() < 1e-12
    assert (slope - point.velocity).abs().max() < 1e-8 * (1 + point.velocity.abs().max())


@pytest.mark.parametrize("length", [1e-8, 1e-3, 0.1, 1.0, 2.0, 3.0, math.pi - 1e-2])
@pytest.mark.parametrize("space", SPACES, ids=ids)
def test_the_noise_is_the_score_of_the_drawn_image(space, length):
    """Central difference of log N(u) - log J(u) over the tangents u at the centre that lead to x."""
    level, path = 0.3, StochasticInterpolant(noise=BumpNoise(0.3)).bind(space)
    centre = points(space, 8, 0)
    direction = unit_tangents(space, centre, 1)
    z = unit_tangents(space, centre, 2) * length / level
    point = path.around(centre, direction, z, torch.full((8,), 0.5, dtype=DOUBLE), centre)

    def log_density(x: Tensor) -> Tensor:
        u = space.log(centre, x)
        return -0.5 * (u * u).sum(-1) / level**2 - space.log_exp_volume(centre, u)

    h = 1e-5
    basis = space.tangent_basis(point.x).movedim(-2, 0)
    score = sum(
        ((log_density(space.exp(point.x, h * e)) - log_density(space.exp(point.x, -h * e))) / (2 * h)).unsqueeze(-1) * e
        for e in basis
    )
    assert (-point.noise / level - score).abs().max() < 1e-6 * (1 + score.abs().max())


@pytest.mark.parametrize("space", [mf.Torus(2), *SPACES[2:]], ids=ids)
def test_the_mean_noise_is_the_score_of_the_wrapped_normal(space):
    """E[<a, eta>] over draws is -gamma E[<a, grad log p>] for a tangent field a and the density summed over images; on the
    small torus most draws go round it."""
    g = torch.Generator().manual_seed(3)
    level, n = 0.43, 20000
    path = StochasticInterpolant(noise=BumpNoise(level)).bind(space)
    centre = points(space, 1, 5).expand(n, *space.event_shape)
    tangent = torch.zeros_like(unit_tangents(space, centre[:1], 0)).expand(n, -1)
    z = space.to_tangent(centre, torch.randn(tangent.shape, generator=g, dtype=DOUBLE))
    point = path.around(centre, tangent, z, torch.full((n,), 0.5, dtype=DOUBLE), centre)
    law = WrappedNormal(space, scale=level, mean=centre[0])
    h = 1e-4
    basis = space.tangent_basis(point.x).movedim(-2, 0)
    score = sum(
        ((law.log_prob(space.exp(point.x, h * e)) - law.log_prob(space.exp(point.x, -h * e))) / (2 * h)).unsqueeze(-1)
        * e
        for e in basis
    )
    towards = space.log(point.x, space.exp(centre, 0.5 * unit_tangents(space, centre[:1], 9)))
    gap = (towards * (point.noise + level * score)).sum(-1)
    assert gap.mean().abs() < 5 * gap.std() / n**0.5 + 1e-7


def testcot_slope_joins_its_series_smoothly():
    r = torch.tensor([1e-9, 1e-3, 0.3, 0.3162, 0.3163, 1.0, 3.0], dtype=DOUBLE)
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 50
    exact = [float((mpmath.mpf(v) * mpmath.cot(mpmath.mpf(v)) - 1) / mpmath.mpf(v) ** 2) for v in r.tolist()]
    assert (cot_slope(r * r) / torch.tensor(exact, dtype=DOUBLE) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("level", LEVELS, ids=ids)
def test_rate_is_the_derivative_of_the_level(level):
    t = torch.linspace(0.01, 0.99, 99, dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(level.level(t).sum(), t)
    assert (level.rate(t) - slope).abs().max() < 1e-12
    ends = level.level(torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE))
    assert (ends - torch.tensor([0.0, level.scale, 0.0], dtype=DOUBLE)).abs().max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("level", LEVELS, ids=ids)
@pytest.mark.parametrize("space", SPACES, ids=ids)
def test_the_path_starts_at_the_source_ends_at_the_data_and_targets_stay_bounded(space, level, dtype):
    path = StochasticInterpolant(noise=level).bind(space)
    x0, x1 = points(space, 200, 0).to(dtype), points(space, 200, 1).to(dtype)
    for t in (0.0, 1e-12, 1e-6, 1 - 1e-6, 1.0):
        point = path.sample(x0, x1, torch.full((200,), t, dtype=dtype), generator=torch.Generator().manual_seed(2))
        for target in (point.drift, point.noise):
            assert torch.isfinite(target).all()
            assert target.norm(dim=-1).max() < 10
        if t in (0.0, 1.0):
            assert space.dist(point.x, x0 if t == 0 else x1).max() < 1e-3  # a rotation's angle loses half of its digits


@pytest.mark.parametrize("level", LEVELS, ids=ids)
def test_least_squares_finds_the_closed_form_of_a_gaussian_pair(level):
    """x0 ~ N(0, 1), x1 ~ N(2, 0.25): p_t is N(m, V), b = m' + V'/2V (x - m), score = -(x - m)/V (Albergo et al. 2023)."""
    g = torch.Generator().manual_seed(0)
    path = StochasticInterpolant(noise=level).bind(mf.Euclidean(1))
    n = 200_000
    x0, x1 = torch.randn(n, 1, generator=g, dtype=DOUBLE), 2 + 0.5 * torch.randn(n, 1, generator=g, dtype=DOUBLE)
    for at in (0.1, 0.5, 0.8):
        t = torch.tensor(at, dtype=DOUBLE)
        point = path.sample(x0, x1, t.expand(n), generator=g)
        design = torch.cat([torch.ones_like(point.x), point.x], -1)
        targets = torch.cat([point.drift, point.noise], -1)
        fit = torch.linalg.lstsq(design, targets).solution  # rows: constant, slope; columns: drift, noise
        gamma, rate = level.level(t), level.rate(t)
        mean, var = 2 * t, (1 - t) ** 2 + 0.25 * t**2 + gamma**2
        change = -2 * (1 - t) + 0.5 * t + 2 * gamma * rate
        x = torch.tensor([[-1.0], [0.5], [3.0]], dtype=DOUBLE)
        pred = (torch.cat([torch.ones_like(x), x], -1) @ fit).unsqueeze(-1)  # (3, 2, 1)
        velocity = 2 + 0.5 * change / var * (x - mean)
        assert (path.velocity(pred, x, t) - velocity).abs().max() < 0.02
        assert (path.score(pred, x, t) + (x - mean) / var).abs().max() < 0.02 / float(gamma)


def test_an_euler_step_follows_the_noise_level_exactly():
    path = StochasticInterpolant(noise=BridgeNoise(0.3)).bind(mf.Euclidean(2))
    pred = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]], dtype=DOUBLE)
    t, s = torch.tensor(0.0, dtype=DOUBLE), torch.tensor(0.5, dtype=DOUBLE)
    moved = path.advance(pred, torch.zeros(1, 2, dtype=DOUBLE), t, s).x
    assert (moved - torch.tensor([[0.5, 0.6]], dtype=DOUBLE)).abs().max() < 1e-12


def test_loss_is_the_squared_error_of_both_tangents():
    space = mf.Sphere(2)
    path = StochasticInterpolant(noise_weight=0.5).bind(space)
    point = path.sample(points(space, 8, 0), points(space, 8, 1), torch.rand(8, dtype=DOUBLE))
    exact = torch.stack([point.drift, point.noise], -2)
    assert path.loss(exact + point.x.unsqueeze(-2), point).max() < 1e-24  # what is not tangent does not count
    off = unit_tangents(space, point.x, 4)
    assert (path.loss(exact + torch.stack([0.1 * off, 0 * off], -2), point) - 0.01).abs().max() < 1e-12
    assert (path.loss(exact + torch.stack([0 * off, 0.1 * off], -2), point) - 0.005).abs().max() < 1e-12


def test_a_set_of_elements_with_their_own_times_is_each_as_alone():
    space = mf.SO3()
    path = StochasticInterpolant().bind(space)
    x0, x1 = (points(space, 12, seed).reshape(4, 3, 3, 3) for seed in (0, 1))
    t = torch.rand(4, 3, dtype=DOUBLE)
    whole = path.sample(x0, x1, t, generator=torch.Generator().manual_seed(0))
    flat = path.sample(x0.flatten(0, 1), x1.flatten(0, 1), t.flatten(), generator=torch.Generator().manual_seed(0))
    assert (whole.drift.flatten(0, 1) - flat.drift).abs().max() < 1e-12
    assert (whole.x.flatten(0, 1) - flat.x).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: StochasticInterpolant().bind(mf.Simplex(3)), TypeError, "use Geodesic"),
        (lambda: StochasticInterpolant(BumpNoise(1.0)).bind(mf.Sphere(2)), ValueError, "at most 0.49"),
        (lambda: StochasticInterpolant(BumpNoise(1.0)).bind(mf.SO3()), ValueError, "wraps around"),
        (lambda: StochasticInterpolant().bind(mf.Sphere(2), "endpoint"), ValueError, "not the endpoint"),
        (lambda: StochasticInterpolant().space, ValueError, "no manifold yet"),
        (lambda: BumpNoise(0.0), ValueError, "scale must be positive"),
    ],
)
def test_what_cannot_work_says_so(make, kind, words):
    with pytest.raises(kind, match=words):
        make()


def test_a_model_of_one_tangent_is_named():
    path = StochasticInterpolant().bind(mf.Sphere(2))
    x = points(mf.Sphere(2), 4, 0)
    with pytest.raises(ValueError, match="a drift and a noise"):
        path.velocity(torch.zeros_like(x), x, torch.tensor(0.5))


@pytest.mark.parametrize("kind", [mf.nn.TangentMLP, mf.nn.TangentResNet])
@pytest.mark.parametrize("space", [mf.Sphere(2), mf.Torus(2, 2 * math.pi), mf.SO3()], ids=lambda s: type(s).__name__)
def test_a_network_with_two_heads_is_what_the_path_wants(space, kind):
    torch.manual_seed(0)
    net = kind(space, 16, 2, heads=2)
    flow = mf.Flow(space, model=net, path=StochasticInterpolant(BumpNoise(0.3)))
    x, t = space.sample_uniform((7,)), torch.full((7,), 0.4)
    made = net(x, t)
    assert made.shape == (7, 2, *net.tangent_shape)
    for head in made.unbind(1):
        assert (space.to_tangent(x, head) - head).abs().max() < 1e-6
    assert flow.loss(x).isfinite()
    space.check(flow.sample(3, steps=2, method=mf.SDE(1.0)))
    assert flow.log_prob(x, steps=4).isfinite().all()
    with pytest.raises(ValueError, match="one head"):
        net.push_forward(x, t, space.frame_moves(x)[0].movedim(1, 0))
