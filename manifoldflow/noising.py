"""Noisy states: what is random about a training step, which elements are pinned, and where fields are centred."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from manifoldflow.coupling import Coupling
from manifoldflow.field import Field, edges_of_pairs, nodes_of, pairs_of_edges
from manifoldflow.paths.base import Path, Source
from manifoldflow.paths.schedule import Schedule
from manifoldflow.state import State, expand_mask, fields, first_tensor, float_dtype, like, map_state, where_mask

Pin = Callable[[Tensor, torch.Generator | None], Any]
"""``(mask (B, N), generator) -> bool (B, N)``, the nodes to show clean; or one tensor per field, of its own batch axes."""

Clocks = Mapping[str, str]
"""Which fields share a time: ``{"species": "chemistry", "frac": "structure", "lattice": "structure"}``."""


class Noised(Protocol):
    """What a flow has to have for its states to be noised."""

    fields: dict[str, Field]
    path: dict[str, Path]
    source: dict[str, Source]
    spaces: Any
    coupling: Coupling
    pin: Pin | None
    clocks: Clocks | None
    time_range: tuple[float, float]
    time_warp: Schedule
    self_condition: float
    cond_dropout: float


class Draw(NamedTuple):
    """Everything random about one training step, for a batch.

    Attributes:
        xt: noisy state.
        t: its times as the model sees them: ``(B,)``, per node ``(B, N)``, or one tensor per field.
        points: draws of the paths, one per field.
        x1, mask, cond: the data.
        pinned: bool ``(B, N)`` of the nodes that the model sees clean, or one per field; None for none.
        show_previous: bool scalar on the host: whether the model sees its own first prediction.
        cond_mask: bool ``(B,)``, samples whose condition the model sees, or None for all.
    """

    xt: State
    t: Any
    points: dict[str, Any]
    x1: State
    mask: Tensor | None
    cond: Any
    pinned: Any
    show_previous: Tensor
    cond_mask: Tensor | None = None


def draw(
    flow: Noised,
    x1: State,
    mask: Tensor | None,
    cond: Any,
    x0: State | None,
    t: Any,
    generator: torch.Generator | None,
) -> Draw:
    """The random part of a loss; see :meth:`manifoldflow.Flow.draw`."""
    first = first_tensor(x1)
    batch, device, dtype = first.shape[0], first.device, float_dtype(x1)
    if batch == 0:
        raise ValueError("the batch is empty: it has no samples")
    view = fields(x1)
    check_names(flow, view)
    nodes = nodes_of(view, flow.fields)
    full = mask if mask is not None else torch.ones(nodes, dtype=torch.bool, device=device)
    pinned = None if flow.pin is None else flow.pin(full, generator)
    pins = spread_pins(flow.fields, pinned)
    masks = {n: flow.fields[n].spread(mask) for n in view}
    view = clean_padding(flow, view, masks)
    x1 = like({n: center(flow.path[n].space, v, masks[n], pins[n]) for n, v in view.items()}, x1)
    if t is None:
        t = draw_times(flow, batch, dtype, device, generator)
    if x0 is None:  # stored pairs stay as they are: the coupling made them
        shapes = {n: v.shape[: v.ndim - flow.path[n].space.event_ndim] for n, v in fields(x1).items()}
        drawn = draw_source(flow, shapes, masks=masks, generator=generator, dtype=dtype, device=device)
        x0 = like(drawn, flow.spaces)
        keeps_frame = getattr(flow.coupling, "keeps_frame", False)
        told = {"pinned": pins} if keeps_frame else {}
        coupled, x1 = flow.coupling(x0, x1, spaces=flow.spaces, mask=mask, cond=cond, generator=generator, **told)
        if not keeps_frame and any(p is not None for p in pins.values()):
            # With a pinned part the frame of the data is given, so the source may not be turned towards the rest of it.
            has_pin = torch.stack([p.flatten(1).any(-1) for p in pins.values() if p is not None]).any(0)
            coupled = map_state(lambda a, b: torch.where(expand_mask(has_pin, a), a, b), x0, coupled)
        x0 = coupled
    times = field_times(flow.fields, t, pins, list(fields(x1)))
    points = {n: flow.path[n].sample(fields(x0)[n], v, times[n], generator=generator) for n, v in fields(x1).items()}
    clean = {n: flow.path[n].state_of(v).to(points[n].x.dtype) for n, v in fields(x1).items()}
    xt = {n: where_mask(masks[n], p.x, clean[n]) for n, p in points.items()}
    for n, chosen in pins.items():
        if chosen is not None:  # not every path ends at its data point exactly: the Dirichlet path ends near it
            xt[n] = torch.where(expand_mask(chosen, clean[n]), clean[n], xt[n])
    show = torch.zeros((), dtype=torch.bool)
    if flow.self_condition > 0:
        # One coin for the batch: no host sync on the outcome of a device draw, and half of the batches cost nothing.
        on_host = generator if generator is not None and generator.device.type == "cpu" else None
        show = torch.rand((), generator=on_host) < flow.self_condition
    seen = None
    if flow.cond_dropout > 0 and cond is not None:
        seen = torch.rand(batch, generator=generator, device=device) >= flow.cond_dropout
    shown = model_times(flow.clocks, t, times, pinned, list(fields(x1)))
    return Draw(like(xt, x1), shown, points, x1, mask, cond, pinned, show, seen)


def draw_times(
    flow: Noised, batch: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Any:
    """Training times ``(B,)``, or one tensor per field where fields have clocks of their own."""
    low, high = flow.time_range

    def one() -> Tensor:
        even = torch.rand(batch, dtype=dtype, device=device, generator=generator)
        return low + (high - low) * flow.time_warp.k(even)

    if flow.clocks is None:
        return one()
    made: dict[str, Tensor] = {}
    return {n: made[c] if (c := flow.clocks[n]) in made else made.setdefault(c, one()) for n in flow.path}


def draw_source(
    flow: Noised,
    shapes: Mapping[str, Sequence[int]],
    *,
    masks: Mapping[str, Tensor | None],
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: Any,
) -> dict[str, Tensor]:
    """Points of the source of every field, with its own batch shape and mask; padding holds the origin."""
    return {
        n: s.sample(tuple(shapes[n]), mask=masks[n], generator=generator, dtype=dtype, device=device)
        for n, s in flow.source.items()
    }


def clean_padding(flow: Noised, view: dict[str, Tensor], masks: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Data whose padding holds the origin, whatever it came with: NaN there would reach every gradient."""
    out = {}
    for n, value in view.items():
        chosen = masks[n]
        if chosen is not None:
            space = flow.path[n].space
            rest = space.origin(value.shape[: value.ndim - space.event_ndim], dtype=value.dtype, device=value.device)
            value = where_mask(chosen, value, rest.to(value.dtype))
        out[n] = value
    return out


