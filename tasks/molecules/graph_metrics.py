r"""How far apart two sets of graphs are: maximum mean discrepancies of degrees, clustering and 4-node orbits, for whole batches.

The protocol of You et al. (2018) as GDSS uses it (Jo et al. 2022): MMD^2 with the kernel :math:`\exp(-d^2 / 2 \sigma^2)`,
where d is the earth mover's distance of histograms of degrees (:math:`\sigma = 1`) or of clustering coefficients (100 bins,
:math:`\sigma = 0.1`), or the Euclidean distance of mean orbit counts (:math:`\sigma = 30`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BINS = 100
"""Of the clustering coefficient."""

ORBITS = 15
"""Places that a node can have in a connected graph of two, three or four nodes (Pržulj 2007)."""


@dataclass(frozen=True)
class Discrepancies:
    """MMD^2 of two sets of graphs by three statistics, and their mean."""

    degree: float
    clustering: float
    orbit: float

    @property
    def mean(self) -> float:
        """Of the three."""
        return (self.degree + self.clustering + self.orbit) / 3


def discrepancies(one: Tensor, other: Tensor) -> Discrepancies:
    """MMD^2 between two sets of graphs.

    Args:
        one, other: adjacency ``(n, N, N)``, symmetric, zeros on the diagonal; nodes without an edge count for nothing.
    """
    size = max(one.shape[-1], other.shape[-1])
    degree = [degree_histograms(a, size) for a in (one, other)]
    clustering = [clustering_histograms(a) for a in (one, other)]
    orbit = [mean_orbits(a) for a in (one, other)]
    return Discrepancies(
        _mmd(*degree, sigma=1.0, scale=1.0),
        _mmd(*clustering, sigma=0.1, scale=1.0 / BINS),
        _mmd(*orbit, sigma=30.0, scale=None),
    )


def real_nodes(adjacency: Tensor) -> Tensor:
    """Bool ``(n, N)``: nodes that have an edge."""
    return adjacency.sum(-1) > 0


def degree_histograms(adjacency: Tensor, size: int) -> Tensor:
    """Shares of the nodes with 0, 1, ... edges, ``(n, size)`` double."""
    degree, real = adjacency.double().sum(-1), real_nodes(adjacency)
    hot = torch.nn.functional.one_hot(degree.long().clamp_max(size - 1), size) * real.unsqueeze(-1)
    return _shares(hot.double().sum(1))


def clustering_coefficients(adjacency: Tensor) -> Tensor:
    """The share of the pairs of a node's neighbours that are joined, ``(n, N)`` double; 0 for fewer than two neighbours."""
    a = adjacency.double()
    degree = a.sum(-1)
    triangles = ((a @ a) * a).sum(-1) / 2
    pairs = degree * (degree - 1) / 2
    return torch.where(pairs > 0, triangles / pairs.clamp_min(1), 0.0)


def clustering_histograms(adjacency: Tensor) -> Tensor:
    """Shares of the nodes in :data:`BINS` bins of [0, 1], ``(n, BINS)`` double; the last bin holds its right end too."""
    place = (clustering_coefficients(adjacency) * BINS + 1e-9).long().clamp_max(BINS - 1)
    hot = torch.nn.functional.one_hot(place, BINS) * real_nodes(adjacency).unsqueeze(-1)
    return _shares(hot.double().sum(1))


def mean_orbits(adjacency: Tensor) -> Tensor:
    """Orbit counts, averaged over the nodes of a graph that have an edge, ``(n, 15)`` double."""
    real = real_nodes(adjacency).unsqueeze(-1)
    counts = orbit_counts(adjacency)
    return (counts * real).sum(1) / real.sum(1).clamp_min(1)


