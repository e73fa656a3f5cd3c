"""Random splits in which equal sequences stay together."""

import torch

from manifoldflow.tasks.common.splits import Split
from manifoldflow.tasks.dna.alphabet import reverse_complement
from manifoldflow.tasks.dna.sequences import SequenceSet

SHARES = (0.8, 0.1)
"""For training and validation; the rest is for testing."""


def split(data: SequenceSet, seed: int = 0) -> Split:
    """80 % for training, 10 % for validation, 10 % for testing; a sequence and its other strand are on one side.

    Args:
        data: the sequences.
        seed: of the permutation.
    """
    forward = torch.cat([data.tokens, data.mask.long()], 1)
    turned = torch.cat([reverse_complement(data.tokens, data.mask), data.mask.long()], 1)
    # The group of a sequence is the number of the smaller of the two, over both lists together.
    _, number = torch.unique(torch.cat([forward, turned]), dim=0, return_inverse=True)
    group = torch.minimum(*number.split(len(data)))
    _, group = torch.unique(group, return_inverse=True)
    count = int(group.max()) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count)
    place = rank[group].double() / count
    ends = (SHARES[0], SHARES[0] + SHARES[1])
    return Split(
        (place < ends[0]).nonzero().squeeze(1),
        ((place >= ends[0]) & (place < ends[1])).nonzero().squeeze(1),
        (place >= ends[1]).nonzero().squeeze(1),
    )
