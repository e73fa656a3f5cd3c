"""What sources, noises and policy heads have in common."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold
from manifoldflow.state import where_mask


class Distribution:
    r"""A distribution on a manifold: a frozen dataclass with a field ``manifold`` and hyper-parameters only, no
    tensors, so one object serves every device and dtype.

    Without a manifold it is a recipe; :class:`manifoldflow.Flow` completes it with :meth:`bind`.

    Densities are taken with respect to the Riemannian volume of the manifold (Lebesgue measure on flat space, surface
    measure on spheres; the rotation group has volume :math:`8 \pi^2`, both as matrices and as quaternions up to sign).
    """

    if TYPE_CHECKING:  # a field of every subclass, which sets its place among the arguments

        @property
        def manifold(self) -> Manifold | None: ...

    def bind(self, manifold: Manifold) -> Self:
        """A copy on ``manifold``; a distribution that already has a manifold is returned as it is."""
        own: Any = self
        return self if self.manifold is not None else replace(own, manifold=manifold)

    @property
    def space(self) -> Manifold:
        """The manifold of a bound distribution."""
        if self.manifold is None:
            name = type(self).__name__
            raise ValueError(
                f"this {name} has no manifold yet: use {name}(manifold=...) or distribution.bind(manifold)"
            )
        return self.manifold

    def sample(
        self,
        shape: tuple[int, ...] = (),
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw independent points.

        Args:
            shape: batch shape, without the axes of one point.
            mask: bool, leading axes of ``shape``, True where an element is real; padding gets ``manifold.origin``.
            generator: of every random number.
            dtype: of the points, torch's default if absent. Half precision is drawn in float32 and rounded.
            device: of the points.

        Returns:
            Points of shape ``(*shape, *event)``.
        """
        wanted = dtype or torch.get_default_dtype()
        drawn_in = torch.float32 if wanted in (torch.float16, torch.bfloat16) else wanted
        x = self._draw(tuple(shape), mask=mask, generator=generator, dtype=drawn_in, device=device)
        if mask is not None:
            x = where_mask(mask, x, self.space.origin(tuple(shape), dtype=x.dtype, device=x.device))
        return x.to(wanted)

    def log_prob(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Log-density of every point, batch shape ``(...)``; 0 at padding."""
        value = self._log_density(x)
        return value if mask is None else where_mask(mask, value, torch.zeros_like(value))

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        raise NotImplementedError

    def _log_density(self, x: Tensor) -> Tensor:
        raise NotImplementedError
