"""Parts of a data set, and batches that depend on the seed and the step alone."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from manifoldflow.tasks.common.seeds import generator_of


class Split(NamedTuple):
    """Row numbers of the parts of a data set."""

    train: Tensor
    val: Tensor
    test: Tensor


Batch = dict[str, Tensor]


def drawn_batches(
    rows: int, size: int, seed: int, make: Callable[[Tensor, torch.Generator], Batch]
) -> Callable[[int], Iterator[Batch]]:
    """Batches of rows drawn with replacement, for :func:`manifoldflow.training.fit`.

    The draws of a step depend on the seed and the step alone, so a run that goes on is the run that never stopped.

    Args:
        rows: number of rows to draw from.
        size: of a batch.
        seed: of the draws.
        make: a batch from row numbers ``(size,)`` and the generator of the step, for what else is random.
    """

    def after(step: int) -> Iterator[Batch]:
        while True:
            generator = generator_of(seed, step)
            yield make(torch.randint(rows, (size,), generator=generator), generator)
            step += 1

    return after


def chosen_rows(rows: int, most: int, seed: int = 0) -> Tensor:
    """At most ``most`` row numbers, the same for the same seed: what a validation score is measured on."""
    return torch.randperm(rows, generator=generator_of(seed))[:most]
