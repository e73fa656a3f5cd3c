"""How the named fields of a state belong to a sample: one value a node, for the whole graph, a pair of nodes, or an edge."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from manifoldflow.state import expand_mask, fields, like

Per = Literal["node", "graph", "pair", "edge"]


@dataclass(frozen=True)
class Field:
    """A space, and what of a sample has a point in it.

    A state of a batch of B sets of N elements has for every field a tensor of the batch shape

    ==========  =================  =======================================
    ``per``     shape              an element is real where
    ==========  =================  =======================================
    ``node``    ``(B, N)``         ``mask`` is True
    ``graph``   ``(B,)``           always
    ``pair``    ``(B, N, N)``      ``mask`` is True for both of its nodes
    ``edge``    ``(B, P)``         ``mask`` is True for both of its nodes
    ==========  =================  =======================================

    followed by the axes of a point. Without a set (states ``(B, *event)``) every field is one per sample. A bare space in a
    flow means ``Field(space)``.

    An edge is an unordered pair of two different nodes, of which there are P = N (N - 1) / 2, in the order of
    ``torch.triu_indices(N, N, 1)``. Adjacency matrices and bonds are fields of edges: what has one value for both directions is
    then drawn once, noised once, jumps once and counts once in losses and densities, and no diagonal is in the way.
    :func:`pairs_of_edges` makes the symmetric matrix that a network wants, :func:`edges_of_pairs` takes it apart.

    Args:
        space: a manifold or :class:`manifoldflow.Tokens`.
        per: ``"node"``, ``"graph"``, ``"pair"`` (ordered, a node with itself too) or ``"edge"`` (unordered).

    Raises:
        ValueError: ``per`` is none of them.
    """

    space: Any
    per: Per = "node"

    def __post_init__(self) -> None:
        if self.per not in ("node", "graph", "pair", "edge"):
            raise ValueError(f"Field: per must be 'node', 'graph', 'pair' or 'edge', got {self.per!r}")

    def shape(self, batch: Sequence[int]) -> tuple[int, ...]:
        """The batch shape of the field, from that of the nodes ``(B, N)``.

        Raises:
            ValueError: pairs of nodes that have no axis of nodes.
        """
        nodes = tuple(batch)
        if self.per == "node":
            return nodes
        if self.per == "graph":
            return nodes[:1]
        if len(nodes) < 2:
            raise ValueError(
                f"a field of {self.per}s needs sets of nodes: give the shape (B, N) or lengths=, got {nodes}"
            )
        return (*nodes, nodes[-1]) if self.per == "pair" else (*nodes[:-1], edge_count(nodes[-1]))

    def spread(self, chosen: Tensor | None) -> Tensor | None:
        """What ``chosen``, bool ``(B, N)`` of nodes, means for the elements of the field; None for all of them.

        Of pairs and edges those are chosen whose nodes both are; of graphs, which have no nodes to choose, all.
        """
        if chosen is None or self.per == "graph":
            return None
        if self.per == "node":
            return chosen
        if self.per == "edge":
            first, second = edge_ends(chosen.shape[-1], chosen.device)
            return chosen.index_select(-1, first) & chosen.index_select(-1, second)
        return chosen.unsqueeze(-1) & chosen.unsqueeze(-2)

    def time(self, t: Tensor) -> Tensor:
        """Times of the elements of the field from times ``(B,)``, or ``(B, N)`` of nodes: a pair has the earlier one of its
        nodes', a graph the earliest of all."""
        if t.ndim < 2 or self.per == "node":
            return t
        if self.per == "graph":
            return t.flatten(1).amin(-1)
        if self.per == "edge":
            first, second = edge_ends(t.shape[-1], t.device)
            return torch.minimum(t.index_select(-1, first), t.index_select(-1, second))
        return torch.minimum(t.unsqueeze(-1), t.unsqueeze(-2))


