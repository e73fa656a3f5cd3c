"""Which part of the data each number of the sequence evaluation is measured on."""

import torch

from manifoldflow.tasks.common.splits import Split
from manifoldflow.tasks.dna.evaluation import compare_sets
from manifoldflow.tasks.dna.sequences import SequenceSet


def test_novelty_is_measured_from_the_training_part_and_the_mark_is_the_test_part():
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(0, 2, (20, 30), generator=generator)  # A and C
    held = torch.randint(2, 4, (20, 30), generator=generator)  # G and T
    tokens = torch.cat([train, held])
    real = SequenceSet([str(i) for i in range(40)], tokens, torch.ones_like(tokens, dtype=torch.bool), None, [], 0)
    parts = Split(torch.arange(20), torch.arange(20, 30), torch.arange(30, 40))
    copied = real.rows(torch.arange(10))  # a model that only copies what it was shown
    found = compare_sets(copied, real, parts, [])
    assert found["edits to training, median"]["samples"] == 0
    assert found["edits to training, least"]["real"] > 0.5
    assert found["3-mer correlation"]["samples"] > 0.9 > found["3-mer correlation"]["real"]
    gc = ((held[10:] == 1) | (held[10:] == 2)).float().mean()
    assert abs(found["GC content"]["real"] - float(gc)) < 1e-6
