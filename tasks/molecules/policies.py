"""Networks of unfinished molecules: messages along the tree of blocks, or between all atoms, then a score of every action."""

from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.segment import segment_sum
from manifoldflow.tasks.molecules.fragment_env import FragmentEnv


class GraphPolicy(nn.Module):
    """Scores the actions of a :class:`FragmentEnv`: what ``mf.GFlowNet(env, policy=...)`` takes.

    Every node hears of its parent and its children, with the sites between them, and of the whole molecule; a free site and a
    block then match by an inner product, so that blocks that are alike have like scores.

    Args:
        env: the environment.
        width, depth: of the node states; rounds of messages.
        backward: also score which block was added last (``GFlowNet(backward="learned")``).
        flows: also the flow of the state (``GFlowNet(flows=True)`` or ``forward_looking=True``).
        conditions: numbers that a condition has, such as the weights of several objectives; 0 for none.
    """

    def __init__(
        self,
        env: FragmentEnv,
        width: int = 96,
        depth: int = 3,
        *,
        backward: bool = False,
        flows: bool = False,
        conditions: int = 0,
    ) -> None:
        super().__init__()
        self.nodes, self.sites, self.rest, self.actions = env.max_fragments, env.sites, env.rest, env.actions
        self.backward, self.flows = backward, flows
        kinds = len(env.vocabulary)
        features = env.vocabulary.features
        self.register_buffer("features", torch.cat([features, torch.zeros(1, features.shape[1])]), persistent=False)
        self.block = nn.Embedding(kinds + 1, width)  # the last stands for a place without a block
        self.known = nn.Linear(features.shape[1], width)
        self.site = nn.Embedding(env.sites + 1, width)
        self.given = nn.Linear(conditions, width) if conditions else None
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
            )
            for _ in range(depth)
        )
        self.whole = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.SiLU())
        self.query = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.match = nn.Parameter(torch.randn(self.rest, width) / width**0.5)
        self.offer = nn.Linear(features.shape[1], width)
        self.bias = nn.Parameter(torch.zeros(self.rest))
        self.stop = nn.Linear(width, 1)
        self.last = nn.Linear(width, 1) if backward else None
        self.flow = nn.Linear(width, 1) if flows else None
        for part in (self.stop, self.last, self.flow):
            if part is not None:
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)

    def forward(self, seen: Tensor, cond: Tensor | None = None) -> Tensor:
        """What ``env.observe`` returns, ``(B, observed)``, and conditions ``(B, C)`` -> ``(B, outputs)``."""
        count, n = len(seen), self.nodes
        whole = seen.round().long()
        block, parent, site = whole[:, :n], whole[:, n : 2 * n], whole[:, 2 * n : 3 * n]
        there = block >= 0
        number = torch.where(there, block, len(self.block.weight) - 1)
        features: Any = self.features
        h = self.block(number) + self.known(features[number])  # (B, N, W)
        if self.given is not None and cond is not None:
            h = h + self.given(cond.to(h.dtype)).unsqueeze(1)
        edge = self.site(torch.where(parent >= 0, site, self.sites))
        rows = torch.arange(count, device=seen.device).unsqueeze(1) * n
        has_parent = parent >= 0
        above = torch.where(has_parent, parent + rows, count * n).flatten()  # the last group takes what has no parent
        size = there.sum(-1, keepdim=True).clamp_min(1).to(h.dtype)
        for layer in self.layers:
            flat = h.flatten(0, 1)
            from_parent = torch.where(
                has_parent.unsqueeze(-1), flat[above.clamp_max(count * n - 1)].view_as(h) + edge, 0.0
            )
            from_children = segment_sum((h + edge).flatten(0, 1), above, count * n + 1)[:-1].view_as(h)
            mean = ((h * there.unsqueeze(-1)).sum(1) / size).unsqueeze(1).expand_as(h)
            h = h + layer(torch.cat([h, from_parent, from_children, mean], -1))
        summed = (h * there.unsqueeze(-1)).sum(1)
        pooled = self.whole(
            torch.cat([summed / size, torch.where(there.any(1, keepdim=True), summed / 8, h[:, 0])], -1)
        )
        spots = max(n - 1, 1)
        asked = h[:, :spots].unsqueeze(2) + self.site.weight[: self.sites]  # (B, N - 1, S, W)
        query = self.query(torch.cat([asked, pooled[:, None, None].expand_as(asked)], -1))
        offered = self.match + self.offer(features[: self.rest])
        score = query @ offered.T / offered.shape[1] ** 0.5 + self.bias
        parts = [self.stop(pooled), score.flatten(1)]
        if self.last is not None:
            # a block may have been the last by itself, whatever it is: one number for every (parent, site, block) that is there
            mark = self.last(h).squeeze(-1)
            place = 1 + (parent.clamp_min(0) * self.sites + site.clamp_min(0)) * self.rest
            place = torch.where(there, place + block.clamp(0, self.rest - 1), self.actions)
            back = mark.new_zeros(count, self.actions + 1).scatter(1, place, mark)
            parts.append(back[:, :-1])
        if self.flow is not None:
            parts.append(self.flow(pooled))
        return torch.cat(parts, 1)
