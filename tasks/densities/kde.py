r"""Kernel density estimates: the baselines beside every score.

Every kernel here is :math:`\exp(\log c(\kappa) - \kappa\, h(x, y))` with a bounded function h of the distance, so one
table of h serves all concentrations at once: the next scale of a doubling chain is the square of the one before.

========== ============================================ ==========================================================
manifold   h                                            kernel
========== ============================================ ==========================================================
S^d        1 - <x, y>                                   von Mises-Fisher
T^d        sum_i 1 - cos(x_i - y_i)                     product of von Mises
rotations  1 - cos(angle)                               isotropic matrix Fisher, exp(kappa tr(X^T Y) / 2)
R^d        |x - y|^2 / 2                                Gaussian
========== ============================================ ==========================================================
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manifoldflow.distributions.von_mises import log_normalizer
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.euclidean import Euclidean
from manifoldflow.manifolds.quaternion import UnitQuaternion
from manifoldflow.manifolds.rotation import quaternion_to_matrix
from manifoldflow.manifolds.so3 import SO3
from manifoldflow.manifolds.sphere import Sphere
from manifoldflow.manifolds.torus import Torus

MOST_KAPPA = 1e9
"""Largest concentration tried: 0.2 km on the earth. With exact copies in the data the likelihood has no upper bound, so the
score of a kernel estimate that may copy is a statement about this number."""

TILE = 2**17
"""Pairs in one tile of the table, which then stays in the cache."""

MOST_CHOOSING = 2000
"""Validation rows that concentrations and weights are chosen by."""

Scales = Literal["one", "two", "many"]


@dataclass(frozen=True, eq=False)
class KernelDensity:
    r"""A mixture of kernel estimates, :math:`p(x) = \frac{1}{n} \sum_k w_k \sum_j K_{\kappa_k}(x, y_j)`.

    Attributes:
        space: the manifold.
        centres: points ``(n, *event)``.
        kappas: concentrations.
        weights: of the concentrations, sum 1.
    """

    space: Manifold
    centres: Tensor
    kappas: tuple[float, ...]
    weights: tuple[float, ...]

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of points ``(N, *event)`` with respect to the Riemannian volume, ``(N,)`` in float64."""
        table = kernel_table(self.space, x, self.centres, torch.tensor(self.kappas, dtype=torch.float64))
        return torch.logsumexp(table + torch.tensor(self.weights, dtype=torch.float64).log(), -1)


def has_kernel(space: Manifold) -> bool:
    """Whether there is a kernel for the manifold."""
    return isinstance(space, Sphere | Torus | SO3 | UnitQuaternion | Euclidean)


def fit_kde(
    space: Manifold,
    train: Tensor,
    val: Tensor,
    scales: Scales = "one",
    *,
    seed: int = 0,
) -> KernelDensity:
    """Choose concentrations and weights by the likelihood of validation points.

    ``"one"``: the best of a grid, refined between its neighbours. ``"two"``: the best pair of the grid with its best
    weight. ``"many"``: all of the grid, weighted by expectation-maximisation.

    Args:
        space: the manifold.
        train: centres ``(n, *event)``.
        val: points to choose by; a seeded draw of 2000 where there are more.
        scales: how many.
        seed: of that draw.
    """
    return fit_all(space, train, val, (scales,), seed=seed)[scales]


def fit_all(
    space: Manifold, train: Tensor, val: Tensor, kinds: tuple[Scales, ...] = ("one", "two", "many"), *, seed: int = 0
) -> dict[Scales, KernelDensity]:
    """Several of :func:`fit_kde` from one table."""
    if len(val) > MOST_CHOOSING:
        val = val[torch.randperm(len(val), generator=torch.Generator().manual_seed(seed))[:MOST_CHOOSING]]
    least = 0.25
    count = 1 + 2 * math.ceil(math.log2(MOST_KAPPA / least))
    grid = least * 2 ** (0.5 * torch.arange(count, dtype=torch.float64))
    grid = grid[grid <= MOST_KAPPA]
    table = doubling_table(space, val, train, least, len(grid))
    made: dict[Scales, KernelDensity] = {}
    for kind in kinds:
        if kind == "one":
            best = int(table.mean(0).argmax())
            near = float(grid[best]) * 2 ** torch.linspace(-0.5, 0.5, 17, dtype=torch.float64)
            near = near[near <= MOST_KAPPA]
            fine = kernel_table(space, val, train, near)
            kappa = float(near[int(fine.mean(0).argmax())])
            made[kind] = KernelDensity(space, train, (kappa,), (1.0,))
        elif kind == "two":
            first, second = torch.triu_indices(len(grid), len(grid), offset=1)
            pairs = torch.stack([table[:, first], table[:, second]], -1)  # (V, pairs, 2)
            weights, score = mixture_weights(pairs)
            best = int(score.argmax())
            kappas = (float(grid[first[best]]), float(grid[second[best]]))
            w = weights[best].tolist()
            made[kind] = KernelDensity(space, train, kappas, (w[0], w[1]))
        elif kind == "many":
            weights, _ = mixture_weights(table.unsqueeze(1), rounds=500)
            kept = weights[0] > 1e-6
            w = (weights[0][kept] / weights[0][kept].sum()).tolist()
            made[kind] = KernelDensity(space, train, tuple(grid[kept].tolist()), tuple(w))
        else:
            raise ValueError(f"scales must be 'one', 'two' or 'many', got {kind!r}")
    return made


