"""Rectified flow: pairs, straightness against closed forms, and training on the pairs."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest
from torch import Tensor, nn

import manifoldflow as mf
from manifoldflow.metrics import wasserstein
from manifoldflow.reflow import (
    Pairs,
    ReflowConfig,
    make_pairs,
    reflow,
    straightness,
    transport_cost,
    u_shaped_times,
)
from manifoldflow.state import first_tensor


class Field(nn.Module):
    """A closed-form velocity; one parameter, so that the flow has a device."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Any, t: Tensor, *, mask: Tensor | None = None, cond: Any = None) -> Any:
        return self.function(x, t, cond) if cond is not None else self.function(x, t)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def number(value: Any) -> float:
    """A scalar of a flow of one field."""
    return float(value)


def constant_tangent(space: Any, x: Tensor) -> Tensor:
    """A field whose integral curves are geodesics: left-invariant, constant, or the rotation of an equator."""
    if isinstance(space, mf.Sphere):
        return torch.stack([-x[..., 1], x[..., 0], 0 * x[..., 2]], -1)
    width = x.shape[-1] if isinstance(space, mf.Euclidean | mf.Torus) else 3
    return torch.tensor([0.4, -0.3, 0.45])[:width].to(x).expand(*x.shape[: x.ndim - space.event_ndim], width)


SPACES: list[Any] = [mf.Euclidean(2), mf.Torus(2), mf.Sphere(2), mf.SO3(), mf.UnitQuaternion()]


def start_points(space: Any, n: int) -> Tensor:
    if isinstance(space, mf.Sphere):
        angle = 2 * math.pi * torch.rand(n, generator=gen(), dtype=torch.float64)
        return torch.stack([angle.cos(), angle.sin(), 0 * angle], -1)
    if isinstance(space, mf.Euclidean):
        return torch.randn(n, 2, generator=gen(), dtype=torch.float64)
    return space.sample_uniform((n,), generator=gen(), dtype=torch.float64)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_straightness_is_zero_along_geodesics_and_the_variance_of_the_speed_otherwise(space: Any) -> None:
    x0 = start_points(space, 16)
    u = constant_tangent(space, x0)
    pairs = Pairs(x0, space.exp(x0, u))
    steady = mf.Flow(space, Field(lambda x, t: constant_tangent(space, x)))
    assert number(straightness(steady, pairs)) < 1e-10
    # The same curve at speed 2t: int (2t - 1)^2 dt = 1/3 of the squared length.
    hurried = mf.Flow(space, Field(lambda x, t: 2 * t.reshape(-1, 1) * constant_tangent(space, x)))
    length = float(space.inner(x0, u, u).mean())
    assert number(straightness(hurried, pairs, times=100, batch_size=5)) == pytest.approx(length / 3, rel=1e-3)
    assert number(transport_cost(steady, pairs)) == pytest.approx(length, rel=1e-6)


def test_straightness_of_a_rotating_plane_is_the_integral_by_quadrature() -> None:
    turn = 2.0
    j = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    rotation = torch.linalg.matrix_exp(turn * j)
    x0 = torch.randn(50, 2, generator=gen(), dtype=torch.float64)
    x1 = x0 @ rotation.mT

    def integrand(t: float) -> float:
        return float(((x1 - x0) - turn * ((1 - t) * x0 + t * x1) @ j.mT).square().sum(-1).mean())

    flow = mf.Flow(mf.Euclidean(2), Field(lambda x, t: turn * x @ j.mT))
    expected = quad(integrand, 0, 1)[0]
    assert expected > 1
    assert number(straightness(flow, Pairs(x0, x1), times=200)) == pytest.approx(expected, rel=1e-4)


def test_straightness_reads_endpoint_predictions_on_the_training_schedule() -> None:
    """A model that knows x1 is straight, also when sampling follows another schedule."""
    space = mf.SO3()
    x0, x1 = start_points(space, 8), space.sample_uniform((8,), generator=gen(1), dtype=torch.float64)
    flow = mf.Flow(
        space,
        Field(lambda x, t: x1),
        path=mf.Geodesic(sample_schedule=mf.Exponential(10.0)),
        predicts="endpoint",
    )
    assert number(straightness(flow, Pairs(x0, x1))) < 1e-8


