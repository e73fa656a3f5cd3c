"""A network of graphs: nodes and unordered pairs of nodes look at each other, and at walks along the edges."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from manifoldflow.field import edges_of_pairs, nodes_of_edges, pairs_of_edges
from manifoldflow.tasks.molecules.three_d_model import TIMES, Ends, hot, time_features

WALKS = 5
"""Lengths of random walks whose probabilities of arrival the network sees."""


class GraphNetwork(nn.Module):
    """Predictions for the nodes and edges of noisy graphs, the same however the nodes are numbered.

    Of the noisy graph it also sees how likely random walks of one to five steps lead from a node to another, and back (Ma et al.
    2023): rings and blocks of well connected nodes, which rounds of messages do not tell apart.

    Args:
        node_in, edge_in: categories of the tokens, or coordinates of the points, of a node and of an edge; 0 nodes for fields of
            edges alone.
        node_out, edge_out: numbers predicted for each.
        tokens: whether the fields hold tokens (the mask token is one more category).
        width, edge_width: channels of a node and of an edge.
        depth: rounds.
    """

    def __init__(
        self,
        node_in: int,
        edge_in: int,
        node_out: int,
        edge_out: int,
        *,
        tokens: bool = True,
        width: int = 96,
        edge_width: int = 48,
        depth: int = 5,
    ) -> None:
        super().__init__()
        self.node_in, self.edge_in, self.node_out, self.edge_out, self.tokens = (
            node_in,
            edge_in,
            node_out,
            edge_out,
            tokens,
        )
        self.past_node, self.past_edge = (node_out, edge_out) if tokens else (0, 0)
        self.first = nn.Linear(node_in + self.past_node + edge_in + self.past_edge + WALKS + TIMES + 1, width)
        self.first_edge = nn.Linear(edge_in + self.past_edge + 2 * WALKS, edge_width)
        self.rounds = nn.ModuleList(Round(width, edge_width) for _ in range(depth))
        self.node_head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, max(node_out, 1))
        )
        self.to_edge = nn.Linear(width, edge_width)
        self.edge_head = nn.Sequential(
            nn.LayerNorm(edge_width), nn.Linear(edge_width, edge_width), nn.SiLU(), nn.Linear(edge_width, edge_out)
        )

    def forward(
        self, x: dict[str, Tensor], t: Tensor, *, mask: Tensor | None = None, previous: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Predictions ``node`` ``(B, N, node_out)`` and ``edge`` ``(B, P, edge_out)``.

        Args:
            x: tokens ``node`` ``(B, N)`` and ``edge`` ``(B, P)``, or points ``(B, N, node_in)`` and ``(B, P, edge_in)``.
            t: times ``(B,)``.
            mask: bool ``(B, N)``.
            previous: the last prediction of logits (self-conditioning).
        """
        like = self.first.weight
        edge = hot(x["edge"], self.edge_in, like) if self.tokens else x["edge"]
        nodes = mask.shape[1] if mask is not None else nodes_of_edges(edge.shape[1])
        batch = edge.shape[0]
        ends = Ends(nodes, edge.device)
        real = like.new_ones(batch, nodes, 1) if mask is None else mask.unsqueeze(-1).to(like.dtype)
        both = ends.first(real) * ends.second(real)
        edge = edge * both
        there = 1 - edge[..., :1] if self.tokens else (0.5 + 0.5 * edge[..., :1]).clamp(0, 1)
        own, between = walks((there * both).squeeze(-1), nodes)
        node = [] if self.node_in == 0 else [hot(x["node"], self.node_in, like) if self.tokens else x["node"]]
        parts, pairs = [*node, ends.to_atoms(edge)], [edge]
        if self.tokens:
            past = torch.zeros_like(edge[..., :1]).expand(-1, -1, self.edge_out)
            if previous is not None:
                past = previous["edge"].softmax(-1) * both
            if self.node_out:
                parts.append(
                    real.new_zeros(batch, nodes, self.node_out) if previous is None else previous["node"].softmax(-1)
                )
            parts.append(ends.to_atoms(past))
            pairs.append(past)
        time = time_features(t, like).unsqueeze(1).expand(-1, nodes, -1)
        size = (real.sum(1, keepdim=True) / 9 - 1).expand(-1, nodes, -1)
        h = self.first(torch.cat([*parts, own, time, size], -1)) * real
        e = self.first_edge(torch.cat([*pairs, between], -1))
        for one in self.rounds:
            h, e = one(h, e, ends, real, both)
        made = {"edge": self.edge_head(e + silu(ends.to_pairs(self.to_edge(h))))}
        if self.node_out:
            made["node"] = self.node_head(h)
        return made


class Round(nn.Module):
    """Edges look at their nodes, nodes at their edges and at the whole.

    Args:
        width, edge_width: channels.
    """

    def __init__(self, width: int, edge_width: int) -> None:
        super().__init__()
        self.norm, self.edge_norm = nn.LayerNorm(width), nn.LayerNorm(edge_width)
        self.from_nodes, self.from_edge = nn.Linear(width, 2 * edge_width), nn.Linear(edge_width, edge_width)
        self.message = nn.Linear(edge_width, 2 * edge_width)
        self.whole = nn.Linear(width, edge_width)
        self.update = nn.Sequential(nn.Linear(width + 2 * edge_width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, e: Tensor, ends: Ends, real: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes ``(B, N, width)`` and edges ``(B, P, edge_width)`` after the round."""
        normed = self.norm(h)
        own, value = self.from_nodes(normed).chunk(2, -1)
        e = e + silu(self.edge_norm(self.from_edge(e) + ends.to_pairs(own)))
        m, gate = self.message(e).chunk(2, -1)
        m = silu(m) * both
        e = e + gate
        came = ends.to_atoms(m * ends.second(value), m * ends.first(value)) / 3.0
        whole = silu(self.whole((normed * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)))
        seen = torch.cat([normed, came, whole.expand(-1, h.shape[1], -1)], -1)
        return h + self.update(seen) * real, e


def walks(there: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Probabilities that random walks of 1 to :data:`WALKS` steps return, ``(B, N, WALKS)``, and that they lead from one end
    of a pair to the other, both ways added and subtracted in size, ``(B, P, 2 WALKS)``.

    Args:
        there: how much of an edge there is, from 0 to 1, ``(B, P)``.
        nodes: N.
    """
    step = pairs_of_edges(there, nodes)
    step = step / step.sum(-1, keepdim=True).clamp_min(1e-6)
    at, powers = step, [step]
    for _ in range(WALKS - 1):
        at = at @ step
        powers.append(at)
    many = torch.stack(powers, -1)
    there_, back = edges_of_pairs(many), edges_of_pairs(many.transpose(1, 2))
    return many.diagonal(dim1=1, dim2=2).mT, torch.cat([there_ + back, (there_ - back).abs()], -1)
