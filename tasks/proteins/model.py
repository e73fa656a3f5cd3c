r"""FrameTransformer: noisy residue frames in, clean residue frames out, equivariant under rigid motions by construction.

The features of a residue and of a pair are invariants (distances, and vectors and rotations seen from a residue's own
frame), and every layer moves a frame by a motion expressed in that frame. Attention between points is the invariant point
attention of AlphaFold 2 (Jumper et al. 2021, supplementary algorithm 22), with the distances as dot products:

.. math:: -\tfrac{g}{2} |T_i q - T_j k|^2 = g\, (T_i q) \cdot (T_j k) - \tfrac{g}{2} |T_i q|^2 - \tfrac{g}{2} |T_j k|^2

is a dot product of vectors with two more entries, so scores are one batched product. Pair features meet the attention as
one bias per layer and head,
``N x N x (layers * heads)`` numbers made once per call; there is no ``N x N x 128`` tensor that lives through the layers.
Lengths inside are nanometres.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from manifoldflow.manifolds.rotation import matrix_to_quaternion, quaternion_to_matrix, rotvec_to_matrix
from manifoldflow.tasks.proteins.geometry import BREAK_OFFSET

ANGSTROM = 0.1
"""One angstrom in the network's unit."""


@dataclass
class NetworkConfig:
    """Size of a :class:`FrameTransformer`.

    Args:
        width: features per residue.
        depth: number of layers.
        heads: attention heads.
        points: query, key and value points per head.
        hidden: inner width of the gated feed-forward part.
        pair_hidden: width of the pair features.
        max_offset: relative positions along the chain beyond this share one bin.
        amino_acids: accept ``cond["aatype"]``.
    """

    width: int = 128
    depth: int = 6
    heads: int = 4
    points: int = 8
    hidden: int = 320
    pair_hidden: int = 32
    max_offset: int = BREAK_OFFSET - 1
    amino_acids: bool = False


def full_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run geometry outside autocast: coordinates square and cancel, which half precision does not survive."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        device = next(a for a in args if isinstance(a, Tensor)).device.type
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return wrapper