def mixture_weights(log_density: Tensor, rounds: int = 60) -> tuple[Tensor, Tensor]:
    """Weights of the components that give the points the highest likelihood, by expectation-maximisation.

    Args:
        log_density: of every point under every component, ``(points, problems, components)``.
        rounds: of the iteration.

    Returns:
        Weights ``(problems, components)`` and mean log-likelihoods ``(problems,)``.
    """
    most = log_density.amax(-1, keepdim=True)
    ratio = (log_density - most).exp()
    weights = torch.full(ratio.shape[1:], 1 / ratio.shape[-1], dtype=ratio.dtype)
    for _ in range(rounds):
        mixed = torch.einsum("vpk,pk->vp", ratio, weights)
        weights = weights * torch.einsum("vpk,vp->pk", ratio, 1 / mixed) / len(ratio)
    mixed = torch.einsum("vpk,pk->vp", ratio, weights)
    return weights, (mixed.log() + most.squeeze(-1)).mean(0)


def kernel_table(space: Manifold, x: Tensor, centres: Tensor, kappas: Tensor) -> Tensor:
    """Log of the one-scale estimates at points ``(N, *event)`` for every concentration, ``(N, len(kappas))``."""
    front = log_normalizer(space, kappas) - math.log(len(centres))
    nearest, tiles = _tiles(space, x, centres)
    total = torch.zeros(len(x), len(kappas), dtype=torch.float64)
    for rows, h in tiles:
        for k, kappa in enumerate(kappas.tolist()):
            total[rows, k] += torch.exp((h - nearest[rows].unsqueeze(-1)) * -kappa).sum(-1)
    return total.log() - nearest.unsqueeze(-1) * kappas + front


def doubling_table(space: Manifold, x: Tensor, centres: Tensor, least: float, count: int) -> Tensor:
    """:func:`kernel_table` at ``least * 2**(k / 2)`` for k below ``count``: two exponentials per pair, then squares.

    The nearest centre is taken out first, so the largest term of every sum is 1 at every scale.
    """
    kappas = least * 2 ** (0.5 * torch.arange(count, dtype=torch.float64))
    front = log_normalizer(space, kappas) - math.log(len(centres))
    nearest, tiles = _tiles(space, x, centres)
    total = torch.zeros(len(x), count, dtype=torch.float64)
    for rows, h in tiles:
        h = h - nearest[rows].unsqueeze(-1)
        for chain in range(min(2, count)):
            value = torch.exp(h * -float(kappas[chain]))
            for k in range(chain, count, 2):
                total[rows, k] += value.sum(-1)
                # Below 1e-100 nothing counts, and denormal numbers would take five times as long.
                value = torch.nn.functional.threshold(value.square_(), 1e-100, 0.0) if k % 8 < 2 else value.square_()
    return total.log() - nearest.unsqueeze(-1) * kappas + front


def _embed(space: Manifold, x: Tensor) -> tuple[Tensor, float]:
    """Coordinates whose squared distance, times the factor returned, is h."""
    x = x.double()
    if isinstance(space, Torus):
        angle = x * (2 * math.pi / space.period)
        return torch.cat([angle.cos(), angle.sin()], -1), 0.5
    if isinstance(space, SO3 | UnitQuaternion):
        matrix = quaternion_to_matrix(x) if isinstance(space, UnitQuaternion) else x
        return matrix.flatten(-2), 0.25
    return x, 0.5


def _tiles(space: Manifold, x: Tensor, centres: Tensor) -> tuple[Tensor, Iterator[tuple[slice, Tensor]]]:
    """h of every point to its nearest centre ``(N,)``, and the table of h in pieces ``(rows, (rows, columns))``."""
    point, factor = _embed(space, x)
    centre, _ = _embed(space, centres)
    # The square by one product: in float64 it is exact to 1e-16, so kappa h to 1e-7 at the largest kappa.
    left = torch.cat([point * -2, point.square().sum(-1, keepdim=True), torch.ones_like(point[:, :1])], -1) * factor
    right = torch.cat(
        [centre, torch.ones_like(centre[:, :1]), centre.square().sum(-1, keepdim=True)], -1
    ).mT.contiguous()
    width = min(len(centres), 2**11)
    height = max(1, TILE // width)
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for at in range(0, len(x), height):
        for start in range(0, len(centres), width):
            part = (left[at : at + height] @ right[:, start : start + width]).amin(-1)
            nearest[at : at + height] = nearest[at : at + height].minimum(part)
    nearest = nearest.clamp_min(0)

    def pieces() -> Iterator[tuple[slice, Tensor]]:
        for at in range(0, len(x), height):
            for start in range(0, len(centres), width):
                yield slice(at, at + height), left[at : at + height] @ right[:, start : start + width]

    return nearest, pieces()
