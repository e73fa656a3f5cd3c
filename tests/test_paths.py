"""Schedules, predictions and losses of the geodesic path."""

import itertools
import math

import pytest
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.base import Manifold, expand_time

SCHEDULES = [
    mf.Linear(),
    mf.Exponential(10.0),
    mf.Exponential(0.3),
    mf.Cosine(),
    mf.Polynomial(2.0),
    mf.Polynomial(1.0),
    mf.Late(0.01),
]
MANIFOLDS = [
    mf.Euclidean(3),
    mf.Sphere(2),
    mf.Torus(3),
    mf.SO3(),
    mf.UnitQuaternion(),
    mf.Simplex(4),
    mf.Simplex(4, metric="flat"),
]
TIMES = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)


def pair(space: Manifold, dtype: torch.dtype = torch.float64, batch: tuple[int, ...] = (16,)) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    if isinstance(space, mf.Euclidean):
        return torch.randn(*batch, 3, generator=g, dtype=dtype), torch.randn(*batch, 3, generator=g, dtype=dtype)
    x0, x1 = (space.sample_uniform(batch, generator=g, dtype=dtype) for _ in range(2))
    return x0, x1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedule_runs_from_zero_to_one_and_only_forward(schedule):
    k = schedule.k(TIMES)
    assert abs(k[0]) < 1e-15
    assert abs(k[-1] - 1) < 1e-15
    assert (k.diff() > 0).all()
    assert (schedule.remaining(TIMES) - (1 - k)).abs().max() < 1e-14


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_dk_is_the_derivative_of_k(schedule):
    t = TIMES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.k(t).sum(), t)
    assert (schedule.dk(TIMES) - slope).abs().max() < 1e-12


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_fraction_is_the_share_of_the_way_still_to_go(schedule):
    t, s = TIMES[:-5].unsqueeze(-1), TIMES.unsqueeze(0)
    k = schedule.k
    expected = (k(s) - k(t)) / (1 - k(t))  # far below -1 for long steps backward
    assert ((schedule.fraction(t, s) - expected) / (1 + expected.abs())).abs().max() < 1e-10


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_step_goes_all_the_way(schedule, dtype):
    t = torch.linspace(0, 0.999, 50, dtype=dtype)
    assert (schedule.fraction(t, torch.ones_like(t)) - 1).abs().max() < 4 * torch.finfo(dtype).eps
    assert schedule.fraction(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype)) == 0


def test_exponential_steps_are_those_of_frameflow_to_first_order():
    """FrameFlow moves rotations by the share min(1, c dt) of the way: ours differs by O(dt^2) until the end is near."""
    rate = 10.0
    t = torch.linspace(0, 0.5, 11, dtype=torch.float64)
    off = [(mf.Exponential(rate).fraction(t, t + dt) - rate * dt).abs().max() for dt in (1e-3, 5e-4)]
    exact_gap = 1 / (1 - math.exp(-rate * 0.5)) - 1  # ours lands at t = 1, theirs never does
    assert off[0] < 0.5 * (rate * 1e-3) ** 2 + exact_gap * rate * 1e-3
    early = [
        (mf.Exponential(rate).fraction(t[:1], t[:1] + dt) - rate * dt * (1 / -math.expm1(-rate))).abs().max()
        for dt in (1e-3, 5e-4)
    ]
    assert early[0] / early[1] == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize(
    "make",
    [
        lambda: mf.Exponential(0.0),
        lambda: mf.Exponential(-1.0),
        lambda: mf.Polynomial(0.0),
        lambda: mf.Exponential(math.nan),
    ],
)
def test_a_schedule_that_does_not_move_is_refused(make):
    with pytest.raises(ValueError, match="must be positive"):
        make()


@pytest.mark.parametrize("sample_schedule", [None, mf.Exponential(10.0), mf.Cosine()], ids=str)
@pytest.mark.parametrize("schedule", [mf.Linear(), mf.Cosine()], ids=str)
@pytest.mark.parametrize("space", MANIFOLDS, ids=str)
def test_a_perfect_endpoint_prediction_lands_on_the_data(space, schedule, sample_schedule):
    x0, x1 = pair(space)
    path = mf.Geodesic(schedule, sample_schedule, "endpoint", manifold=space)
    x = x0
    times = torch.linspace(0, 1, 8, dtype=torch.float64)
    for t, s in itertools.pairwise(times):
        x = path.advance(x1, x, t, s).x
        k = (sample_schedule or schedule).k(s)
        assert space.dist(x, space.geodesic(x0, x1, k)[0]).max() < 2e-7
    assert space.dist(x, x1).max() < 1e-7


