"""Layers of zuko, the library of Euclidean flows, as layers of ours."""

from typing import Any

from torch import nn

from manifoldflow.flows.base import Layer, Pushed, field_of, with_field
from manifoldflow.state import State


class FromZuko(Layer):
    """A lazy transform of zuko on vectors ``(B, d)``: ``zuko.flows.autoregressive.MaskedAutoregressiveTransform`` and its like.

    Args:
        transform: a module that is called with the context, or none, and returns a transform whose ``call_and_ladj`` sums over
            the vector. Zuko's transforms go from data to noise, so they are taken backward.
        field: the field; ``""`` for a state that is a tensor.
    """

    def __init__(self, transform: nn.Module, field: str = "") -> None:
        super().__init__()
        self.transform, self.field = transform, field

    def forward(self, x: State, cond: Any = None) -> Pushed:
        value, log_det = self.transform(cond).inv.call_and_ladj(field_of(x, self.field))
        return Pushed(with_field(x, self.field, value), log_det)

    def inverse(self, y: State, cond: Any = None) -> Pushed:
        value, log_det = self.transform(cond).call_and_ladj(field_of(y, self.field))
        return Pushed(with_field(y, self.field, value), log_det)
