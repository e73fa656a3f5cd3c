"""The loop and the integrators: orders, time grids, pinning."""

import functools
import math

import pytest
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.rotation import quaternion_to_matrix
from manifoldflow.sampling import linear_grid, ode_kernel, score, simulate

DOUBLE = torch.float64
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
SPACES = [mf.Sphere(2), mf.Torus(3, period=2 * math.pi), mf.SO3(), mf.UnitQuaternion()]


def field_on(space: Manifold):
    """A smooth field that depends on time and whose directions at different points and times do not commute."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        if isinstance(space, mf.Torus):
            return torch.stack(
                [x[..., 1].sin() + t, (x[..., 2] + 2 * t).cos(), x[..., 0].sin() * x[..., 1].cos() - t * t], -1
            )
        if isinstance(space, mf.Sphere):
            ambient = torch.stack([(2 * t).sin() + x[..., 1], x[..., 2] ** 2 - t, 1 + x[..., 0] * t], -1)
            return space.to_tangent(x, ambient)
        r = quaternion_to_matrix(x) if x.shape[-1] == 4 else x  # even in q, so a field on rotations
        return torch.stack([r[..., 0, 1] + (3 * t).sin(), 1 - t * r[..., 2, 0], r[..., 1, 1] * (2 * t).cos()], -1)

    return velocity


def start_on(space: Manifold) -> Tensor:
    return space.sample_uniform((4,), generator=torch.Generator().manual_seed(3), dtype=DOUBLE)


def flow_to(space: Manifold, x: Tensor, method: str, steps: int, start: float = 0.0, end: float = 1.0) -> Tensor:
    return simulate(ode_kernel(field_on(space), space, method), x, linear_grid(steps, start, end, dtype=DOUBLE))


@functools.cache
def reference_on(space: Manifold) -> Tensor:
    return flow_to(space, start_on(space), "rk4", 128)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("method", ORDERS)
def test_global_error_falls_with_the_order_of_the_method(space, method):
    x = start_on(space)
    reference = reference_on(space)
    steps = [8, 16, 32]
    errors = torch.stack([space.dist(flow_to(space, x, method, n), reference).max() for n in steps]).log2()
    logs = torch.tensor(steps, dtype=DOUBLE).log2()
    slope = -((logs - logs.mean()) * (errors - errors.mean())).sum() / ((logs - logs.mean()) ** 2).sum()
    assert abs(float(slope) - ORDERS[method]) < 0.25
    assert errors[-1] < math.log2({1: 0.2, 2: 1e-2, 4: 1e-4}[ORDERS[method]])


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_forward_then_backward_returns_to_the_start(space):
    x = start_on(space)
    there = flow_to(space, x, "rk4", 40)
    assert space.dist(there, x).min() > 0.1
    assert space.dist(flow_to(space, there, "rk4", 40, start=1.0, end=0.0), x).max() < 1e-5


class Clock:
    """dx/dt = 1, and a count of calls."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.times.append(float(t))
        return torch.ones_like(x)


@pytest.mark.parametrize(
    "start, end, steps", [(0.5, 1.0, 5), (0.2, 0.7, 5), (1.0, 0.0, 10), (0.0, 1.0, 1), (0.3, 0.3001, 1), (0.0, 1.0, 10)]
)
@pytest.mark.parametrize("method", ORDERS)
def test_a_grid_moves_exactly_from_its_start_to_its_end(start, end, steps, method):
    clock = Clock()
    x = simulate(
        ode_kernel(clock, mf.Euclidean(1), method),
        torch.zeros(3, 1, dtype=DOUBLE),
        linear_grid(steps, start, end, dtype=DOUBLE),
    )
    assert (x - (end - start)).abs().max() < 1e-14
    assert clock.times[0] == start
    assert len(clock.times) == steps * {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}[method]


@pytest.mark.parametrize("n", [49, 98, 103, 107, 196, 197])
def test_step_one_over_n_makes_n_network_calls_and_ends_at_one(n):
    clock = Clock()
    x = simulate(ode_kernel(clock, mf.Euclidean(1)), torch.zeros(1, 1), linear_grid(n))
    assert len(clock.times) == n
    assert (x - 1).abs().max() < 2e-6
    assert linear_grid(n)[-1] == 1


def test_an_uneven_grid_is_followed_as_given():
    clock = Clock()
    simulate(ode_kernel(clock, mf.Euclidean(1)), torch.zeros(1, 1, dtype=DOUBLE), [0.0, 0.5, 0.75, 1.0])
    assert clock.times == [0.0, 0.5, 0.75]


