"""Guidance by the difference of a conditional and an unconditional prediction (Ho & Salimans 2022)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.flow import Flow
from manifoldflow.guidance.base import Guided
from manifoldflow.state import State, expand_mask, fields, like


class ClassifierFree(Guided):
    r"""Samples with a condition made stronger: predictions are blended by each path's ``mix``.

    Velocities become :math:`u + w (c - u)`, logits of tokens and of geodesic paths :math:`p_c^w p_u^{1-w}`, those of the
    Dirichlet path :math:`w p_c + (1 - w) p_u` (linear in the score). w = 1 is the conditional model as it is, 0 the
    unconditional one.

    Args:
        flow: trained with ``cond_dropout``, so that its model knows what to do without a condition.
        scale: w: a number, one per sample ``(B,)``, or a function of the time, such as one that is 1 early on.
    """

    def __init__(self, flow: Flow, scale: float | Tensor | Callable[[Tensor], Tensor] = 2.0) -> None:
        super().__init__(flow, _Blend(flow, scale))


class _Blend(nn.Module):
    def __init__(self, flow: Flow, scale: float | Tensor | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.flow, self.scale = flow, scale
        if "cond" not in flow._takes:
            raise ValueError("ClassifierFree needs a flow whose model takes cond=")

    def forward(
        self,
        x: State,
        t: Any,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        previous: State | None = None,
    ) -> State:
        if cond is None:
            raise ValueError("ClassifierFree strengthens a condition: give cond= to sample")
        with_cond = self.flow.predict(x, t, mask=mask, cond=cond, previous=previous)
        if isinstance(self.scale, int | float) and self.scale == 1:
            return with_cond
        without = self.flow.predict(x, t, mask=mask, previous=previous)
        # with clocks the scale is a function of the earliest of the fields' times
        time = torch.stack([v.reshape(len(v), -1).amin(-1) for v in t.values()]).amin(0) if isinstance(t, dict) else t
        weight = self.scale(time) if callable(self.scale) else self.scale
        made, bare = fields(with_cond), fields(without)
        mixed = {}
        for name, value in made.items():
            w = expand_mask(torch.as_tensor(weight, dtype=value.dtype, device=value.device), value)
            mixed[name] = self.flow.path[name].mix(value, bare[name], w)
        return like(mixed, with_cond)
