"""Sets of items with energies, of a fixed size: a reward that is earned item by item, with exact answers (Pan et al. 2023)."""

import heapq
import math
from typing import Any, Literal

import torch
from torch import Tensor

from manifoldflow.gflownet.env import Env
from manifoldflow.gflownet.replay import hashed
from manifoldflow.state import State

# Ten energies each, in equal numbers of items; the laws of the set task of Pan et al. (2023).
STANDARD: dict[str, tuple[int, int, list[float]]] = {
    "small": (30, 20, [
        -0.4381397850674522, -0.40046449111789073, -0.2745059751263419, 0.013149744911117978, 0.4110535720923896,
        0.6261749162235306, 0.6961474461702144, 0.7442282139370466, 0.8206350287761408, 0.883494921538938]),
    "medium": (80, 60, [
        -0.7866830411595669, -0.7837872949891345, -0.5230497555411129, -0.41860806745880197, -0.3855205729595568,
        0.2961218224370139, 0.5731802451199923, 0.6009291618806774, 0.6881812517688572, 0.7396350970666805]),
    "large": (100, 80, [
        -0.8596854107736154, -0.5938789622812419, -0.5596177369051512, -0.4589997720511263, -0.15382957507887518,
        0.13832182722858843, 0.3925029176153736, 0.7231982581431591, 0.7326989860019331, 0.9244538380742333]),
}  # fmt: skip


class ItemSets(Env):
    r"""Choose ``size`` of n items; :math:`\log R(x) = -\sum_{i \in x} E_i`, and unfinished sets have earned theirs already.

    Args:
        energy: E, ``(n,)``.
        size: items of an object.
    """

    def __init__(self, energy: Tensor, size: int) -> None:
        if energy.ndim != 1 or not 1 <= size <= len(energy):
            raise ValueError(
                f"ItemSets: size must lie between 1 and the number of items, got {size}, {tuple(energy.shape)}"
            )
        self.energy, self.size = energy.double(), size
        self.actions = self.observed = len(energy)
        self.horizon = size

    @classmethod
    def standard(cls, name: Literal["small", "medium", "large"]) -> "ItemSets":
        """The three tasks of Pan et al. (2023): 20 of 30, 60 of 80, 80 of 100 items."""
        if name not in STANDARD:
            raise ValueError(f"ItemSets.standard knows {', '.join(STANDARD)}, got {name!r}")
        count, size, values = STANDARD[name]
        return cls(torch.tensor(values, dtype=torch.float64).repeat(count // len(values)), size)

    def initial(self, n: int, *, device: torch.device | str | None = None) -> State:
        return torch.zeros(n, self.actions, dtype=torch.bool, device=device)

    def is_done(self, x: Any) -> Tensor:
        return x.sum(-1) >= self.size

    def forward_mask(self, x: Any) -> Tensor:
        return ~x & ~self.is_done(x).unsqueeze(-1)

    def backward_mask(self, x: Any) -> Tensor:
        return x

    def step(self, x: Any, action: Tensor) -> State:
        return x | self._one(action)

    def undo(self, x: Any, action: Tensor) -> State:
        return x & ~self._one(action)

    def _one(self, action: Tensor) -> Tensor:
        return torch.arange(self.actions, device=action.device) == action.unsqueeze(-1)

    def action(self, x: Any, y: Any) -> Tensor:
        return (x ^ y).to(torch.uint8).argmax(-1)

    def log_reward(self, x: Any) -> Tensor:
        return -(x.double() @ self.energy.to(x.device)).to(torch.get_default_dtype())

    log_partial_reward = log_reward

    def log_paths(self, x: Any) -> Tensor:
        return torch.lgamma(x.sum(-1) + 1.0)

    def observe(self, x: Any) -> Tensor:
        return x.to(torch.get_default_dtype())

    def key(self, x: Any) -> Tensor:
        """A number of every state: exact up to 62 items, else a hash."""
        if self.actions > 62:
            return hashed(x)
        return (x * 2 ** torch.arange(self.actions, device=x.device)).sum(-1)

    def _sums(self) -> Tensor:
        """Log of the sum of the rewards of all choices of k among the first i items, ``(n + 1, size + 1)``: the elementary
        symmetric polynomials."""
        log_e = torch.full((self.actions + 1, self.size + 1), -torch.inf, dtype=torch.float64)
        log_e[:, 0] = 0.0
        for i, value in enumerate((-self.energy).tolist()):
            log_e[i + 1, 1:] = torch.logaddexp(log_e[i, 1:], log_e[i, :-1] + value)
        return log_e

    @property
    def log_z(self) -> float:
        """The exact logarithm of the sum of all rewards."""
        return float(self._sums()[-1, -1])

    def exact(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Objects of the exact law R / Z, independent of each other: what a perfect GFlowNet would make.

        Args:
            count: number of them.
            generator: of the draws.
        """
        log_e, left = self._sums(), torch.full((count,), self.size)
        x = torch.zeros(count, self.actions, dtype=torch.bool)
        for i in reversed(range(self.actions)):  # the last item first, given how many are still to choose
            share = log_e[i, (left - 1).clamp_min(0)] - float(self.energy[i]) - log_e[i + 1, left]
            takes = (left > 0) & (torch.rand(count, generator=generator, dtype=torch.float64).log() < share)
            x[:, i], left = takes, left - takes.long()
        return x

    def best(self, count: int = 1) -> Tensor:
        """The largest rewards of ``count`` different sets, falling, float64: exact, by a search that takes the best first."""
        gain = (-self.energy).sort(descending=True).values.tolist()
        n, k = len(gain), self.size
        total = sum(gain[:k])
        # A set is its places in falling order; each child moves one place on, in an order that makes every set once.
        first = tuple(range(k))
        heap, seen = [(-total, first)], {first}
        found: list[float] = []
        while heap and len(found) < count:
            value, places = heapq.heappop(heap)
            found.append(math.exp(-value))
            for i in range(k):
                then = places[i] + 1
                if then < n and (i == k - 1 or places[i + 1] != then):
                    child = (*places[:i], then, *places[i + 1 :])
                    if child not in seen:
                        seen.add(child)
                        heapq.heappush(heap, (value + gain[places[i]] - gain[then], child))
        return torch.tensor(found, dtype=torch.float64)