def test_straightness_has_one_number_per_field_and_counts_real_elements_alone() -> None:
    spaces = {"a": mf.Euclidean(1), "b": mf.Torus(1)}
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x0 = {"a": torch.zeros(2, 3, 1), "b": torch.zeros(2, 3, 1)}
    x1 = {"a": torch.tensor([[1.0, 2.0, 50.0], [3.0, 50.0, 50.0]]).unsqueeze(-1), "b": torch.full((2, 3, 1), 0.25)}
    flow = mf.Flow(spaces, Field(lambda x, t: {k: torch.zeros_like(v) for k, v in x.items()}))
    for size in (1, 2):
        found: Any = straightness(flow, Pairs(x0, x1, mask), batch_size=size)
        assert float(found["a"]) == pytest.approx((1 + 4 + 9) / 3, rel=1e-5)
        assert float(found["b"]) == pytest.approx(0.25**2, rel=1e-5)


@pytest.mark.parametrize("batch_size", [3, 7, 100])
def test_every_pair_is_a_source_point_and_what_the_flow_makes_of_it(batch_size: int) -> None:
    """With a condition and a mask that belong to the row, whatever the batch."""
    flow = mf.Flow(mf.Euclidean(2), Field(lambda x, t, cond: x + cond["shift"].unsqueeze(1)))
    mask = torch.arange(4) < torch.tensor([4, 1, 2, 3, 4, 2, 1]).unsqueeze(-1)
    cond = {"shift": torch.arange(14.0).reshape(7, 2)}
    seen: list[tuple[int, int]] = []
    pairs = make_pairs(
        flow,
        (7, 4),
        steps=4,
        method="rk4",
        batch_size=batch_size,
        mask=mask,
        cond=cond,
        generator=gen(),
        callback=lambda done, wanted: seen.append((done, wanted)),
    )
    assert pairs.size == 7 and first_tensor(pairs.x0).shape == (7, 4, 2)
    for i in range(7):
        one = pairs.take(slice(i, i + 1))
        again = flow.sample(x0=one.x0, steps=4, method="rk4", mask=one.mask, cond=one.cond)
        assert torch.allclose(again, first_tensor(one.x1), atol=1e-5)
    assert seen[-1] == (7, 7) and len(seen) == math.ceil(7 / batch_size)
    # x' = x + c has the solution (x + c) e - c, and padding stays where it was.
    x0, x1 = first_tensor(pairs.x0), first_tensor(pairs.x1)
    c = cond["shift"].unsqueeze(1)
    assert torch.allclose(x1[mask], ((x0 + c) * math.e - c)[mask], rtol=1e-3)
    assert bool((x1[~mask] == 0).all())


def test_pairs_of_several_fields_repeat_with_the_generator_and_leave_the_mode_of_the_flow() -> None:
    spaces = {"trans": mf.Euclidean(3), "rots": mf.SO3()}
    field = Field(lambda x, t: {"trans": -x["trans"], "rots": torch.ones(*x["rots"].shape[:-2], 3)})
    flow = mf.Flow(spaces, field).train()
    a, b = (make_pairs(flow, 9, steps=3, batch_size=4, generator=gen(5)) for _ in range(2))
    assert flow.training
    for side in ("x0", "x1"):
        for name in spaces:
            assert torch.equal(getattr(a, side)[name], getattr(b, side)[name])
    assert a.x1["rots"].shape == (9, 3, 3)  # type: ignore[call-overload, index]


def test_batches_hold_true_pairs_and_every_pair_once_in_an_epoch() -> None:
    x0 = torch.arange(12.0).unsqueeze(-1)
    pairs = Pairs(x0, x0 + 100, cond={"row": torch.arange(12)})
    batches = pairs.batches(4, generator=gen())
    epoch = [next(batches) for _ in range(3)]
    for batch in epoch:
        assert torch.equal(batch["x"], batch["x0"] + 100)
        assert torch.equal(batch["cond"]["row"].float(), batch["x0"][:, 0])
        assert "mask" not in batch
    assert sorted(torch.cat([b["x0"] for b in epoch]).flatten().tolist()) == list(range(12))
    assert next(pairs.batches(50))["x"].shape == (12, 1)


@pytest.mark.parametrize("sharpness", [0.0, 4.0, 8.0])
def test_u_shaped_times_have_the_density_of_the_formula(sharpness: float) -> None:
    total = quad(lambda t: math.exp(sharpness * t) + math.exp(sharpness * (1 - t)), 0, 1)[0]

    def cdf(t: Any) -> Any:
        if sharpness == 0:
            return t
        return (np.exp(sharpness * t) - np.exp(sharpness * (1 - t)) - 1 + math.exp(sharpness)) / sharpness / total

    t = u_shaped_times(5000, sharpness, generator=gen(), dtype=torch.float64)
    assert bool(((t >= 0) & (t <= 1)).all())
    assert kstest(t.numpy(), cdf).pvalue > 1e-3


