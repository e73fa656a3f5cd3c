"""Which source point is paired with which data point.

A coupling is called as ``coupling(x0, x1, spaces=..., mask=..., cond=..., generator=...)`` and returns a pair of states.
It may permute or rotate x0; it never changes the law of either side.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from manifoldflow.assignment import assign
from manifoldflow.manifolds.base import Manifold
from manifoldflow.state import State, fields, like, map_state


class Coupling(Protocol):
    """Pairs a batch of source states with a batch of data states."""

    def __call__(
        self,
        x0: State,
        x1: State,
        *,
        spaces: Manifold | Mapping[str, Manifold],
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> tuple[State, State]: ...


@dataclass(frozen=True)
class Independent:
    """Leave the pairs as they were drawn."""

    is_independent: ClassVar[bool] = True

    def __call__(self, x0: State, x1: State, **_: Any) -> tuple[State, State]:
        return x0, x1


def kabsch(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """The rotation R that minimises sum |R x_i - y_i|^2 over proper rotations (Kabsch 1976), ``(..., 3, 3)``.

    Both sets are taken as they are: centre them first. Not differentiated (an SVD has no stable gradient).

    Args:
        x, y: ``(..., N, 3)``.
        mask: bool ``(..., N)``.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x, y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, y.to(x.dtype)
        weighted = x if mask is None else x * mask.unsqueeze(-1).to(x.dtype)
        u, _, vh = torch.linalg.svd(y.mT @ weighted)
        sign = torch.linalg.det(u @ vh).sign()
        flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
        return (u * flip.unsqueeze(-2)) @ vh


