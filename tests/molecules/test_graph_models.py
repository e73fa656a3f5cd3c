"""Graphs as tokens that jump and as points that diffuse: symmetry, padding, reading, and molecules without correction."""

import numpy as np
import pytest
import torch

import manifoldflow as mf
from manifoldflow.field import edges_of_pairs, pairs_of_edges
from manifoldflow.tasks.molecules.graph_model import WALKS, walks
from manifoldflow.tasks.molecules.graphs import (
    ATOMS,
    GraphConfig,
    GraphSet,
    build,
    draw_sizes,
    graph_batches,
    load_graphs,
    sample_graphs,
)

KINDS = [(kind, method) for kind in ("molecules", "generic") for method in ("jumps", "gdss")]


def some(kind, sizes=(5, 3, 4, 5), seed=0):
    g = torch.Generator().manual_seed(seed)
    size, most = torch.tensor(sizes), max(sizes)
    mask = torch.arange(most) < size.unsqueeze(-1)
    upper = torch.randint(4 if kind == "molecules" else 2, (len(sizes), most, most), generator=g).triu(1)
    edge = (upper + upper.mT) * (mask.unsqueeze(1) & mask.unsqueeze(2))
    node = torch.randint(len(ATOMS), mask.shape, generator=g) * mask if kind == "molecules" else None
    return GraphSet(None if node is None else node.to(torch.int8), edge.to(torch.int8), size)


def small(kind, method):
    torch.manual_seed(0)
    data = some(kind)
    config = GraphConfig(kind=kind, method=method, width=16, edge_width=12, depth=2, degrees=6, **data.shares())
    return build(config), data, config


@pytest.mark.parametrize("kind, method", KINDS)
def test_predictions_follow_the_order_of_the_nodes(kind, method):
    flow, data, config = small(kind, method)
    batch = data.batch(torch.arange(4), config)
    x, mask, t = batch["x"], batch["mask"], torch.tensor([0.1, 0.4, 0.7, 0.95])
    order = torch.tensor([3, 0, 4, 1, 2])
    other = {
        n: edges_of_pairs(pairs_of_edges(v)[:, order][:, :, order]) if n == "edge" else v[:, order]
        for n, v in x.items()
    }
    one, two = flow.predict(x, t, mask=mask), flow.predict(other, t, mask=mask[:, order])
    assert (pairs_of_edges(two["edge"]) - pairs_of_edges(one["edge"])[:, order][:, :, order]).abs().max() < 1e-4
    if "node" in one:
        assert (two["node"] - one["node"][:, order]).abs().max() < 1e-4


@pytest.mark.parametrize("kind, method", KINDS)
def test_padding_changes_nothing(kind, method):
    flow, data, config = small(kind, method)
    rows = torch.tensor([1])
    few = data.batch(rows, config)
    pad = torch.nn.functional.pad
    junk = 1 if method == "jumps" else float("nan")
    wide = {"edge": edges_of_pairs(_grown(pairs_of_edges(few["x"]["edge"]), junk))}
    if "node" in few["x"]:
        node = few["x"]["node"]
        wide["node"] = pad(node, (0, 2) if node.ndim == 2 else (0, 0, 0, 2), value=junk)
    mask = torch.arange(5).unsqueeze(0) < 3
    flow.self_condition = 0.0  # its coin would fall anew
    zero = {n: _without(v, n, mask) for n, v in wide.items()}  # the same source point, where it is real
    t = torch.tensor([0.6])
    one = flow.loss_parts(few["x"], x0=few["x"], mask=few["mask"], t=t)
    other = flow.loss_parts(wide, x0=zero, mask=mask, t=t)
    assert all(torch.allclose(one[n], other[n], atol=1e-5) for n in one), (one, other)
    if method == "jumps":
        seen = flow.predict(few["x"], t, mask=few["mask"], previous=flow.predict(few["x"], t, mask=few["mask"]))
        also = flow.predict(zero, t, mask=mask, previous=flow.predict(zero, t, mask=mask))
        assert (pairs_of_edges(also["edge"])[:, :3, :3] - pairs_of_edges(seen["edge"])).abs().max() < 1e-5


def _without(value, name, mask):
    real = pairs_of_edges(edges_of_pairs(mask.unsqueeze(1) & mask.unsqueeze(2)), fill=False)
    real = edges_of_pairs(real) if name == "edge" else mask
    return torch.where(real.reshape(*real.shape, *[1] * (value.ndim - 2)), value, torch.zeros_like(value))


def _grown(pair, value):
    size = list(pair.shape)
    size[1] = size[2] = pair.shape[1] + 2
    made = torch.full(size, value, dtype=pair.dtype)
    made[:, :-2, :-2] = pair
    return made


