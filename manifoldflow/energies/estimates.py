"""What weights and samples say of a normaliser: importance, ratios of neighbours, and how much of a sample counts."""

import math

import torch
from torch import Tensor


def log_mean(log_weight: Tensor, dim: int = 0) -> Tensor:
    r""":math:`\log \frac1n \sum_i w_i`: the importance estimate of log Z, unbiased in Z."""
    return log_weight.logsumexp(dim) - math.log(log_weight.shape[dim])


def effective_share(log_weight: Tensor, dim: int = 0) -> Tensor:
    r""":math:`(\sum w)^2 / (n \sum w^2)`: the effective size of a weighted sample, as a share of its size."""
    total = log_weight.logsumexp(dim)
    return (2 * total - (2 * log_weight).logsumexp(dim)).exp() / log_weight.shape[dim]


def log_mean_error(log_weight: Tensor) -> Tensor:
    r"""Standard error of :func:`log_mean` to first order, :math:`\sqrt{(1/s - 1) / n}` with s the effective share; too small
    where the sample misses what has the large weights."""
    share = effective_share(log_weight)
    return ((1 / share - 1) / len(log_weight)).clamp_min(0).sqrt()


def bennett(forward: Tensor, backward: Tensor, iterations: int = 60) -> Tensor:
    r"""Bennett's acceptance ratio: :math:`\log Z_1 / Z_0` from samples of both laws (Bennett 1976).

    The root of :math:`\sum_i \sigma(f_i - \Delta) = \sum_j \sigma(\Delta - b_j)` for equal numbers of samples, otherwise with
    the logarithm of their ratio added to :math:`\Delta`, by bisection. Of all estimates from both samples it has the least
    variance.

    Args:
        forward: :math:`\log R_1 - \log R_0` at samples of law 0, ``(n, ...)``; other axes are pairs of laws of their own.
        backward: the same difference at samples of law 1, ``(m, ...)``.
        iterations: of the bisection.
    """
    shift = math.log(len(forward) / len(backward))
    finite = torch.where(forward.isfinite(), forward, torch.inf)
    low = torch.minimum(finite.amin(0), backward.amin(0)) - abs(shift) - 1
    high = torch.maximum(forward.amax(0), backward.amax(0)) + abs(shift) + 1
    for _ in range(iterations):
        middle = 0.5 * (low + high)
        # falls with the guess: of law 0 what would be taken, less of law 1 what would
        off = torch.sigmoid(forward - middle - shift).sum(0) - torch.sigmoid(middle + shift - backward).sum(0)
        low, high = torch.where(off > 0, middle, low), torch.where(off > 0, high, middle)
    return 0.5 * (low + high)


def systematic(log_weight: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Systematic resampling: row numbers ``(n,)``, each as often as its weight says, up to one (Kitagawa 1996)."""
    n = len(log_weight)
    share = log_weight.double().softmax(0).cumsum(0)
    start = torch.rand((), generator=generator, dtype=torch.float64, device=log_weight.device)
    places = (torch.arange(n, dtype=torch.float64, device=log_weight.device) + start) / n
    return torch.searchsorted(share / share[-1], places).clamp_max(n - 1)
