r"""The log-density of a flow: the source's, plus the divergence gathered on the way back.

Along a trajectory :math:`\dot x = v(x, t)` the density changes by :math:`\frac{d}{dt} \log p_t(x_t) = -\mathrm{div}\, v`
(Chen et al. 2018; Mathieu & Nickel 2020 on manifolds), so

.. math:: \log p_1(x_1) = \log p_0(x_0) - \int_0^1 \mathrm{div}\, v(x_t, t)\, dt.

The divergence is the trace of the derivative of v in an orthonormal frame of the tangent space
(:meth:`Manifold.frame_moves`), each column one forward-mode product, or an estimate from random tangents (Hutchinson).

The trajectory needs several velocities a step, the integral of a smooth function of time does not need several
divergences: they are taken on the grid alone, by default at every second time, and integrated with a quadrature of
sixth order. A divergence costs as much as ``dim + 1`` velocities, so this is most of the speed
(benchmarks/likelihood_vs_jacrev.py).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from manifoldflow.numerics import push_along
from manifoldflow.sampling.steps import Step, get_step
from manifoldflow.state import State, expand_mask, fields, first_tensor, like

Velocity = Callable[[State, Tensor], State]
Divergence = Literal["exact", "hutchinson"]

CHUNK = 2**14
"""Elements (samples x set size x directions) that go through the network at once unless told otherwise."""


class Directions(NamedTuple):
    """Tangent directions of a state, and what the derivative of the velocity along them is multiplied with.

    Attributes:
        moves: velocities of the points, ``(D, *shape of the field)`` per field.
        duals: ``(D, *shape of the field's tangents)`` per field.
    """

    moves: dict[str, Tensor]
    duals: dict[str, Tensor]


Pushforward = Callable[[State, Tensor, Directions], tuple[State, dict[str, Tensor]]]
"""(x, t, directions) -> the velocity and its derivatives along all directions, ``(D, ...)`` per field."""


def forward_mode(velocity: Velocity) -> Pushforward:
    """Derivatives of any velocity by forward-mode products."""

    def push(x: State, t: Tensor, directions: Directions) -> tuple[State, dict[str, Tensor]]:
        view = fields(x)
        names = list(view)

        def flat(*values: Tensor) -> tuple[Tensor, ...]:
            made = fields(velocity(like(dict(zip(names, values, strict=True)), x), t))
            return tuple(made[n] for n in names)

        v, dv = push_along(flat, tuple(view[n] for n in names), tuple(directions.moves[n] for n in names))
        return like(dict(zip(names, v, strict=True)), x), dict(zip(names, dv, strict=True))

    return push


def divergence(
    velocity: Velocity,
    spaces: Any,
    x: State,
    t: Tensor,
    *,
    kind: Divergence = "exact",
    probes: int = 1,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    chunk: int = CHUNK,
    push: Pushforward | None = None,
) -> tuple[State, Tensor]:
    r"""A velocity field and its divergence, in the coordinates of :meth:`Manifold.frame_moves`.

    Exact: :math:`\sum_k \langle e_k, D_{e_k} v\rangle` over an orthonormal frame of all elements. Hutchinson: the mean
    of :math:`\langle \epsilon, D_\epsilon v \rangle` over ``probes`` tangents with Rademacher coordinates; its expectation
    is the same (Hutchinson 1989).

    Args:
        velocity: the field, ``(x, t) -> tangents``, differentiable in forward mode.
        spaces: manifold of the state, or a dict of them.
        x: state ``(B, ..., *event)`` per field.
        t: scalar time.
        kind, probes: how the trace is taken.
        mask: bool ``(B, N)`` of real elements.
        generator: of the probes.
        chunk: elements that go through the network at once.
        push: a quicker way to the velocity and its derivatives than :func:`forward_mode`.

    Returns:
        The velocity and the divergence, ``(B,)``.
    """
    make = push or forward_mode(velocity)
    total: Tensor | None = None
    v: Any = None
    at_once = max(1, chunk // max(1, _elements(x)))
    if kind == "hutchinson":
        groups = random_directions(spaces, x, probes, mask, generator, at_once)
    else:
        groups = exact_directions(spaces, x, mask, at_once)
    for directions in groups:
        v, dv = make(x, t, directions)
        part = _batch_sum([(directions.duals[n] * dv[n]).sum(0) for n in dv])
        total = part if total is None else total + part
    assert total is not None
    return v, total / probes if kind == "hutchinson" else total


def exact_directions(spaces: Any, x: State, mask: Tensor | None, most: int) -> list[Directions]:
    """Every frame vector of every element, one at a time per sample, in groups of at most ``most``."""
    view, space_of = fields(x), fields(spaces)
    zeros = {n: torch.zeros_like(v) for n, v in view.items()}
    groups = []
    for name, value in view.items():
        space = space_of[name]
        moves, duals = space.frame_moves(value)
        axis = value.ndim - space.event_ndim
        moves, duals = moves.movedim(axis, 0), duals.movedim(axis, 0)  # (dim, B, ..., event)
        others = {n: torch.zeros_like(_tangent_like(space_of[n], v)) for n, v in view.items() if n != name}
        elements = math.prod(value.shape[1:axis])
        for chosen in torch.arange(elements * moves.shape[0], device=value.device).split(most):
            element, k = chosen // moves.shape[0], chosen % moves.shape[0]
            move, dual = moves[k], duals[k]
            if axis > 1:
                here = torch.nn.functional.one_hot(element, elements).to(value.dtype)
                here = here.reshape(len(chosen), 1, *value.shape[1:axis])
                move, dual = move * expand_mask(here, move), dual * expand_mask(here, dual)
            if space.is_centered:
                move, dual = space.center(move, mask), space.center(dual, mask)
            count = (len(chosen),)
            groups.append(
                Directions(
                    {n: move if n == name else z.expand(count + z.shape) for n, z in zeros.items()},
                    {n: dual if n == name else others[n].expand(count + others[n].shape) for n in view},
                )
            )
    return groups


def random_directions(
    spaces: Any, x: State, probes: int, mask: Tensor | None, generator: torch.Generator | None, most: int
) -> list[Directions]:
    """Tangents with independent coordinates +1 or -1 in the frames of all elements and fields at once."""
    moves, duals = {}, {}
    for name, value in fields(x).items():
        space = fields(spaces)[name]
        move, dual = space.frame_moves(value)
        axis = value.ndim - space.event_ndim
        move, dual = move.movedim(axis, 0), dual.movedim(axis, 0)
        shape = (probes, move.shape[0], *value.shape[:axis])
        sign = torch.randint(0, 2, shape, generator=generator, device=value.device).to(value.dtype) * 2 - 1
        moves[name] = (expand_mask(sign, move.unsqueeze(0)) * move).sum(1)
        duals[name] = (expand_mask(sign, dual.unsqueeze(0)) * dual).sum(1)
        if space.is_centered:
            moves[name], duals[name] = space.center(moves[name], mask), space.center(duals[name], mask)
    return [
        Directions({n: m[at : at + most] for n, m in moves.items()}, {n: d[at : at + most] for n, d in duals.items()})
        for at in range(0, probes, most)
    ]


def log_density_change(
    velocity: Velocity,
    spaces: Any,
    x: State,
    grid: "SolverGrid",
    *,
    method: str | Step = "rk4",
    trace_every: int = 2,
    take: Callable[[State, Tensor], tuple[State, Tensor]],
    recompute: bool = False,
) -> tuple[State, Tensor]:
    r"""Carry ``x`` along a grid and integrate the divergence: :math:`(x(t_N), \int_{t_0}^{t_N} \mathrm{div}\, v\, dt)`.

    Args:
        velocity: the field.
        spaces: manifold of the state, or a dict of them.
        x: state at the first time.
        grid: times, either way round.
        method: integrator of the trajectory.
        trace_every: the divergence is taken at every such time of the grid, and at the last.
        take: ``(x, t) -> (velocity, divergence (B,))``.
        recompute: keep only the states for the backward pass and repeat every step there.
    """
    step = get_step(method)
    last = len(grid.times) - 1
    nodes = trace_nodes(last + 1, trace_every)
    shares = quadrature_weights([grid.clock[i] for i in nodes])
    weights = {i: share * grid.rates[i] for i, share in zip(nodes, shares, strict=True)}
    reference = first_tensor(x)
    times = torch.tensor(grid.times, dtype=reference.dtype, device=reference.device)
    total = torch.zeros(reference.shape[0], dtype=reference.dtype, device=reference.device)

    def move(x: State, t: Tensor, s: Tensor, weight: float | None) -> tuple[State, Tensor | None]:
        if weight is None:
            return step(velocity, spaces, x, t, s), None
        v, div = take(x, t)
        return step(_starting_with(v, velocity), spaces, x, t, s), weight * div

    for i, (t, s) in enumerate(pairwise(times.unbind(0))):
        if recompute:
            x, gained = checkpoint(move, x, t, s, weights.get(i), use_reentrant=False)
        else:
            x, gained = move(x, t, s, weights.get(i))
        total = total if gained is None else total + gained
    _, div = take(x, times[-1])
    return x, total + weights[last] * div


class SolverGrid(NamedTuple):
    """Times of a solver, and the variable in which they are even.

    Where steps shrink towards t = 1 the divergence grows as they do: as a function of the clock, times ``rates``, it stays
    smooth, which quadrature lives by.

    Attributes:
        times: monotone.
        clock: the same in another variable c.
        rates: dt / dc.
    """

    times: list[float]
    clock: list[float]
    rates: list[float]

    @classmethod
    def of(cls, times: Sequence[float]) -> "SolverGrid":
        """Times that are their own clock."""
        return cls(list(times), list(times), [1.0] * len(times))

    def halved(self) -> "SolverGrid":
        """Every other time, and the last."""
        return SolverGrid(*([*column[:-1:2], column[-1]] for column in self))


FEWEST_NODES = 32
"""Intervals between divergences below which all of them are taken: flows of real data change fast towards t = 1."""


def trace_nodes(count: int, every: int) -> list[int]:
    """Indices of the grid at which the divergence is taken: both ends and every ``every``-th between them.

    A grid of few steps gets them all: the quadrature is of order 6, and needs nodes that lie close for that to show.
    """
    if every < 1:
        raise ValueError(f"trace_every must be at least 1, got {every}")
    nodes = list(range(0, count - 1, every)) if count > FEWEST_NODES * every + 1 else list(range(count - 1))
    return [*nodes, count - 1]


def quadrature_weights(nodes: Sequence[float]) -> list[float]:
    """Weights of the integral over distinct monotone ``nodes``: exact up to degree 5, on any spacing (fewer nodes: lower).

    Every interval is integrated by the polynomial through its six nearest nodes.
    """
    t = np.asarray(nodes, dtype=np.float64)
    weights = np.zeros(len(t))
    width = min(6, len(t))
    gauss, share = np.polynomial.legendre.leggauss(3)
    for i in range(len(t) - 1):
        first = min(max(i - (width - 2) // 2, 0), len(t) - width)
        near = t[first : first + width]
        half = 0.5 * (t[i + 1] - t[i])
        at = 0.5 * (t[i + 1] + t[i]) + half * gauss
        for j in range(width):
            others = np.delete(near, j)
            lagrange = np.prod((at[:, None] - others) / (near[j] - others), axis=1)
            weights[first + j] += half * float((share * lagrange).sum())
    return weights.tolist()


def _starting_with(v: State, velocity: Velocity) -> Velocity:
    """``velocity``, whose first value is known already: the divergence was taken at the same place."""
    known = [v]

    def wrapped(x: State, t: Tensor) -> State:
        return known.pop() if known else velocity(x, t)

    return wrapped


def _tangent_like(space: Any, value: Tensor) -> Tensor:
    batch = value.shape[: value.ndim - space.event_ndim]
    return value.new_zeros(batch + tuple(space.frame_moves(value)[1].shape[len(batch) + 1 :]))


def _batch_sum(values: Sequence[Tensor]) -> Tensor:
    """Sum over everything but the first axis, and over the fields."""
    return torch.stack([v.flatten(1).sum(-1) if v.ndim > 1 else v for v in values]).sum(0)


def _elements(x: State) -> int:
    """Samples times the size of a set."""
    value = first_tensor(x)
    return math.prod(value.shape[:2]) if value.ndim > 2 else value.shape[0]


__all__ = [
    "CHUNK",
    "Directions",
    "divergence",
    "exact_directions",
    "forward_mode",
    "log_density_change",
    "quadrature_weights",
    "trace_nodes",
]
