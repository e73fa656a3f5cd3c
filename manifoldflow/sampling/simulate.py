"""The only loop: repeat a kernel over a time grid."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from manifoldflow.sampling.steps import Step, get_step
from manifoldflow.sampling.timegrid import check_grid
from manifoldflow.state import State, expand_mask, fields, first_tensor, like, map_state


class Kernel(Protocol):
    """Moves a state from time t to time s."""

    def __call__(
        self,
        x: State,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> State: ...


def pin(x: State, known: State | None, known_mask: Tensor | None) -> State:
    """Replace the known elements: fields absent from ``known`` stay, ``known_mask`` absent means every element."""
    if known is None:
        return x
    view, fixed = fields(x), fields(known)
    for name, value in fixed.items():
        if name not in view:
            raise ValueError(f"known has a field {name!r} that the state lacks; it has {', '.join(view)}")
        if known_mask is not None and known_mask.ndim > view[name].ndim:
            raise ValueError(f"known_mask has more axes ({known_mask.ndim}) than the state ({view[name].ndim})")
        value = value.to(view[name]).expand_as(view[name])
        view[name] = value if known_mask is None else torch.where(expand_mask(known_mask, value), value, view[name])
    return like(view, x)


def simulate(
    kernel: Kernel,
    x: State,
    times: Tensor | Sequence[float],
    *,
    mask: Tensor | None = None,
    cond: Any = None,
    known: State | None = None,
    known_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    trajectory: bool = False,
    callback: Callable[[int, State], None] | None = None,
) -> State:
    """Move ``x`` along the time grid ``times`` with ``kernel``.

    The grid may start and end anywhere and run either way. Elements of ``known`` are put back before the first and after
    every step. Nothing here waits for the device.

    Args:
        kernel: called as ``kernel(x, t, s, mask=, cond=, generator=)`` with scalar tensors t and s.
        x: state at ``times[0]``.
        times: one-dimensional, at least two entries.
        mask: bool ``(B, N)`` of real elements, handed to the kernel.
        cond: condition, handed to the kernel.
        known: values of pinned elements (a state, or only some of its fields).
        known_mask: bool, leading axes of the state, True where pinned; everything in ``known`` if absent.
        generator: of every random draw of the kernel.
        trajectory: return all states, stacked along a new first axis of length ``len(times)``.
        callback: called after each step with its number (from 1) and the state, for progress bars.

    Returns:
        The state at ``times[-1]``, or the stacked trajectory.
    """
    reference = first_tensor(x)
    # Times keep at least single precision: in half precision neighbours of a fine grid would coincide.
    dtype = (
        torch.promote_types(reference.dtype, torch.float32)
        if reference.dtype.is_floating_point
        else torch.get_default_dtype()
    )
    grid = check_grid(torch.as_tensor(times, dtype=dtype, device=reference.device))
    x = pin(x, known, known_mask)
    path = [x]
    for number, (t, s) in enumerate(pairwise(grid.unbind(0)), start=1):
        x = kernel(x, t, s, mask=mask, cond=cond, generator=generator)
        if known is not None:
            x = pin(x, known, known_mask)
        if trajectory:
            path.append(x)
        if callback is not None:
            callback(number, x)
    return map_state(lambda *states: torch.stack(states), *path) if trajectory else x


def ode_kernel(velocity: Callable[..., State], spaces: Any, method: str | Step = "euler") -> Kernel:
    """A kernel that integrates ``velocity(x, t) -> tangent state`` with one of the integrators.

    Args:
        velocity: the field; t arrives as a scalar tensor.
        spaces: manifold of the state, or a dict of them.
        method: ``"euler"``, ``"midpoint"``, ``"heun"``, ``"rk4"`` or a step function.
    """
    step = get_step(method)

    def kernel(
        x: State,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> State:
        return step(velocity, spaces, x, t, s)

    return kernel
