"""Training, validation and test rows by seed: as in papers, without copies, or by whole groups."""

from typing import Literal

import numpy as np
import torch

from manifoldflow.tasks.common.splits import Split
from manifoldflow.tasks.densities.data import DataSet, merge_equal, point_keys

SplitKind = Literal["published", "deduplicated", "chain"]


def split(data: DataSet, kind: SplitKind = "published", seed: int = 0) -> Split:
    """80 % of the rows for training, 10 % for validation, 10 % for testing.

    Args:
        data: the set.
        kind: ``"published"``: rows at random, as in the papers, so a copy of a test row may be in training.
            ``"deduplicated"``: equal points are merged first. ``"chain"``: whole groups (chains of one entry) go to one side.
        seed: of the permutation.

    Raises:
        ValueError: the set is too small, or has no groups.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "chain":
        return _by_group(data, generator)
    rows = merge_equal(data.x, data.space) if kind == "deduplicated" else torch.arange(len(data))
    if kind not in ("published", "deduplicated"):
        raise ValueError(f"split must be published, deduplicated or chain, got {kind!r}")
    n = len(rows)
    held = max(1, n // 10)
    if n < 3:
        raise ValueError(f"{data.name}: {n} rows cannot be parted into training, validation and test; 3 is the least")
    mixed = rows[torch.randperm(n, generator=generator)]
    return Split(mixed[: n - 2 * held], mixed[n - 2 * held : n - held], mixed[n - held :])


def _by_group(data: DataSet, generator: torch.Generator) -> Split:
    if data.groups is None:
        raise ValueError(f"{data.name} has no groups, so --split chain needs --group-column NAME")
    _, label, count = np.unique(data.groups, return_inverse=True, return_counts=True)
    if len(count) < 3:
        raise ValueError(f"{data.name}: {len(count)} groups cannot be parted into training, validation and test")
    order = torch.randperm(len(count), generator=generator)
    before = torch.from_numpy(count)[order].cumsum(0) - torch.from_numpy(count)[order]
    share = before / len(label)  # of the rows that come before each group; its part follows
    part = torch.empty_like(order)
    part[order] = (share >= 0.1).long() + (share >= 0.2).long()
    of_row = part[torch.from_numpy(label.reshape(-1))]
    made = Split(*((of_row == i).nonzero().squeeze(-1) for i in (2, 1, 0)))
    if not all(len(rows) for rows in made):
        raise ValueError(f"{data.name}: one group holds too many of the rows for an 80/10/10 split")
    return made


def seen_share(data: DataSet, parts: Split) -> float:
    """Share of the test rows that also occur, coordinate by coordinate, among the training rows."""
    keys = point_keys(data.x, data.space)
    seen = {row.tobytes() for row in keys[parts.train.numpy()]}
    return float(np.mean([row.tobytes() in seen for row in keys[parts.test.numpy()]]))
