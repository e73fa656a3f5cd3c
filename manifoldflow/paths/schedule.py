r"""Schedules: how far along the path a state is at time t.

A schedule is an increasing :math:`k: [0, 1] \to [0, 1]` with k(0) = 0 and k(1) = 1. The path is at the fraction k(t) of
its geodesic. All functions take and return tensors of any shape.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Base class: subclasses give ``k`` and ``dk``; ``fraction`` follows."""

    def k(self, t: Tensor) -> Tensor:
        """Fraction of the path done at time t."""
        raise NotImplementedError

    def dk(self, t: Tensor) -> Tensor:
        """Derivative of k."""
        raise NotImplementedError

    def remaining(self, t: Tensor) -> Tensor:
        """1 - k(t)."""
        return 1 - self.k(t)

    def hazard(self, t: Tensor) -> Tensor:
        """Rate at which what is left shrinks, k' / (1 - k), with 1 - k at least 1e-3."""
        return self.dk(t) / self.remaining(t).clamp_min(1e-3)

    def fraction(self, t: Tensor, s: Tensor) -> Tensor:
        """Share of the way still to go that the step from t to s covers: (k(s) - k(t)) / (1 - k(t)); 1 at s = 1.

        Negative for a step backward. At t = 1 nothing is left to go and the result is 0 by convention.
        """
        left = self.remaining(t)
        is_done = left <= 1e-6
        return torch.where(is_done, 0.0, (self.k(s) - self.k(t)) / torch.where(is_done, 1.0, left))


@dataclass(frozen=True)
class Linear(Schedule):
    """k(t) = t."""

    def k(self, t: Tensor) -> Tensor:
        return t

    def dk(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Exponential(Schedule):
    r""":math:`k(t) = (1 - e^{-ct}) / (1 - e^{-c})`: early motion is fast.

    As a *sampling* schedule for rotations with c = 10 this is the one of FrameFlow (Yim et al. 2023) and ReQFlow, whose
    hazard k'/(1-k) is c; ours is normalised to reach 1, so steps never overshoot and the last one lands.

    Args:
        rate: c > 0.
    """

    rate: float = 10.0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"Exponential: rate must be positive, got {self.rate}")

    def k(self, t: Tensor) -> Tensor:
        return torch.expm1(-self.rate * t) / math.expm1(-self.rate)

    def dk(self, t: Tensor) -> Tensor:
        return -self.rate * torch.exp(-self.rate * t) / math.expm1(-self.rate)

    def remaining(self, t: Tensor) -> Tensor:
        return torch.exp(-self.rate * t) * torch.expm1(-self.rate * (1 - t)) / math.expm1(-self.rate)

    def fraction(self, t: Tensor, s: Tensor) -> Tensor:
        """(1 - e^{-c(s-t)}) / (1 - e^{-c(1-t)}), without the underflow of 1 - k at large rates."""
        is_done = t >= 1
        left = torch.expm1(-self.rate * (1 - torch.where(is_done, 0.0, t)))
        return torch.where(is_done, 0.0, torch.expm1(-self.rate * (s - t)) / left)


@dataclass(frozen=True)
class Cosine(Schedule):
    r""":math:`k(t) = \sin^2(\pi t / 2)`: slow at both ends."""

    def k(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t) ** 2

    def dk(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * torch.sin(math.pi * t)

    def remaining(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - t)) ** 2

    def fraction(self, t: Tensor, s: Tensor) -> Tensor:
        """The difference of squared sines as a product: no cancellation near t = 1, so the last step lands."""
        is_done = t >= 1
        step = torch.sin(0.5 * math.pi * (s - t)) * torch.sin(0.5 * math.pi * (2 - s - t))
        return torch.where(is_done, 0.0, step / torch.where(is_done, 1.0, self.remaining(t)))


@dataclass(frozen=True)
class Polynomial(Schedule):
    """k(t) = t**power.

    Args:
        power: positive exponent; above 1 the motion starts slowly.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ValueError(f"Polynomial: power must be positive, got {self.power}")

    def k(self, t: Tensor) -> Tensor:
        return t**self.power

    def dk(self, t: Tensor) -> Tensor:
        return self.power * t ** (self.power - 1)


@dataclass(frozen=True)
class Late(Schedule):
    r""":math:`1 - k(t) = f\,((1 + 1/f)^{1 - t} - 1)`: steps in :math:`\log(1 - k + f)` are even, so the approach to 1 is slow.

    A geodesic path shrinks the source to the share :math:`1 - k` of its size, so data with detail of the size f take shape
    there. As ``time_warp`` of a flow it puts training times and solver steps at all scales down to f alike.

    Args:
        finest: f, the smallest 1 - k that is told apart, in (0, 1).
    """

    finest: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.finest < 1:
            raise ValueError(f"Late: finest must lie in (0, 1), got {self.finest}")

    def k(self, t: Tensor) -> Tensor:
        return 1 - self.remaining(t)

    def dk(self, t: Tensor) -> Tensor:
        rate = math.log1p(1 / self.finest)
        return self.finest * rate * torch.exp(rate * (1 - t))

    def remaining(self, t: Tensor) -> Tensor:
        return self.finest * torch.expm1(math.log1p(1 / self.finest) * (1 - t))

    def fraction(self, t: Tensor, s: Tensor) -> Tensor:
        """Without the cancellation of 1 - k near t = 1."""
        left = self.remaining(t)
        is_done = left <= 0
        return torch.where(is_done, 0.0, 1 - (self.remaining(s) / torch.where(is_done, 1.0, left)))


@dataclass(frozen=True)
class Annealed(Schedule):
    r""":math:`1 - k(t) = (1 - t)^{1 + s}\, e^{s t}`: what is left shrinks at the rate :math:`(1 + s t) / (1 - t)`.

    As ``sample_schedule`` of a geodesic path with a linear schedule it multiplies the velocity by :math:`1 + s t` ("anti-
    annealing"): the approach to the data is steeper than in training, so that errors of late times count less and samples are
    drawn into the modes. The marginals are no longer those of training; a sharper law is often what is wanted.

    Args:
        slope: s, at least 0; 0 changes nothing.
    """

    slope: float = 5.0

    def __post_init__(self) -> None:
        if not self.slope >= 0:
            raise ValueError(f"Annealed: slope must be at least 0, got {self.slope}")

    def k(self, t: Tensor) -> Tensor:
        return 1 - self.remaining(t)

    def dk(self, t: Tensor) -> Tensor:
        return (1 + self.slope * t) * (1 - t).clamp_min(0) ** self.slope * torch.exp(self.slope * t)

    def remaining(self, t: Tensor) -> Tensor:
        return (1 - t).clamp_min(0) ** (1 + self.slope) * torch.exp(self.slope * t)

    def hazard(self, t: Tensor) -> Tensor:
        """(1 + s t) / (1 - t), without the underflow of 1 - k."""
        return (1 + self.slope * t) / (1 - t).clamp_min(1e-3)

    def fraction(self, t: Tensor, s: Tensor) -> Tensor:
        """Without the underflow of 1 - k."""
        is_done = t >= 1
        left = torch.where(is_done, 1.0, 1 - t)
        kept = ((1 - s).clamp_min(0) / left) ** (1 + self.slope) * torch.exp(self.slope * (s - t))
        return torch.where(is_done, 0.0, 1 - kept)
