"""A state is one tensor or a dict of named tensors; these helpers treat both alike."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

State = Tensor | dict[str, Tensor]

SINGLE = "x"
"""The field name that a bare tensor gets inside the library."""


class Move(NamedTuple):
    """A step that was made.

    Attributes:
        x: where it ended: a tensor of one field, or a state.
        carry: what the kernel wants back at its next step (self-conditioning, weights of particles); None for nothing.
        log_prob: log-probability of the step, ``(B,)``, or None if it was not asked for or has none.
    """

    x: Any
    carry: Any = None
    log_prob: Tensor | None = None


@dataclass(frozen=True)
class Shared:
    """A part of ``cond=`` that all samples share.

    Every other tensor of a condition has the batch as its first axis and is cut, repeated and permuted with the samples.

    Args:
        value: tensor of any shape; the model gets it as it is.
    """

    value: Tensor


def bare(cond: Any) -> Any:
    """A condition as the model gets it: shared parts without their mark."""
    if isinstance(cond, Shared):
        return cond.value
    return {k: bare(v) for k, v in cond.items()} if isinstance(cond, Mapping) else cond


def map_cond(function: Callable[[Tensor], Tensor], cond: Any, batch: int) -> Any:
    """Apply ``function`` to the parts of a condition that belong to the samples: its tensors with a first axis.

    Args:
        function: ``(batch, ...) -> (other, ...)``, such as a choice of rows.
        cond: a tensor, a mapping of conditions, :class:`Shared`, or anything else, which is left alone.
        batch: number of samples.

    Raises:
        ValueError: a tensor's first axis is not the batch; :class:`Shared` says that it belongs to all.
    """
    if cond is None:
        return None
    if isinstance(cond, Mapping):
        return {key: map_cond(function, value, batch) for key, value in cond.items()}
    if not isinstance(cond, Tensor) or cond.ndim == 0:
        return cond
    if cond.shape[0] != batch:
        raise ValueError(
            f"cond holds a tensor of shape {tuple(cond.shape)} for {batch} samples: its first axis must be the batch; "
            "wrap what all samples share in mf.Shared(...)"
        )
    return function(cond)


def fields(state: Any) -> dict[str, Any]:
    """A dict view: ``{"x": value}`` for anything that is not a mapping."""
    if type(state) is Tensor:  # the two usual cases, asked many times a step
        return {SINGLE: state}
    if type(state) is dict:
        return state.copy()
    return dict(state) if isinstance(state, Mapping) else {SINGLE: state}


def like(values: dict[str, Any], state: Any) -> Any:
    """Undo :func:`fields`: a bare value if ``state`` was one."""
    if type(state) is dict:
        return values
    return values if isinstance(state, Mapping) else values[SINGLE]


def map_state(function: Callable[..., Any], *states: Any) -> Any:
    """Apply ``function`` field by field; missing fields of later states raise ``KeyError``."""
    views = [fields(s) for s in states]
    return like({name: function(*(view[name] for view in views)) for name in views[0]}, states[0])


def first_tensor(state: State) -> Tensor:
    """Any tensor of the state: the source of device, dtype and batch size."""
    return next(iter(fields(state).values()))


@overload
def float_dtype(state: State) -> torch.dtype: ...
@overload
def float_dtype(state: State, default: None) -> torch.dtype | None: ...


def float_dtype(state: State, default: Any = ...) -> torch.dtype | None:
    """The dtype of times beside the state: that of its first field of floating point; torch's own (or ``default``) if all are
    tokens."""
    for value in fields(state).values():
        if value.is_floating_point():
            return value.dtype
    return torch.get_default_dtype() if default is ... else default


def expand_mask(mask: Tensor, value: Tensor) -> Tensor:
    """Give a mask of leading batch axes trailing axes until it broadcasts with ``value``."""
    return mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))


_AVERAGE: Callable[[Tensor], Tensor] | None = None
"""Mean over the processes of a distributed training step, set by :func:`batch_shared_by`."""


@contextmanager
def batch_shared_by(average: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Within, :func:`count_of` counts over all processes that share a batch.

    Then the average over processes of sum / count is the mean over the whole batch, also where shares differ in size.

    Args:
        average: mean of a tensor over the processes, called by all of them in the same order; None for one process.
    """
    global _AVERAGE
    before, _AVERAGE = _AVERAGE, average
    try:
        yield
    finally:
        _AVERAGE = before


def count_of(selected: Tensor) -> Tensor:
    """The number of True entries to divide a sum by, as float, 1 if there is none. See :func:`batch_shared_by`."""
    count = selected.sum(dtype=torch.float32)
    if _AVERAGE is not None:
        count = _AVERAGE(count)
    return torch.where(count > 0, count, 1.0)


def masked_mean(value: Tensor, mask: Tensor | None, weight: Tensor | None = None) -> Tensor:
    """Mean over real elements; each sample of the batch counts in proportion to its real elements.

    Args:
        value: ``(B, ...)``.
        mask: bool, leading axes of ``value``; all real if absent.
        weight: per element, broadcastable to ``value``.
    """
    if weight is not None:
        value = value * weight
    if mask is None:
        return value.mean() if _AVERAGE is None else value.sum() / count_of(torch.ones_like(value))
    m = expand_mask(mask, value).expand_as(value)
    return (value * m).sum() / count_of(m).to(value.dtype)


def where_mask(mask: Tensor | None, yes: Tensor, no: Tensor) -> Tensor:
    """``yes`` where the mask is True (everywhere if absent), else ``no``."""
    return yes if mask is None else torch.where(expand_mask(mask, yes), yes, no)
