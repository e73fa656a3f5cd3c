"""Kernels: everything that moves a state from one time to another, and what is known of the probability of its moves.

A step of a flow, a step with noise, a jump, a random walk and an action of a policy are kernels; guidance and particles wrap
them. :func:`manifoldflow.sampling.simulate` repeats one over a time grid. The kernel itself holds no state of a trajectory: what
it wants back at its next step travels in the carry, so one object serves any number of trajectories.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from manifoldflow.state import Move, State, fields, like

Velocity = Callable[[State, Tensor], State]


class Kernel(Protocol):
    """Moves a state from time t to time s.

    A plain function ``(x, t, s, *, mask, cond, generator) -> state`` will do where nothing is carried and no probability is asked
    for. A kernel may also have ``finish(states, carry) -> states``, which is given the states that were kept after the last step,
    and ``stop(x, carry) -> bool``, asked after every step whether the rest of the grid can be left out: nothing moves any more.
    It must not wait for a device.
    """

    def start(self, x: State, *, mask: Tensor | None = None, cond: Any = None) -> Any:
        """The carry of the first step."""

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
        """One step.

        Args:
            x: state at time ``t``.
            carry: what the step before returned, or :meth:`start`.
            t, s: scalar tensors.
            mask: bool ``(B, N)`` of real elements.
            cond: condition.
            generator: of every random draw.
        """

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
        """Log-probability ``(B,)`` of the given step from ``x`` at ``t`` to ``y`` at ``s``, whichever way time runs.

        Of jumps it is a log-probability, of noisy steps a log-density by the volume of the space, of steps that draw nothing the
        logarithm of the factor by which they thin out a density: in each case the sum over a trajectory and the log-density of
        its start are the log-density of its end, on average over what was drawn.

        Raises:
            TypeError: the step has none in closed form.
        """


class Memoryless:
    """A kernel whose steps need nothing of the step before: a subclass writes ``_move``, and ``_log_prob`` if there is one."""

    def start(self, x: State, *, mask: Tensor | None = None, cond: Any = None) -> None:
        """Nothing is carried."""

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
        """One step, see :class:`Kernel`."""
        return self._move(x, t, s, mask, cond, generator)

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
        """Log-probability ``(B,)`` of the given step, see :meth:`Kernel.log_prob`."""
        return self._log_prob(x, y, t, s, mask, cond)

    def _move(
        self, x: Any, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any, generator: torch.Generator | None
    ) -> Move:
        raise NotImplementedError

    def _log_prob(self, x: Any, y: Any, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no log-probability in closed form")


class Trajectory(NamedTuple):
    """States at all times of a grid.

    Attributes:
        states: state with a new first axis, ``(T + 1, B, ...)``.
        times: ``(T + 1,)``.
        log_prob: of every step, ``(T, B)``; None if it was not asked for.
        carry: what the last step returned.
    """

    states: State
    times: Tensor
    log_prob: Tensor | None = None
    carry: Any = None

    @property
    def end(self) -> State:
        """The state at the last time."""
        return self.at(-1)

    def at(self, index: int) -> State:
        """The state at a time of the grid."""
        return like({n: v[index] for n, v in fields(self.states).items()}, self.states)

    def share(self, rank: int, world: int) -> "Trajectory":
        """Every world-th trajectory, for one of several processes."""
        states = like({n: v[:, rank::world] for n, v in fields(self.states).items()}, self.states)
        gained = None if self.log_prob is None else self.log_prob[:, rank::world]
        return Trajectory(states, self.times, gained)

    def reversed(self) -> "Trajectory":
        """The same states the other way round, for the kernel that leads back; without probabilities."""
        return Trajectory(like({n: v.flip(0) for n, v in fields(self.states).items()}, self.states), self.times.flip(0))


class PlainKernel(Memoryless):
    """A function ``(x, t, s, *, mask, cond, generator) -> state`` as a kernel without memory.

    Args:
        function: the step.
    """

    def __init__(self, function: Callable[..., State]) -> None:
        self.function = function

    def _move(
        self, x: State, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any, generator: torch.Generator | None
    ) -> Move:
        return Move(self.function(x, t, s, mask=mask, cond=cond, generator=generator))

    def _log_prob(self, x: State, y: State, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any) -> Tensor:
        raise TypeError("a plain function is a kernel without log-probabilities; write a class with start and log_prob")


def as_kernel(kernel: Any) -> Kernel:
    """A kernel as it is, a plain function as one."""
    return kernel if hasattr(kernel, "start") else PlainKernel(kernel)


def trajectory_log_prob(
    kernel: Kernel, trajectory: Trajectory, *, mask: Tensor | None = None, cond: Any = None
) -> Tensor:
    """Log-probability of the steps of a trajectory under any kernel, ``(B,)``, differentiable in its parameters.

    The trajectory may come from another kernel: turned round (:meth:`Trajectory.reversed`) and scored by a backward one it
    gives the other half of a trajectory balance. A kernel that scores all steps at once (``log_prob_of``) is asked to.

    Args:
        kernel: the kernel.
        trajectory: states and times.
        mask, cond: as for the kernel.
    """
    at_once = getattr(kernel, "log_prob_of", None)
    if at_once is not None:
        return at_once(trajectory, mask=mask, cond=cond)
    total: Any = 0.0
    for i, (t, s) in enumerate(pairwise(trajectory.times.unbind(0))):
        total = total + kernel.log_prob(trajectory.at(i), trajectory.at(i + 1), t, s, mask=mask, cond=cond)
    return total
