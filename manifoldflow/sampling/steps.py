r"""Integrators of a velocity field on manifolds: one step from time t to s, in either direction.

Each takes ``velocity(x, t) -> tangent state``, the spaces, the state and the two times, and returns the next state. A
state may have several named fields; every field moves in its own space, all with the same velocity call.

On spheres steps are those of the space around, with a projection after every stage: the field v goes on outside as
v(project(x)), a smooth field whose trajectories from the sphere stay on it, so every order is kept. Elsewhere the
fourth-order step is the classical Runge-Kutta method in normal coordinates around the current point: with
:math:`x = \exp_{x_n}(w)` the field becomes :math:`w' = (d\exp_{x_n})_w^{-1} v`, an ordinary differential equation in one flat
space, so the order is kept exactly (Munthe-Kaas 1999, generalised from groups to any manifold with ``dexp_inv``).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifoldflow.manifolds.base import expand_time
from manifoldflow.state import SINGLE, State, fields, like, map_state

Velocity = Callable[[State, Tensor], State]
Step = Callable[[Velocity, Any, State, Tensor, Tensor], State]


def fields_like(spaces: Any, x: State) -> Any:
    """The spaces in the shape of the state (a bare space for a bare tensor)."""
    return like(fields(spaces), x)


def euler(velocity: Velocity, spaces: Any, x: State, t: Tensor, s: Tensor) -> State:
    """Geodesic Euler, order 1: exp_x(h v)."""
    v = velocity(x, t)
    if isinstance(x, Tensor) and isinstance(v, Tensor):
        # The commonest case, kept free of dictionaries: a step of a small batch costs little more than its launches.
        return fields(spaces)[SINGLE].exp(x, (s - t) * v)
    return _moved_by_exp(spaces, x, s - t, v)


def _moved_by_exp(spaces: Any, x: State, scale: Tensor, v: State) -> State:
    return map_state(
        lambda space, a, u: space.exp(a, expand_time(scale, u, space.tangent_ndim) * u), fields_like(spaces, x), x, v
    )


def midpoint(velocity: Velocity, spaces: Any, x: State, t: Tensor, s: Tensor) -> State:
    """Midpoint, order 2: the velocity of the half step, taken at x."""
    h = s - t
    middle = _moved(spaces, x, 0.5 * h, velocity(x, t))
    return _moved(spaces, x, h, _taken(spaces, middle, velocity(middle, t + 0.5 * h), x))


def heun(velocity: Velocity, spaces: Any, x: State, t: Tensor, s: Tensor) -> State:
    """Heun, order 2: the mean of both ends' velocities, the second taken at x."""
    h = s - t
    first = velocity(x, t)
    end = _moved(spaces, x, h, first)
    second = _taken(spaces, end, velocity(end, s), x)
    return _moved(spaces, x, 0.5 * h, map_state(torch.add, first, second))


def rk4(velocity: Velocity, spaces: Any, x: State, t: Tensor, s: Tensor) -> State:
    """Fourth order: the classical Runge-Kutta method, four velocity calls."""
    h = s - t
    half = 0.5 * h

    def slope(scale: Tensor, k: State, time: Tensor) -> State:
        return _pulled(spaces, x, scale, k, velocity(_moved(spaces, x, scale, k), time))

    k1 = velocity(x, t)
    k2 = slope(half, k1, t + half)
    k3 = slope(half, k2, t + half)
    k4 = slope(h, k3, s)
    return _moved(spaces, x, h / 6, map_state(_weighted, k1, k2, k3, k4))


def _weighted(k1: Tensor, k2: Tensor, k3: Tensor, k4: Tensor) -> Tensor:
    return torch.add(k1 + k4, k2 + k3, alpha=2)


def _moved(spaces: Any, x: State, scale: Tensor, k: State) -> State:
    """Where ``scale * k`` leads."""
    if isinstance(x, Tensor) and isinstance(k, Tensor):
        return _move_one(fields(spaces)[SINGLE], x, scale, k)
    return map_state(lambda space, a, u: _move_one(space, a, scale, u), fields_like(spaces, x), x, k)


def _move_one(space: Any, x: Tensor, scale: Tensor, k: Tensor) -> Tensor:
    if space.steps_by_projection and scale.ndim == 0 and k.dtype == x.dtype:
        return space.project(torch.addcmul(x, k, scale.to(x.dtype)))
    return space.exp(x, expand_time(scale, k, space.tangent_ndim) * k)


def _taken(spaces: Any, y: State, v: State, x: State) -> State:
    """A velocity at y as one at x."""
    return map_state(
        lambda space, b, u, a: u if space.steps_by_projection else space.transport(b, u, a),
        fields_like(spaces, x),
        y,
        v,
        x,
    )


def _pulled(spaces: Any, x: State, scale: Tensor, k: State, v: State) -> State:
    """A velocity where ``scale * k`` leads, in the coordinates in which the step is straight."""
    return map_state(
        lambda space, a, u, b: (
            b if space.steps_by_projection else space.dexp_inv(a, expand_time(scale, u, space.tangent_ndim) * u, b)
        ),
        fields_like(spaces, x),
        x,
        k,
        v,
    )


METHODS: dict[str, Step] = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4}


def get_step(method: str | Step) -> Step:
    """A step by name, or the given callable."""
    if callable(method):
        return method
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    return METHODS[method]
