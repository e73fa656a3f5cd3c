"""Objects seen before, to learn from again."""

from typing import Any, Literal

import torch
from torch import Tensor

from manifoldflow.state import State, fields, map_cond, map_state


class Replay:
    """A store of different objects with their rewards, which a share of every batch is drawn from.

    Objects are told apart by ``env.key`` where there is one, else by a hash of their tensors. Trajectories to them are drawn
    anew by the backward policy, so the reward is paid once. It goes with the checkpoints of a run.

    Args:
        capacity: most objects.
        kind: ``"uniform"`` keeps the newest and draws evenly; ``"prioritised"`` keeps the newest and draws by the rank of
            their rewards (probability as 1 / (``alpha`` n + rank)); ``"top"`` keeps the best and draws evenly.
        share: of a batch.
        alpha: of prioritised draws: the smaller, the more the best are drawn.
        start: objects offered before the first is drawn.
    """

    def __init__(
        self,
        capacity: int = 10_000,
        *,
        kind: Literal["uniform", "prioritised", "top"] = "uniform",
        share: float = 0.5,
        alpha: float = 0.01,
        start: int = 64,
    ) -> None:
        if kind not in ("uniform", "prioritised", "top"):
            raise ValueError(f"Replay: kind must be uniform, prioritised or top, got {kind!r}")
        if capacity < 1 or start < 1 or not 0 <= share < 1 or not alpha > 0:
            raise ValueError(
                "Replay: capacity and start must be at least 1, share in [0, 1), alpha positive, "
                f"got {capacity}, {start}, {share}, {alpha}"
            )
        self.capacity, self.kind, self.share, self.alpha, self.begin = capacity, kind, share, alpha, start
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.offered = 0
        self.states: Any = None
        self.cond: Any = None
        self.log_reward = self.keys = self.valid = torch.empty(0)

    def __len__(self) -> int:
        return int(self.valid.sum())

    def __deepcopy__(self, memo: Any) -> "Replay":
        """The averaged copy of a model shares it."""
        return self

    def count(self, size: int) -> int:
        """How many of a batch come from here."""
        return 0 if self.offered < self.begin else min(round(self.share * size), size - 1)

    def add(self, x: State, log_reward: Tensor | None, cond: Any = None, keys: Tensor | None = None) -> None:
        """Offer objects.

        Args:
            x: objects.
            log_reward: their log-rewards.
            cond: their conditions, a part of what tells them apart.
            keys: whole numbers that tell them apart; a hash if absent.
        """
        assert log_reward is not None
        size = len(log_reward)
        known = hashed(x) if keys is None else keys
        if cond is not None:
            known = known * 1_000_003 + hashed(cond)
        valid = torch.ones_like(known, dtype=torch.bool)
        if self.states is not None:  # the new ones first
            x = map_state(lambda a, b: torch.cat([a, b.to(a)]), x, self.states)
            log_reward = torch.cat([log_reward, self.log_reward.to(log_reward)])
            known, valid = torch.cat([known, self.keys]), torch.cat([valid, self.valid])
            cond = _both(cond, self.cond)
        self.offered += size
        order = known.argsort(stable=True)
        again = torch.zeros_like(valid).index_put((order[1:],), known[order[1:]] == known[order[:-1]])
        valid = valid & ~again
        worth = (
            log_reward if self.kind == "top" else -torch.arange(len(known), device=known.device, dtype=log_reward.dtype)
        )
        keep = torch.where(valid, worth, -torch.inf).topk(min(self.capacity, len(known))).indices
        total = len(known)
        self.states = map_state(lambda v: v[keep].clone(), x)
        self.cond = map_cond(lambda v: v[keep].clone(), cond, total)
        self.log_reward, self.keys, self.valid = log_reward[keep], known[keep], valid[keep]

    def draw(self, size: int, generator: torch.Generator | None = None) -> tuple[State, Tensor, Any]:
        """Objects with their log-rewards and conditions."""
        weight = self.valid.to(torch.float32)
        if self.kind == "prioritised":
            rank = torch.where(self.valid, self.log_reward, -torch.inf).argsort(descending=True).argsort()
            weight = weight / (self.alpha * weight.sum() + rank)
        total = weight.cumsum(0)
        u = torch.rand(size, generator=generator, device=weight.device) * total[-1]
        rows = torch.searchsorted(total, u, right=True).clamp_max(len(total) - 1)
        cond = map_cond(lambda v: v[rows], self.cond, len(total))
        return map_state(lambda v: v[rows], self.states), self.log_reward[rows], cond

    def state_dict(self) -> dict[str, Any]:
        """Everything it holds."""
        names = ("states", "cond", "log_reward", "keys", "valid", "offered")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)


def _both(new: Any, old: Any) -> Any:
    if isinstance(new, dict):
        return {key: _both(value, old[key]) for key, value in new.items()}
    return torch.cat([new, old.to(new)]) if isinstance(new, Tensor) and new.ndim > 0 else new


def hashed(x: State) -> Tensor:
    """A whole number of every state, int64 ``(B,)``: equal for equal ones, hardly ever else.

    The bits of every entry are mixed with its place, and summed with overflow.
    """
    total: Any = 0
    for number, (_, value) in enumerate(sorted(fields(x).items())):
        flat = value.reshape(len(value), -1)
        if flat.is_floating_point():
            flat = (flat.to(torch.float32) + 0.0).contiguous().view(torch.int32)  # -0 is 0
        place = torch.arange(1, flat.shape[1] + 1, device=flat.device) * 0x9E3779B97F4A7C1 + number * 0x2545F4914F6CDD1
        mixed = (flat.to(torch.int64) + place) * 0x3F58476D1CE4E5B
        mixed = (mixed ^ (mixed >> 29)) * 0x14D049BB133111E
        total = total + (mixed ^ (mixed >> 32)).sum(-1)
    return total
