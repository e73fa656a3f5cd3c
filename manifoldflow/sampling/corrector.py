"""Predictor and corrector: after every step of a sampler, Langevin steps that keep the marginal (Song et al. 2021)."""

from typing import Any

import torch
from torch import Tensor

from manifoldflow.sampling.stochastic import langevin
from manifoldflow.state import Move, State, map_state


class PredictorCorrector:
    r"""The kernel of a flow, followed by Langevin steps at the time it reached.

    The predictor is any ``method`` of :meth:`manifoldflow.Flow.sample`: an equation with noise, or none. The corrector forgets
    what the predictor got wrong, at the price of a call of the network each. Run it with :func:`manifoldflow.simulate`:

    ``mf.simulate(PredictorCorrector(flow, method=mf.SDE(law.reverse)), flow.draw_source((64, 20)), mf.linear_grid(100))``

    Every field needs a score. A step to t = 1, where the marginal has none, is not corrected.

    Args:
        flow: the flow.
        method: of the predictor.
        steps: Langevin steps after every step of the predictor.
        renewed: size of one, :math:`\epsilon h / s^2`; the published signal-to-noise ratio r means about :math:`2 r^2`.

    Raises:
        TypeError: a field has no score.
        ValueError: sizes that make no step.
    """

    def __init__(self, flow: Any, method: Any = "euler", *, steps: int = 1, renewed: float = 0.02) -> None:
        if steps < 1 or not renewed > 0:
            raise ValueError(f"PredictorCorrector: needs steps >= 1 and renewed > 0, got {steps} and {renewed}")
        for path in flow.path.values():
            path.check_score(flow.coupling)
        self.flow, self.steps, self.renewed = flow, steps, renewed
        self.predictor = flow.kernel(method)

    def start(self, x: State, *, mask: Tensor | None = None, cond: Any = None) -> Any:
        """What the predictor carries."""
        return self.predictor.start(x, mask=mask, cond=cond)

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
        """A step of the predictor and those of the corrector."""
        move = self.predictor(x, carry, t, s, mask=mask, cond=cond, generator=generator)
        mended = langevin(
            self.flow,
            move.x,
            s.clamp_max(1 - 1e-3),
            steps=self.steps,
            renewed=self.renewed,
            mask=mask,
            cond=cond,
            generator=generator,
        )
        # On the device, without waiting for it: the end of the grid is a number of a tensor there.
        return Move(map_state(lambda a, b: torch.where(s < 1, a, b), mended, move.x), move.carry)

    def log_prob(self, *_: Any, **__: Any) -> Tensor:
        """Not known: the states between predictor and corrector are not kept.

        Raises:
            TypeError: always.
        """
        raise TypeError("a predictor with a corrector has no log-probability in closed form; use the predictor alone")
