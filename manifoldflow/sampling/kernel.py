"""One step of a trajectory along a flow, for every field in its own way."""

from typing import Any

import torch
from torch import Tensor

from manifoldflow.discrete import Tokens
from manifoldflow.paths import Jumps
from manifoldflow.sampling.steps import METHODS, Step, get_step
from manifoldflow.state import State, expand_mask, fields, first_tensor, float_dtype, like, where_mask


class FlowKernel:
    """Moves a state along a flow: predicts, then takes a geodesic or Runge-Kutta step. One object per trajectory.

    Args:
        flow: a :class:`manifoldflow.Flow`; its ``predict`` is called.
        method: ``"euler"`` or an integrator of the velocity.
        known_mask: pinned elements, which the model sees at t = 1 and which do not move.
        fully_known: whether all fields of the pinned elements are known.
    """

    def __init__(
        self,
        flow: Any,
        *,
        method: str | Step | Jumps = "euler",
        known_mask: Tensor | None = None,
        fully_known: bool = False,
    ) -> None:
        self.flow = flow
        self.jumps = method if isinstance(method, Jumps) else None
        tokens = [n for n, p in flow.path.items() if isinstance(p.space, Tokens)]
        if self.jumps is not None and not tokens:
            raise ValueError("method=Jumps(...) is for fields of tokens, and this flow has none")
        step = "euler" if isinstance(method, Jumps) else method
        self.euler = step == "euler" or step is METHODS["euler"]
        self.step = get_step(step)
        if tokens and not self.euler:
            raise ValueError(f"tokens jump (field {tokens[0]!r}): use method='euler' or method=Jumps(...)")
        self.known_mask = known_mask if fully_known else None
        self.previous: State | None = None

    def predict(self, x: State, t: Tensor, mask: Tensor | None, cond: Any) -> State:
        """The model's prediction; known elements are shown at t = 1, and the last prediction where the model wants it."""
        first = first_tensor(x)
        time = t.expand(first.shape[0]).to(float_dtype(x))
        if self.known_mask is not None:
            known = self.known_mask.expand(first.shape[: self.known_mask.ndim])
            time = torch.where(known, 1.0, expand_mask(time, known))
        pred = self.flow.predict(x, time, mask=mask, cond=cond, previous=self.previous)
        if self.flow.self_condition > 0:
            self.previous = pred
        return pred

    def move(
        self,
        pred: State,
        x: State,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> State:
        """One step of every field along its path, with the prediction held fixed."""
        path, made, stepped = self.flow.path, fields(pred), {}
        for n, value in fields(x).items():
            options: dict[str, Any] = {}
            if isinstance(path[n].space, Tokens):
                options = {"how": self.jumps, "mask": mask, "shift": self.flow.rate_shift(n, x, t, mask, cond)}
            stepped[n] = path[n].advance(made[n], value, t, s, generator=generator, **options)
            if path[n].predicts == "logits":  # the logits of padding are zeros, which would move it
                stepped[n] = where_mask(mask, stepped[n], value)
        return like(stepped, x)

    def __call__(
        self,
        x: State,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> State:
        path = self.flow.path
        if self.euler:
            pred = self.predict(x, t, mask, cond)
            return self.move(pred, x, t, s, mask=mask, cond=cond, generator=generator)

        first: list[State] = []

        def velocity(at: State, when: Tensor) -> State:
            pred = self.predict(at, when, mask, cond)
            first.append(pred)
            view, made = fields(at), fields(pred)
            out = {n: path[n].velocity(made[n], view[n], when) for n in view}
            if self.known_mask is not None:
                out = {n: torch.where(expand_mask(self.known_mask, v), 0.0, v) for n, v in out.items()}
            return like(out, at)

        moved = self.step(velocity, self.flow.spaces, x, t, s)
        view, made, out = fields(x), fields(first[0]), fields(moved)
        for n in view:
            if path[n].predicts in ("endpoint", "logits"):
                # The velocity of an endpoint prediction has a pole at t = 1, so a step that starts or ends there is an
                # exact one with the first prediction (the last step of Heun's method in Karras et al. 2022 likewise).
                out[n] = torch.where(
                    (s >= 1) | (t >= 1), path[n].advance(made[n], view[n], t, s, generator=generator), out[n]
                )
            if path[n].predicts == "logits":
                out[n] = where_mask(mask, out[n], view[n])
        return like(out, x)
