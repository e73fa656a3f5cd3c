r"""Free-energy differences: one-sided, two-sided, of many states, with errors.

Energies are reduced, u = E / kT, and so are free energies, :math:`f = -\log Z`. Works of a map f from A to B are
:math:`w(x) = u_B(f(x)) - u_A(x) - \log|\det df(x)|`; with the identity they are plain energy differences.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manifoldflow.energies.estimates import bennett, log_mean, log_mean_error


class Estimate(NamedTuple):
    """A number and its standard error, both scalar tensors."""

    value: Tensor
    error: Tensor


def one_sided(work: Tensor) -> Estimate:
    r"""Free-energy difference from samples of one end, :math:`-\log \langle e^{-w} \rangle_A` (LFEP; Jarzynski 2002)."""
    return Estimate(-log_mean(-work.double()), log_mean_error(-work.double()))


def two_sided(forward: Tensor, reverse: Tensor) -> Estimate:
    r"""Free-energy difference from samples of both ends (:func:`bennett`), with Bennett's error.

    Args:
        forward: works of samples of A, ``(n,)``.
        reverse: works of samples of B through the inverse map, ``(m,)``.
    """
    w, v = forward.double(), reverse.double()
    value, ratio = -bennett(-w, v, iterations=100), math.log(len(w) / len(v))
    variance = _relative_variance((value - w - ratio).sigmoid()) + _relative_variance((ratio - value - v).sigmoid())
    return Estimate(value, variance.sqrt())


def many_states(reduced: Tensor, counts: Tensor, *, rounds: int = 2000, tolerance: float = 1e-9) -> Tensor:
    r"""Reduced free energies of K states from samples of all of them (MBAR; Shirts and Chodera 2008), the first at 0.

    Args:
        reduced: ``(K, n)``, the reduced energies of all n samples in every state.
        counts: ``(K,)``, how many samples came from each state.
        rounds: of the self-consistent iteration at most.
        tolerance: largest change at which it ends.

    Returns:
        ``(K,)``.
    """
    u, logs = reduced.double(), counts.double().log()
    f = torch.zeros(len(u), dtype=torch.float64)
    for _ in range(rounds):
        denominator = (f.unsqueeze(-1) - u + logs.unsqueeze(-1)).logsumexp(0)
        new = -(-u - denominator).logsumexp(-1)
        new = new - new[0]
        if (new - f).abs().max() < tolerance:
            return new
        f = new
    return f


def _relative_variance(s: Tensor) -> Tensor:
    return ((s * s).mean() / s.mean().square() - 1) / len(s)
