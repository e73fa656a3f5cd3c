"""Wasserstein distance and MMD against closed forms and other solvers."""

import builtins
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.rotation import matrix_to_quaternion
from manifoldflow.metrics import mmd, pairwise_distance, wasserstein

MANIFOLDS: list[Any] = [mf.Sphere(2), mf.Torus(2), mf.SO3(), mf.UnitQuaternion(), mf.Simplex(3)]


def points(manifold: Any, n: int, seed: int) -> Tensor:
    return manifold.sample_uniform((n,), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_wasserstein_of_equal_numbers_is_the_best_assignment(manifold: Any, power: float) -> None:
    x, y = points(manifold, 60, 0), points(manifold, 60, 1)
    cost = np.array([[float(manifold.dist(a, b)) ** power for b in y] for a in x])
    best = cost[linear_sum_assignment(cost)].mean() ** (1 / power)
    assert wasserstein(x, y, manifold, power) == pytest.approx(best, rel=1e-9)


def test_wasserstein_on_the_line_is_the_distance_of_quantiles_with_unequal_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 1, generator=generator, dtype=torch.float64) for n in (70, 45))
    expected = wasserstein_distance(x[:, 0].numpy(), (y[:, 0] + 0.5).numpy())
    assert wasserstein(x, y + 0.5, mf.Euclidean(1), 1.0) == pytest.approx(expected, rel=1e-9)


def test_wasserstein_of_a_rotated_cluster_is_the_angle() -> None:
    manifold = mf.SO3()
    x = mf.IGSO3(0.05).sample((50,), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = manifold.exp(manifold.origin(dtype=torch.float64), torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64))
    # A left translation moves x by conjugate rotations of the same angle; W is at most the angle, at least it minus spread.
    value = wasserstein(x, turn @ x, manifold, 2.0)
    assert isinstance(value, float) and 2.0 - 0.2 < value <= 2.0 + 1e-9


def test_several_powers_equal_one_by_one_and_grow_with_the_power() -> None:
    x, y = points(mf.Sphere(2), 50, 0), points(mf.Sphere(2), 40, 1)
    together = wasserstein(x, y, mf.Sphere(2), [1, 2, 4])
    assert isinstance(together, tuple)
    assert together == pytest.approx([wasserstein(x, y, mf.Sphere(2), p) for p in (1, 2, 4)])
    assert together[0] < together[1] < together[2]


def test_matrices_and_quaternions_of_either_sign_are_equally_far() -> None:
    x, y = points(mf.SO3(), 40, 0), points(mf.SO3(), 40, 1)
    q, r = matrix_to_quaternion(x), -matrix_to_quaternion(y)
    expected = wasserstein(x, y, mf.SO3())
    assert wasserstein(q, r, mf.UnitQuaternion()) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("rows", [1, 37, 10**6])
def test_distances_do_not_depend_on_the_block(rows: int) -> None:
    x, y = points(mf.SO3(), 11, 0), points(mf.SO3(), 7, 1)
    whole = torch.stack([mf.SO3().dist(a, y) for a in x])
    assert torch.allclose(pairwise_distance(x, y, mf.SO3(), rows=rows), whole, atol=1e-12)


def test_mmd_of_two_points_each_is_the_formula_by_hand() -> None:
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
    k = lambda d: math.exp(-d / 2)  # noqa: E731
    expected = k(1) + k(3) - 2 * (k(0) + k(3) + k(1) + k(2)) / 4
    assert float(mmd(x, y, mf.Euclidean(1), scale=2.0)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_mmd_is_zero_in_the_mean_for_one_law_and_finds_another(manifold: Any) -> None:
    same = [float(mmd(points(manifold, 60, 2 * i), points(manifold, 60, 2 * i + 1), manifold)) for i in range(40)]
    error = np.std(same) / math.sqrt(len(same))
    assert abs(np.mean(same)) < 4 * error
    x = points(manifold, 60, 0)
    near = manifold.geodesic(manifold.origin(dtype=torch.float64).expand_as(x), x, 0.5)[0]
    assert float(mmd(x, near, manifold)) > np.mean(same) + 6 * np.std(same)


def test_bad_input_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(mf.Sphere(2), 5, 0)
    with pytest.raises(ValueError, match=r"power must be at least 1, got 0\.5"):
        wasserstein(x, x, mf.Sphere(2), 0.5)
    with pytest.raises(ValueError, match=r"x must be a list of points of SO3\(\), shape \(N, 3, 3\), got \(5, 3\)"):
        wasserstein(x, x, mf.SO3())
    with pytest.raises(ValueError, match="y holds no points"):
        wasserstein(x, x[:0], mf.Sphere(2))
    with pytest.raises(ValueError, match="NaN"):
        wasserstein(x, x * math.nan, mf.Sphere(2))
    with pytest.raises(ValueError, match="at least two points"):
        mmd(x[:1], x, mf.Sphere(2))
    with pytest.raises(ValueError, match="scale must be positive"):
        mmd(x, x, mf.Sphere(2), scale=0.0)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "ot":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install POT"):
        wasserstein(x, x, mf.Sphere(2))
