"""Statistics of graphs against counting by hand: every subgraph one after another, and networkx."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from manifoldflow.tasks.molecules import graph_metrics as gm

nx = pytest.importorskip("networkx")


def random_graphs(count, nodes, seed=0):
    g = torch.Generator().manual_seed(seed)
    density = torch.linspace(0.15, 0.95, count).reshape(-1, 1, 1)
    upper = (torch.rand(count, nodes, nodes, generator=g) < density).triu(1)
    return (upper | upper.mT).float()


# (edges, degree of the node, degrees of all) of the connected graphs of four nodes say which orbit the node has.
FOUR = {
    (3, (1, 1, 2, 2)): {1: 4, 2: 5},
    (3, (1, 1, 1, 3)): {1: 6, 3: 7},
    (4, (2, 2, 2, 2)): {2: 8},
    (4, (1, 2, 2, 3)): {1: 9, 2: 10, 3: 11},
    (5, (2, 2, 3, 3)): {2: 12, 3: 13},
    (6, (3, 3, 3, 3)): {3: 14},
}
THREE = {(2, (1, 1, 2)): {1: 1, 2: 2}, (3, (2, 2, 2)): {2: 3}}


def orbits_by_hand(a):
    counts = np.zeros((len(a), 15))
    counts[:, 0] = a.sum(-1)
    for size, table in ((3, THREE), (4, FOUR)):
        for chosen in itertools.combinations(range(len(a)), size):
            part = a[np.ix_(chosen, chosen)]
            degree = part.sum(-1).astype(int)
            if not nx.is_connected(nx.from_numpy_array(part)):
                continue
            for node, own in zip(chosen, degree, strict=True):
                counts[node, table[int(part.sum() / 2), tuple(sorted(degree))][own]] += 1
    return counts


def test_orbits_are_those_found_by_looking_at_every_subgraph():
    graphs = random_graphs(14, 9)
    counted = gm.orbit_counts(graphs).numpy()
    for graph, own in zip(graphs.numpy(), counted, strict=True):
        assert np.array_equal(own, orbits_by_hand(graph))
    assert (counted.sum((0, 1)) > 0).all()  # every orbit occurs, so every formula was tried


def test_clustering_is_that_of_networkx():
    graphs = random_graphs(8, 11, seed=1)
    for graph, own in zip(graphs.numpy(), gm.clustering_coefficients(graphs).numpy(), strict=True):
        assert np.allclose(own, list(nx.clustering(nx.from_numpy_array(graph)).values()), atol=1e-12)


def test_the_kernel_is_that_of_earth_mover_distances():
    one, other = random_graphs(5, 8, seed=2), random_graphs(4, 8, seed=3)
    a, b = gm.degree_histograms(one, 8).numpy(), gm.degree_histograms(other, 8).numpy()

    def kernel(x, y):
        bins = np.arange(8)
        return np.mean([[np.exp(-(wasserstein_distance(bins, bins, p, q) ** 2) / 2) for q in y] for p in x])

    by_hand = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    assert gm.discrepancies(one, other).degree == pytest.approx(by_hand, abs=2e-6)
    assert gm.discrepancies(one, one).mean == 0


def test_nodes_without_edges_change_nothing():
    one, other = random_graphs(6, 8, seed=4), random_graphs(6, 8, seed=5)
    wide = torch.nn.functional.pad(one, (0, 3, 0, 3))
    assert gm.discrepancies(wide, other) == gm.discrepancies(one, other)


def test_baselines_keep_what_they_say():
    graphs = random_graphs(5, 9, seed=6)
    swapped = gm.configuration_model(graphs, 40, generator=torch.Generator().manual_seed(0))
    given = {tuple(d.tolist()) for d in graphs.sum(-1)}
    assert {tuple(d.tolist()) for d in swapped.sum(-1)} <= given
    assert torch.equal(swapped, swapped.mT) and swapped.diagonal(dim1=1, dim2=2).sum() == 0
    assert ((swapped == 0) | (swapped == 1)).all()
    assert not any(torch.equal(s, g) for s in swapped for g in graphs if 8 < g.sum() < 50)
    loose = gm.erdos_renyi(graphs, 400, generator=torch.Generator().manual_seed(0))
    assert abs(float(loose.sum() / graphs.sum() * 5 / 400) - 1) < 0.1
