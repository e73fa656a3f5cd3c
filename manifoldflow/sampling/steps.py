r"""Integrators of a velocity field on manifolds: one step from time t to s, in either direction.

Each takes ``velocity(x, t) -> tangent state``, the spaces, the state and the two times, and returns the next state. A
state may have several named fields; every field moves in its own space, all with the same velocity call.

The fourth-order step is the classical Runge-Kutta method in normal coordinates around the current point: with
:math:`x = \exp_{x_n}(w)` the field becomes :math:`w' = (d\exp_{x_n})_w^{-1} v`, an ordinary differential equation in one
flat space, so the order is kept exactly (Munthe-Kaas 1999, generalised from groups to any manifold with ``dexp_inv``).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifoldflow.manifolds.base import expand_time
from manifoldflow.state import SINGLE, State, fields, like, map_state

Velocity = Callable[[State, Tensor], State]
Step = Callable[[Velocity, Any, State, Tensor, Tensor], State]


def _combine(spaces: Any, scale: Tensor, *terms: tuple[float, State]) -> State:
    """scale * sum of weight_i * tangent_i, field by field."""
    out = {}
    for name in fields(terms[0][1]):
        parts = [(weight, fields(tangent)[name]) for weight, tangent in terms]
        total = parts[0][1] if parts[0][0] == 1 else parts[0][0] * parts[0][1]
        for weight, tangent in parts[1:]:
            total = torch.add(total, tangent, alpha=weight)
        out[name] = expand_time(scale, total, fields(spaces)[name].tangent_ndim) * total
    return like(out, terms[0][1])


def _exp(spaces: Any, x: State, u: State) -> State:
    return map_state(lambda space, a, b: space.exp(a, b), fields_like(spaces, x), x, u)


def fields_like(spaces: Any, x: State) -> Any:
    """The spaces in the shape of the state (a bare space for a bare tensor)."""
    return like(fields(spaces), x)


def euler(velocity: Velocity, spaces: Any, x: State, t: Tensor, s: Tensor) -> State:
    """Geodesic Euler, order 1: exp_x(h v)."""
    v = velocity(x, t)
    if isinstance(x, Tensor) and isinstance(v, Tensor):
        # The commonest case, kept free of dictionaries: a step of a small batch costs little more than its launches.
        return fields(spaces)[SINGLE].exp(x, (s - t) * v)
    return _exp(spaces, x, _combine(spaces, s - t, (1.0, v)))


def midpoint(velocity: Velocity, spaces: Any, x: State, t: Tensor, s: Tensor) -> State:
    """Geodesic midpoint, order 2: the velocity of the half step, transported back to x."""
    h = s - t
    middle = _exp(spaces, x, _combine(spaces, h, (0.5, velocity(x, t))))
    v = velocity(middle, t + 0.5 * h)
    v = map_state(lambda space, m, u, a: space.transport(m, u, a), fields_like(spaces, x), middle, v, x)
    return _exp(spaces, x, _combine(spaces, h, (1.0, v)))


def heun(velocity: Velocity, spaces: Any, x: State, t: Tensor, s: Tensor) -> State:
    """Geodesic Heun, order 2: the mean of both ends' velocities, the second transported back to x."""
    h = s - t
    first = velocity(x, t)
    end = _exp(spaces, x, _combine(spaces, h, (1.0, first)))
    second = velocity(end, s)
    second = map_state(lambda space, m, u, a: space.transport(m, u, a), fields_like(spaces, x), end, second, x)
    return _exp(spaces, x, _combine(spaces, h, (0.5, first), (0.5, second)))


def rk4(velocity: Velocity, spaces: Any, x: State, t: Tensor, s: Tensor) -> State:
    """Fourth order: Runge-Kutta in normal coordinates at x, four velocity calls."""
    h = s - t

    def slope(w: State, time: Tensor) -> State:
        v = velocity(_exp(spaces, x, w), time)
        return map_state(lambda space, a, b, u: space.dexp_inv(a, b, u), fields_like(spaces, x), x, w, v)

    k1 = velocity(x, t)
    k2 = slope(_combine(spaces, h, (0.5, k1)), t + 0.5 * h)
    k3 = slope(_combine(spaces, h, (0.5, k2)), t + 0.5 * h)
    k4 = slope(_combine(spaces, h, (1.0, k3)), s)
    return _exp(spaces, x, _combine(spaces, h, (1 / 6, k1), (1 / 3, k2), (1 / 3, k3), (1 / 6, k4)))


METHODS: dict[str, Step] = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4}


def get_step(method: str | Step) -> Step:
    """A step by name, or the given callable."""
    if callable(method):
        return method
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    return METHODS[method]
