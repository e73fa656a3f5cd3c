"""How a manifold meets the rest: what networks see of its points, how space turns them, what it is a folded part of."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from manifoldflow.numerics import push_along


class Views:
    """The part of :class:`Manifold` that networks, couplings and samplers call."""

    is_linear: ClassVar[bool] = False
    """Points are vectors that add up: flat space, with or without its mean."""

    is_centered: ClassVar[bool] = False
    """The mean over a set of points is removed, see :meth:`center`."""

    has_walls: ClassVar[bool] = False
    """There is a boundary that trajectories must not cross, see :meth:`without_flux`."""

    has_ambient_metric: ClassVar[bool] = False
    """Tangents are velocities of the coordinates, with the inner product of the surrounding space."""

    steps_by_projection: ClassVar[bool] = False
    """Tangents are velocities of the coordinates, and :meth:`project` is smooth and cheap: integrators may step in the space
    around and project, which keeps their order, as a field v goes on outside as v(project(x))."""

    any_vector_is_tangent: ClassVar[bool] = False
    """:meth:`to_tangent` changes nothing, so it need not be called."""

    @property
    def default_source(self: Any) -> str:
        """The source of a flow that names none: ``"normal"``, ``"uniform"`` or ``"wrapped normal"``."""
        if self.is_linear:
            return "normal"
        return "wrapped normal" if self.is_hadamard else "uniform"

    @property
    def coordinate_period(self) -> float | None:
        """Where every coordinate is periodic, its period; None elsewhere."""
        return None

    def center(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Remove what the space has no place for from a set of points or tangents: nothing, except on :class:`Centered`.

        Args:
            x: ``(..., N, *event)``.
            mask: bool ``(..., N)``, True where an element is real.
        """
        return x

    # ---------------------------------------------------------------- what networks see

    def embed(self: Any, x: Tensor, harmonics: int = 1) -> Tensor:
        """Smooth functions of the point, not of its representative, ``(..., embedding_size(harmonics))``.

        The numbers of the point; sin and cos of the multiples 1 .. ``harmonics`` of the angles where coordinates are periodic.
        """
        if self.coordinate_period is None:
            return x.flatten(-self.event_ndim) if self.event_ndim > 1 else x
        phase = self._phase(x, harmonics)
        return torch.cat([phase.sin(), phase.cos()], -1)

    def embedding_size(self: Any, harmonics: int = 1) -> int:
        """Size of :meth:`embed`."""
        numbers = math.prod(self.event_shape)
        return numbers if self.coordinate_period is None else 2 * harmonics * numbers

    def push_embedding(self: Any, x: Tensor, moves: Tensor, harmonics: int = 1) -> tuple[Tensor, Tensor]:
        """:meth:`embed`, and their derivatives ``(D, ..., size)`` along ``moves`` ``(D, *x.shape)`` of the points."""
        if self.coordinate_period is None:
            return push_along(lambda y: self.embed(y, harmonics), (x,), (moves,))
        phase, moved = self._phase(x, harmonics), self._phase(moves, harmonics)
        sin, cos = phase.sin(), phase.cos()
        return torch.cat([sin, cos], -1), torch.cat([cos * moved, -sin * moved], -1)

    def _phase(self: Any, x: Tensor, harmonics: int) -> Tensor:
        """Multiples of the angles, ``(..., numbers * harmonics)``."""
        turns = 2 * math.pi / self.coordinate_period * torch.arange(1, harmonics + 1, dtype=x.dtype, device=x.device)
        return (x.flatten(-self.event_ndim).unsqueeze(-1) * turns).flatten(-2)

    def coordinate_gap(self: Any, x: Tensor, y: Tensor) -> Tensor:
        """Largest difference of the coordinates of two points, blind to what is the same point (period, sign), ``(...)``."""
        gap, period = y - x, self.coordinate_period
        if period is not None:
            gap = gap - period * torch.round(gap / period)
        return gap.abs().flatten(-self.event_ndim).amax(-1)

    # ---------------------------------------------------------------- motions of space

    def rotate(self, rotation: Tensor, x: Tensor) -> Tensor:
        """Points after a rotation of the space around them: 3-vectors and rotations turn, everything else stays.

        Args:
            rotation: matrices ``(..., 3, 3)`` over leading batch axes of ``x``.
            x: points ``(..., *event)``.
        """
        return x

    def translate(self, shift: Tensor, x: Tensor) -> Tensor:
        """Points after a shift of the space around them: 3-vectors move, everything else stays.

        Args:
            shift: ``(..., 3)`` over leading batch axes of ``x``.
            x: points ``(..., *event)``.
        """
        return x

    # ---------------------------------------------------------------- covers

    @property
    def cover(self: Any) -> Any:
        """The manifold without walls that this one is a folded part of, itself if there is none.

        Its geodesics go on where those of this one are folded back.
        """
        return self

    def lift(self, x: Tensor) -> Tensor:
        """Points ``(..., *event)`` as points of :attr:`cover`, ``(..., *event)`` there."""
        return x

    def fold(self, z: Tensor) -> Tensor:
        """Points ``(..., *event)`` of :attr:`cover`, wherever they are, as points of this manifold; undoes :meth:`lift`."""
        return z

    def lift_tangent(self, z: Tensor, u: Tensor) -> Tensor:
        """A tangent ``(..., *tangent_event)`` at ``fold(z)`` as a tangent of :attr:`cover` at ``z``."""
        return u

    def is_inside(self: Any, z: Tensor, atol: float = 1e-6) -> Tensor:
        """Whether points of :attr:`cover` belong to the part that is not folded, ``(...)``."""
        return torch.ones(z.shape[: z.ndim - self.cover.event_ndim], dtype=torch.bool, device=z.device)

    # ---------------------------------------------------------------- charts

    def from_shares(self, shares: Tensor) -> Tensor:
        """Uniform numbers in [0, 1), ``(..., dim)``, as uniform points: a chart that keeps areas.

        Raises:
            ValueError: the manifold has none.
        """
        raise ValueError(f"{self} has no chart of the unit cube that keeps areas")

    def to_shares(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`from_shares`: points ``(..., *event)`` to ``(..., dim)``."""
        raise ValueError(f"{self} has no chart of the unit cube that keeps areas")

    def without_flux(self, x: Tensor, v: Tensor, width: float) -> Tensor:
        """A field ``v`` ``(..., *tangent_event)`` at ``x`` that does not cross the walls, in a layer of ``width``."""
        raise TypeError(f"{self} has no walls")
