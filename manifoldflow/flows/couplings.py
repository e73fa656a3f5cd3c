"""Coupling layers: one part of the state is mapped by numbers that a network makes of the rest, so the inverse is exact."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.flows.base import Chain, Layer, Pushed, field_of, with_field
from manifoldflow.flows.moebius import double_moebius, into_ball
from manifoldflow.flows.splines import circular_turn, make_knots, rational_quadratic
from manifoldflow.flows.transforms import Transform
from manifoldflow.manifolds.rotation import quaternion_conjugate, quaternion_multiply
from manifoldflow.state import State


class Mlp(nn.Module):
    """Features ``(..., inputs)`` -> numbers ``(..., outputs)`` that are zero at first, so that a layer begins as the identity.

    Args:
        inputs, outputs: sizes.
        width, depth: of the hidden layers.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise([inputs, *[width] * depth]):
            layers += [nn.Linear(a, b), nn.SiLU()]
        last = nn.Linear(width if depth else inputs, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class SplitCoupling(Layer):
    """Numbers of one or several fields ``(B, d)``: those that a mask keeps decide how the others are mapped.

    Args:
        transforms: field -> what is done to its numbers (:class:`CircularSpline`, :class:`LineSpline`); ``""`` names a state
            that is a tensor.
        kept: field -> bool mask ``(d,)`` of the numbers that stay.
        cond: number of features of ``cond``, ``(B, cond)``.
        width, depth: of the network.
    """

    def __init__(
        self,
        transforms: Mapping[str, Transform],
        kept: Mapping[str, Sequence[bool] | Tensor],
        *,
        cond: int = 0,
        width: int = 128,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.transforms = dict(transforms)
        masks = {name: torch.as_tensor(kept[name], dtype=torch.bool) for name in transforms}
        inputs = cond
        self.outputs: list[int] = []
        for name, transform in self.transforms.items():
            if transform.event_ndim:
                raise ValueError(f"SplitCoupling maps numbers one by one, {transform} of field {name!r} maps vectors")
            stays = masks[name].nonzero().squeeze(-1)
            goes = (~masks[name]).nonzero().squeeze(-1)
            self.register_buffer(f"stays_{name}", stays, persistent=False)
            self.register_buffer(f"goes_{name}", goes, persistent=False)
            shown = transform.features(torch.zeros(1)).shape[-1]
            inputs += len(stays) * shown
            self.outputs.append(len(goes) * transform.free)
        if not sum(self.outputs):
            raise ValueError("a coupling that keeps every number does nothing; free some in kept=")
        self.network = Mlp(max(inputs, 1), sum(self.outputs), width, depth)
        self.cond = cond

    def forward(self, x: State, cond: Any = None) -> Pushed:
        return self._map(x, cond, inverse=False)

    def inverse(self, y: State, cond: Any = None) -> Pushed:
        return self._map(y, cond, inverse=True)

    def _map(self, x: State, cond: Any, *, inverse: bool) -> Pushed:
        seen = [] if not self.cond else [cond]
        for name, transform in self.transforms.items():
            part = field_of(x, name).index_select(-1, getattr(self, f"stays_{name}"))
            seen.append(transform.features(part).flatten(-2))
        shown = torch.cat(seen, -1)
        made = self.network(shown if shown.shape[-1] else shown.new_ones(*shown.shape[:-1], 1))
        total: Any = 0.0
        for (name, transform), free in zip(self.transforms.items(), made.split(self.outputs, -1), strict=True):
            goes, value = getattr(self, f"goes_{name}"), field_of(x, name)
            if not len(goes):
                continue
            image, log_det = transform(
                value.index_select(-1, goes), free.unflatten(-1, (-1, transform.free)), inverse=inverse
            )
            x = with_field(x, name, value.index_copy(-1, goes, image))
            total = total + log_det.sum(-1)
        return Pushed(x, total)


class FieldCoupling(Layer):
    """Points of some elements of one field, given everything else: the layer of many bodies.

    The network gets the state with the changed points replaced by zeros, so it must not divide by them.

    Args:
        field: the field ``(B, N, *event)`` that is changed; ``""`` for a state that is a tensor.
        transform: what is done to its points.
        network: ``(state, cond) -> (B, N, transform.free)``, begun at zero.
        changed: bool mask ``(N,)`` of the elements that change; all if absent.
    """

    def __init__(
        self, field: str, transform: Transform, network: nn.Module, changed: Sequence[bool] | Tensor | None = None
    ) -> None:
        super().__init__()
        self.field, self.transform, self.network = field, transform, network
        self.register_buffer("changed", None if changed is None else torch.as_tensor(changed, dtype=torch.bool))

    def forward(self, x: State, cond: Any = None) -> Pushed:
        return self._map(x, cond, inverse=False)

    def inverse(self, y: State, cond: Any = None) -> Pushed:
        return self._map(y, cond, inverse=True)

    def _map(self, x: State, cond: Any, *, inverse: bool) -> Pushed:
        value = field_of(x, self.field)
        changed: Any = (
            self.changed if self.changed is not None else torch.ones((), dtype=torch.bool, device=value.device)
        )
        points = changed.reshape(*changed.shape, *(1,) * self.transform.event_ndim)
        free = self.network(with_field(x, self.field, torch.where(points, 0.0, value)), cond)
        image, log_det = self.transform(value, free, inverse=inverse)
        log_det = torch.where(changed, log_det, 0.0)
        return Pushed(with_field(x, self.field, torch.where(points, image, value)), log_det.flatten(1).sum(-1))


class Mixing(Layer):
    """A double Möbius map of unit quaternions ``(..., 4)`` between two turns, all constants that are learned.

    A matrix on :math:`S^3` and so no more than one (:mod:`manifoldflow.flows.moebius`); its use is to show each
    :class:`RotationCoupling` other coordinates.

    Args:
        field: the field; ``""`` for a state that is a tensor.
    """

    def __init__(self, field: str = "", *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.field = field
        self.center = nn.Parameter(torch.zeros(4))
        self.left = nn.Parameter(torch.randn(4, generator=generator))
        self.right = nn.Parameter(torch.randn(4, generator=generator))

    def forward(self, x: State, cond: Any = None) -> Pushed:
        q, left, right = field_of(x, self.field), *self._turns()
        q, log_det = double_moebius(q, into_ball(self.center).expand_as(q))
        q = quaternion_multiply(quaternion_multiply(left.expand_as(q), q), right.expand_as(q))
        return Pushed(with_field(x, self.field, q), _per_sample(log_det))

    def inverse(self, y: State, cond: Any = None) -> Pushed:
        q, left, right = field_of(y, self.field), *self._turns()
        back, forth = quaternion_conjugate(left).expand_as(q), quaternion_conjugate(right).expand_as(q)
        q = quaternion_multiply(quaternion_multiply(back, q), forth)
        q, log_det = double_moebius(q, into_ball(self.center).expand_as(q), inverse=True)
        return Pushed(with_field(y, self.field, q), _per_sample(log_det))

    def _turns(self) -> tuple[Tensor, Tensor]:
        return tuple(torch.nn.functional.normalize(v, dim=-1) for v in (self.left, self.right))  # type: ignore[return-value]


class RotationCoupling(Layer):
    r"""Single rotations, as unit quaternions ``(B, 4)``: the coupling of one sphere :math:`S^3` with itself.

    Two complex numbers a = w + ix and b = y + iz with :math:`|a|^2 + |b|^2 = 1` split a quaternion. Under the Haar measure
    :math:`|a|^2` and the two phases are independent and uniform. The layer keeps b up to its length and one of

    - the phase of a, mapped by a double Möbius map of the circle and a circular spline of *twice* the phase,
    - the share :math:`|a|^2`, mapped by a spline of [0, 1],

    while the rest decides how, through products that are the same for q and -q. So f(-q) = -f(q) exactly, and the
    log-determinant is that of maps of one variable.

    Args:
        changes: ``"phase"`` or ``"share"``.
        field: the field; ``""`` for a state that is a tensor.
        bins: of the spline.
        cond: number of features of ``cond``, ``(B, cond)``.
        width, depth: of the network.
    """

    def __init__(
        self, changes: str, *, field: str = "", bins: int = 8, cond: int = 0, width: int = 64, depth: int = 2
    ) -> None:
        super().__init__()
        if changes not in ("phase", "share"):
            raise ValueError(f"changes must be 'phase' or 'share', got {changes!r}")
        self.changes, self.field, self.cond = changes, field, cond
        inputs = (2 + 1 if changes == "phase" else 6) + cond
        self.network = Mlp(inputs, (2 if changes == "phase" else 0) + 3 * bins + 1, width, depth)

    def forward(self, x: State, cond: Any = None) -> Pushed:
        return self._map(x, cond, inverse=False)

    def inverse(self, y: State, cond: Any = None) -> Pushed:
        return self._map(y, cond, inverse=True)

    def _map(self, x: State, cond: Any, *, inverse: bool) -> Pushed:
        q = field_of(x, self.field)
        a, b = q[..., :2], q[..., 2:]
        long_a, long_b = _length(a), _length(b)
        a, b = a / long_a, b / long_b
        seen = [_product(b, b)] if self.changes == "phase" else [_product(a, a), _product(a, b), _product(b, b)]
        seen += [long_a.square() - 0.5] if self.changes == "phase" else []
        free = self.network(torch.cat([*seen, *([cond] if self.cond else [])], -1))
        if self.changes == "phase":
            a, log_det = self._turn(a, free, inverse)
        else:
            share, log_det = _interval_spline(long_a.square().squeeze(-1), free[..., 1:], inverse)
            long_a, long_b = (
                share.clamp_min(1e-14).sqrt().unsqueeze(-1),
                (1 - share).clamp_min(1e-14).sqrt().unsqueeze(-1),
            )
        q = torch.nn.functional.normalize(torch.cat([a * long_a, b * long_b], -1), dim=-1)
        return Pushed(with_field(x, self.field, q), _per_sample(log_det))

    def _turn(self, a: Tensor, free: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """A unit complex number under a double Möbius map and a spline of twice its angle, in this order."""
        w, spline = into_ball(free[..., :2]), free[..., 2:]
        total: Any = 0.0
        if not inverse:
            a, total = double_moebius(a, w)
        doubled = _product(a, a)  # of -a the same, to the last bit
        turn, log_det = circular_turn(
            torch.atan2(doubled[..., 1], doubled[..., 0]), spline, 2 * math.pi, inverse=inverse
        )
        half = 0.5 * turn
        a = _product(a, torch.stack([half.cos(), half.sin()], -1))
        if inverse:
            a, more = double_moebius(a, w, inverse=True)
            log_det = log_det + more
        return a, log_det + total


def rotation_flow(
    layers: int = 6, *, field: str = "", bins: int = 8, width: int = 64, seed: int = 0, cond: int = 0
) -> Chain:
    """A flow of single rotations: turns of the phase and of the share between double Möbius maps of :math:`S^3`.

    Args:
        layers: groups of one map of each kind.
        field: the field; ``""`` for a state that is a tensor ``(B, 4)``.
        bins, width: of the splines and the networks.
        seed: of the constant turns between the layers.
        cond: number of features of ``cond``.
    """
    generator = torch.Generator().manual_seed(seed)
    made: list[Layer] = []
    for _ in range(layers):
        made.append(RotationCoupling("phase", field=field, bins=bins, width=width, cond=cond))
        made.append(RotationCoupling("share", field=field, bins=bins, width=width, cond=cond))
        made.append(Mixing(field, generator=generator))
    return Chain(made)


def _interval_spline(x: Tensor, free: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """A spline of [0, 1]; ``free`` has 3 K numbers, of the slopes at the ends one only (both ends share it)."""
    widths, heights, slopes = free.chunk(3, -1)
    return rational_quadratic(x, make_knots(widths, heights, torch.cat([slopes, slopes[..., :1]], -1)), inverse=inverse)


def _length(v: Tensor) -> Tensor:
    return torch.sqrt((v * v).sum(-1, keepdim=True) + 1e-14)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of complex numbers ``(..., 2)``."""
    (u, v), (x, y) = a.unbind(-1), b.unbind(-1)
    return torch.stack([u * x - v * y, u * y + v * x], -1)


def _per_sample(log_det: Tensor) -> Tensor:
    return log_det if log_det.ndim == 1 else log_det.flatten(1).sum(-1)
