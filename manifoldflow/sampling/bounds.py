"""Bounds on the log-probability of tokens, and of states of tokens and points."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from manifoldflow.field import per_element
from manifoldflow.noising import draw_source, without_padding
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
    x = without_padding(flow, x, mask)
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

    Of the sampler with these steps: given the tokens at all of its times, :math:`z_0, \dots, z_n`, the points follow an ordinary
    differential equation, which can be solved backward from the data. So with trajectories drawn from q, the conditional process
    of the tokens given the data,

    .. math:: \log p(x_n, z_n) \ge E_q \Big[ \log p_0(x_0) - \int_0^1 \mathrm{div}\, v(x_t, z_t, t)\, dt
        + \sum_i \log \frac{p(z_{i+1} | z_i, x_i)}{q(z_{i+1} | z_i, z_n)} \Big].

    The jumps have to be scored where they happen: the points on the way depend on all of the tokens' trajectory, so the mean over
    the times of a jump that :meth:`manifoldflow.Flow.elbo` uses is not allowed here.
    """
    x = without_padding(flow, x, mask)
    first, view = first_tensor(x), fields(x)
    moving = [n for n in view if flow.path[n].is_flow]
    tokens = [n for n in view if n not in moving]
    masks = {n: flow.fields[n].spread(mask) for n in view}
    dtype = float_dtype(x)
    latest = 0.99 if any(flow.path[n].has_pole() for n in moving) else 1.0
    left = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=first.device)
    grid = (1 - left.square()).to(dtype)  # rising, and finest at the data
    spaces = {n: flow.path[n].space for n in moving}
    shapes = {n: tuple(v.shape[: v.ndim - flow.path[n].space.event_ndim]) for n, v in view.items()}
    values = []
    for _ in range(samples):
        start = draw_source(flow, shapes, masks=masks, generator=generator, dtype=dtype, device=first.device)
        states = [{n: start[n] for n in tokens}]
        total: Any = torch.zeros(first.shape[0], dtype=torch.float64, device=first.device)
        for t, s in pairwise(grid.unbind(0)):
            now, after = states[-1], {}
            for n in tokens:
                path, known = flow.path[n], flow.path[n].certain(view[n], states[-1][n])
                after[n] = path.advance(known, now[n], t, s, mask=masks[n], generator=generator).x
                drawn = path.log_prob(known, now[n], after[n], t, s).double()
                total = total - per_element(drawn, masks[n], first)
            states.append(after)
        at = {n: view[n] for n in moving}
        for i in range(steps - 1, -1, -1):
            held = {n: where_mask(masks[n], states[i][n], view[n]) for n in tokens}

            def velocity(part: State, t: Tensor, held: dict[str, Tensor] = held) -> State:
                made = fields(flow.velocity({**held, **fields(part)}, t, mask=mask, cond=cond, names=moving))
                return {n: made[n] for n in moving}

            end, begin = grid[i + 1].clamp_max(latest), grid[i].clamp_max(latest)
            half = 0.5 * (begin - end)
            v = fields(velocity(at, end))
            middle = {n: spaces[n].exp(at[n], half * v[n]) for n in moving}
            pushed, div = divergence(velocity, spaces, middle, end + half, kind=kind, mask=mask, generator=generator)
            total = total + (2 * half * div).double()
            back = {n: spaces[n].transport(middle[n], fields(pushed)[n], at[n]) for n in moving}
            at = {n: spaces[n].exp(at[n], 2 * half * back[n]) for n in moving}
            time = grid[i].expand(first.shape[0])
            shown = {n: flow.fields[n].time(time) for n in view} if flow.clocks is not None else time
            pred = fields(flow.predict({**held, **at}, shown, mask=mask, cond=cond))
            for n in tokens:
                made = flow.path[n].log_prob(pred[n], states[i][n], states[i + 1][n], grid[i], grid[i + 1])
                total = total + per_element(made.double(), masks[n], first)
        values.append(total + source_log_prob(flow, at, {n: view[n] for n in moving}, mask))
    stacked = torch.stack(values)
    return stacked.mean(0).to(dtype), standard_error(stacked).to(dtype)


def standard_error(values: Tensor) -> Tensor:
    """Of the mean over the first axis; NaN of one value."""
    if len(values) < 2:
        return torch.full_like(values[0], torch.nan)
    return values.std(0) / len(values) ** 0.5