@pytest.mark.parametrize("kind, method", KINDS)
def test_samples_are_graphs(kind, method):
    flow, _, config = small(kind, method)
    sizes = draw_sizes(config.sizes, 6, torch.Generator().manual_seed(0))
    made = sample_graphs(flow, sizes, steps=4, batch=4, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(made.edge.shape[1]) < made.sizes.unsqueeze(-1)
    both = mask.unsqueeze(1) & mask.unsqueeze(2)
    assert torch.equal(made.edge, made.edge.mT) and (made.edge[~both] == 0).all()
    assert (made.edge.diagonal(dim1=1, dim2=2) == 0).all() and made.edge.max() <= (3 if kind == "molecules" else 1)
    assert (made.node is None) == (kind == "generic") and made.sizes.tolist() == sizes
    assert flow.loss(**_first(graph_batches(some(kind), config, 3, 0))).isfinite()


def _first(batches):
    batch = next(batches(0))
    return {"x1": batch["x"], "mask": batch["mask"]}


def test_walks_are_powers_of_the_random_walk():
    path = torch.zeros(1, 4, 4)
    for i in range(3):
        path[0, i, i + 1] = path[0, i + 1, i] = 1
    own, between = walks(edges_of_pairs(path), 4)
    step = path[0] / path[0].sum(-1, keepdim=True)
    powers = [torch.linalg.matrix_power(step, k + 1) for k in range(WALKS)]
    assert torch.allclose(own[0], torch.stack([p.diagonal() for p in powers], -1))
    assert torch.allclose(between[0, 0, :WALKS], torch.stack([p[0, 1] + p[1, 0] for p in powers]))
    ring = torch.zeros(1, 3, 3) + 1 - torch.eye(3)
    assert walks(edges_of_pairs(ring), 3)[0][0, 0, 2] > 0 == own[0, 0, 2]  # only a triangle returns after three steps


def test_generic_graphs_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", n_nodes=[3, 2], edge_offset=[0, 2, 3], edges=[[0, 1], [1, 2], [0, 1]])
    graphs = load_graphs(tmp_path / "a.npz")
    assert graphs.edge[0].tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]] and graphs.edge[1].sum() == 2
    np.savez(tmp_path / "b.npz", n_nodes=[3])
    with pytest.raises(ValueError, match="lacks the array 'edge_offset'"):
        load_graphs(tmp_path / "b.npz")
    for options, words in (
        ({"kind": "x"}, "'generic'"),
        ({"method": "x"}, "'gdss'"),
        ({"edge_law": "x"}, "'vp' or 've'"),
    ):
        with pytest.raises(ValueError, match=words):
            GraphConfig(**options)


def test_exploding_noise_is_a_choice():
    flow = build(GraphConfig(method="gdss", edge_law="ve", width=8, edge_width=8, depth=1))
    assert isinstance(flow.path["edge"].law, mf.VarianceExploding)
    assert isinstance(flow.path["node"].law, mf.VariancePreserving)


# ---------------------------------------------------------------- molecules


def test_molecules_come_back_from_their_graphs_without_correction():
    pytest.importorskip("rdkit")
    from rdkit import Chem

    from manifoldflow.tasks.molecules.graphs import graphs_of, measure, smiles_of

    given = ["c1ccncc1", "C[N+](=O)[O-]", "C#CC(=O)NF", "CC1=CC(=O)NC1", "O"]
    graphs, failed = graphs_of([*given, "CCl", "CCCCCCCCCC", "nonsense"])
    assert failed == ["CCl", "CCCCCCCCCC", "nonsense"]
    assert smiles_of(graphs) == [Chem.CanonSmiles(s) for s in given]
    bad = graphs.rows(torch.tensor([0, 4, 4]))
    bad.edge[0, 0, 1:3] = bad.edge[0, 1:3, 0] = 3  # a carbon of six bonds
    bad.sizes[1] = 2  # water and a carbon apart
    scores, whole = measure(bad, reference={"O"})
    assert scores == (3, 2, 1, 1, 0) and whole == ["O"]


def test_random_molecules_respect_valences():
    pytest.importorskip("rdkit")
    from manifoldflow.tasks.molecules.graphs import graphs_of, measure, random_molecules

    like, _ = graphs_of(["CC(=O)NC", "C1CC1O", "C#CCO", "CCN", "OCC1CO1"])
    made = random_molecules(like, 200, torch.Generator().manual_seed(0))
    scores, _ = measure(made)
    assert scores.valid == 200 and scores.whole > 150 and scores.unique > 25
    assert (made.sizes.unsqueeze(-1) == like.sizes).any(1).all()