def test_half_precision_states_keep_a_fine_time_grid():
    clock = Clock()
    simulate(ode_kernel(clock, mf.Euclidean(1)), torch.zeros(1, 1, dtype=torch.bfloat16), linear_grid(1000))
    assert len(set(clock.times)) == 1000


@pytest.mark.parametrize("times", [[0.5], [], [[0.0, 1.0]]])
def test_a_grid_that_is_not_one_is_refused(times):
    with pytest.raises(ValueError, match="at least 2 entries"):
        simulate(ode_kernel(Clock(), mf.Euclidean(1)), torch.zeros(1, 1), times)


def test_zero_steps_and_an_empty_interval_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        linear_grid(0)
    with pytest.raises(ValueError, match="must differ"):
        linear_grid(3, 0.5, 0.5)


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'euler2'.*euler, midpoint"):
        ode_kernel(Clock(), mf.Euclidean(1), "euler2")


STATE_SPACES = {"trans": mf.Euclidean(3), "rots": mf.SO3()}


def state_of(batch: int, n: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"trans": torch.randn(batch, n, 3, generator=g), "rots": mf.SO3().sample_uniform((batch, n), generator=g)}


def drift(x: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
    return {"trans": x["trans"].roll(1, -1) + t, "rots": x["trans"].tanh() + x["rots"][..., 0]}


@pytest.mark.parametrize("method", ORDERS)
def test_known_elements_come_back_bit_for_bit_at_every_step(method):
    x, known = state_of(2, 5, 0), state_of(2, 5, 1)
    known_mask = torch.tensor([[True, False, True, False, False], [False, False, False, False, True]])
    path = simulate(
        ode_kernel(drift, STATE_SPACES, method), x, linear_grid(4), known=known, known_mask=known_mask, trajectory=True
    )
    for name, value in path.items():
        assert value.shape[0] == 5
        assert torch.equal(value[:, known_mask], known[name][known_mask].expand(5, *known[name][known_mask].shape))
        assert not torch.equal(value[-1][~known_mask], x[name][~known_mask])


def test_known_may_cover_some_fields_only():
    x, known = state_of(2, 5, 0), {"rots": state_of(2, 5, 1)["rots"]}
    out = simulate(ode_kernel(drift, STATE_SPACES), x, linear_grid(3), known=known)
    assert torch.equal(out["rots"], known["rots"])
    assert not torch.equal(out["trans"], x["trans"])


def test_an_unknown_known_field_is_refused():
    with pytest.raises(ValueError, match=r"'frames'.*trans, rots"):
        simulate(ode_kernel(drift, STATE_SPACES), state_of(1, 2, 0), linear_grid(2), known={"frames": torch.zeros(1)})


@pytest.mark.parametrize("method", ORDERS)
def test_inputs_are_not_changed(method):
    x, known = state_of(2, 5, 0), state_of(2, 5, 1)
    copies = [{n: v.clone() for n, v in s.items()} for s in (x, known)]
    times = linear_grid(3)
    simulate(
        ode_kernel(drift, STATE_SPACES, method), x, times, known=known, known_mask=torch.ones(2, 5, dtype=torch.bool)
    )
    for state, copy in zip((x, known), copies, strict=True):
        assert all(torch.equal(state[n], copy[n]) for n in state)
    assert torch.equal(times, linear_grid(3))


def test_trajectory_begins_with_the_start_and_ends_with_the_result():
    x = start_on(mf.Sphere(2))
    kernel = ode_kernel(field_on(mf.Sphere(2)), mf.Sphere(2))
    path = simulate(kernel, x, linear_grid(6), trajectory=True)
    assert torch.equal(path[0], x)
    assert torch.equal(path[-1], simulate(kernel, x, linear_grid(6)))
    assert path.shape == (7, *x.shape)


def test_the_callback_counts_steps_from_one():
    seen = []
    simulate(
        ode_kernel(Clock(), mf.Euclidean(1)),
        torch.zeros(1, 1),
        linear_grid(3),
        callback=lambda k, x: seen.append((k, round(float(x), 4))),
    )
    assert seen == [(1, 0.3333), (2, 0.6667), (3, 1.0)]


class Still(torch.nn.Module):
    """Predicts a fixed endpoint."""

    def __init__(self, goal: Tensor) -> None:
        super().__init__()
        self.register_buffer("goal", goal)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.goal.expand_as(x)


def test_samples_repeat_with_the_generator_and_do_not_touch_the_global_one():
    flow = mf.Flow(mf.Sphere(2), Still(torch.tensor([0.0, 0.0, 1.0])))
    before = torch.get_rng_state()
    first, second, other = (flow.sample(5, steps=3, generator=torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("space", [mf.Euclidean(3), mf.Sphere(2), mf.SO3()], ids=str)
def test_every_method_lands_on_a_fixed_endpoint_prediction(space, method):
    goal = space.origin()
    flow = mf.Flow(
        space, Still(goal), predicts="endpoint", source=None if isinstance(space, mf.Euclidean) else mf.Uniform()
    )
    out = flow.sample(6, steps=4, method=method, generator=torch.Generator().manual_seed(0))
    assert space.dist(out, goal.expand_as(out)).max() < 2e-6


@pytest.mark.parametrize("method", ORDERS)
def test_a_step_back_from_the_end_does_not_leap_across_the_pole(method):
    """At t = 1 an endpoint prediction has nothing left to go, and a velocity of (prediction - x) / 0."""
    flow = mf.Flow(mf.Euclidean(3), Still(torch.zeros(3)), predicts="endpoint")
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flow.sample(x0=x, times=[1.0, 0.9], method=method), x)


@pytest.mark.parametrize("names", ["a", "ab"])
def test_an_element_is_shown_as_clean_only_if_all_of_it_is_known(names):
    seen = []

    class Listens(torch.nn.Module):
        def forward(self, x, t):
            seen.append(t)
            return x

    flow = mf.Flow({n: mf.Euclidean(2) for n in "ab"}, Listens(), predicts="endpoint", pin=lambda mask, g: mask & False)
    known_mask = torch.tensor([[True, False, True]]).expand(2, 3)
    known = {n: torch.full((2, 3, 2), 7.0) for n in names}
    made = flow.sample((2, 3), times=[0.0, 0.5, 0.9], known=known, known_mask=known_mask)
    for t, time in zip(seen, (0.0, 0.5), strict=True):
        t = t if t.ndim == 2 else t.unsqueeze(-1).expand(2, 3)
        clean = torch.ones_like(t) if names == "ab" else torch.full_like(t, time)
        torch.testing.assert_close(t, torch.where(known_mask, clean, time))
    for n in "ab":
        assert bool((made[n][known_mask] == 7.0).all()) == (n in names)


def test_lengths_are_the_numbers_of_real_elements():
    flow = mf.Flow(mf.Euclidean(3), Still(torch.zeros(3)), predicts="endpoint")
    x, mask = flow.sample(lengths=[3, 1, 2], steps=1)
    assert x.shape == (3, 3, 3) and mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]


class Told(torch.nn.Module):
    """Keeps the mask and the condition of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Tensor | None, Tensor | None]] = []

    def forward(self, x, t, *, mask=None, cond=None):
        self.told.append((mask, cond))
        if not isinstance(x, dict):
            return torch.zeros(*x.shape, 4) if x.ndim == 2 else torch.zeros_like(x)
        return {"point": torch.zeros_like(x["point"]), "token": torch.zeros(*x["token"].shape, 4)}


TOKENS, LINE = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 2)


@pytest.mark.parametrize(
    "spaces, measure",
    [
        (mf.Tokens(4), lambda f, **o: f.elbo(TOKENS, samples=2, **o)),
        (mf.Tokens(4, mask=True), lambda f, **o: f.elbo(TOKENS, samples=2, **o)),
        (mf.Euclidean(2), lambda f, **o: f.log_prob(LINE, steps=2, **o)),
        (mf.Euclidean(2), lambda f, **o: score(f, LINE, torch.tensor(0.5), **o)),
        (
            {"point": mf.Euclidean(2), "token": mf.Tokens(4)},
            lambda f, **o: f.log_prob_bound({"point": LINE, "token": TOKENS}, samples=1, steps=2, **o),
        ),
    ],
    ids=["elbo", "elbo of masked tokens", "log_prob", "score", "log_prob_bound"],
)
def test_every_measure_tells_the_model_mask_and_condition(spaces, measure):
    model, mask, cond = Told(), torch.tensor([[True, True, True], [True, False, False]]), torch.tensor([1.0, 2.0])
    measure(mf.Flow(spaces, model), mask=mask, cond=cond)
    assert model.told
    for seen, condition in model.told:
        assert seen is not None and torch.equal(seen, mask)
        assert condition is not None and torch.equal(condition, cond)


class Wobbly(Still):
    """An endpoint prediction with an error that depends on where it is asked: what a network does."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.goal + 0.05 * (7 * x).sin()


@pytest.mark.parametrize("method", ["midpoint", "heun", "rk4"])
def test_the_pole_of_an_endpoint_prediction_does_not_amplify_its_error(method):
    flow = mf.Flow(mf.Euclidean(3), Wobbly(torch.zeros(3)), predicts="endpoint")
    out = flow.sample(50, steps=20, method=method, generator=torch.Generator().manual_seed(0))
    assert out.abs().max() < 0.06