CIRCLE = mf.Torus(1)


def modes(n: int, seed: int) -> Tensor:
    """Three narrow clusters on one side of a circle of length 1."""
    centre = 0.15 * (torch.arange(n) % 3).unsqueeze(-1) + 0.05
    return CIRCLE.exp(centre, 0.02 * torch.randn(n, 1, generator=gen(seed)))


@pytest.fixture(scope="module")
def base() -> mf.Flow:
    """A small flow to the clusters."""
    torch.manual_seed(0)
    flow = mf.Flow(CIRCLE, mf.nn.TangentMLP(CIRCLE, 64, 3))
    optimizer = torch.optim.AdamW(flow.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    generator = gen()
    for step in range(500):
        loss = flow.loss(modes(258, step), generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return flow.eval()


@pytest.mark.parametrize("times", ["uniform", "u_shaped"])
def test_one_reflow_makes_few_steps_enough_and_keeps_the_law(base: mf.Flow, times: Any) -> None:
    pairs = make_pairs(base, 4000, steps=40, method="midpoint", batch_size=2000, generator=gen(1))
    before = {k: v.clone() for k, v in base.state_dict().items()}
    losses: list[float] = []
    config = ReflowConfig(steps=400, batch_size=256, learning_rate=2e-3, ema=0.99, times=times)
    faster = reflow(base, pairs, config, generator=gen(2), callback=lambda _, loss: losses.append(loss))
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    assert len(losses) == 4 and not faster.training
    truth = modes(600, 100)
    x0 = base.draw_source((600,), generator=gen(3))

    def w2(flow: mf.Flow, steps: int) -> float:
        value = wasserstein(flow.sample(x0=x0, steps=steps), truth, CIRCLE, 2.0)
        assert isinstance(value, float)
        return value

    own = make_pairs(faster, 1000, steps=40, method="midpoint", generator=gen(4))
    assert number(straightness(faster, own)) < 0.25 * number(straightness(base, pairs))  # type: ignore[arg-type]
    assert w2(faster, 1) < 0.5 * w2(base, 1)
    assert w2(faster, 50) < w2(base, 50) + 0.02


def test_reflow_trains_on_the_pairs_alone_at_times_of_the_flow(base: mf.Flow) -> None:
    """No coupling may re-pair them, no source point is drawn, and U-shaped times keep to the flow's range."""

    @dataclass(frozen=True)
    class Refuses:
        def __call__(self, x0: Any, x1: Any, **_: Any) -> tuple[Any, Any]:
            raise AssertionError("the coupling was asked")

    net = mf.nn.TangentMLP(CIRCLE, 8, 1)
    flow = mf.Flow(CIRCLE, net, coupling=Refuses(), time_range=(0.2, 0.6), time_warp=mf.Late(0.01))
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(t)
            return self.inner(x, t)

    flow.model = Spy(flow.model)
    pairs = make_pairs(base, 64, steps=2, generator=gen())
    for times in ("uniform", "u_shaped", "warped"):
        reflow(flow, pairs, ReflowConfig(steps=30, batch_size=64, times=times), generator=gen(1))  # type: ignore[arg-type]
    t = torch.stack(seen)
    assert bool(((t >= 0.2) & (t <= 0.6)).all())
    uniform, u_shaped, warped = t.flatten().reshape(3, -1)
    assert kstest(uniform.numpy(), "uniform", (0.2, 0.4)).pvalue > 1e-3
    assert float((u_shaped - 0.4).abs().mean()) > float((uniform - 0.4).abs().mean()) + 0.02
    assert float(warped.mean()) > 0.5


def test_a_flow_of_averaged_targets_can_be_reflowed() -> None:
    """Averages are for independent pairs: the new flow goes without them, the old one keeps them."""
    space = mf.Torus(1)
    flow = mf.Flow(space, mf.nn.TangentMLP(space, 16, 1), path=mf.Geodesic(average_targets=True))
    pairs = Pairs(torch.tensor([[0.0], [0.5]]), torch.tensor([[0.2], [0.6]]))
    faster = reflow(flow, pairs, ReflowConfig(steps=300, batch_size=2, learning_rate=1e-2), generator=gen())
    assert flow.path["x"].average_targets and not faster.path["x"].average_targets
    # The pairs are far from one another, so each has its own velocity; the mean of the two would be 0.15.
    assert torch.allclose(faster.sample(x0=pairs.x0, steps=4), first_tensor(pairs.x1), atol=0.01)


def test_bad_input_says_what_to_do(base: mf.Flow) -> None:
    with pytest.raises(ValueError, match="either n, the number of pairs, or x0"):
        make_pairs(base)
    with pytest.raises(ValueError, match="either n, the number of pairs, or x0"):
        make_pairs(base, 3, x0=torch.zeros(3, 1))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make_pairs(base, 0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        make_pairs(base, 3, batch_size=0)
    pairs = make_pairs(base, 3, steps=1)
    with pytest.raises(ValueError, match="times must be at least 1"):
        straightness(base, pairs, times=0)
    with pytest.raises(ValueError, match="batch size must be at least 1"):
        next(pairs.batches(0))
    for name, value in (("steps", 0), ("learning_rate", 0.0), ("ema", 1.0), ("times", "bathtub"), ("sharpness", -1.0)):
        with pytest.raises(ValueError, match=name):
            ReflowConfig(**{name: value})  # type: ignore[arg-type]
    broken = Pairs(pairs.x0, first_tensor(pairs.x1) * math.nan)
    with pytest.raises(ValueError, match="sample 0 holds NaN"):
        reflow(base, broken, ReflowConfig(steps=2, batch_size=3))
    diverging = copy.deepcopy(base)
    diverging.weights = {"x": math.inf}
    with pytest.raises(FloatingPointError, match=r"reflow: the loss is (inf|nan) at step 1; lower learning_rate"):
        reflow(diverging, pairs, ReflowConfig(steps=1, batch_size=3))


class JointPosterior(nn.Module):
    """Exact posterior of two dependent tokens on a Dirichlet or Fisher-Rao path, from the evidence of each."""

    def __init__(self, law: Tensor, evidence: Any) -> None:
        super().__init__()
        self.law, self.evidence = law, evidence

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        own = self.evidence(x, t)
        joint = self.law.log() + own[:, 0, :, None] + own[:, 1, None, :]
        return torch.stack([joint.logsumexp(2), joint.logsumexp(1)], 1)


class Pairwise(nn.Module):
    """A small network that sees both tokens."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4 * k + 1, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2 * k)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        flat = torch.cat([x, x.clamp_min(1e-4).log()], -1).flatten(1)
        return self.net(torch.cat([flat, t[:, None]], -1)).reshape(x.shape)


@pytest.mark.parametrize("kind", ["dirichlet", "fisher_rao"])
def test_a_student_in_one_step_knows_which_tokens_go_together(kind: str) -> None:
    k = 4
    law = 0.02 + 0.8 * torch.eye(k).roll(1, 0)
    law = law / law.sum()
    space = mf.Simplex(k)
    if kind == "dirichlet":
        path: Any = mf.DirichletPath(most=30.0)
        options: dict[str, Any] = {}
        teacher = mf.Flow(space, nn.Identity(), path=path)
        teacher.model = JointPosterior(law, lambda x, t: 29 * t[:, None, None] * x.clamp_min(1e-30).log())
    else:
        path, options = mf.Geodesic(), {"predicts": "logits"}
        teacher = mf.Flow(space, nn.Identity(), path=path, **options)
        teacher.model = JointPosterior(law, lambda x, t: space.corner_evidence(x, 1 - t[:, None, None]))

    def off(flow: mf.Flow, steps: int) -> float:
        made = flow.sample((20_000, 2), steps=steps, method="midpoint" if steps > 1 else "euler", generator=gen(5))
        token = made.argmax(-1)
        share = torch.bincount(token[:, 0] * k + token[:, 1], minlength=k * k) / len(token)
        return float((share - law.flatten()).abs().sum() / 2)

    torch.manual_seed(0)
    pairs = make_pairs(teacher, (20_000, 2), steps=20, method="midpoint", generator=gen(1))
    student = mf.Flow(space, Pairwise(k), path=path, **options)
    config = ReflowConfig(steps=700, batch_size=512, learning_rate=4e-3, ema=0.99, times="start")
    student = reflow(student, pairs, config, generator=gen(2))
    assert off(teacher, 20) < 0.03
    assert off(teacher, 1) > 0.5  # one step of the teacher draws the two tokens by themselves
    assert off(student, 1) < 0.15


def test_pairs_mean_nothing_to_paths_that_draw_without_the_source() -> None:
    pairs = Pairs(torch.ones(4, 2, 3) / 3, torch.eye(3)[torch.zeros(4, 2, dtype=torch.int64)])
    dirichlet = mf.Flow(mf.Simplex(3), Pairwise(3), path=mf.DirichletPath())
    with pytest.raises(ValueError, match="times='start'"):
        reflow(dirichlet, pairs)
    with pytest.raises(ValueError, match="no function of its source"):
        reflow(mf.Flow(mf.Tokens(3), nn.Identity()), pairs)