class FrameTransformer(nn.Module):
    """Predicts the clean frames of a protein backbone from noisy ones.

    Args:
        config: the size.
    """

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or NetworkConfig()
        self.node_in = nn.Sequential(nn.Linear(_NODE_FEATURES, c.width), nn.GELU(), nn.Linear(c.width, c.width))
        self.type_in = nn.Embedding(21, c.width) if c.amino_acids else None
        self.pair = PairBias(c)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.depth))
        self.apply(_initialise)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.start_small(c.depth)

    def forward(
        self,
        x: dict[str, Tensor],
        t: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        previous: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Clean frames.

        Args:
            x: ``{"trans": (B, N, 3) angstrom, "rots": (B, N, 3, 3) or unit quaternions (B, N, 4)}``.
            t: time in [0, 1], ``(B,)`` or per residue ``(B, N)``.
            mask: bool ``(B, N)``, True where a residue is real.
            cond: ``{"residue_index": (B, N), "aatype": (B, N)}``, both optional; a jump in the index is a chain break.
            previous: the last prediction, for self-conditioning.

        Returns:
            The same structure as ``x``.
        """
        cond = cond or {}
        quaternions = x["rots"].shape[-1] == 4 and x["rots"].ndim == 3
        trans, rots = _as_frames(x)
        b, n = trans.shape[:2]
        if mask is None:
            mask = torch.ones(b, n, dtype=torch.bool, device=trans.device)
        index = cond.get("residue_index")
        if index is None:
            index = torch.arange(n, device=trans.device).expand(b, n)
        if t.ndim == 1:
            t = t.unsqueeze(-1).expand(b, n)
        # A common origin keeps coordinates small; a masked mean makes the result independent of padding.
        weight = mask.unsqueeze(-1).to(trans.dtype)
        centre = (trans * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)
        trans = (trans - centre) * weight
        # A clean frame is about (1 - t) away from a noisy one: motions are measured in that, so that the error of the
        # prediction shrinks with the noise by construction.
        reach = (1 - t).clamp_min(0.02).unsqueeze(-1).to(trans.dtype)
        before = None
        if previous is not None:
            before_trans, before_rots = _as_frames(previous)
            before = ((before_trans - centre) * weight, before_rots)
        h = self.node_in(_node_features(trans, rots, t, index, mask, before))
        if self.type_in is not None and "aatype" in cond:
            h = h + self.type_in(cond["aatype"])
        bias = self.pair(trans, rots, index, mask, before)
        for layer, layer_bias in zip(self.layers, bias.unbind(1), strict=True):
            h, trans, rots = layer(h, trans, rots, layer_bias, reach)
        trans = (trans * weight + centre) / ANGSTROM
        return {"trans": trans, "rots": matrix_to_quaternion(rots) if quaternions else rots}

    def memory(self, batch: int, length: int) -> int:
        """Bytes that one forward pass without gradients needs at its peak, about; the pair features dominate."""
        c = self.config
        channels = 2 * (PairBias.bins + 3) + 9 + 3 * c.pair_hidden + 2 * c.depth * c.heads + 3 * c.heads
        return 4 * batch * length * (length * channels + 40 * c.width)


class PairBias(nn.Module):
    """One attention bias per layer and head from what residue i sees of residue j, ``(B, depth, heads, N, N)``.

    Channels come before the pair axes, so that every product is a matrix product whose result lies as the attention reads it.
    """

    bins = 16

    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.c = c
        self.offset = nn.Embedding(2 * c.max_offset + 1, c.pair_hidden)
        self.now = nn.Linear(self.bins + 3 + 9, c.pair_hidden)
        self.before = nn.Linear(self.bins + 3, c.pair_hidden)
        self.out = nn.Linear(c.pair_hidden, c.depth * c.heads)

    def forward(
        self, trans: Tensor, rots: Tensor, index: Tensor, mask: Tensor, before: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        c, (b, n) = self.c, trans.shape[:2]
        offset = (index.unsqueeze(-2) - index.unsqueeze(-1)).clamp(-c.max_offset, c.max_offset) + c.max_offset
        features = self._now(trans, rots)
        weights: Tensor = self.now.weight
        shift: Tensor = self.now.bias
        if before is not None:
            features = torch.cat([features, self._view(before[0], before[1].permute(0, 3, 1, 2))], 1)
            weights = torch.cat([weights, self.before.weight], 1)
            shift = shift + self.before.bias
        h = torch.baddbmm(shift.view(1, -1, 1), weights.expand(b, -1, -1), features.flatten(2))
        h = h + self.offset(offset).view(b, n * n, -1).mT
        out = torch.baddbmm(
            self.out.bias.view(1, -1, 1), self.out.weight.expand(b, -1, -1), torch.nn.functional.gelu(h)
        )
        bias = out.float().view(b, c.depth, c.heads, n, n)
        return bias + torch.where(mask, 0.0, -1e9)[:, None, None, None, :]

    @full_precision
    def _now(self, trans: Tensor, rots: Tensor) -> Tensor:
        axes = rots.permute(0, 3, 1, 2)
        relative = axes.unsqueeze(2) @ axes.mT.unsqueeze(1)
        return torch.cat([self._view(trans, axes), relative.flatten(1, 2)], 1)

    @full_precision
    def _view(self, trans: Tensor, axes: Tensor) -> Tensor:
        """Distance (Gaussian bins) and direction of j in the frame of i, ``(B, bins + 3, N, N)``."""
        there = axes @ trans.mT.unsqueeze(1)
        here = (axes * trans.unsqueeze(1)).sum(-1, keepdim=True)
        local = there - here
        distance = (local * local).sum(1, keepdim=True).add(1e-6).sqrt()
        # arctan spreads the bins: 0.3 to 2 nm takes most of them, everything far away shares the last.
        centres = torch.linspace(0.0, self.bins, self.bins, dtype=trans.dtype, device=trans.device).view(-1, 1, 1)
        bins = torch.exp(-((torch.atan(distance) * (2 * self.bins / math.pi) - centres) ** 2))
        return torch.cat([bins, local / (distance + 0.1)], 1)


class Layer(nn.Module):
    """Point attention, a gated feed-forward part, and a rigid motion of every frame."""

    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.heads, self.points = c.heads, c.points
        self.scalar = c.width // c.heads
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(c.width) for _ in range(3))
        # q, k, v scalars, then q, k, v points.
        self.project = nn.Linear(c.width, c.heads * (3 * self.scalar + 9 * c.points))
        self.scale = nn.Parameter(torch.zeros(c.heads))
        self.merge = nn.Linear(c.heads * (self.scalar + 4 * c.points), c.width)
        self.gate, self.value, self.out = (
            nn.Linear(c.width, c.hidden),
            nn.Linear(c.width, c.hidden),
            nn.Linear(c.hidden, c.width),
        )
        self.move = nn.Linear(c.width, 6)

    def start_small(self, depth: int) -> None:
        """Begin near the identity, so that depth does not hurt at the start of training."""
        for linear in (self.merge, self.out):
            linear.weight.data /= math.sqrt(2 * depth)
        nn.init.zeros_(self.move.weight)
        nn.init.zeros_(self.move.bias)

    def forward(
        self, h: Tensor, trans: Tensor, rots: Tensor, bias: Tensor, reach: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        h = h + self.attend(self.norm1(h), trans, rots, bias)
        g = self.norm2(h)
        h = h + self.out(torch.nn.functional.silu(self.gate(g)) * self.value(g))
        return (h, *move_frames(trans, rots, self.move(self.norm3(h)), reach))

    def attend(self, h: Tensor, trans: Tensor, rots: Tensor, bias: Tensor) -> Tensor:
        return self.merge(self.look(self.project(h), trans, rots, bias))

    @full_precision
    def look(self, projected: Tensor, trans: Tensor, rots: Tensor, bias: Tensor) -> Tensor:
        """What each residue attends to: scalars, points in its own frame, and their distances."""
        b, n = projected.shape[:2]
        heads, points, scalar = self.heads, self.points, self.scalar
        qkv, local = projected.to(trans.dtype).split([3 * heads * scalar, 9 * heads * points], -1)
        q, k, v = qkv.unflatten(-1, (3, heads, scalar)).permute(2, 0, 3, 1, 4)
        world = local.unflatten(-1, (-1, 3)) @ rots.mT + trans.unsqueeze(-2)
        qp, kp, vp = world.unflatten(2, (3, heads, points)).permute(2, 0, 3, 1, 4, 5).flatten(-2)
        g = torch.nn.functional.softplus(self.scale).view(1, heads, 1, 1) * (4.0 / points)
        # |q|^2 is the same for all keys and drops out of the softmax.
        kk = -0.5 * g * (kp * kp).sum(-1, keepdim=True)
        query = torch.cat([q / math.sqrt(scalar), g * qp, torch.ones_like(kk)], -1)
        key = torch.cat([k, kp, kk], -1)
        logits = torch.baddbmm(bias.flatten(0, 1), query.flatten(0, 1), key.flatten(0, 1).mT)
        out = (logits.softmax(-1) @ torch.cat([v, vp], -1).flatten(0, 1)).unflatten(0, (b, heads))
        out, seen = out.permute(0, 2, 1, 3).split([scalar, 3 * points], -1)
        seen = (seen.reshape(b, n, heads * points, 3) - trans.unsqueeze(-2)) @ rots
        length = (seen * seen).sum(-1).add(1e-8).sqrt()
        return torch.cat([out.reshape(b, n, -1), seen.flatten(-2), length], -1)


@full_precision
def move_frames(trans: Tensor, rots: Tensor, motion: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a rigid motion given in each frame's own axes, in units of ``reach``: rotation vector, then shift."""
    turn, shift = (motion.to(trans.dtype) * reach).split(3, -1)
    return trans + (rots * shift.unsqueeze(-2)).sum(-1), rots @ rotvec_to_matrix(turn)


_REACH = (-2, -1, 1, 2)
_NODE_FEATURES = 32 + 8 + len(_REACH) * 13 + 13


@full_precision
def _node_features(
    trans: Tensor, rots: Tensor, t: Tensor, index: Tensor, mask: Tensor, before: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Invariants of each residue: time, chain length, the frames of its neighbours, and its own last prediction."""
    frequencies = math.pi * torch.arange(1, 17, dtype=trans.dtype, device=trans.device)
    phase = t.to(trans.dtype).unsqueeze(-1) * frequencies
    length = mask.sum(-1).to(trans.dtype).view(-1, 1, 1).expand(*trans.shape[:2], 1)
    scale = torch.log2(length) * torch.arange(1, 5, dtype=trans.dtype, device=trans.device) / 2
    parts = [phase.sin(), phase.cos(), scale.sin(), scale.cos()]
    for k in _REACH:
        # Row i sees row i + k.
        shift_trans, shift_rots = _shift(trans, k), _shift(rots, k)
        there = (_shift(index, k) - index == k) & _shift(mask, k) & mask
        vector = ((shift_trans - trans).unsqueeze(-2) @ rots).squeeze(-2)
        turn = (rots.mT @ shift_rots).flatten(-2)
        distance = (vector * vector).sum(-1, keepdim=True).add(1e-6).sqrt()
        close = torch.exp(-(((distance - 0.38 * abs(k) ** 0.7) * 5) ** 2))
        parts.append(torch.cat([vector / (distance + 0.1), close, turn], -1) * there.unsqueeze(-1))
    if before is None:
        parts.append(trans.new_zeros(*trans.shape[:2], 13))
    else:
        before_trans, before_rots = before
        vector = ((before_trans - trans).unsqueeze(-2) @ rots).squeeze(-2)
        parts.append(torch.cat([vector, torch.ones_like(vector[..., :1]), (rots.mT @ before_rots).flatten(-2)], -1))
    return torch.cat(parts, -1)


def _shift(value: Tensor, k: int) -> Tensor:
    """Row i of the result is row i + k of ``value`` along axis 1, zero outside."""
    if abs(k) >= value.shape[1]:
        return torch.zeros_like(value)
    tail = (0, 0) * (value.ndim - 2)
    return pad(value[:, k:], (*tail, 0, k)) if k > 0 else pad(value[:, :k], (*tail, -k, 0))


def _as_frames(x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Positions in the network's unit and rotation matrices, in single precision at least."""
    trans, rots = x["trans"], x["rots"]
    trans = trans if trans.dtype == torch.float64 else trans.float()
    rots = rots.to(trans.dtype)
    return trans * ANGSTROM, quaternion_to_matrix(rots) if rots.shape[-1] == 4 else rots


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(module.in_features))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.5)