def without_padding(flow: Noised, x: State, mask: Tensor | None) -> State:
    """A state whose padding holds the origin, as the model saw it in training."""
    if mask is None:
        return x
    view = fields(x)
    return like(clean_padding(flow, view, {n: flow.fields[n].spread(mask) for n in view}), x)


def check_names(flow: Noised, view: Mapping[str, Tensor]) -> None:
    """Raise unless the data have just the fields of the flow.

    Raises:
        ValueError: says which are too many or too few.
    """
    if unknown := [n for n in view if n not in flow.path]:
        raise ValueError(f"the data have a field {unknown[0]!r} that the flow lacks; it has {', '.join(flow.path)}")
    if missing := sorted(set(flow.path) - set(view)):
        raise ValueError(f"the data lack the fields {missing}; the flow has {', '.join(flow.path)}")


def spread_pins(of: Mapping[str, Field], pinned: Any) -> dict[str, Tensor | None]:
    """The pinned elements of every field, None for none, from bool ``(B, N)`` of nodes or one tensor per field.

    Nodes that are pinned are so in every field of nodes, and pairs of such; a graph is pinned by name only.
    """
    if isinstance(pinned, Mapping):
        if unknown := set(pinned) - set(of):
            raise ValueError(f"pin= names unknown fields {sorted(unknown)}; the fields are {list(of)}")
        return {n: pinned.get(n) for n in of}
    return {n: None if pinned is None else f.spread(pinned) for n, f in of.items()}


def field_times(
    of: Mapping[str, Field], t: Any, pins: Mapping[str, Tensor | None], names: Sequence[str]
) -> dict[str, Tensor]:
    """The times of every field's elements: its clock's, 1 where pinned."""
    out = {}
    for n in names:
        own = of[n].time(t[n] if isinstance(t, Mapping) else t)
        chosen = pins[n]
        out[n] = own if chosen is None else torch.where(chosen, 1.0, expand_mask(own, chosen))
    return out


