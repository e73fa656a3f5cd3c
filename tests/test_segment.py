"""Sums over ragged groups against loops, and the two kinds of kernels against each other."""

import pytest
import torch
from torch import Tensor

from manifoldflow import segment
from manifoldflow.segment import segment_argmax, segment_count, segment_max, segment_mean, segment_softmax, segment_sum

INDEX = torch.tensor([2, 0, 2, 4, 0, 2, 0])  # groups 1 and 3 are empty
COUNT = 5


@pytest.fixture(params=["native", "torch_scatter"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "native":
        monkeypatch.setattr(segment, "NATIVE_ONLY", True)
    else:
        pytest.importorskip("torch_scatter")


def values(shape: tuple[int, ...] = (7, 3)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def groups(value: Tensor) -> list[Tensor]:
    return [value[INDEX == g] for g in range(COUNT)]


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 2)])
def test_sums_means_and_counts_are_those_of_a_loop(shape: tuple[int, ...]) -> None:
    value = values(shape)
    total = torch.stack([g.sum(0) for g in groups(value)])
    assert torch.allclose(segment_sum(value, INDEX, COUNT), total)
    mean = torch.stack([g.mean(0) if len(g) else torch.zeros(shape[1:], dtype=value.dtype) for g in groups(value)])
    assert torch.allclose(segment_mean(value, INDEX, COUNT), mean)
    assert segment_count(INDEX, COUNT).tolist() == [3, 0, 3, 0, 1]


def test_maxima_name_the_first_row_that_reaches_them_and_send_their_gradient_there() -> None:
    value = torch.tensor([1.0, 5.0, 3.0, -2.0, 5.0, 3.0, 4.0], dtype=torch.float64, requires_grad=True)
    best, row = segment_argmax(value.detach(), INDEX, COUNT)
    assert best.tolist() == [5.0, -torch.inf, 3.0, -torch.inf, -2.0] and row.tolist() == [1, 7, 2, 7, 3]
    made = segment_max(value, INDEX, COUNT, empty=-9.0)
    assert made.tolist() == [5.0, -9.0, 3.0, -9.0, -2.0]
    (made * torch.tensor([1.0, 10.0, 100.0, 1000.0, 1e4])).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [0.0, 1.0, 100.0, 1e4, 0.0, 0.0, 0.0]


def test_gradients_are_exact() -> None:
    value = values().requires_grad_()
    for function in (segment_sum, segment_mean, segment_max, segment_softmax):
        assert torch.autograd.gradcheck(lambda v, f=function: f(v, INDEX, COUNT), (value,))


def test_softmax_is_that_of_every_group_and_stays_finite() -> None:
    value = values() * 1000
    made = segment_softmax(value, INDEX, COUNT)
    for g in range(COUNT):
        if (INDEX == g).any():
            assert torch.allclose(made[INDEX == g], value[INDEX == g].softmax(0))
    assert torch.isfinite(made).all()


def test_no_rows_at_all() -> None:
    none, nowhere = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)
    assert segment_sum(none, nowhere, 3).tolist() == [[0, 0]] * 3
    assert segment_max(none, nowhere, 3, empty=1.0).tolist() == [[1, 1]] * 3
