"""A residual network that returns tangent vectors."""

import torch
from torch import Tensor, nn

from manifoldflow.nn.mlp import TangentMLP, silu_and_push


class TangentResNet(TangentMLP):
    r"""A velocity field on a manifold: residual blocks on the features of the point, each modulated by the time.

    .. math:: h \leftarrow h + (1 + c(t))\, W_2\, \mathrm{SiLU}(W_1 [(1 + a(t))\, \mathrm{norm}(h) + b(t)])

    with a, b, c linear in an embedding of the time and the condition (Perez et al. 2018; Peebles & Xie 2023), and the second
    layer of every block 0 at the start. Where the law has several dimensions it learns in a third of the steps of
    :class:`TangentMLP` what that needs, at twice the cost of a step.

    Args:
        manifold, width, options: as for :class:`TangentMLP`.
        depth: number of blocks, of two layers each.
    """

    def _make_layers(self, point: int, rest: int, width: int, depth: int, out: int) -> None:
        embedded = 64
        self.embed = nn.Sequential(nn.Linear(rest, embedded), nn.SiLU(), nn.Linear(embedded, embedded), nn.SiLU())
        self.first = nn.Linear(point, width)
        self.blocks = nn.ModuleList([_Block(width, embedded) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, out)

    def _run(self, point: Tensor, rest: Tensor) -> Tensor:
        embedded = self.embed(rest)
        value = self.first(point)
        for block in self.blocks:
            value = block(value, embedded)
        return self.last(self.norm(value))

    def _push(self, point: Tensor, pushed: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.embed(rest)
        value, pushed = self.first(point), pushed @ self.first.weight.mT
        for block in self.blocks:
            assert isinstance(block, _Block)
            value, pushed = block.push(value, pushed, embedded)
        value, pushed = norm_and_push(value, pushed)
        value, pushed = value * self.norm.weight + self.norm.bias, pushed * self.norm.weight
        return self.last(value), pushed @ self.last.weight.mT


class _Block(nn.Module):
    def __init__(self, width: int, embedded: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.modulation = nn.Linear(embedded, 3 * width)
        for layer in (self.outer, self.modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, value: Tensor, embedded: Tensor) -> Tensor:
        scale, shift, gain = self.modulation(embedded).chunk(3, -1)
        inside = self.inner(self.norm(value) * (1 + scale) + shift)
        return value + (1 + gain) * self.outer(nn.functional.silu(inside))

    def push(self, value: Tensor, pushed: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """The block, and its derivatives for those of its input."""
        scale, shift, gain = self.modulation(embedded).chunk(3, -1)
        normal, moved = norm_and_push(value, pushed)
        inside = self.inner(normal * (1 + scale) + shift)
        moved = (moved * (1 + scale)) @ self.inner.weight.mT
        inside, moved = silu_and_push(inside, moved)
        return value + (1 + gain) * self.outer(inside), pushed + (1 + gain) * (moved @ self.outer.weight.mT)


def norm_and_push(value: Tensor, pushed: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Layer normalisation without weights, and its derivatives."""
    centred = value - value.mean(-1, keepdim=True)
    rate = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    normal = centred * rate
    moved = pushed - pushed.mean(-1, keepdim=True)
    return normal, rate * (moved - normal * (normal * moved).mean(-1, keepdim=True))
