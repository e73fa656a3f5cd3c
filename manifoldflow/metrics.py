"""Distances between two sets of samples on any manifold."""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold

ROWS = 2**20
"""Pairs of points whose distance is taken at once."""


def pairwise_distance(x: Tensor, y: Tensor, manifold: Manifold, *, rows: int = ROWS) -> Tensor:
    """Geodesic distance of every point of ``x`` to every point of ``y``, ``(N, M)``, in blocks of about ``rows`` pairs.

    Args:
        x, y: points ``(N, *event)`` and ``(M, *event)``.
        manifold: the space.
        rows: bound on memory; the result does not depend on it.

    Raises:
        ValueError: a set is empty or is not one list of points of the manifold.
    """
    for name, points in (("x", x), ("y", y)):
        if points.ndim != 1 + manifold.event_ndim or tuple(points.shape[1:]) != manifold.event_shape:
            raise ValueError(
                f"{name} must be a list of points of {manifold}, shape (N, "
                f"{', '.join(map(str, manifold.event_shape))}), got {tuple(points.shape)}"
            )
        if len(points) == 0:
            raise ValueError(f"{name} holds no points")
    with torch.no_grad():
        parts = x.split(max(1, rows // len(y)))
        return torch.cat([manifold.dist(part.unsqueeze(1), y.unsqueeze(0)) for part in parts])


@overload
def wasserstein(
    x: Tensor, y: Tensor, manifold: Manifold, power: float = 2.0, *, max_iterations: int = ...
) -> float: ...


@overload
def wasserstein(
    x: Tensor, y: Tensor, manifold: Manifold, power: Sequence[float], *, max_iterations: int = ...
) -> tuple[float, ...]: ...


def wasserstein(
    x: Tensor,
    y: Tensor,
    manifold: Manifold,
    power: float | Sequence[float] = 2.0,
    *,
    max_iterations: int = 10_000_000,
) -> float | tuple[float, ...]:
    r"""Exact Wasserstein distance of two sets of samples, in the units of the manifold's distance.

    .. math:: W_p = \Big(\min_\pi \sum_{ij} \pi_{ij}\, d(x_i, y_j)^p\Big)^{1/p}

    over the couplings of the two uniform weights, by the network simplex of POT (Bonneel et al. 2011; Flamary et al.
    2021). Two independent draws of n points of *one* law are not at distance 0: print this floor beside every value.

    Args:
        x, y: points ``(N, *event)`` and ``(M, *event)``; cost grows as N M in memory and about N^2 to N^3 in time
            (seconds at 2,000 points).
        manifold: the space, whose ``dist`` is the ground distance.
        power: p >= 1, or several: the distances are then taken once, and the result is a tuple.
        max_iterations: of the network simplex.

    Raises:
        ImportError: POT is not installed.
        ValueError: a bad power, empty sets, points that are not finite, or no optimum within ``max_iterations``.
    """
    powers = tuple(power) if isinstance(power, Sequence) else (power,)
    if not powers or min(powers) < 1:
        raise ValueError(f"power must be at least 1, got {power}")
    try:
        import ot
    except ImportError as error:
        raise ImportError("wasserstein needs the package POT: pip install POT (or manifoldflow[densities])") from error
    distance = pairwise_distance(x, y, manifold).double()
    if not bool(torch.isfinite(distance).all()):
        raise ValueError("some distances are NaN or infinite: check the samples for NaN and points off the manifold")
    values = []
    for p in powers:
        ground = (distance**p).cpu().numpy()
        total, log = ot.emd2([], [], ground, numItermax=max_iterations, log=True)
        if log.get("warning"):
            raise ValueError(f"POT found no optimum within {max_iterations} iterations; raise max_iterations=")
        values.append(max(float(total), 0.0) ** (1 / p))
    return tuple(values) if isinstance(power, Sequence) else values[0]


def mmd(x: Tensor, y: Tensor, manifold: Manifold, *, scale: float | None = None) -> Tensor:
    r"""Unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3) with the kernel :math:`e^{-d(x, y)/s}`.

    Its mean is 0 if both laws are equal, so it may be negative. The kernel is positive definite on Euclidean space, spheres
    and hyperbolic space, where a positive value belongs to different laws; elsewhere (tori, rotations) it is a statistic
    that can tell laws apart but need not.

    Args:
        x, y: points ``(N, *event)`` and ``(M, *event)``, at least two each.
        manifold: the space.
        scale: s; the median distance within ``y`` if absent.

    Returns:
        A scalar tensor, in float64.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"mmd needs at least two points in each set, got {n} and {m}")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    xx, xy, yy = (pairwise_distance(a.double(), b.double(), manifold) for a, b in ((x, x), (x, y), (y, y)))
    s: Tensor | float = scale if scale is not None else yy[~torch.eye(m, dtype=torch.bool, device=yy.device)].median()

    def within(d: Tensor) -> Tensor:
        kernel = (-d / s).exp()
        return (kernel.sum() - kernel.diagonal().sum()) / (len(d) * (len(d) - 1))

    return within(xx) + within(yy) - 2 * (-xy / s).exp().mean()
