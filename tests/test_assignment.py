"""Assignments of many sets: both ways to find them agree."""

import pytest
import torch

from manifoldflow import assignment


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch, n", [(3, 1), (5, 7), (40, 20)])
def test_sets_one_by_one_and_all_in_step_have_the_same_assignment(
    batch: int, n: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(n)
    cost = torch.rand(batch, n, n, generator=g)
    mask = torch.rand(batch, n, generator=g) < 0.7 if masked else None
    found = []
    for sets in (0, 10**9):
        monkeypatch.setattr(assignment, "_SETS_PER_STEP", sets)
        found.append(assignment.assign(cost, mask))
    assert torch.equal(*found) and (found[0].sort(-1).values == torch.arange(n)).all()
    if mask is not None:
        assert (found[0] == torch.arange(n))[~mask].all()
