"""One step of a trajectory along a flow, for every field in its own way."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from manifoldflow.field import Field, per_element
from manifoldflow.noising import Known, field_times, model_times, spread_pins
from manifoldflow.paths.base import Path
from manifoldflow.sampling.steps import METHODS, Step, get_step
from manifoldflow.sampling.volume import log_volume_change
from manifoldflow.state import Move, State, expand_mask, fields, first_tensor, like, where_mask


class Predictor(Protocol):
    """What a flow has to have for its kernel to step."""

    fields: dict[str, Field]
    path: dict[str, Path]
    spaces: Any
    coupling: Any
    clocks: Any
    self_condition: float

    def predict(
        self, x: State, t: Any, *, mask: Tensor | None = None, cond: Any = None, previous: State | None = None
    ) -> State: ...

    def rate_shift(self, name: str, x: State, t: Tensor, mask: Tensor | None, cond: Any) -> Tensor | None: ...

    def time_dtype(self, x: State) -> torch.dtype: ...


class FlowKernel:
    """Moves a state along a flow: predicts once, then every field steps along its path in its own way.

    The carry is the last prediction, where the flow's model is shown it (self-conditioning), else None.

    Args:
        flow: a :class:`manifoldflow.Flow`, guided or not.
        method: ``"euler"``, every path's own step; an integrator of the velocity (``"midpoint"``, ``"heun"``, ``"rk4"`` or a
            step function); :class:`manifoldflow.Jumps`; :class:`manifoldflow.SDE`; or a mapping from field to one of these,
            where absent fields take ``"euler"``. What is for other fields leaves the rest at ``"euler"``.
        known: elements that are known: the model sees them at t = 1 and integrators do not move them.
        log_prob: compute the log-probability of every move.

    Raises:
        TypeError, ValueError: a field cannot step like that.
    """

    def __init__(
        self, flow: Predictor, *, method: Any = "euler", known: Known | None = None, log_prob: bool = False
    ) -> None:
        self.flow, self.known, self.wants_log_prob = flow, known or Known(), log_prob
        self.how, self.step = plan(flow, method)
        self.pins = spread_pins(flow.fields, self.known.shown)

    @property
    def is_plain(self) -> bool:
        """Whether one prediction a step is all that is needed."""
        return self.step is None

    def start(self, x: State, *, mask: Tensor | None = None, cond: Any = None) -> None:
        """No prediction yet."""

    def predict(self, x: State, carry: Any, t: Tensor, mask: Tensor | None, cond: Any) -> tuple[State, Any]:
        """The model's prediction and the next carry; known elements are shown at t = 1."""
        first = first_tensor(x)
        time = t.expand(first.shape[0]).to(self.flow.time_dtype(x))
        flow, names = self.flow, list(fields(x))
        clocked = {n: time for n in names} if flow.clocks is not None else time
        times = field_times(flow.fields, clocked, self.pins, names)
        shown = model_times(flow.clocks, clocked, times, self.known.shown, names)
        pred = flow.predict(x, shown, mask=mask, cond=cond, previous=carry)
        return pred, pred if flow.self_condition > 0 else None

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
        flow, made, stepped = self.flow, fields(pred), {}
        for n, value in fields(x).items():
            path = flow.path[n]
            stepped[n] = path.advance(
                made[n],
                value,
                t,
                s,
                mask=flow.fields[n].spread(mask),
                generator=generator,
                shift=flow.rate_shift(n, x, t, mask, cond) if path.jumps else None,
                how=self.how[n],
            ).x
        return like(stepped, x)

    def __call__(
        self,
        x: State,
        carry: Any,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> Move:
        if self.step is None:
            pred, after = self.predict(x, carry, t, mask, cond)
            y = self.move(pred, x, t, s, mask=mask, cond=cond, generator=generator)
        else:
            y, pred, after = self._integrate(x, carry, t, s, mask, cond, generator)
        gained = self._log_prob(pred, x, y, carry, t, s, mask, cond) if self.wants_log_prob else None
        return Move(y, after, gained)

    def _integrate(
        self,
        x: State,
        carry: Any,
        t: Tensor,
        s: Tensor,
        mask: Tensor | None,
        cond: Any,
        generator: torch.Generator | None,
    ) -> tuple[State, State, Any]:
        """A step of several velocities: of the fields that follow one. The others step with the first prediction and are seen
        as they were meanwhile."""
        assert self.step is not None
        path = self.flow.path
        moving = [n for n in fields(x) if path[n].is_flow and self.how[n] is None]
        seen: list[State] = []
        last = [carry]

        def velocity(at: State, when: Tensor) -> State:
            whole = like({**fields(x), **fields(at)}, x)
            pred, last[0] = self.predict(whole, last[0], when, mask, cond)
            seen.append(pred)
            view, made, out = fields(at), fields(pred), {}
            for n in moving:
                v = path[n].velocity(made[n], view[n], when)
                pinned = self.pins[n]
                out[n] = v if pinned is None else torch.where(expand_mask(pinned, v), 0.0, v)
            return like(out, x)

        part = like({n: fields(x)[n] for n in moving}, x)
        spaces = like({n: path[n].space for n in moving}, x)
        moved, first = fields(self.step(velocity, spaces, part, t, s)), fields(seen[0])
        out = {}
        for n, value in fields(x).items():
            own = self.flow.fields[n].spread(mask)
            if n not in moving:
                shift = self.flow.rate_shift(n, x, t, mask, cond) if path[n].jumps else None
                out[n] = (
                    path[n]
                    .advance(first[n], value, t, s, mask=own, generator=generator, shift=shift, how=self.how[n])
                    .x
                )
                continue
            if path[n].has_pole():
                # The velocity has a pole at t = 1, so a step that starts or ends there is an exact one with the first prediction
                # (the last step of Heun's method in Karras et al. 2022 likewise).
                exact = path[n].advance(first[n], value, t, s, generator=generator).x
                moved[n] = torch.where((s >= 1) | (t >= 1), exact, moved[n])
            out[n] = where_mask(own, moved[n], value)
        return like(out, x), seen[0], last[0]

    # ---------------------------------------------------------------- probabilities

    def log_prob(
        self,
        x: State,
        y: State,
        t: Tensor,
        s: Tensor,
        *,
        carry: Any = None,
        mask: Tensor | None = None,
        cond: Any = None,
    ) -> Tensor:
        """Log-probability ``(B,)`` of the given step, see :meth:`manifoldflow.sampling.Kernel.log_prob`; of fields that follow
        the flow without noise, minus the log of the volume factor of the step."""
        pred, _ = self.predict(x, carry, t, mask, cond)
        return self._log_prob(pred, x, y, carry, t, s, mask, cond)

    def _log_prob(
        self, pred: State, x: State, y: State, carry: Any, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any
    ) -> Tensor:
        flow, made, total = self.flow, fields(pred), torch.zeros((), device=first_tensor(x).device)
        drawn = [n for n in fields(x) if flow.path[n].is_random(self.how[n])]
        for n in drawn:
            path = flow.path[n]
            shift = flow.rate_shift(n, x, t, mask, cond) if path.jumps else None
            one = path.log_prob(made[n], fields(x)[n], fields(y)[n], t, s, shift=shift, how=self.how[n])
            own = [flow.fields[n].spread(mask), self.pins[n]]
            counted = own[0] if own[1] is None else (~own[1] if own[0] is None else own[0] & ~own[1])
            total = total + per_element(one, counted, first_tensor(x))
        maps = [n for n in fields(x) if n not in drawn]
        if maps:
            total = total - self._stretch(maps, x, y, carry, t, s, mask, cond)
        return total.expand(first_tensor(x).shape[0])

    def _stretch(
        self, maps: list[str], x: State, y: State, carry: Any, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any
    ) -> Tensor:
        """Log of the volume factor of the step of the fields that draw nothing, the others held."""
        view = fields(x)

        def step(part: State) -> State:
            at = like({**view, **fields(part)}, x)
            if self.step is not None:
                moved = self._integrate(at, carry, t, s, mask, cond, None)[0]
            else:
                pred, _ = self.predict(at, carry, t, mask, cond)
                moved = self.move(pred, at, t, s, mask=mask, cond=cond)
            out = {n: _held(self.pins[n], fields(part)[n], fields(moved)[n]) for n in maps}
            return like(out, x)

        spaces = like({n: self.flow.path[n].space for n in maps}, x)
        return log_volume_change(step, spaces, like({n: view[n] for n in maps}, x), mask=mask)


def _held(pinned: Tensor | None, before: Tensor, after: Tensor) -> Tensor:
    return after if pinned is None else torch.where(expand_mask(pinned, after), before, after)


def plan(flow: Any, method: Any) -> tuple[dict[str, Any], Step | None]:
    """How every field steps, and the integrator of those that follow a velocity (None for every path's own step).

    Raises:
        TypeError, ValueError: says which field cannot step like that, and what it can.
    """
    names = list(flow.path)
    per_field = method if isinstance(method, Mapping) else dict.fromkeys(names, method)
    if unknown := set(per_field) - set(names):
        raise ValueError(f"method names unknown fields {sorted(unknown)}; the fields are {names}")
    how: dict[str, Any] = dict.fromkeys(names)
    steps: list[Step] = []
    used = not hasattr(method, "for_field")
    for n, given in per_field.items():
        path = flow.path[n]
        if hasattr(given, "for_field"):
            own = given.for_field(n, names)
            if own is not None and not isinstance(method, Mapping) and own.is_for_jumps != path.jumps:
                own = None  # what is for other fields leaves this one as it is
            else:
                used = True
            if own is not None:
                path.check_method(own)
                own.check(path, flow.coupling)
            how[n] = own
            continue
        if given == "euler" or given is METHODS["euler"] or given is None:
            continue
        step = get_step(given)
        if not path.is_flow:
            raise ValueError(
                f"{path.space} of field {n!r} jumps: use method='euler' or method=Jumps(...), or name the integrator of the "
                f"other fields alone, method={{'field': {given!r}}}"
            )
        steps.append(step)
    if not used:
        kind = "fields of tokens" if getattr(method, "is_for_jumps", False) else "fields on manifolds"
        raise ValueError(f"method={type(method).__name__}(...) is for {kind}, and this flow has none")
    if len(set(steps)) > 1:
        raise ValueError("all fields that follow a velocity share one integrator: the steps of their stages are shared")
    return how, steps[0] if steps else None
