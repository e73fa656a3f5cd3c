"""Networks for sequences: dilated convolutions, and a small transformer; both take tokens or points of the simplex."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

STACK = (1, 1, 4, 16, 64)
"""Dilations of one stack of convolutions, as in Dirichlet flow matching."""


class SequenceNet(nn.Module):
    """What both networks share: the embedding of states, positions, times and conditions.

    The same weights read tokens ``(B, L)`` int64, the number K being the mask token, and points of the simplex ``(B, L, K)``: one
    linear map of one-hot states. A simplex state is also read in its logarithm, in which posteriors are linear.

    Args:
        length: longest sequence.
        classes: number of classes a sample may be conditioned on, 0 for none.
        scalars: number of real-valued conditions, 0 for none.
        categories: K.
        width: hidden width.
    """

    def __init__(
        self, length: int, classes: int = 0, *, scalars: int = 0, categories: int = 4, width: int = 64
    ) -> None:
        super().__init__()
        if length < 1 or categories < 2 or width < 2 or min(classes, scalars) < 0:
            raise ValueError(
                f"length, categories and width must be positive, got {length}, {categories}, {width}; "
                f"classes and scalars not negative, got {classes}, {scalars}"
            )
        self.length, self.classes, self.scalars, self.categories, self.width = (
            length,
            classes,
            scalars,
            categories,
            width,
        )
        self.state = nn.Linear(2 * categories + 1, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        # One row more: the class of samples whose class is hidden.
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.scalar = nn.Linear(2 * scalars, width) if scalars else None

    def embed(self, x: Tensor, t: Tensor, cond: Any, cond_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """States with their places ``(B, L, width)``, and the code of time and condition ``(B, 1 or L, width)``."""
        batch, length = x.shape[:2]
        if length > self.length:
            raise ValueError(f"this network was made for sequences of up to {self.length}, got {length}")
        dtype = self.place.dtype
        if x.is_floating_point():
            logs = 1 + x.clamp_min(1e-4).log() / 9.2
            state = torch.cat([x, x.new_zeros(batch, length, 1), logs], -1)
        else:
            hot = nn.functional.one_hot(x, self.categories + 1).to(dtype)
            state = torch.cat([hot, hot[..., : self.categories]], -1)
        value = self.state(state.to(dtype)) + self.place[:length]
        harmonics = torch.exp(torch.linspace(0, math.log(100.0), 16, dtype=dtype, device=t.device))
        phase = t.to(dtype).unsqueeze(-1) * harmonics
        code = self.time(torch.cat([phase.sin(), phase.cos()], -1))
        code = code.unsqueeze(1) if code.ndim == 2 else code
        return value, code + self._condition(cond, cond_mask, batch).unsqueeze(1)

    def _condition(self, cond: Any, cond_mask: Tensor | None, batch: int) -> Tensor:
        given = dict(cond) if isinstance(cond, Mapping) else ({} if cond is None else {"label": cond})
        device = self.place.device
        seen = torch.ones(batch, dtype=torch.bool, device=device) if cond_mask is None else cond_mask
        total = self.place.new_zeros(batch, self.width)
        if unknown := set(given) - {"label", "scalars"}:
            raise ValueError(f"unknown conditions {sorted(unknown)}; a network may take 'label' and 'scalars'")
        if (self.label is None and "label" in given) or (self.scalar is None and "scalars" in given):
            raise ValueError(
                f"this network takes {self.classes} classes and {self.scalars} scalars, but cond= has {sorted(given)}"
            )
        if self.label is not None:
            hidden = torch.full((batch,), self.classes, dtype=torch.int64, device=device)
            label = torch.as_tensor(given["label"], device=device).expand(batch) if "label" in given else hidden
            total = total + self.label(torch.where(seen, label, hidden))
        if self.scalar is not None:
            value = given.get("scalars")
            number = self.place.new_zeros(batch, self.scalars) if value is None else torch.as_tensor(value).to(total)
            shown = (seen if value is not None else torch.zeros_like(seen)).to(total.dtype).unsqueeze(-1)
            number = number.expand(batch, self.scalars) * shown
            total = total + self.scalar(torch.cat([number, shown.expand(batch, self.scalars)], -1))
        return total


class ConvNet(SequenceNet):
    r"""Residual dilated convolutions, each block modulated by time and condition.

    .. math:: h \leftarrow h + W_2 * \mathrm{GELU}(W_1 *_{dilation} [(1 + a)\, \mathrm{norm}(h) + b])

    Args:
        length, classes, scalars, categories, width: as for :class:`SequenceNet`.
        kernel: width of the kernels, odd.
        dilations: of the blocks.
        dropout: in every block.
    """

    def __init__(
        self,
        length: int,
        classes: int = 0,
        *,
        scalars: int = 0,
        categories: int = 4,
        width: int = 64,
        kernel: int = 9,
        dilations: Sequence[int] = STACK,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(length, classes, scalars=scalars, categories=categories, width=width)
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        self.blocks = nn.ModuleList([ConvBlock(width, kernel, d, dropout) for d in dilations])
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, categories))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        cond_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits ``(B, L, K)`` of the clean categories.

        Args:
            x: tokens ``(B, L)`` or points ``(B, L, K)``.
            t: times ``(B,)`` or ``(B, L)``.
            mask: bool ``(B, L)`` of real positions.
            cond: classes ``(B,)``, or ``{"label": (B,), "scalars": (B, S)}``.
            cond_mask: bool ``(B,)``, False where the condition is hidden.
        """
        value, code = self.embed(x, t, cond, cond_mask)
        keep = None if mask is None else mask.unsqueeze(-1).to(value.dtype)
        for block in self.blocks:
            value = block(value, code, keep)
        return self.last(value)