@pytest.mark.parametrize("schedule", [mf.Linear(), mf.Cosine()], ids=str)
@pytest.mark.parametrize("space", MANIFOLDS, ids=str)
def test_endpoint_and_velocity_predictions_agree_when_both_are_right(space, schedule):
    """The velocity that an endpoint implies is the path's own; so is a velocity prediction, on any sampling schedule."""
    x0, x1 = pair(space)
    t = torch.full((16,), 0.6, dtype=torch.float64)
    for sample_schedule in (None, mf.Exponential(4.0)):
        by_endpoint = mf.Geodesic(schedule, sample_schedule, "endpoint", manifold=space)
        by_velocity = mf.Geodesic(schedule, sample_schedule, "velocity", manifold=space)
        point = by_velocity.sample(x0, x1, t)
        u, v = by_endpoint.velocity(x1, point.x, t), by_velocity.velocity(point.velocity, point.x, t)
        assert (u - v).abs().max() < 1e-7
        if sample_schedule is None:
            assert (v - point.velocity).abs().max() < 1e-12


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("space", MANIFOLDS, ids=str)
def test_following_the_true_velocity_lands_on_the_data(space, steps):
    x0, x1 = pair(space)
    path = mf.Geodesic(manifold=space)
    x, times = x0, torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    for t, s in itertools.pairwise(times):
        x = path.advance(path.sample(x0, x1, t.expand(16)).velocity, x, t, s).x
    assert space.dist(x, x1).max() < 1e-7


@pytest.mark.parametrize("predicts", ["velocity", "endpoint"])
@pytest.mark.parametrize("space", MANIFOLDS, ids=str)
def test_the_loss_is_zero_at_the_truth_and_only_there(space, predicts):
    x0, x1 = pair(space)
    path = mf.Geodesic(predicts=predicts, manifold=space)
    t = torch.linspace(0, 1, 16, dtype=torch.float64)
    point = path.sample(x0, x1, t)
    truth = point.velocity if predicts == "velocity" else x1
    loss = path.loss(truth, point)
    assert loss.shape == (16,)
    assert loss.max() < 1e-20
    wrong = 1.1 * truth if predicts == "velocity" else space.geodesic(x1, x0, 0.1)[0]
    assert path.loss(wrong, point).min() > 1e-6


def test_the_endpoint_loss_is_the_velocity_loss_of_the_implied_velocity():
    """Euclidean, linear schedule: |pred - x1|^2 / (1 - t)^2 = |u(pred) - u|^2."""
    space = mf.Euclidean(3)
    x0, x1 = pair(space)
    t = torch.linspace(0, 0.89, 16, dtype=torch.float64)
    path = mf.Geodesic(predicts="endpoint", manifold=space)
    point = path.sample(x0, x1, t)
    pred = x1 + 0.3 * x0
    implied = (pred - point.x) / expand_time(1 - t, x0, 1)
    assert (path.loss(pred, point) - ((implied - point.velocity) ** 2).sum(-1)).abs().max() < 1e-12


@pytest.mark.parametrize("clip", [0.1, 0.02])
@pytest.mark.parametrize("space", [mf.Euclidean(3), mf.Sphere(2)], ids=str)
def test_the_endpoint_loss_divides_by_the_way_left_and_at_least_by_its_floor(space, clip):
    """|log pred - log x1|^2 / max(1 - t, clip)^2, so it stays bounded at t = 1."""
    x0, x1 = pair(space)
    x0, x1 = x0[:5], x1[:5]
    t = torch.tensor([0.0, 0.5, 0.95, 0.99, 1.0], dtype=torch.float64)
    path = mf.Geodesic(predicts="endpoint", manifold=space, clip=clip)
    point = path.sample(x0, x1, t)
    pred = space.geodesic(x1, x0, 0.1)[0]
    off = space.log(point.x, pred) - space.log(point.x, x1)
    expected = (off**2).sum(-1) / torch.tensor([max(1 - float(v), clip) for v in t], dtype=torch.float64) ** 2
    assert torch.allclose(path.loss(pred, point), expected, rtol=1e-9)


@pytest.mark.parametrize("space", [mf.Sphere(2), mf.SO3()], ids=str)
def test_sets_of_points_take_a_time_per_sample_or_per_element(space):
    x0, x1 = pair(space, batch=(4, 5))
    path = mf.Geodesic(manifold=space)
    t = torch.linspace(0.1, 0.9, 4, dtype=torch.float64)
    per_sample, per_element = path.sample(x0, x1, t), path.sample(x0, x1, t.unsqueeze(-1).expand(4, 5))
    assert torch.equal(per_sample.x, per_element.x)
    alone = path.sample(x0[2, 3], x1[2, 3], t[2])
    assert (per_sample.x[2, 3] - alone.x).abs().max() < 1e-14


def test_an_unbound_path_says_how_to_bind_it():
    with pytest.raises(ValueError, match=r"path.bind\(manifold\)"):
        mf.Geodesic().sample(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1))


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="'noise'"):
        mf.Geodesic(predicts="noise")


# ---------------------------------------------------------------- mean velocities of a batch

CONTRACTING = [mf.Sphere(2), mf.Sphere(3), mf.Torus(2, 2 * math.pi), mf.Torus(3), mf.SO3(), mf.UnitQuaternion()]


