"""A debugging wrapper that looks at every argument of a manifold."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold


@dataclass(frozen=True)
class Checked(Manifold):
    """``manifold`` with every point and tangent checked on every call: slow (it waits for the device), for finding
    bugs.

    Args:
        manifold: the manifold to wrap.
        atol: how far a point may lie off it, and a tangent off its tangent space.

    Raises:
        ValueError: from any method, naming the method, if an argument has a wrong shape, holds NaN, lies off the
        manifold
            or is not tangent.
    """

    manifold: Manifold
    atol: float = 1e-4

    @property
    def event_ndim(self) -> int:  # type: ignore[override]
        """That of the wrapped manifold."""
        return self.manifold.event_ndim

    @property
    def tangent_ndim(self) -> int:  # type: ignore[override]
        """That of the wrapped manifold."""
        return self.manifold.tangent_ndim

    @property
    def dim(self) -> int:
        return self.manifold.dim

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.manifold.event_shape

    @property
    def log_volume(self) -> float:
        return self.manifold.log_volume

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        return self.manifold.origin(shape, dtype=dtype, device=device)

    def sample_uniform(
        self,
        shape: tuple[int, ...] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return self.manifold.sample_uniform(shape, generator=generator, dtype=dtype, device=device)

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        self._look("exp", x)
        self._look_tangent("exp", x, u)
        return self.manifold.exp(x, u)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        self._look("log", x, y)
        return self.manifold.log(x, y)

    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        self._look("dist", x, y)
        return self.manifold.dist(x, y)

    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        self._look("geodesic", x0, x1)
        return self.manifold.geodesic(x0, x1, t)

    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        self._look("transport", x, y)
        self._look_tangent("transport", x, u)
        return self.manifold.transport(x, u, y)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        self._look("inner", x)
        self._look_tangent("inner", x, u)
        self._look_tangent("inner", x, v)
        return self.manifold.inner(x, u, v)

    def tangent_basis(self, x: Tensor) -> Tensor:
        self._look("tangent_basis", x)
        return self.manifold.tangent_basis(x)

    def frame_moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._look("frame_moves", x)
        return self.manifold.frame_moves(x)

    def log_volume_element(self, x: Tensor) -> Tensor:
        return self.manifold.log_volume_element(x)

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        self._look("to_tangent", x)
        return self.manifold.to_tangent(x, u)

    def project(self, x: Tensor) -> Tensor:
        return self.manifold.project(x)

    def residual(self, x: Tensor) -> Tensor:
        return self.manifold.residual(x)

    def _look(self, method: str, *points: Tensor) -> None:
        for point in points:
            if point.dtype != points[0].dtype or point.device != points[0].device:
                raise ValueError(
                    f"{method}: the points differ in dtype or device: {point.dtype} {point.device}, {points[0].dtype} "
                    f"{points[0].device}"
                )
            try:
                self.manifold.check(point.detach(), self.atol)
            except ValueError as error:
                raise ValueError(f"{method}: {error}") from None

    def _look_tangent(self, method: str, x: Tensor, u: Tensor) -> None:
        if not bool(torch.isfinite(u).all()):
            raise ValueError(f"{method}: the tangent vectors hold NaN or infinity")
        off = float((self.manifold.to_tangent(x, u) - u).detach().abs().max()) if u.numel() else 0.0
        if off > self.atol:
            raise ValueError(
                f"{method}: a vector lies {off:.3g} off the tangent space of {self.manifold}; call .to_tangent(x, u) "
                f"first"
            )


def forward_to(own: type, target: Callable[[Any], Any]) -> None:
    """Give a wrapper class what it does not define of :class:`Manifold`, as calls of the manifold that it wraps.

    Args:
        own: the wrapper class, a subclass of Manifold.
        target: from an object of it to the wrapped manifold, or to None where Manifold's own form is right.
    """

    def method(name: str, default: Any) -> Any:
        @functools.wraps(default)
        def call(self: Any, *args: Any, **options: Any) -> Any:
            inner = target(self)
            return default(self, *args, **options) if inner is None else getattr(inner, name)(*args, **options)

        return call

    def fact(name: str, default: Any) -> Any:
        def get(self: Any) -> Any:
            inner = target(self)
            if inner is not None:
                return getattr(inner, name)
            return default.__get__(self, own) if isinstance(default, property) else default

        return property(get)

    taken = {name for c in own.__mro__ if c not in Manifold.__mro__ for name in vars(c)}
    for base in reversed(Manifold.__mro__[:-1]):
        for name, value in vars(base).items():
            if name.startswith("__") or name in taken or name in ("check", "_need_homogeneous"):
                continue
            setattr(own, name, method(name, value) if callable(value) else fact(name, value))


forward_to(Checked, lambda checked: checked.manifold)
