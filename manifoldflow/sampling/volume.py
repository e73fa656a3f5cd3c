"""The factor by which a map of states stretches volumes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifoldflow.numerics import push_along
from manifoldflow.sampling.likelihood import CHUNK, exact_directions
from manifoldflow.state import State, fields, like, map_state


def log_volume_change(
    move: Callable[[State], State], spaces: Any, x: State, *, mask: Tensor | None = None, chunk: int = CHUNK
) -> Tensor:
    r""":math:`\log |\det D|` of a differentiable map of states, D its derivative in orthonormal frames of both ends, ``(B,)``.

    All dimensions of a sample at once, so it costs as many forward-mode products as a sample has dimensions.

    Args:
        move: state -> state of the same samples, each moved by itself.
        spaces: manifold of the state, or a dict of them. On mean-free spaces the factor is that of the mean-free part.
        x: state ``(B, ..., *event)`` per field.
        mask: bool ``(B, N)`` of real elements; padding that stays counts for nothing.
        chunk: elements that go through the map at once.
    """
    space_of = fields(spaces)
    # A mean-free set moves as in all of space, its mean staying what it is: a factor of 1 more.
    whole = like({n: s.base if s.is_centered else s for n, s in space_of.items()}, spaces)

    def on_all(at: State) -> State:
        free = like({n: space_of[n].center(v, mask) for n, v in fields(at).items()}, at)
        return map_state(lambda moved, v, f: moved + (v - f), move(free), at, free)

    function = on_all if any(s.is_centered for s in space_of.values()) else move
    names = list(fields(x))
    view = fields(x)

    def flat(*values: Tensor) -> tuple[Tensor, ...]:
        made = fields(function(like(dict(zip(names, values, strict=True)), x)))
        return tuple(made[n] for n in names)

    columns = []
    for directions in exact_directions(whole, x, mask, max(1, chunk // max(1, len(next(iter(view.values())))))):
        ends, pushed = push_along(flat, tuple(view[n] for n in names), tuple(directions.moves[n] for n in names))
        parts = [_coordinates(fields(whole)[n], y, dy) for n, y, dy in zip(names, ends, pushed, strict=True)]
        columns.append(torch.cat(parts, -1))
    derivative = torch.cat(columns).movedim(0, -1)  # (B, coordinates, directions)
    return torch.linalg.slogdet(derivative)[1]


def _coordinates(space: Any, y: Tensor, dy: Tensor) -> Tensor:
    """Velocities ``(D, *y.shape)`` of points in the frames at ``y``, ``(D, B, elements * dim)``."""
    tangent = space.from_rate(y.expand_as(dy), dy)
    basis = space.tangent_basis(y)
    axis = y.ndim - space.event_ndim
    numbers = space.inner(y.unsqueeze(axis), basis, tangent.unsqueeze(axis + 1))
    return numbers.flatten(2) if numbers.ndim > 2 else numbers.unsqueeze(-1)