def orbit_counts(adjacency: Tensor) -> Tensor:
    r"""How often a node has each of the 15 places in induced connected subgraphs of two to four nodes, ``(n, N, 15)`` double.

    Subgraphs that need not be induced are counted by products of the adjacency matrix; each has a fixed number of those with more
    edges to be taken off (a diamond contains one 4-cycle, four paws, two claws and six paths, and so on). Exact whole numbers.
    The complete graph of four takes the triangles of every neighbourhood, :math:`O(N^4)` in all.

    Args:
        adjacency: ``(n, N, N)``, symmetric, zeros on the diagonal.
    """
    a = adjacency.double()
    d = a.sum(-1)
    two = a @ a
    common = two * a  # triangles on every edge
    off = 1 - torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    t = common.sum(-1) / 2
    near = (a * (d - 1).unsqueeze(-2)).sum(-1)
    path3_end, path3_middle = near - 2 * t, d * (d - 1) / 2 - t
    # Per graph, so that no (n, N, N, N) is held: neighbourhoods (N, N, N) of one graph at a time.
    k4 = torch.stack([_triangles_around(one) for one in a])
    diamond_far = _over_opposite(a, common, t)
    diamond_near = (a * common * (common - 1)).sum(-1) / 2
    cycle = (off * two * (two - 1)).sum(-1) / 2
    paw_tail = (a * (t.unsqueeze(-2) - common)).sum(-1)
    paw_side = (common * (d - 2).unsqueeze(-2)).sum(-1)
    paw_centre = t * (d - 2)
    claw_leaf = (a * ((d - 1) * (d - 2) / 2).unsqueeze(-2)).sum(-1)
    claw_centre = d * (d - 1) * (d - 2) / 6
    path_end = (off * two * ((d - 1).unsqueeze(-2) - a)).sum(-1)
    path_middle = (d - 1) * near - 2 * t
    o14 = k4
    o12, o13 = diamond_far - 3 * o14, diamond_near - 3 * o14
    o8 = cycle - o12 - o13 - 3 * o14
    o9 = paw_tail - 2 * o12 - 3 * o14
    o10 = paw_side - 2 * o12 - 2 * o13 - 6 * o14
    o11 = paw_centre - 2 * o13 - 3 * o14
    o6 = claw_leaf - o9 - o10 - 2 * o12 - o13 - 3 * o14
    o7 = claw_centre - o11 - o13 - o14
    o4 = path_end - 2 * o8 - 2 * o9 - o10 - 4 * o12 - 2 * o13 - 6 * o14
    o5 = path_middle - 2 * o8 - o10 - 2 * o11 - 2 * o12 - 4 * o13 - 6 * o14
    return torch.stack([d, path3_end, path3_middle, t, o4, o5, o6, o7, o8, o9, o10, o11, o12, o13, o14], -1).round()


def _over_opposite(a: Tensor, common: Tensor, t: Tensor) -> Tensor:
    """Over the triangles of a node, the further triangles on the edge that is opposite to it."""
    return torch.einsum("bij,bjk,bik->bi", a, common, a) / 2 - t


def _triangles_around(a: Tensor) -> Tensor:
    """Triangles within the neighbours of every node of a graph ``(N, N)``, ``(N,)``."""
    inner = a * a.unsqueeze(-1) * a.unsqueeze(-2)  # [i, j, k]: j and k are joined, and both to i
    return ((inner @ inner) * inner).sum((-1, -2)) / 6


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum(-1, keepdim=True).clamp_min(1)


def _mmd(one: Tensor, other: Tensor, *, sigma: float, scale: float | None) -> float:
    """MMD^2 of rows: earth mover's distances of histograms, their bins ``scale`` apart, or Euclidean ones."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        if scale is None:
            d = torch.cdist(a, b)
        else:  # of equal masses on a line: the area between the cumulative shares
            d = scale * (a.cumsum(-1).unsqueeze(1) - b.cumsum(-1).unsqueeze(0)).abs().sum(-1)
        return torch.exp(-d.square() / (2 * sigma**2)).mean()

    value = kernel(one, one) + kernel(other, other) - 2 * kernel(one, other)
    return float(np.round(float(value), 6))


def erdos_renyi(like: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Random graphs with the sizes and the numbers of edges of given ones: what needs no learning, ``(count, N, N)``.

    Every graph takes the size and the density of one of ``like``, drawn at random, and edges anywhere.
    """
    nodes = like.shape[-1]
    rows = torch.randint(len(like), (count,), generator=generator)
    size = real_nodes(like).sum(-1)[rows]
    chance = (like[rows].sum((-1, -2)) / (size * (size - 1)).clamp_min(1)).reshape(-1, 1, 1)
    inside = torch.arange(nodes) < size.unsqueeze(-1)
    upper = (torch.rand(count, nodes, nodes, generator=generator) < chance).triu(1)
    made = (upper | upper.mT) & inside.unsqueeze(1) & inside.unsqueeze(2)
    return made.to(like.dtype)


def configuration_model(like: Tensor, count: int, swaps: int = 200, generator: torch.Generator | None = None) -> Tensor:
    """Random graphs with just the degrees of given ones: edges exchange their ends, (a, b), (c, d) -> (a, d), (c, b).

    The stronger baseline without learning: its degrees are those of the training set. A swap that would make a loop or a double
    edge is left out. All graphs swap at once.
    """
    rows = torch.randint(len(like), (count,), generator=generator)
    made = like[rows].clone()
    at = torch.arange(count)
    for _ in range(swaps):
        flat = made.flatten(1).double()
        ends = torch.multinomial(flat + 1e-12, 2, generator=generator)
        a, b = ends[:, 0] // made.shape[-1], ends[:, 0] % made.shape[-1]
        c, d = ends[:, 1] // made.shape[-1], ends[:, 1] % made.shape[-1]
        are_edges = (made[at, a, b] > 0) & (made[at, c, d] > 0)
        free = (a != d) & (c != b) & (a != c) & (b != d) & (made[at, a, d] == 0) & (made[at, c, b] == 0)
        ok = (are_edges & free).to(made.dtype)
        for i, j, sign in ((a, b, -1), (c, d, -1), (a, d, 1), (c, b, 1)):
            made[at, i, j] += sign * ok
            made[at, j, i] += sign * ok
    return made
