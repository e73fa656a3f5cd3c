"""Bounds on the log-probability of tokens, and of states of tokens and points."""

from typing import Any

import torch
from torch import Tensor

from manifoldflow.field import per_element
from manifoldflow.noising import draw_source
from manifoldflow.sampling.density import source_log_prob
from manifoldflow.sampling.likelihood import (
    Divergence,
    divergence,
)
from manifoldflow.state import State, fields, first_tensor, float_dtype, like, where_mask


def token_bound(
    flow: Any, x: State, *, samples: int, mask: Tensor | None, cond: Any, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """See :meth:`manifoldflow.Flow.elbo`: the bound and its standard error, ``(B,)`` each.

    All fields share the times of the first one's path.
    """
    first = first_tensor(x)
    batch, dtype = first.shape[0], float_dtype(x)
    masks = {n: flow.fields[n].spread(mask) for n in fields(x)}
    gained = []
    for i in range(samples):
        u = torch.rand(batch, dtype=dtype, device=first.device, generator=generator)
        t, weight = next(iter(flow.path.values())).bound_times((i + u * (1 - 1e-6)) / samples)
        shapes = {n: tuple(v.shape) for n, v in fields(x).items()}
        x0 = draw_source(flow, shapes, masks=masks, generator=generator, dtype=None, device=first.device)
        points = {n: flow.path[n].sample(x0[n], v, t, generator=generator) for n, v in fields(x).items()}
        xt = like({n: where_mask(masks[n], p.x, fields(x)[n]) for n, p in points.items()}, x)
        shown = {n: flow.fields[n].time(t) for n in points} if flow.clocks is not None else t
        pred = fields(flow.predict(xt, shown, mask=mask, cond=cond))
        total: Any = 0.0
        for name, point in points.items():
            total = total + per_element(flow.path[name].bound(pred[name], point).double(), masks[name], first)
        gained.append(-weight.double() * total)
    values = torch.stack(gained)
    return values.mean(0).to(dtype), standard_error(values).to(dtype)


def mixed_bound(
    flow: Any,
    x: State,
    *,
    samples: int,
    steps: int,
    kind: Divergence,
    mask: Tensor | None,
    cond: Any,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    r"""See :meth:`manifoldflow.Flow.log_prob_bound`: the bound of a state of tokens and points, and its standard error.

    Given a whole trajectory :math:`z_{0:1}` of the tokens the points follow an ordinary differential equation, which can be
    solved backward from the data. So with trajectories drawn from the conditional process of the tokens

    .. math:: \log p(x_1, z_1) \ge E_{z_{0:1} | z_1} \Big[ \log p_0(x_0) - \int_0^1 \mathrm{div}\, v(x_t, z_t, t)\, dt
        - \int_0^1 D(u_t(\cdot | z_t, z_1), \hat u_t(\cdot | x_t, z_t))\, dt \Big].
    """
    first, view = first_tensor(x), fields(x)
    moving = [n for n in view if flow.path[n].is_flow]
    tokens = [n for n in view if n not in moving]
    masks = {n: flow.fields[n].spread(mask) for n in view}
    dtype = float_dtype(x)
    latest = 0.99 if any(flow.path[n].has_pole() for n in moving) else 1.0
    clock = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=first.device)
    grid = (1 - clock.square()).to(dtype)  # falling, and finest at the data, where the tokens' part changes most
    values = []
    for _ in range(samples):
        u = torch.rand(steps, dtype=dtype, device=first.device, generator=generator)
        inside = grid[1:] + u * (grid[:-1] - grid[1:])
        paths = {n: flow.path[n].bridge(view[n], inside, generator=generator) for n in tokens}
        at = {n: view[n] for n in moving}
        total: Any = torch.zeros(first.shape[0], dtype=torch.float64, device=first.device)
        for i, when in enumerate(inside.unbind(0)):
            held = {n: where_mask(masks[n], paths[n][i], view[n]) for n in tokens}

            def velocity(part: State, t: Tensor, held: dict[str, Tensor] = held) -> State:
                made = fields(flow.velocity({**held, **fields(part)}, t, mask=mask, cond=cond, names=moving))
                return {n: made[n] for n in moving}

            spaces = {n: flow.path[n].space for n in moving}
            start, end = grid[i].clamp_max(latest), grid[i + 1].clamp_max(latest)
            half = 0.5 * (end - start)
            v = fields(velocity(at, start))
            middle = {n: spaces[n].exp(at[n], half * v[n]) for n in moving}
            pushed, div = divergence(
                velocity,
                spaces,
                middle,
                start + half,
                kind=kind,
                mask=mask,
                generator=generator,
            )
            total = total + (2 * half * div).double()
            time = when.expand(first.shape[0])
            shown = {n: flow.fields[n].time(time) for n in view} if flow.clocks is not None else time
            pred = fields(flow.predict({**held, **middle}, shown, mask=mask, cond=cond))
            for n in tokens:
                point = flow.path[n].point(held[n], time, view[n])
                part = per_element(flow.path[n].bound(pred[n], point).double(), masks[n], first)
                total = total - (grid[i] - grid[i + 1]).double() * part
            back = fields(pushed)
            at = {n: spaces[n].exp(at[n], 2 * half * spaces[n].transport(middle[n], back[n], at[n])) for n in moving}
        part_flow = {n: view[n] for n in moving}
        values.append(total + source_log_prob(flow, at, part_flow, mask))
    stacked = torch.stack(values)
    return stacked.mean(0).to(dtype), standard_error(stacked).to(dtype)


def standard_error(values: Tensor) -> Tensor:
    """Of the mean over the first axis; NaN of one value."""
    if len(values) < 2:
        return torch.full_like(values[0], torch.nan)
    return values.std(0) / len(values) ** 0.5
