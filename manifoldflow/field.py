"""How the named fields of a state belong to a sample: one value a node, one for the whole graph, or one a pair of nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from manifoldflow.state import expand_mask, fields, like

Per = Literal["node", "graph", "pair"]


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
    ==========  =================  =======================================

    followed by the axes of a point. Without a set (states ``(B, *event)``) every field is one per sample. A bare space in a
    flow means ``Field(space)``.

    Args:
        space: a manifold or :class:`manifoldflow.Tokens`.
        per: ``"node"``, ``"graph"`` or ``"pair"``.

    Raises:
        ValueError: ``per`` is none of them.
    """

    space: Any
    per: Per = "node"

    def __post_init__(self) -> None:
        if self.per not in ("node", "graph", "pair"):
            raise ValueError(f"Field: per must be 'node', 'graph' or 'pair', got {self.per!r}")

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
            raise ValueError(f"a field of pairs needs sets of nodes: give the shape (B, N) or lengths=, got {nodes}")
        return (*nodes, nodes[-1])

    def spread(self, chosen: Tensor | None) -> Tensor | None:
        """What ``chosen``, bool ``(B, N)`` of nodes, means for the elements of the field; None for all of them.

        Of pairs those are chosen whose nodes both are; of graphs, which have no nodes to choose, all.
        """
        if chosen is None or self.per == "graph":
            return None
        if self.per == "node":
            return chosen
        return chosen.unsqueeze(-1) & chosen.unsqueeze(-2)

    def time(self, t: Tensor) -> Tensor:
        """Times of the elements of the field from times ``(B,)``, or ``(B, N)`` of nodes: a pair has the earlier one of its
        nodes', a graph the earliest of all."""
        if t.ndim < 2 or self.per == "node":
            return t
        if self.per == "graph":
            return t.flatten(1).amin(-1)
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
        batch = tuple(own[:2])
    return batch


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