def conditional_log_density(space: Manifold, x: Tensor, y: Tensor, left: float) -> Tensor:
    """log p_t(x | y) of the uniform law contracted towards y, from the change of variables alone: (X,) x (Y,)."""
    here, there = x.unsqueeze(1), y.unsqueeze(0)
    w = space.log(there, here)
    stretched = w / left
    value = space.log_exp_volume(there, stretched) - space.log_exp_volume(there, w) - space.dim * math.log(left)
    return torch.where(space.is_minimising(there, stretched), value - space.log_volume, -torch.inf)


@pytest.mark.parametrize("space", CONTRACTING, ids=str)
def test_contracted_uniform_law_integrates_to_one(space):
    generator = torch.Generator().manual_seed(0)
    x = space.sample_uniform((20_000,), generator=generator, dtype=torch.float64)
    y = space.sample_uniform((1,), generator=generator, dtype=torch.float64)
    weight = (conditional_log_density(space, x, y, 0.6).squeeze(-1) + space.log_volume).exp()
    assert abs(float(weight.mean()) - 1) < 4.5 * float(weight.std()) / len(x) ** 0.5


@pytest.mark.parametrize("space", [mf.Sphere(2), mf.Sphere(3)], ids=str)
def test_mean_velocity_carries_the_uniform_law_to_the_mixture_of_contracted_ones(space):
    # The log-density gathered along the field's own trajectories is the closed form at their end. On spheres only: the
    # contracted laws of tori and rotations end in a jump, which a trajectory crosses and a divergence does not see.
    from manifoldflow.sampling.likelihood import divergence

    generator = torch.Generator().manual_seed(1)
    y = space.sample_uniform((3,), generator=generator, dtype=torch.float64)
    x = space.sample_uniform((100,), generator=generator, dtype=torch.float64)
    path, end, steps = mf.Geodesic(manifold=space), 0.4, 150
    gained = torch.zeros(len(x), dtype=torch.float64)

    def field(at: Tensor, t: Tensor) -> Tensor:
        return path.mean_velocity(at, t.expand(len(at)), y, one=torch.zeros_like(space.log(at, at)))

    for i in range(steps):  # midpoint in both
        t = torch.tensor((i + 0.5) * end / steps, dtype=torch.float64)
        middle = space.exp(x, 0.5 * end / steps * field(x, t - 0.5 * end / steps))
        v, div = divergence(field, space, middle, t)
        gained = gained - end / steps * div
        x = space.exp(x, end / steps * space.transport(middle, v, x))
    exact = torch.logsumexp(conditional_log_density(space, x, y, 1 - end) - math.log(3), -1) + space.log_volume
    error = (gained - exact).abs()
    assert error.median() < 2e-3
    assert exact.std() > 0.1


@pytest.mark.parametrize("space", CONTRACTING, ids=str)
def test_average_targets_are_unbiased_and_less_noisy(space):
    generator = torch.Generator().manual_seed(2)
    data = space.sample_uniform((40,), generator=generator, dtype=torch.float64)
    one, mean = mf.Geodesic(manifold=space), mf.Geodesic(manifold=space, average_targets=True)
    direction = torch.randn(space.frame_moves(data[:1])[1].shape[2:], generator=generator, dtype=torch.float64)
    gaps, spreads = [], []
    for _ in range(60):
        x1 = data[torch.randint(40, (64,), generator=generator)]
        x0 = space.sample_uniform((64,), generator=generator, dtype=torch.float64)
        t = torch.rand(64, generator=generator, dtype=torch.float64)
        single, averaged = one.sample(x0, x1, t).velocity, mean.sample(x0, x1, t).velocity
        # Against test functions of the point: a fixed direction, times a function that tells places apart.
        at = one.sample(x0, x1, t).x.flatten(1)[:, 0]
        gap = ((single - averaged) * direction).flatten(1).sum(-1)
        gaps.append(torch.stack([gap, gap * torch.cos(3 * at), gap * t]))
        spreads.append(torch.stack([single.flatten(1).square().sum(-1), averaged.flatten(1).square().sum(-1)]))
    gap, spread = torch.cat(gaps, -1), torch.cat(spreads, -1)
    assert (gap.mean(-1).abs() < 4.5 * gap.std(-1) / gap.shape[-1] ** 0.5).all()
    assert spread.mean(-1)[1] < 0.8 * spread.mean(-1)[0]


def test_average_targets_need_what_their_formula_assumes():
    sphere = mf.Sphere(2)
    net = mf.nn.TangentMLP(sphere, 8, 1)
    path = mf.Geodesic(average_targets=True)
    with pytest.raises(ValueError, match="uniform"):
        mf.Flow(sphere, model=net, path=path, source=mf.WrappedNormal(scale=0.5))
    with pytest.raises(ValueError, match="coupling"):
        mf.Flow(sphere, model=net, path=path, coupling=mf.MinibatchOT())
    with pytest.raises(ValueError, match="velocity"):
        mf.Flow(sphere, model=net, path=path, predicts="endpoint")
    flow = mf.Flow(sphere, model=net, path=path)
    x = sphere.sample_uniform((4,))
    with pytest.raises(ValueError, match="x0"):
        flow.loss(x, x0=x)
    with pytest.raises(ValueError, match="single points"):
        flow.loss(sphere.sample_uniform((4, 5)))
