"""Fields of edges: one value for an unordered pair, in every room of the library."""

import pytest
import torch
from torch import nn

import manifoldflow as mf
from manifoldflow.field import edge_count, edge_ends, edges_of_pairs, nodes_of_edges, pairs_of_edges

N, K = 5, 3


class Net(nn.Module):
    """Logits of bonds and elements from the symmetric matrix of the bonds."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.w, self.v = (nn.Parameter(torch.randn(K + 1, K, generator=g)) for _ in range(2))

    def forward(self, x, t, *, mask=None):
        hot = torch.nn.functional.one_hot(pairs_of_edges(x["bond"], x["kind"].shape[1]), K + 1).to(self.w.dtype)
        real = torch.ones(x["kind"].shape, dtype=torch.bool) if mask is None else mask
        pair = (real[:, None] & real[:, :, None] & ~torch.eye(real.shape[1], dtype=torch.bool))[..., None].to(hot.dtype)
        node = (hot * pair).sum(2)
        one, other = edge_ends(x["kind"].shape[1], x["kind"].device)
        return {"bond": (node[:, one] + node[:, other]) @ self.w, "kind": node @ self.v}


def flow(path=None):
    spaces = {"kind": mf.Tokens(K), "bond": mf.Field(mf.Tokens(K), per="edge")}
    return mf.Flow(spaces, Net(), path=path)


def data(batch=4, nodes=N, seed=1):
    g = torch.Generator().manual_seed(seed)
    return {
        "kind": torch.randint(K, (batch, nodes), generator=g),
        "bond": torch.randint(K, (batch, edge_count(nodes)), generator=g),
    }


@pytest.mark.parametrize("nodes", [0, 1, 2, 5, 9])
def test_packing_is_the_inverse_of_unpacking(nodes):
    x = torch.arange(2 * edge_count(nodes) * 3.0).reshape(2, -1, 3)
    whole = pairs_of_edges(x, nodes, fill=-1.0)
    assert torch.equal(whole, whole.transpose(1, 2)) and torch.equal(edges_of_pairs(whole), x)
    assert (whole.diagonal(dim1=1, dim2=2) == -1).all()
    first, second = edge_ends(nodes)
    assert torch.equal(torch.stack([first, second]), torch.triu_indices(nodes, nodes, 1))
    if nodes > 1:
        assert nodes_of_edges(edge_count(nodes)) == nodes
        assert torch.equal(pairs_of_edges(x, fill=-1.0), whole)


def test_a_number_of_edges_that_no_graph_has_is_named():
    with pytest.raises(ValueError, match="4 is no such number"):
        nodes_of_edges(4)
    with pytest.raises(ValueError, match="edges needs sets"):
        flow().sample(3)


def test_samples_are_symmetric_and_padding_holds_the_origin():
    made, _mask = flow().sample(lengths=[5, 3, 1], steps=6, generator=torch.Generator().manual_seed(0))
    whole = pairs_of_edges(made["bond"], 5)
    assert torch.equal(whole, whole.transpose(1, 2)) and whole.shape == (3, 5, 5)
    assert (whole[1, 3:] == 0).all() and (whole[2] == 0).all()


def test_every_edge_is_noised_and_counted_once():
    """The coin of an edge is one coin, so the share that is data has the spread of independent edges; the loss is their mean."""
    one = flow()
    x = {"kind": torch.zeros(4000, N, dtype=torch.long), "bond": torch.full((4000, edge_count(N)), 2)}
    drawn = one.draw(x, t=torch.full((4000,), 0.5), generator=torch.Generator().manual_seed(0))
    kept = (drawn.xt["bond"] == 2).float().sum(1)
    p = 0.5 + 0.5 / K
    assert abs(float(kept.mean()) - 10 * p) < 0.1 and abs(float(kept.var()) / (10 * p * (1 - p)) - 1) < 0.1
    parts = one.loss_of(drawn)
    by_hand = torch.nn.functional.cross_entropy(
        one.predict(drawn.xt, drawn.t)["bond"].flatten(0, 1), x["bond"].flatten()
    )
    assert torch.allclose(parts["bond"], by_hand, atol=1e-6)


@pytest.mark.parametrize("junk", [0, 2])
def test_nothing_depends_on_padding(junk):
    one, x, wide = flow(), data(), 8
    mask = (torch.arange(wide) < N).expand(4, wide)
    pair = pairs_of_edges(x["bond"])
    pad = nn.functional.pad
    padded = {"kind": pad(x["kind"], (0, 3), value=junk), "bond": edges_of_pairs(pad(pair, (0, 3, 0, 3), value=junk))}
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    # Tokens that start at the data stay there, whatever coins fall.
    few, many = one.loss_parts(x, x0=x, t=t), one.loss_parts(padded, x0=padded, t=t, mask=mask)
    assert all(torch.allclose(few[n], many[n], atol=1e-6) for n in few)


def test_pinned_nodes_pin_the_edges_between_them_and_known_ones_grow():
    pinned = torch.tensor([True, True, False, False, True])
    one = mf.Flow(
        {"kind": mf.Tokens(K), "bond": mf.Field(mf.Tokens(K), per="edge")},
        Clocked(),
        pin=lambda mask, g: pinned.expand(mask.shape),
    )
    x = data()
    drawn = one.draw(x, t=torch.zeros(4))
    inside = pairs_of_edges(x["bond"])[:, pinned][:, :, pinned]
    assert torch.equal(pairs_of_edges(drawn.xt["bond"])[:, pinned][:, :, pinned], inside)
    assert not torch.equal(drawn.xt["bond"], x["bond"])
    assert torch.equal(one.fields["bond"].time(torch.tensor([[0.1, 0.2, 1.0]])), torch.tensor([[0.1, 0.1, 0.2]]))
    part = {"kind": x["kind"][:, :3], "bond": edges_of_pairs(pairs_of_edges(x["bond"])[:, :3, :3])}
    made = one.sample((4, N), known=part, known_mask=torch.ones(4, 3, dtype=torch.bool), steps=3)
    assert torch.equal(pairs_of_edges(made["bond"])[:, :3, :3], pairs_of_edges(part["bond"]))


class Clocked(Net):
    def forward(self, x, t, *, mask=None):
        assert t.shape == x["kind"].shape
        return super().forward(x, t, mask=mask)


def test_a_state_of_edges_alone_knows_its_nodes():
    class Alone(nn.Module):
        def forward(self, x, t, *, mask=None):
            return {"bond": torch.zeros(*x["bond"].shape, K)}

    one = mf.Flow({"bond": mf.Field(mf.Tokens(K), per="edge")}, Alone())
    made, mask = one.sample(lengths=[4, 2], steps=2)
    assert made["bond"].shape == (2, 6) and mask.shape == (2, 4)
    assert one.loss({"bond": made["bond"]}, mask=mask).isfinite()
    bound = one.elbo({"bond": made["bond"]}, mask=mask, samples=200, generator=torch.Generator().manual_seed(0))
    assert 4 < float(bound[0] / bound[1]) < 9  # six edges, not sixteen pairs, beside one
