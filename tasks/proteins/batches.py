"""Batches of chains by number of residues."""

import random
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from torch.utils.data import Sampler


@runtime_checkable
class HasLengths(Protocol):
    """A data set that knows the residues of each item."""

    @property
    def lengths(self) -> list[int]:
        """Residues per item."""


class TokenBatches(Sampler[list[int]]):
    """Batches of chains of similar length with a bounded number of padded residues; a ``batch_sampler``.

    Chains are sorted by length (blurred by ``blur``, so that batches differ between epochs), cut into batches and the
    batches are shuffled. The number of batches is the same in every epoch and on every rank: a surplus batch is left
    out for that epoch, a missing one is filled by repeating another. With ``shuffle=False`` every chain appears, and
    only the filling of the last round of ranks repeats.

    Args:
        lengths: residues per item, or a data set with ``.lengths``.
        max_tokens: bound on B * N, N the longest of the batch.
        max_square: bound on B * N**2 (pairs), for networks whose memory grows with it.
        shuffle, seed: order from ``seed`` and the epoch given by :meth:`set_epoch`.
        rank, world_size: share of this process.
        blur: relative width of the random change of length before sorting.
    """

    def __init__(
        self,
        lengths: Sequence[int] | HasLengths,
        max_tokens: int,
        *,
        max_square: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        blur: float = 0.05,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        self.lengths = list(lengths.lengths if isinstance(lengths, HasLengths) else lengths)
        longest = max(self.lengths, default=0)
        if longest > max_tokens or (max_square is not None and longest**2 > max_square):
            raise ValueError(
                f"a chain of {longest} residues does not fit max_tokens={max_tokens}, max_square={max_square}"
            )
        self.max_tokens, self.max_square, self.blur = max_tokens, max_square, blur
        self.shuffle, self.seed, self.rank, self.world_size = shuffle, seed, rank, world_size
        self.epoch = 0
        self._count = -(-len(self._cut(random.Random(seed))) // world_size) * world_size

    @property
    def sampler(self) -> "TokenBatches":
        """Itself: Lightning calls ``batch_sampler.sampler.set_epoch`` at the start of each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def _cut(self, rng: random.Random) -> list[list[int]]:
        width = self.blur if self.shuffle else 0.0
        key = [(length * (1 + width * rng.uniform(-1, 1)), rng.random()) for length in self.lengths]
        order = sorted(range(len(key)), key=key.__getitem__)
        batches: list[list[int]] = []
        longest = 0
        for i in order:
            size = len(batches[-1]) + 1 if batches else 1
            longest = max(longest, self.lengths[i])
            fits = size * longest <= self.max_tokens
            fits &= self.max_square is None or size * longest**2 <= self.max_square
            if batches and fits:
                batches[-1].append(i)
            else:
                batches.append([i])
                longest = self.lengths[i]
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = random.Random(self.seed * 1_000_003 + self.epoch)
        batches = self._cut(rng)
        if self.shuffle:
            rng.shuffle(batches)
        while len(batches) < self._count:
            batches.extend(batches[: self._count - len(batches)])
        yield from batches[: self._count][self.rank :: self.world_size]

    def __len__(self) -> int:
        return self._count // self.world_size
