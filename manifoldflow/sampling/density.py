"""The exact density of a flow: grids, the solve back to the source, and the source there."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from manifoldflow.field import nodes_of, per_element
from manifoldflow.noising import without_padding
from manifoldflow.sampling.adaptive import Adaptive, log_density_change_adaptive
from manifoldflow.sampling.cover import Cover
from manifoldflow.sampling.likelihood import (
    Directions,
    Divergence,
    SolverGrid,
    divergence,
    log_density_change,
)
from manifoldflow.sampling.steps import Step
from manifoldflow.sampling.timegrid import linear_grid
from manifoldflow.state import SINGLE, State, fields, first_tensor, map_cond, map_state


def backward_grid(flow: Any, steps: int, times: Tensor | Sequence[float] | None, t_max: float | None) -> SolverGrid:
    """The grid from the data back to the source.

    Raises:
        ValueError: it does not fall, or starts elsewhere than in (0, 1].
    """
    if times is None:
        start = t_max if t_max is not None else (0.99 if any(p.has_pole() for p in flow.path.values()) else 1.0)
        if not 0 < start <= 1:
            raise ValueError(f"t_max must lie in (0, 1], got {start}")
        clock = linear_grid(steps, 1.0, 0.0, dtype=torch.float64)
        warped, rates = start * flow.time_warp.k(clock), start * flow.time_warp.dk(clock)
        return SolverGrid(warped.tolist(), clock.tolist(), rates.tolist())
    grid = torch.as_tensor(times, dtype=torch.float64).tolist()
    if len(grid) < 2 or not all(b < a for a, b in pairwise(grid)):
        raise ValueError("times must decrease, from the time of the data (1) to that of the source (0)")
    return SolverGrid.of(grid)


def exact_log_prob(
    flow: Any,
    x: State,
    *,
    grid: SolverGrid,
    method: str | Step | Adaptive,
    kind: Divergence,
    probes: int,
    trace_every: int,
    mask: Tensor | None,
    cond: Any,
    generator: torch.Generator | None,
    with_graph: bool,
    return_error: bool,
    chunk: int,
) -> Any:
    """See :meth:`manifoldflow.Flow.log_prob`."""
    first = first_tensor(x)
    if set(fields(x)) != set(flow.path):
        raise ValueError(f"log_prob needs all fields of the flow, {list(flow.path)}, got {list(fields(x))}")
    if drawn := [n for n, p in flow.path.items() if not p.is_flow]:
        advice = "log_prob_bound(x)" if len(drawn) < len(flow.path) else "elbo(x)"
        raise ValueError(f"tokens (field {drawn[0]!r}) have no exact log_prob; {advice} is a bound on it")
    plans: list[tuple[SolverGrid, Any]] = [(grid, method)]
    if return_error and isinstance(method, Adaptive):
        plans = [(grid, method._replace(rtol=0.1 * method.rtol, atol=0.1 * method.atol)), (grid, method)]
    elif return_error:
        if len(grid.times) < 3:
            raise ValueError("return_error compares with half as many steps, so it needs at least 2")
        plans = [(grid, method), (grid.halved(), method)]
    nodes = nodes_of(x, flow.fields)
    size = max(1, chunk // (nodes[1] if len(nodes) > 1 else 1))
    values = []
    with torch.set_grad_enabled(with_graph), torch.autocast(first.device.type, enabled=False):
        check_points(flow, x, mask)
        x = without_padding(flow, x, mask)
        for plan, solver in plans:
            parts = [
                _solve(flow, part, plan, solver, kind, probes, trace_every, m, c, generator, chunk, with_graph)
                for part, m, c in in_parts(x, mask, cond, size)
            ]
            values.append(torch.cat(parts))
    if first.device.type == "cpu" and (outside := int((values[0] == -torch.inf).sum())):
        warnings.warn(
            f"log_prob: the trajectories of {outside} of {first.shape[0]} points come from outside of the space, so their "
            "density is 0; a flow that lets trajectories across its walls has a density that integrates to less than 1",
            stacklevel=4,
        )
    return (values[0], (values[0] - values[1]).abs()) if return_error else values[0]


def check_points(flow: Any, x: State, mask: Tensor | None) -> None:
    """Raise unless every real element lies in its space; reads the values once, at the door."""
    for name, value in fields(x).items():
        own, seen, space = flow.fields[name].spread(mask), value.detach(), flow.path[name].space
        if not space.is_discrete and space.coordinate_period is not None:
            seen = space.project(seen)  # every representative of a point is valid
        space.check(seen if own is None else seen[own])


def in_parts(x: State, mask: Tensor | None, cond: Any, size: int) -> Iterator[tuple[State, Tensor | None, Any]]:
    """Pieces of a batch of at most ``size`` samples, their conditions with them."""
    batch = first_tensor(x).shape[0]
    if batch <= size:
        yield x, mask, cond
        return
    for at in range(0, batch, size):
        rows = slice(at, at + size)

        def cut(value: Tensor, rows: slice = rows) -> Tensor:
            return value[rows]

        yield map_state(cut, x), None if mask is None else cut(mask), map_cond(cut, cond, batch)


def _solve(
    flow: Any,
    x: State,
    grid: SolverGrid,
    method: Any,
    kind: Divergence,
    probes: int,
    trace_every: int,
    mask: Tensor | None,
    cond: Any,
    generator: torch.Generator | None,
    chunk: int,
    with_graph: bool,
) -> Tensor:
    cover = Cover(flow.spaces)
    velocity = cover.lift(lambda at, when: flow.velocity(at, when, mask=mask, cond=cond))
    spaces, start = cover.spaces, cover.up(x)
    push = None if cover.names else network_push(flow, mask, cond)

    def take(at: State, when: Tensor) -> tuple[State, Tensor]:
        return divergence(
            velocity,
            spaces,
            at,
            when,
            kind=kind,
            probes=probes,
            mask=mask,
            generator=generator,
            chunk=chunk,
            push=push,
        )

    if isinstance(method, Adaptive):
        end, gained = log_density_change_adaptive(spaces, start, grid.times[0], grid.times[-1], method, take)
    else:
        end, gained = log_density_change(
            velocity, spaces, start, grid, method=method, trace_every=trace_every, take=take, recompute=with_graph
        )
    return gained + cover.log_inside(end, mask) + source_log_prob(flow, cover.down(end), x, mask)


def source_log_prob(flow: Any, x0: State, x: State, mask: Tensor | None) -> Tensor:
    """Log-density of the source at ``x0``, in the coordinates in which the divergences are those of ``x``, ``(B,)``."""
    total: Any = 0.0
    for name, value in fields(x0).items():
        space, own = flow.path[name].space, flow.fields[name].spread(mask)
        element = flow.source[name].log_prob(value, mask=own)
        warp = space.log_volume_element(value) - space.log_volume_element(fields(x)[name])
        total = total + per_element(element, None, value) + per_element(warp, own, value)
    return total


def network_push(flow: Any, mask: Tensor | None, cond: Any) -> Any:
    """The network's own derivative along directions, where it has one and its output is the velocity."""
    own = getattr(flow.model, "push_forward", None)
    path = next(iter(flow.path.values()))
    plain = path.predicts == "velocity" and path == path.on_training_clock()
    if own is None or mask is not None or isinstance(flow.spaces, Mapping) or not plain:
        return None

    def push(x: State, t: Tensor, directions: Directions) -> tuple[State, dict[str, Tensor]]:
        time = t.expand(first_tensor(x).shape[0]).to(first_tensor(x).dtype)
        v, dv = own(x, time, directions.moves[SINGLE], **({} if cond is None else {"cond": cond}))
        return v, {SINGLE: dv}

    return push
