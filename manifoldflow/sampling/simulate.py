"""The only loop: repeat a kernel over a time grid."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from manifoldflow.sampling.base import Kernel, Trajectory, as_kernel
from manifoldflow.sampling.timegrid import check_grid
from manifoldflow.state import State, expand_mask, fields, first_tensor, like, map_state


def pin(x: State, known: State | None, known_mask: Any) -> State:
    """Replace the known elements: fields absent from ``known`` stay, ``known_mask`` absent means every element.

    Args:
        x: state.
        known: values of some of its fields.
        known_mask: bool, leading axes of the state, or one (or None) per field.
    """
    if known is None:
        return x
    view, fixed = fields(x), fields(known)
    for name, value in fixed.items():
        if name not in view:
            raise ValueError(f"known has a field {name!r} that the state lacks; it has {', '.join(view)}")
        mask = known_mask.get(name) if isinstance(known_mask, Mapping) else known_mask
        if mask is not None and mask.ndim > view[name].ndim:
            raise ValueError(f"known_mask has more axes ({mask.ndim}) than the state ({view[name].ndim})")
        value = value.to(view[name]).expand_as(view[name])
        view[name] = value if mask is None else torch.where(expand_mask(mask, value), value, view[name])
    return like(view, x)


def simulate(
    kernel: Kernel | Callable[..., State],
    x: State,
    times: Tensor | Sequence[float],
    *,
    mask: Tensor | None = None,
    cond: Any = None,
    known: State | None = None,
    known_mask: Any = None,
    generator: torch.Generator | None = None,
    trajectory: bool = False,
    log_prob: bool = False,
    callback: Callable[[int, State], None] | None = None,
) -> Any:
    """Move ``x`` along the time grid ``times`` with ``kernel``.

    The grid may start and end anywhere and run either way; a kernel with ``stop(x, carry) -> bool`` may end it early, and the
    trajectory is then that much shorter. Elements of ``known`` are put back before the first and after
    every step. Nothing here waits for the device, and nothing cuts the graph: gradients go through where they are enabled.

    Args:
        kernel: a :class:`Kernel`, called with scalar tensors t and s.
        x: state at ``times[0]``.
        times: one-dimensional, at least two entries.
        mask: bool ``(B, N)`` of real elements, handed to the kernel.
        cond: condition, handed to the kernel.
        known: values of pinned elements (a state, or only some of its fields).
        known_mask: bool, leading axes of the state, True where pinned; everything in ``known`` if absent. Or one per field.
        generator: of every random draw of the kernel.
        trajectory: return all states, stacked along a new first axis of length ``len(times)``.
        log_prob: return a :class:`Trajectory` with the log-probability of every step.
        callback: called after each step with its number (from 1) and the state, for progress bars.

    Returns:
        The state at ``times[-1]``, the stacked trajectory, or with ``log_prob`` the :class:`Trajectory`.

    Raises:
        TypeError: ``log_prob`` of a kernel whose steps have none.
    """
    kernel = as_kernel(kernel)
    reference = first_tensor(x)
    # Times keep at least single precision: in half precision neighbours of a fine grid would coincide.
    dtype = (
        torch.promote_types(reference.dtype, torch.float32)
        if reference.dtype.is_floating_point
        else torch.get_default_dtype()
    )
    grid = check_grid(torch.as_tensor(times, dtype=dtype, device=reference.device))
    x = pin(x, known, known_mask)
    carry = kernel.start(x, mask=mask, cond=cond)
    path, gained, stop = [x], [], getattr(kernel, "stop", None)
    for number, (t, s) in enumerate(pairwise(grid.unbind(0)), start=1):
        move = kernel(x, carry, t, s, mask=mask, cond=cond, generator=generator)
        if log_prob:
            own = move.log_prob
            gained.append(
                own if own is not None else kernel.log_prob(x, move.x, t, s, carry=carry, mask=mask, cond=cond)
            )
        x, carry = move.x, move.carry
        if known is not None:
            x = pin(x, known, known_mask)
        if trajectory or log_prob:
            path.append(x)
        if callback is not None:
            callback(number, x)
        if stop is not None and stop(x, carry):
            break
    if not (trajectory or log_prob):
        path = [x]
    finish = getattr(kernel, "finish", None)  # particles choose one of every group, and its ancestors
    path = path if finish is None else finish(path, carry)
    if not (trajectory or log_prob):
        return path[-1]
    states = map_state(lambda *state: torch.stack(state), *path)
    return Trajectory(states, grid[: len(gained) + 1], torch.stack(gained), carry) if log_prob else states
