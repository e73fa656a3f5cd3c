"""A guided flow is a flow: it samples with the same call, and everything that takes a flow takes it."""

from typing import Any

from torch import Tensor, nn

from manifoldflow.flow import Flow
from manifoldflow.state import State, like


class Guided(Flow):
    """A flow with the spaces, sources and paths of another one, and a model that steers it.

    Args:
        flow: the flow to steer; its weights are shared, not copied.
        model: what predicts; that of the flow if absent.
    """

    def __init__(self, flow: Flow, model: nn.Module | None = None) -> None:
        super().__init__(
            like(flow.fields, flow.spaces),
            model if model is not None else flow.model,
            source=like(flow.source, flow.spaces),
            path=like(flow.path, flow.spaces),
            coupling=flow.coupling,
            weights=flow.weights,
            auxiliary=flow.auxiliary,
            self_condition=flow.self_condition,
            pin=flow.pin,
            clocks=flow.clocks,
            time_range=flow.time_range,
            time_warp=flow.time_warp,
        )
        # In a tuple, so that the weights are not registered a second time: the model has them.
        self._steered = (flow,)
        self.train(flow.training)

    def rate_shift(self, name: str, x: State, t: Tensor, mask: Tensor | None, cond: Any) -> Tensor | None:
        """That of the flow that is steered, so that guidance of its rates survives another layer of guidance."""
        return self._steered[0].rate_shift(name, x, t, mask, cond)

    def loss_parts(self, *_: Any, **__: Any) -> Any:
        """Not here.

        Raises:
            TypeError: always; train the flow that is steered.
        """
        raise TypeError(f"{type(self).__name__} only samples: train the flow it was made from")