def as_fields(spaces: Any) -> tuple[dict[str, Field], Any]:
    """The fields of ``{name: space or Field}`` (or of one), and the bare spaces in the structure that was given."""
    made = {n: s if isinstance(s, Field) else Field(s) for n, s in fields(spaces).items()}
    return made, like({n: f.space for n, f in made.items()}, spaces)


def nodes_of(state: Any, of: Mapping[str, Field]) -> tuple[int, ...]:
    """The batch shape of the nodes ``(B, N)`` that a state has, ``(B,)`` if it has none."""
    view = fields(state)
    batch: tuple[int, ...] = ()
    for name, value in view.items():
        own = value.shape[: value.ndim - of[name].space.event_ndim]
        if of[name].per == "node":
            return tuple(own)
        batch = (*own[:1], nodes_of_edges(own[1])) if of[name].per == "edge" and len(own) > 1 else tuple(own[:2])
    return batch


def edge_count(nodes: int) -> int:
    """Unordered pairs of different nodes: N (N - 1) / 2."""
    return nodes * (nodes - 1) // 2


def nodes_of_edges(edges: int) -> int:
    """The number of nodes that have so many edges.

    Raises:
        ValueError: no number of nodes has.
    """
    nodes = (1 + math.isqrt(1 + 8 * edges)) // 2
    if edge_count(nodes) != edges:
        raise ValueError(f"a field of edges has N (N - 1) / 2 of them for N nodes; {edges} is no such number")
    return nodes


def edge_ends(nodes: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """The two nodes of every edge, the smaller first, int64 ``(P,)`` each."""
    first, second, _ = _edge_tables(nodes, torch.device(device or "cpu"))
    return first, second


def pairs_of_edges(x: Tensor, nodes: int | None = None, fill: float = 0.0) -> Tensor:
    """Values of edges ``(B, P, *rest)`` as symmetric matrices ``(B, N, N, *rest)``.

    Args:
        x: values, edges along axis 1.
        nodes: N, if it is known; else it follows from P (which is 0 for no node and for one).
        fill: what the diagonal holds.
    """
    count = nodes_of_edges(x.shape[1]) if nodes is None else nodes
    table = _edge_tables(count, x.device)[2]
    diagonal = torch.full((x.shape[0], 1, *x.shape[2:]), fill, dtype=x.dtype, device=x.device)
    whole = torch.cat([x, diagonal], 1).index_select(1, table.flatten())
    return whole.reshape(x.shape[0], count, count, *x.shape[2:])


def edges_of_pairs(x: Tensor) -> Tensor:
    """What matrices ``(B, N, N, *rest)`` hold above their diagonals, ``(B, P, *rest)``."""
    first, second = edge_ends(x.shape[1], x.device)
    return x[:, first, second]


@functools.lru_cache(maxsize=256)
def _edge_tables(nodes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Both ends of every edge, and the number of the edge of every pair of nodes ``(N, N)``, P on the diagonal."""
    with torch.inference_mode(False):  # or autograd could not use them later
        first, second = torch.triu_indices(nodes, nodes, 1, device=device).unbind(0)
        i = torch.arange(nodes, device=device)
        low, high = torch.minimum(i, i.unsqueeze(-1)), torch.maximum(i, i.unsqueeze(-1))
        number = low * (2 * nodes - low - 1) // 2 + high - low - 1
        return first.contiguous(), second.contiguous(), number.masked_fill(low == high, edge_count(nodes))


def per_element(value: Any, mask: Tensor | None, like_: Tensor) -> Tensor:
    """``value`` summed over the real elements of each sample, ``(B,)``.

    Args:
        value: ``(B, ...)`` over elements, batch shape of a field.
        mask: bool, leading axes of ``value``; all real if absent.
        like_: a tensor whose first axis is B, for values that are one number a sample already.
    """
    if value.ndim <= 1:
        return value.expand(like_.shape[0])
    if mask is not None:
        value = torch.where(expand_mask(mask, value), value, torch.zeros_like(value))
    return value.flatten(1).sum(-1)