def model_times(clocks: Clocks | None, t: Any, times: Mapping[str, Tensor], pinned: Any, names: Sequence[str]) -> Any:
    """What the model is told: one tensor where all fields share their times, else one per field."""
    if clocks is not None or isinstance(pinned, Mapping) or isinstance(t, Mapping):
        return {n: times[n] for n in names}
    if pinned is None:
        return t
    return torch.where(pinned, 1.0, t if t.ndim == pinned.ndim else t.unsqueeze(-1))


def center(space: Any, value: Tensor, mask: Tensor | None, pinned: Tensor | None) -> Tensor:
    """Centre a mean-free field: on the pinned part where there is one (its place is what sampling will be given)."""
    if not space.is_centered:
        return value
    if pinned is None:
        return space.center(value, mask)
    full = torch.ones(value.shape[:-1], dtype=torch.bool, device=value.device) if mask is None else mask
    anchor = torch.where(pinned.any(-1, keepdim=True), pinned, full)
    weight = anchor.unsqueeze(-1).to(value.dtype)
    mean = (value * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp_min(1)
    return where_mask(mask, value - mean, torch.zeros_like(value))


class Known(NamedTuple):
    """What is known of the samples.

    Attributes:
        values: a state, or some of its fields; None for nothing.
        masks: which elements of every known field; None where all are.
        shown: bool ``(B, N)`` of the nodes that the model sees at t = 1, or one per field; None for none.
    """

    values: State | None = None
    masks: Any = None
    shown: Any = None


def fit_known(flow: Noised, x: State, known: State | None, known_mask: Any) -> Known:
    """Check the known elements, extend them by free ones if the samples have more, and say which the model sees clean.

    With clocks every field has times of its own, so all that is known is seen clean. Otherwise a node has one time, and is so if
    all of its fields are known.

    Raises:
        ValueError: unknown fields, or more known elements than the samples have.
    """
    if known is None:
        return Known()
    given = fields(known)
    view = {n: flow.path[n].data_of(v) for n, v in fields(x).items()}  # whatever the paths carry, known are data
    if unknown := set(given) - set(flow.path):
        raise ValueError(f"known has unknown fields {sorted(unknown)}; the fields are {list(flow.path)}")
    first = first_tensor(x)
    nodes = nodes_of(view, flow.fields)
    chosen = known_mask
    if isinstance(known_mask, Tensor):
        extra = nodes[1] - known_mask.shape[-1]
        if extra < 0:
            raise ValueError(f"known_mask covers {known_mask.shape[-1]} elements, but a sample has only {nodes[1]}")
        if extra > 0:
            chosen = torch.nn.functional.pad(known_mask, (0, extra))
            given = {n: _extended(flow, n, v, extra) for n, v in given.items()}
        chosen = chosen.expand(first.shape[0], -1).to(first.device)
    masks: dict[str, Tensor | None] = (
        {n: chosen.get(n) for n in given} if isinstance(chosen, Mapping) else spread_pins(flow.fields, chosen)
    )
    masks = {n: masks[n] for n in given}
    per_field = flow.clocks is not None or isinstance(known_mask, Mapping)
    shown: Any = None
    if per_field:
        shown = {n: _everything(flow, n, view[n]) if masks[n] is None else masks[n] for n in given}
    elif set(given) == set(flow.path):
        shown = chosen if chosen is not None else torch.ones(nodes, dtype=torch.bool, device=first.device)
        if known_mask is None and len(nodes) < 2:
            shown = torch.ones(nodes[:1], dtype=torch.bool, device=first.device)
    return Known(like(given, known), masks, shown)


def _everything(flow: Noised, name: str, value: Tensor) -> Tensor:
    shape = value.shape[: value.ndim - flow.path[name].space.event_ndim]
    return torch.ones(shape, dtype=torch.bool, device=value.device)


def _extended(flow: Noised, name: str, value: Tensor, extra: int) -> Tensor:
    """Known nodes, followed by ``extra`` free ones that hold the origin; pairs grow along both axes, edges
    with their matrix, graphs not at all."""
    per, space = flow.fields[name].per, flow.path[name].space
    if per == "graph":
        return value
    if per == "edge":
        value = pairs_of_edges(value)
    for axis in (1,) if per == "node" else (1, 2):
        shape = list(value.shape[: value.ndim - space.event_ndim])
        shape[axis] = extra
        value = torch.cat([value, space.origin(tuple(shape), dtype=value.dtype, device=value.device)], axis)
    return edges_of_pairs(value) if per == "edge" else value
