"""How tokens jump in a sampling step: corrector, temperature, order and leap."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Jumps:
    r"""How tokens jump: a ``method`` of :meth:`manifoldflow.Flow.sample`. Fields on manifolds take Euler steps meanwhile.

    Args:
        corrector: how much of the corrector's rates is added, a number or a function of time. A token that is already there
            may change again, so errors are mended, at the price of more steps. 0 for none.
        temperature: the predicted logits are divided by it; below 1 likelier and less diverse.
        top_p: tokens are drawn from the likeliest categories that together have this probability.
        order: ``"random"``, or ``"confidence"``: of the tokens that are masked, those first whose likeliest category has the
            largest probability, as many as jump at random otherwise. For :class:`Masking` without corrector.
        confidence_noise: Gumbel noise on the logarithm of the confidence, times the fraction of time that is left; above 0
            samples differ more.
        leap: ``"exact"`` takes the last of the jumps of a step; ``"tau"`` draws Poisson numbers of all jumps as if the first
            changed no rates (Campbell et al. 2022). Where states have an order, counts and levels, such jumps add up; of tokens
            without one, a second jump in a step has no meaning and both are undone. For tokens it is therefore worse whenever
            a step has more than a few jumps, near t = 1 above all: use it there to compare with papers only.
    """

    corrector: float | Callable[[Tensor], Tensor] = 0.0
    temperature: float = 1.0
    top_p: float = 1.0
    order: Literal["random", "confidence"] = "random"
    confidence_noise: float = 0.0
    leap: Literal["exact", "tau"] = "exact"

    is_for_jumps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.leap not in ("exact", "tau"):
            raise ValueError(f"Jumps: leap must be 'exact' or 'tau', got {self.leap!r}")
        if self.leap == "tau" and self.order == "confidence":
            raise ValueError("Jumps: order='confidence' says which tokens jump, so it takes no leap='tau'")
        if not callable(self.corrector) and not self.corrector >= 0:
            raise ValueError(f"Jumps: corrector must be at least 0 or a function of time, got {self.corrector}")
        if not self.temperature >= 0:
            raise ValueError(f"Jumps: temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Jumps: top_p must lie in (0, 1], got {self.top_p}")
        if self.order not in ("random", "confidence"):
            raise ValueError(f"Jumps: order must be 'random' or 'confidence', got {self.order!r}")
        if self.order == "confidence" and (callable(self.corrector) or self.corrector > 0):
            raise ValueError("Jumps: order='confidence' unmasks every token once, so it takes no corrector")

    def for_field(self, name: str, names: Any) -> "Jumps":
        """The way of a field: the same for all."""
        return self

    def check(self, path: Any, coupling: Any) -> None:
        """Every way is right for every path that takes it."""

    @property
    def has_corrector(self) -> bool:
        """Whether tokens may change again."""
        return callable(self.corrector) or self.corrector > 0

    def corrector_at(self, t: Tensor) -> Tensor:
        """The corrector's multiple at time ``t``."""
        return self.corrector(t) if callable(self.corrector) else torch.full_like(t, self.corrector)
