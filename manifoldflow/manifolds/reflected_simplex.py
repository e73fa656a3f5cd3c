"""The flat simplex whose walls reflect."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from manifoldflow.manifolds.domains import Domain
from manifoldflow.manifolds.simplex import ProbabilityVectors, Simplex
from manifoldflow.numerics import in_full_precision


@dataclass(frozen=True)
class ReflectedSimplex(Domain, ProbabilityVectors):
    r"""Probability vectors ``(..., categories)`` with the flat metric and walls at :math:`p_k = 0`.

    A tangent is :math:`\dot p`, with sum 0. Mirror images of a triangle tile the plane, but those of a simplex of more than
    three corners overlap, so a ray is followed from facet to facet: ``exp`` is exact up to ``bounces`` reflections, and a
    longer ray stops at the last. ``Simplex(k, "flat")``, the same space, stops at the first.

    Args:
        categories: number K of categories; the dimension is K - 1.
        bounces: number of reflections that are followed.
    """

    categories: int
    bounces: int = 12
    any_vector_is_tangent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.bounces < 1:
            raise ValueError(f"ReflectedSimplex: bounces must be at least 1, got {self.bounces}")
        _ = self.flat

    @property
    def flat(self) -> Simplex:
        """The same points without reflections."""
        return Simplex(self.categories, "flat")

    @property
    def dim(self) -> int:
        return self.categories - 1

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.categories,)

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """The uniform distribution."""
        return self.flat.origin(shape, dtype=dtype, device=device)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return self.flat.to_tangent(x, u)

    def tangent_basis(self, x: Tensor) -> Tensor:
        return self.flat.tangent_basis(x)

    def project(self, x: Tensor) -> Tensor:
        return self.flat.project(x)

    def is_minimising(self, x: Tensor, u: Tensor) -> Tensor:
        """Whether the straight segment ends inside."""
        return ((x + u) >= 0).all(-1)

    def _clamp(self, x: Tensor) -> Tensor:
        clamped = x.clamp_min(0)
        return clamped / clamped.sum(-1, keepdim=True)

    def _mirror(self, v: Tensor, wall: Tensor, hits: Tensor) -> Tensor:
        r"""v reflected at the facet of category ``wall``, :math:`v - 2 v_k \frac{K}{K - 1} (e_k - 1/K)`."""
        k = self.categories
        through = torch.where(hits, v.gather(-1, wall), 0.0) * (2 / (k - 1))
        number = torch.arange(k, device=v.device)
        return v + torch.where(number == wall, -through * (k - 1), through)

    def _follow(self, x: Tensor, u: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """End of the ray, and the walls that it met: (category, whether there was one)."""
        x, u = torch.broadcast_tensors(x, u)
        met = []
        for _ in range(self.bounces):
            falls = u < 0
            time = torch.where(falls, x / torch.where(falls, -u, 1.0), float("inf"))
            first, wall = time.min(-1, keepdim=True)
            hits = first < 1
            share = torch.where(hits, first, 0.0)
            number = torch.arange(self.categories, device=x.device)
            landed = torch.where(hits & (number == wall), 0.0, (x + share * u).clamp_min(0))
            x = torch.where(hits, landed, x)
            u = torch.where(hits, (1 - share) * self._mirror(u, wall, hits), u)
            met.append((wall, hits))
        # What is left of the ray is followed to the next wall.
        falls = u < 0
        time = torch.where(falls, x / torch.where(falls, -u, 1.0), float("inf"))
        end = x + time.amin(-1, keepdim=True).clamp(0, 1) * u
        return self._clamp(end), met

    @in_full_precision
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return self._follow(x, u)[0]

    def _reflected_back(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        met = self._follow(x, w)[1]
        v = v.expand(torch.broadcast_shapes(v.shape, (*met[0][0].shape[:-1], self.categories)))
        for wall, hits in reversed(met):
            v = self._mirror(v, wall.expand(*v.shape[:-1], 1), hits)
        return v

    @in_full_precision
    def residual(self, x: Tensor) -> Tensor:
        """The larger of the most negative entry and |sum - 1|; a sum within round-off of 1 counts as 1."""
        drift = (x.sum(-1) - 1).abs()
        drift = torch.where(drift <= 2 * self.categories * torch.finfo(x.dtype).eps, 0.0, drift)
        return drift.maximum((-x).amax(-1)).clamp_min(0)

    @property
    def log_volume(self) -> float:
        return self.flat.log_volume

    def sample_uniform(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return self.flat.sample_uniform(shape, generator=generator, dtype=dtype, device=device)

    def without_flux(self, x: Tensor, v: Tensor, width: float) -> Tensor:
        """Every component is multiplied by tanh of its probability over ``width``, after a common shift that keeps the sum 0."""
        gate = (x / width).tanh() + torch.finfo(x.dtype).tiny
        mean = (gate * v).sum(-1, keepdim=True) / gate.sum(-1, keepdim=True)
        return gate * (v - mean)