@dataclass(frozen=True)
class Align:
    """Rotate each source sample onto its data sample: the same law for an isotropic source, shorter and straighter paths.

    Args:
        points: field of 3-D point sets ``(B, N, 3)``, centred, that determines the rotation; the only such field if absent.
        frames: fields that turn along; if absent all that do when space is turned (:meth:`Manifold.rotate`).
    """

    points: str | None = None
    frames: Sequence[str] | None = None

    def __call__(
        self,
        x0: State,
        x1: State,
        *,
        spaces: Manifold | Mapping[str, Manifold],
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> tuple[State, State]:
        a, b, space_of = fields(x0), fields(x1), fields(spaces)
        points = self.points or _only_points(space_of)
        if points not in a:
            raise ValueError(f"Align: no field {points!r} in the state; it has {', '.join(a)}")
        rotation = kabsch(a[points], b[points], mask)
        turned = [n for n in a if n == points or self.frames is None or n in self.frames]
        for n in turned:
            a[n] = space_of[n].rotate(rotation, a[n])
        return like(a, x0), x1


@dataclass(frozen=True)
class Permute:
    """Number the source points of every set as its data points lie: the permutation with the least total squared distance,
    found exactly for all sets at once (:func:`manifoldflow.assignment.assign`).

    For sets whose elements have no order and whose source draws them independently, as atoms of molecules: the same law, far
    shorter paths. With ``align`` the permuted set is then rotated onto the data: together the equivariant optimal transport of
    Klein et al. (2023) and Song et al. (2023).

    Args:
        points: field of the points ``(B, N, *event)``, on any space that has distances, that determine the permutation; the only
            one of 3-vectors if absent.
        align: what rotates afterwards; None for nothing.
        rounds: how often to permute and rotate in turn; each round can only shorten the way.
        within: a field of tokens: points are exchanged only among elements whose data have equal ones, as where those are known.
    """

    points: str | None = None
    align: Align | None = None
    rounds: int = 1
    within: str | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"Permute: rounds must be at least 1, got {self.rounds}")

    def __call__(
        self,
        x0: State,
        x1: State,
        *,
        spaces: Manifold | Mapping[str, Manifold],
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> tuple[State, State]:
        points = self.points or _only_points(fields(spaces))
        for _ in range(self.rounds):
            a, b = fields(x0), fields(x1)
            for name in (points, self.within):
                if name is not None and name not in a:
                    raise ValueError(f"Permute: no field {name!r} in the state; it has {', '.join(a)}")
            space, y, x = fields(spaces)[points], b[points], a[points]
            axis = y.ndim - space.event_ndim
            cost = space.dist(y.unsqueeze(axis), x.unsqueeze(axis - 1)).square()
            if self.within is not None:
                kind = b[self.within]
                far = 2 * cost.shape[-1] * (cost.abs().amax((-1, -2), keepdim=True) + 1)
                cost = cost + far * (kind.unsqueeze(-1) != kind.unsqueeze(-2))
            order = assign(cost, mask)
            a[points] = x.gather(1, order.reshape(*order.shape, *[1] * space.event_ndim).expand_as(x))
            x0 = like(a, x0)
            if self.align is not None:
                x0, x1 = self.align(x0, x1, spaces=spaces, mask=mask, cond=cond, generator=generator)
        return x0, x1


def _only_points(space_of: Mapping[str, Any]) -> str:
    """The field of 3-vectors.

    Raises:
        ValueError: there is none, or several.
    """
    able = [n for n, s in space_of.items() if s.is_linear and s.event_shape == (3,)]
    if len(able) != 1:
        raise ValueError(
            f"Align, Permute: say which field holds the points=, one of: {', '.join(able) or 'none has 3-vectors'}"
        )
    return able[0]


def geodesic_cost(
    x0: State, x1: State, spaces: Any, names: Sequence[str] | None = None, mask: Tensor | None = None
) -> Tensor:
    """Squared geodesic distance of every pair, ``(B, B)``: summed over the fields and the real elements of x1."""
    a, b, s = fields(x0), fields(x1), fields(spaces)
    total: Tensor | None = None
    for name in names or a:
        d = s[name].dist(a[name].unsqueeze(1), b[name].unsqueeze(0)) ** 2
        if d.ndim > 2:
            d = d if mask is None else d * mask.unsqueeze(0).reshape(1, *mask.shape, *(1,) * (d.ndim - 3))
            d = d.flatten(2).sum(-1)
        total = d if total is None else total + d
    assert total is not None
    return total


@dataclass(frozen=True)
class MinibatchOT:
    """Exact optimal transport inside the batch: the permutation of x0 with the least total squared geodesic distance.

    Every source sample is used exactly once (Tong et al. 2024 draw from the plan with replacement, which drops a third).
    Samples are exchanged only inside a stratum: equal mask, and equal condition where ``stratify`` is on, so a condition
    keeps an unbiased source. The assignment runs on the host (scipy).

    Args:
        names: fields that enter the cost; all if absent.
        align: rotate onto the partner afterwards, see :class:`Align` (for point sets).
        stratify: only exchange samples of equal ``cond``.
    """

    names: Sequence[str] | None = None
    align: Align | None = None
    stratify: bool = True

    def __call__(
        self,
        x0: State,
        x1: State,
        *,
        spaces: Manifold | Mapping[str, Manifold],
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> tuple[State, State]:
        from scipy.optimize import linear_sum_assignment

        with torch.no_grad():
            cost = geodesic_cost(x0, x1, spaces, self.names, mask)
            key = _strata(mask, cond if self.stratify else None, cost.shape[0])
            if key is not None and cost.shape[0] > 1 and int(key.max()) + 1 == cost.shape[0]:
                warnings.warn(
                    "MinibatchOT: every sample has a mask and condition of its own, so there is nothing to exchange and the "
                    "coupling is the independent one; a continuous condition needs stratify=False, or bins of it as cond",
                    stacklevel=2,
                )
            if key is not None:
                # A large finite penalty keeps the assignment inside its stratum; the identity is always feasible.
                far = (key.unsqueeze(0) != key.unsqueeze(1)).to(cost)
                cost = cost + far * (cost.max() + 1) * cost.shape[0]
            _, order = linear_sum_assignment(cost.mT.double().cpu().numpy())
        index = torch.as_tensor(order, device=cost.device)
        x0 = map_state(lambda v: v[index], x0)
        if self.align is not None:
            x0, x1 = self.align(x0, x1, spaces=spaces, mask=mask, cond=cond, generator=generator)
        return x0, x1


def _strata(mask: Tensor | None, cond: Any, batch: int) -> Tensor | None:
    """An integer label per sample, equal where mask and condition are equal."""
    parts = [v.reshape(batch, -1).double() for v in ([mask] if mask is not None else []) + _tensors(cond)]
    if not parts:
        return None
    return torch.unique(torch.cat(parts, -1), dim=0, return_inverse=True)[1]


def _tensors(cond: Any) -> list[Tensor]:
    if isinstance(cond, Tensor):
        return [cond]
    return [v for v in cond.values() if isinstance(v, Tensor)] if isinstance(cond, Mapping) else []
