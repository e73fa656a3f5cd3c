"""Invertible layers: maps with an exact inverse and an exact log-determinant, and chains of them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from manifoldflow.state import State


class Pushed(NamedTuple):
    """Where a layer takes points.

    Attributes:
        x: the images, a state like the one that went in.
        log_det: ``(B,)``, log of the factor by which the layer stretches volume there: :math:`\\log|\\det df|` with respect to
            the metric of the space, so that the density of the images is that of the points divided by it.
    """

    x: Any
    log_det: Tensor


class Layer(nn.Module):
    """A bijection of a state, a tensor ``(B, ...)`` or a dict of them, that knows how it stretches volume.

    ``layer(x)`` maps forward, from the source to the target; :meth:`inverse` maps back. Both take ``cond``.
    """

    def forward(self, x: State, cond: Any = None) -> Pushed:
        """The image of points and the log-determinant there."""
        raise NotImplementedError

    def inverse(self, y: State, cond: Any = None) -> Pushed:
        """The points whose image is ``y``, and the log-determinant of the inverse: minus that of the layer there."""
        raise NotImplementedError


class Chain(Layer):
    """Layers one after the other, the first nearest to the source."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: State, cond: Any = None) -> Pushed:
        return self._through(list(self.layers), x, cond, backward=False)

    def inverse(self, y: State, cond: Any = None) -> Pushed:
        return self._through(list(reversed(self.layers)), y, cond, backward=True)

    @staticmethod
    def _through(layers: list[Any], x: State, cond: Any, *, backward: bool) -> Pushed:
        if not layers:
            raise ValueError("a chain needs at least one layer")
        total: Any = 0.0
        for layer in layers:
            x, log_det = layer.inverse(x, cond) if backward else layer(x, cond)
            total = total + log_det
        return Pushed(x, total)


class Inverted(Layer):
    """A layer turned round."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: State, cond: Any = None) -> Pushed:
        return self.layer.inverse(x, cond)

    def inverse(self, y: State, cond: Any = None) -> Pushed:
        return self.layer(y, cond)


def field_of(x: State, name: str) -> Tensor:
    """A field of a state; ``""`` names a state that is a tensor.

    Raises:
        ValueError: the state has no such field.
    """
    if isinstance(x, Tensor):
        if name:
            raise ValueError(f"the layer changes the field {name!r}, but the state is a tensor")
        return x
    if name not in x:
        raise ValueError(f"the layer needs the field {name!r}, the state has {', '.join(map(str, x)) or 'none'}")
    return x[name]


def with_field(x: State, name: str, value: Tensor) -> State:
    """The state with one field exchanged."""
    return value if isinstance(x, Tensor) else {**x, name: value}
