"""The network of couplings between many bodies: a transformer over the bodies, without an order of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.flows.base import field_of
from manifoldflow.flows.transforms import Transform
from manifoldflow.state import State


class BodyTransformer(nn.Module):
    """Numbers for every body ``(B, N, outputs)`` from the fields of all bodies; zero at first.

    Bodies exchanged, the numbers are exchanged alike. Where bodies have names (the sites of a crystal), ``sites`` gives each a
    learned vector, and bodies with their vectors are exchanged alike.

    Args:
        fields: field -> transform, whose ``features`` the network sees.
        outputs: numbers per body.
        sites: number of bodies, to tell them apart; 0 if they are all alike.
        scales: field -> factor on its features, so that they are of order 1.
        width, heads, blocks: of the transformer.
    """

    def __init__(
        self,
        fields: Mapping[str, Transform],
        outputs: int,
        *,
        sites: int = 0,
        scales: Mapping[str, float] | None = None,
        width: int = 64,
        heads: int = 4,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.fields, self.scales = dict(fields), dict(scales or {})
        example = {name: 4 if _is_quaternion(t) else getattr(t, "d", 1) for name, t in fields.items()}
        sizes = [t.features(torch.zeros(1, example[name])).flatten(1).shape[-1] for name, t in fields.items()]
        self.enter = nn.Linear(sum(sizes), width)
        self.site = nn.Parameter(0.5 * torch.randn(sites, width)) if sites else None
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))
        nn.init.zeros_(self.leave[1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.leave[1].bias)  # type: ignore[arg-type]

    def forward(self, x: State, cond: Any = None) -> Tensor:
        seen = [self.scales.get(n, 1.0) * t.features(field_of(x, n)) for n, t in self.fields.items()]
        h = self.enter(torch.cat(seen, -1))
        if self.site is not None:
            h = h + self.site
        for block in self.blocks:
            h = block(h)
        return self.leave(h)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(h)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        h = h + self.out(mixed.transpose(-2, -3).flatten(-2))
        return h + self.mlp(self.between(h))


def _is_quaternion(transform: Transform) -> bool:
    return transform.event_ndim == 1 and not hasattr(transform, "d")