class ConvBlock(nn.Module):
    """A residual block of :class:`ConvNet`.

    Args:
        width, kernel, dilation, dropout: as there.
        causal: a letter sees itself and those before it.
    """

    def __init__(self, width: int, kernel: int, dilation: int, dropout: float, *, causal: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        reach = dilation * (kernel - 1)
        self.before = reach if causal else 0
        self.wide = nn.Conv1d(width, width, kernel, padding=0 if causal else reach // 2, dilation=dilation)
        self.point = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, value: Tensor, code: Tensor, keep: Tensor | None = None) -> Tensor:
        """``value`` ``(B, L, W)`` changed by what is near; ``code`` ``(B, 1 or L, W)``, ``keep`` ``(B, L, 1)``."""
        scale, shift = self.modulation(code).chunk(2, -1)
        inside = self.norm(value) * (1 + scale) + shift
        if keep is not None:
            inside = inside * keep  # padding looks like what lies beyond the ends
        seen = nn.functional.pad(inside.mT, (self.before, 0)) if self.before else inside.mT
        return value + self.dropout(self.point(nn.functional.gelu(self.wide(seen).mT)))


class Transformer(SequenceNet):
    """Pre-norm attention over the whole sequence, modulated by time and condition.

    Args:
        length, classes, scalars, categories, width: as for :class:`SequenceNet`.
        layers: number of blocks.
        heads: of the attention; ``width`` must be a multiple.
        dropout: in every block.
    """

    def __init__(
        self,
        length: int,
        classes: int = 0,
        *,
        scalars: int = 0,
        categories: int = 4,
        width: int = 64,
        layers: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(length, classes, scalars=scalars, categories=categories, width=width)
        if layers < 1 or width % heads:
            raise ValueError(f"layers must be positive and width a multiple of heads, got {layers}, {width}, {heads}")
        self.blocks = nn.ModuleList([_AttentionBlock(width, heads, dropout) for _ in range(layers)])
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, categories))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        cond_mask: Tensor | None = None,
    ) -> Tensor:
        """As for :class:`ConvNet`."""
        value, code = self.embed(x, t, cond, cond_mask)
        for block in self.blocks:
            value = block(value, code, mask)
        return self.last(value)


class _AttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in range(2)])
        self.modulation = nn.Linear(width, 4 * width)
        self.to_qkv, self.from_heads = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, value: Tensor, code: Tensor, mask: Tensor | None) -> Tensor:
        a, b, c, d = self.modulation(code).chunk(4, -1)
        inside = self.norms[0](value) * (1 + a) + b
        q, k, v = self.to_qkv(inside).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None if mask is None else mask[:, None, None, :]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        value = value + self.from_heads(mixed.transpose(1, 2).flatten(-2))
        return value + self.feed(self.norms[1](value) * (1 + c) + d)
