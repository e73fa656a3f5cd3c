"""A state is one tensor or a dict of named tensors; these helpers treat both alike."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

State = Tensor | dict[str, Tensor]

SINGLE = "x"
"""The field name that a bare tensor gets inside the library."""


def fields(state: Any) -> dict[str, Any]:
    """A dict view: ``{"x": value}`` for anything that is not a mapping."""
    return dict(state) if isinstance(state, Mapping) else {SINGLE: state}


def like(values: dict[str, Any], state: Any) -> Any:
    """Undo :func:`fields`: a bare value if ``state`` was one."""
    return values if isinstance(state, Mapping) else values[SINGLE]


def map_state(function: Callable[..., Any], *states: Any) -> Any:
    """Apply ``function`` field by field; missing fields of later states raise ``KeyError``."""
    views = [fields(s) for s in states]
    return like({name: function(*(view[name] for view in views)) for name in views[0]}, states[0])


def first_tensor(state: State) -> Tensor:
    """Any tensor of the state: the source of device, dtype and batch size."""
    return next(iter(fields(state).values()))


def expand_mask(mask: Tensor, value: Tensor) -> Tensor:
    """Give a mask of leading batch axes trailing axes until it broadcasts with ``value``."""
    return mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))


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
        return value.mean()
    m = expand_mask(mask, value).to(value.dtype).expand_as(value)
    return (value * m).sum() / m.sum().clamp_min(1)


def where_mask(mask: Tensor | None, yes: Tensor, no: Tensor) -> Tensor:
    """``yes`` where the mask is True (everywhere if absent), else ``no``."""
    return yes if mask is None else torch.where(expand_mask(mask, yes), yes, no)
