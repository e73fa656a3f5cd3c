"""An energy as samplers see it: every call counted, every answer checked, and a call that hangs ended."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from manifoldflow.state import State, expand_mask, fields, first_tensor, like, map_state

Answer = TypeVar("Answer")
LogDensity = Callable[[Any], Tensor]


class EnergyError(ValueError):
    """An energy that is none, in one line that names the sample."""

    keeps_run = True  # a training that it ends is saved first


class EnergyTimeout(EnergyError, TimeoutError):
    """An energy that did not come in time."""


class Energy:
    r"""The logarithm of an unnormalised density, :math:`\log R = -E`, counted and guarded.

    A gradient counts as one call a sample, as its value comes with it. Minus infinity is an answer (no mass there); NaN and plus
    infinity are mistakes, and so are an error, another number of values, and an answer that does not come in time: each is
    reported with the sample it was given.

    Args:
        log_density: states ``(B, ...)`` -> ``(B,)``, differentiable where gradients are asked for.
        spaces: manifold of the state, or a dict of them.
        name: what messages call it.
        timeout: seconds after which a call is given up; 0 for never.

    Attributes:
        calls: samples evaluated so far.
        refused: proposals of Markov chains at which it had no value; they are rejected and the chains go on.
    """

    def __init__(self, log_density: LogDensity, spaces: Any, *, name: str = "the energy", timeout: float = 0.0) -> None:
        if not timeout >= 0:
            raise ValueError(f"timeout must be at least 0 seconds, got {timeout}")
        self.log_density, self.spaces, self.name, self.timeout = log_density, spaces, name, timeout
        self.calls = self.refused = 0

    def __call__(self, x: State, *, proposals: bool = False) -> Tensor:
        """Log-densities ``(B,)``; gradients go through where they are enabled.

        Args:
            x: states.
            proposals: NaN is no mistake but no mass: of points that a Markov chain tries.

        Raises:
            EnergyError: a wrong number of values, NaN or plus infinity, or it raised an error.
            EnergyTimeout: no answer in time.
        """
        count = len(first_tensor(x))
        self.calls += count
        return self._checked(self._guarded(lambda: self.log_density(x), x), x, count, proposals)

    def value_and_gradient(self, x: State, *, proposals: bool = False) -> tuple[Tensor, State]:
        """Log-densities ``(B,)`` and their Riemannian gradients, tangents at ``x``; 0 where there is no mass. Without a graph.

        Args, Raises: as for the call.
        """
        count = len(first_tensor(x))
        self.calls += count

        def both() -> tuple[Tensor, dict[str, Tensor]]:
            with torch.enable_grad():
                at = {n: v.detach().requires_grad_(True) for n, v in fields(x).items()}
                value = self.log_density(like(at, x))
                if not isinstance(value, Tensor) or value.shape != (count,):
                    return value, {}  # said below
                made = torch.autograd.grad(value.sum(), list(at.values()), allow_unused=True)
            found = {n: torch.zeros_like(v) if g is None else g for (n, v), g in zip(at.items(), made, strict=True)}
            return value.detach(), found

        answer, slopes = self._guarded(both, x)
        value = self._checked(answer, x, count, proposals)
        return value, gradient_of(self.spaces, x, slopes, value)

    # ---------------------------------------------------------------- guards

    def _checked(self, value: Any, x: State, count: int, proposals: bool) -> Tensor:
        if not isinstance(value, Tensor) or value.shape != (count,):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise EnergyError(f"{self.name} must return one number a sample, shape ({count},), got {got}")
        first = first_tensor(x)
        if first.is_floating_point():
            value = value.to(first.dtype)
        bad = value.isnan() | (value == torch.inf)
        if proposals:
            self.refused += int(bad.sum()) if value.device.type == "cpu" else 0
            return torch.where(bad, -torch.inf, value)
        if value.device.type == "cpu" and bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise EnergyError(f"{self.name} is {float(value[row])} for sample {row} of {count}, {describe(x, row)}")
        return value

    def _guarded(self, call: Callable[[], Answer], x: State) -> Answer:
        """What ``call`` returns, or one line about the sample that it fails at."""
        try:
            return self._timed(call)
        except (Exception, SystemExit) as error:  # an energy must not end the program as if all were well
            if isinstance(error, TimeoutError) and self.timeout:
                raise EnergyTimeout(
                    f"{self.name} gave no answer within {self.timeout:g} s for {len(first_tensor(x))} "
                    f"samples{self._culprit(x)}"
                ) from None
            what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise EnergyError(f"{self.name} raised {what}{self._culprit(x)}") from error

    def _culprit(self, x: State) -> str:
        """Which sample it is, by trying them one by one; nothing if each of them alone is fine."""
        for row in range(len(first_tensor(x))):
            one = map_state(lambda v, r=row: v[r : r + 1].detach(), x)
            try:
                self._timed(lambda at=one: self.log_density(at))  # type: ignore[misc]
            except (Exception, SystemExit):
                return f"; first at sample {row}, {describe(x, row)}"
        return ""

    def _timed(self, call: Callable[[], Answer]) -> Answer:
        """In a thread of its own where there is a limit: a thread that hangs cannot be ended, but need not be waited for."""
        if not self.timeout:
            return call()
        made: list[Answer] = []
        failed: list[BaseException] = []
        with_graph = torch.is_grad_enabled()

        def work() -> None:
            try:
                with torch.set_grad_enabled(with_graph):
                    made.append(call())
            except BaseException as error:  # handed on to the caller
                failed.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self.timeout)
        if failed:
            raise failed[0]
        if not made:
            raise TimeoutError
        return made[0]


def gradient_of(spaces: Any, x: State, slopes: dict[str, Tensor], value: Tensor) -> State:
    """Riemannian gradients from derivatives by the coordinates; 0 where they are not finite or the value is not."""
    space_of, out = fields(spaces), {}
    for n, v in fields(x).items():
        tangent = space_of[n].riemannian_gradient(v.detach(), slopes[n].to(v.dtype))
        kept = expand_mask(value.isfinite(), tangent) & tangent.isfinite()
        out[n] = torch.where(kept, tangent, 0.0)
    return like(out, x)


def describe(x: State, row: int, most: int = 6) -> str:
    """The first numbers of a sample, for a message."""
    parts = []
    for n, v in fields(x).items():
        flat = v[row].detach().flatten().tolist()
        shown = ", ".join(f"{number:.4g}" for number in flat[:most])
        parts.append(f"{n} = ({shown}{', ...' if len(flat) > most else ''})")
    return " and ".join(parts)
