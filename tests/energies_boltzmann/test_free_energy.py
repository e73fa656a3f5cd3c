"""Weights and free energies against laws whose answers are known."""

import math

import pytest
import torch
from torch import Tensor

from manifoldflow.energies import many_states, one_sided, two_sided


def normal(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wells(n: int, m: int, shift: float = 1.5, scale: float = 0.6) -> tuple[Tensor, Tensor, float]:
    """Works between u_A = x^2 / 2 and u_B = ((x - shift) / scale)^2 / 2 + 3; their difference is 3 - log(scale)."""
    a, b = normal(n, 0), shift + scale * normal(m, 1)
    change = lambda x: 0.5 * ((x - shift) / scale) ** 2 + 3 - 0.5 * x**2  # noqa: E731
    return change(a), -change(b), 3 - math.log(scale)


@pytest.mark.parametrize("n, m", [(6000, 6000), (9000, 1500), (1500, 9000)])
def test_two_sided_difference_is_right_whatever_the_sizes_of_the_samples(n: int, m: int) -> None:
    forward, reverse, exact = wells(n, m)
    made = two_sided(forward, reverse)
    assert abs(made.value - exact) < 4 * made.error and made.error < 0.05
    turned = two_sided(reverse, forward)
    assert turned.value == pytest.approx(-float(made.value), abs=1e-9)


def test_one_sided_difference_is_right_where_the_laws_overlap() -> None:
    forward, _, exact = wells(200_000, 10)
    made = one_sided(forward)
    assert abs(made.value - exact) < 4 * made.error and made.error < 0.02
    values = torch.stack([torch.stack(one_sided(0.5 * normal(4000, seed))) for seed in range(40)])  # exactly -1/8
    assert values[:, 0].std() == pytest.approx(float(values[:, 1].mean()), rel=0.3)
    assert abs(values[:, 0].mean() + 0.125) < 4 * values[:, 0].std() / 40**0.5


def test_the_error_of_the_two_sided_difference_is_its_spread() -> None:
    made = [
        two_sided(4.5 + 3 * normal(4000, k), 4.5 + 3 * normal(100, 99 + k)) for k in range(60)
    ]  # difference 0, by symmetry
    values = torch.stack([m.value for m in made])
    assert values.std() == pytest.approx(float(torch.stack([m.error for m in made]).mean()), rel=0.3)
    assert abs(values.mean()) < 4 * values.std() / 60**0.5


def test_many_states_of_harmonic_wells_and_two_of_them_agree_with_the_two_sided_difference() -> None:
    stiffness = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    counts = torch.tensor([4000, 2000, 3000, 1000])
    x = torch.cat([normal(int(c), k) / s.sqrt() for k, (c, s) in enumerate(zip(counts, stiffness, strict=True))])
    f = many_states(0.5 * stiffness[:, None] * x**2, counts)
    assert (f - 0.5 * stiffness.log()).abs().max() < 0.04

    forward, reverse, _ = wells(3000, 1000)
    u = torch.stack([torch.zeros(4000, dtype=torch.float64), torch.cat([forward, -reverse])])
    both = many_states(u, torch.tensor([3000, 1000]))
    assert float(both[1]) == pytest.approx(float(two_sided(forward, reverse).value), abs=1e-6)
