"""The numerics helpers against 50-digit arithmetic, near the places where the textbook formula breaks."""

import mpmath
import pytest
import torch

from manifoldflow import numerics

R = [0.0, 1e-12, 1e-6, 1e-3, 9.9e-3, 1.01e-2, 0.1, 1.0, 3.0]
EXACT = {
    "sinc_of_square": lambda r: mpmath.sin(r) / r if r else mpmath.mpf(1),
    "cosc_of_square": lambda r: (1 - mpmath.cos(r)) / r**2 if r else mpmath.mpf(1) / 2,
    "cos_of_square": mpmath.cos,
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_function_of_square_matches_50_digits(name, dtype, tolerance):
    with mpmath.workdps(50):
        square = (torch.tensor(R, dtype=torch.float64) ** 2).to(dtype)
        truth = [float(EXACT[name](mpmath.sqrt(mpmath.mpf(float(q))))) for q in square]
    got = getattr(numerics, name)(square).double()
    assert (got - torch.tensor(truth, dtype=torch.float64)).abs().max() < tolerance


@pytest.mark.parametrize("name", EXACT)
def test_function_of_square_has_finite_first_and_second_derivatives(name):
    x = torch.tensor([[0.0, 0.0], [1e-20, 0.0], [1e-3, 0.0], [2.0, 1.0]], requires_grad=True)
    y = getattr(numerics, name)((x * x).sum(-1))
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x)
    assert torch.isfinite(g).all() and torch.isfinite(h).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smooth_norm_makes_quotients_exact_and_twice_differentiable_at_zero(dtype):
    u = torch.tensor(
        [[0.0, 0.0, 0.0], [1e-30, 0, 0], [1e-12, 0, 0], [1e-4, 0, 0], [1.0, 2.0, 2.0]], dtype=dtype, requires_grad=True
    )
    r = numerics.smooth_norm(u)
    v = r.sin() / r * u
    expected = torch.sinc(u.detach().double().norm(dim=-1, keepdim=True) / torch.pi) * u.detach().double()
    assert (v.double() - expected).abs().max() < 4 * torch.finfo(dtype).eps
    (g,) = torch.autograd.grad(v.sum(), u, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), u)
    assert torch.isfinite(h).all()
    assert (g[0] - 1).abs().max() == 0  # d (sinc(|u|) u) / du is the identity at 0


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 128])
def test_dot_is_the_inner_product_of_any_size(size):
    x, y = torch.randn(7, size, dtype=torch.float64), torch.randn(7, size, dtype=torch.float64)
    assert (numerics.dot(x, y).squeeze(-1) - torch.einsum("bi,bi->b", x, y)).abs().max() < 1e-13
    assert numerics.dot(x, y[:1]).shape == (7, 1)


def test_safe_norm_is_zero_with_zero_gradient_at_zero():
    x = torch.zeros(2, 3, requires_grad=True)
    numerics.safe_norm(x).sum().backward()
    assert x.grad is not None and x.grad.abs().max() == 0


def test_atan2_over_sine_matches_50_digits():
    angle = [1e-9, 1e-3, 9e-3, 1.1e-2, 1.0, 3.0]
    with mpmath.workdps(50):
        truth = torch.tensor([float(mpmath.mpf(a) / mpmath.sin(a)) for a in angle], dtype=torch.float64)
    a = torch.tensor(angle, dtype=torch.float64)
    assert (numerics.atan2_over_sine(a.sin(), a.cos()) / truth - 1).abs().max() < 1e-14


def test_log1mexp_matches_50_digits_at_both_ends():
    points = [1e-10, 0.1, 0.6931, 0.6932, 5.0, 40.0]
    with mpmath.workdps(50):
        truth = torch.tensor([float(mpmath.log1p(-mpmath.exp(-mpmath.mpf(p)))) for p in points], dtype=torch.float64)
    assert (numerics.log1mexp(torch.tensor(points, dtype=torch.float64)) / truth - 1).abs().max() < 1e-14
