"""Draws from categorical laws given by logits, without copies of the size of the logits."""

import torch
from torch import Tensor

CHUNK = 2**21
"""Logits that are turned into probabilities at once; results do not depend on it."""


def draw_categorical(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    at: Tensor | None = None,
    generator: torch.Generator | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    r"""One draw from every row: the first category whose cumulative probability exceeds a uniform number.

    One random number a row (Gumbel noise would take one per category), rows in pieces of about ``chunk`` logits.

    Args:
        logits: ``(..., K)``, unnormalised log-probabilities.
        temperature: they are divided by it; 0 takes the most probable category.
        top_p: keep the most probable categories that together have this much, at least one (Holtzman et al. 2020).
        at: numbers of the rows to draw from, counted over all leading axes; all if absent.
        generator: of the random numbers.
        chunk: bound on memory.

    Returns:
        int64, ``(...)``; with ``at`` in its shape.

    Raises:
        FloatingPointError: NaN among the logits, or a row without any probability; on a CPU only, where looking costs nothing.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    shape = logits.shape[:-1] if at is None else at.shape
    if temperature == 0:
        return (rows if at is None else rows[at]).argmax(-1).reshape(shape)
    work = torch.promote_types(rows.dtype, torch.float32)
    count = len(rows) if at is None else at.numel()
    uniform = torch.rand(count, 1, generator=generator, dtype=work, device=rows.device)
    size = max(1, chunk // rows.shape[-1])
    parts = rows.split(size) if at is None else (rows[some] for some in at.flatten().split(size))
    drawn = [_draw(part, u, temperature, top_p) for part, u in zip(parts, uniform.split(size), strict=True)]
    return torch.cat(drawn).reshape(shape)


def _draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    p = probabilities(logits, temperature, top_p, dtype=uniform.dtype)
    running = p.cumsum_(-1) if not p.requires_grad else p.cumsum(-1)
    if running.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(running[:, -1].isfinite().all()):
        raise FloatingPointError("draw_categorical: the logits hold NaN, +inf, or a row of -inf only")
    # Strictly below the total, else the clamp could return a last category of probability 0.
    threshold = uniform * running[:, -1:] * (1 - torch.finfo(uniform.dtype).eps)
    return torch.searchsorted(running, threshold, right=True).clamp_max_(logits.shape[-1] - 1).squeeze(-1)


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_p: float = 1.0, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Probabilities ``(..., K)`` after temperature and top-p, with sum 1 (less if top-p took some away).

    Args:
        logits: ``(..., K)``.
        temperature, top_p: as for :func:`draw_categorical`.
        dtype: of the result; at least single precision.
    """
    dtype = dtype or torch.promote_types(logits.dtype, torch.float32)
    p = torch.softmax(logits if temperature == 1 else logits / temperature, -1, dtype=dtype)
    if top_p >= 1:
        return p
    falling, order = p.sort(-1, descending=True)
    # What comes before a category, itself not counted: the first one always stays.
    dropped = falling.cumsum(-1) - falling >= top_p
    return p.masked_fill(torch.zeros_like(dropped).scatter_(-1, order, dropped), 0.0)
