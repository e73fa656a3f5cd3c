"""The speed of the Dirichlet path: against mpmath, the quantiles of its law, and itself in other forms."""

import functools
import math

import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from manifoldflow.paths.dirichlet_field import dirichlet_speed, dirichlet_speed_table, marginal_velocity

CATEGORIES = [2, 4, 20, 100, 512]
ALPHAS = [1.0, 1.001, 1.1, 1.5, 2.0, 5.0, 8.0, 20.0, 50.0, 100.0, 1000.0]
POINTS = [1e-6, 1e-4, 1e-2, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1 - 1e-4, 1 - 1e-6]
FORMS = {
    "exact": dirichlet_speed,
    "table": lambda x, alpha, categories: dirichlet_speed_table(alpha, categories, x.dtype, x.device)(x),
}


@functools.cache
def true_speed(x: float, alpha: float, categories: int) -> float:
    """The finite sum of I_x for a whole b, differentiated term by term; enough digits for what cancels in it."""
    b = categories - 1
    with mpmath.workdps(int(60 + 0.5 * b - b * math.log10(1 - x))):
        x, a, term, harmonic, total = mpmath.mpf(x), mpmath.mpf(alpha), mpmath.mpf(1), mpmath.mpf(0), mpmath.mpf(0)
        log_x, beta = mpmath.log(x), 1 / mpmath.mpf(alpha)
        for j in range(b):
            total += term * (log_x + harmonic)  # d/da of x^a (a)_j (1 - x)^j / j!, over x^a
            harmonic += 1 / (a + j)
            term *= (a + j) * (1 - x) / (j + 1)
            beta *= j / (a + j) if j else 1  # B(a, b) = (b - 1)! / (a)_b
        return float(-x * total * beta / (1 - x) ** b)


def logit_grid(count, dtype=torch.float64):
    return torch.sigmoid(torch.linspace(-30, 30, count, dtype=torch.float64)).to(dtype)


def largest_relative(found, expected):
    return float((found.double() / expected - 1).abs().max())


@pytest.mark.parametrize("x, alpha, categories", [(0.3, 1.5, 4), (1e-4, 2.0, 20), (0.9, 8.0, 20), (0.5, 50.0, 100)])
def test_the_truth_of_these_tests_is_the_derivative_of_the_incomplete_beta_function(x, alpha, categories):
    b = categories - 1
    with mpmath.workdps(50):
        point = mpmath.mpf(x)
        slope = mpmath.diff(lambda a: mpmath.betainc(a, b, 0, point, regularized=True), alpha)
        expected = -slope * mpmath.beta(alpha, b) / ((1 - point) ** b * point ** (mpmath.mpf(alpha) - 1))
        assert abs(true_speed(x, alpha, categories) / expected - 1) < 1e-15


@pytest.mark.parametrize("categories", CATEGORIES)
@pytest.mark.parametrize(
    "form, dtype, tolerance",
    [
        ("exact", torch.float64, 1e-12),
        ("exact", torch.float32, 1e-7),
        ("table", torch.float64, 1e-7),
        ("table", torch.float32, 2e-6),
    ],
)
def test_the_speed_is_that_of_mpmath(form, dtype, tolerance, categories):
    x = torch.tensor(POINTS, dtype=dtype)
    for number in ALPHAS if categories < 512 else ALPHAS[1::3]:  # the truth has 3,000 digits there
        alpha = torch.tensor(number, dtype=dtype)
        true = [true_speed(float(v), float(alpha), categories) for v in x]
        assert largest_relative(FORMS[form](x, alpha, categories), torch.tensor(true, dtype=torch.float64)) < tolerance


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-7), (torch.float32, 2e-6)])
@pytest.mark.parametrize("categories", CATEGORIES)
def test_the_table_is_the_exact_speed_between_its_nodes_and_beyond(categories, dtype, tolerance):
    inner, tails = logit_grid(2001, dtype), torch.tensor([1e-35, 1e-20, 1e-10], dtype=dtype)
    x = torch.cat([tails, inner, 1 - torch.finfo(dtype).eps * torch.tensor([8.0, 0.5], dtype=dtype)])
    for alpha in [1.0, 1.001, 3.3, 7.9999, 300.0, 1000.0]:
        number = torch.tensor(alpha, dtype=dtype)
        exact = dirichlet_speed(x.double(), number.double(), categories)
        assert largest_relative(dirichlet_speed_table(number, categories, dtype)(x), exact) < tolerance


@pytest.mark.parametrize("categories", [2, 4, 20, 100])
@pytest.mark.parametrize("form", FORMS)
def test_the_flow_carries_every_quantile_of_the_beta_law(form, categories):
    b, steps, last = categories - 1, 100, 8.0
    level = np.array([0.001, 0.05, 0.3, 0.5, 0.8, 0.99])
    x = torch.from_numpy(scipy.special.betaincinv(1.0, b, level))
    h = math.log(last) / steps  # equal steps of log alpha

    def slope(x, log_alpha):
        return math.exp(log_alpha) * FORMS[form](x, math.exp(log_alpha), categories) * (1 - x)

    for i in range(steps):
        k1 = slope(x, i * h)
        k2 = slope(x + h / 2 * k1, (i + 0.5) * h)
        k3 = slope(x + h / 2 * k2, (i + 0.5) * h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, (i + 1) * h))
    assert np.abs(x.numpy() / scipy.special.betaincinv(last, b, level) - 1).max() < 1e-6


@pytest.mark.parametrize("categories, alpha", [(2, 1.0), (4, 3.0), (20, 8.0), (512, 100.0)])
def test_the_mean_moves_as_that_of_the_beta_law(categories, alpha):
    b = categories - 1
    law = scipy.stats.beta(alpha, b)
    found = scipy.integrate.quad(
        lambda x: (
            law.pdf(x) * float(dirichlet_speed(torch.tensor(x, dtype=torch.float64), alpha, categories)) * (1 - x)
        ),
        *law.ppf([1e-14, 1 - 1e-14]),
        limit=200,
    )[0]
    assert found == pytest.approx(b / (alpha + b) ** 2, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_finite_and_positive_on_the_closed_interval(form, dtype):
    limits = torch.finfo(dtype)
    ends = torch.tensor([0.0, 1.0, limits.smallest_normal / 4, limits.tiny, 1e-30, 1 - limits.eps / 2], dtype=dtype)
    for categories in CATEGORIES:
        for alpha in [1.0, 1.001, 8.0, 1000.0]:
            x = torch.cat([ends, logit_grid(301, dtype)]).requires_grad_()
            speed = FORMS[form](x, alpha, categories)
            (gradient,) = torch.autograd.grad(speed.sum(), x)
            assert speed.isfinite().all() and gradient.isfinite().all()
            assert speed[0] == 0 and (speed[1:2] > 0).all() and (speed[6:] > 0).all() and (speed >= 0).all()
            b = categories - 1
            limit = (scipy.special.digamma(alpha + b) - scipy.special.digamma(alpha)) / b
            assert float(speed[1].detach()) == pytest.approx(limit, rel=1e-6)


@pytest.mark.parametrize("form, tolerance", [("exact", 1e-9), ("table", 2e-5)])
def test_the_gradient_in_x_obeys_the_continuity_equation(form, tolerance):
    x = torch.sigmoid(torch.linspace(-9, 9, 400, dtype=torch.float64)).requires_grad_()
    for categories in CATEGORIES:
        for a in [1.001, 3.0, 50.0]:
            b = categories - 1
            speed = FORMS[form](x, a, categories)
            (found,) = torch.autograd.grad(speed.sum(), x)
            level = x.log() - scipy.special.digamma(a) + scipy.special.digamma(a + b)
            expected = -level / (1 - x) - speed * ((a - 1) / x - b / (1 - x))
            size = speed / (x * (1 - x))  # the gradient passes through 0
            assert float(((found - expected) / size).detach().abs().max()) < tolerance


def test_the_exact_speed_is_differentiable_in_x_and_alpha():
    x = torch.tensor([1e-3, 0.2, 0.6, 0.97], dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor([[1.5], [7.0]], dtype=torch.float64, requires_grad=True)
    for categories in (2, 20):
        assert torch.autograd.gradcheck(lambda x, a, k=categories: dirichlet_speed(x, a, k), (x, alpha))


def test_alpha_broadcasts():
    x = torch.rand(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha = torch.tensor([1.0, 2.5, 40.0], dtype=torch.float64)
    found = dirichlet_speed(x, alpha[:, None, None], 4)
    expected = torch.stack([dirichlet_speed(x[i], float(alpha[i]), 4) for i in range(3)])
    assert torch.equal(found, expected)


def test_large_inputs_are_cut_into_parts_that_fit_together():
    x = logit_grid(200_003)
    for form in FORMS.values():
        whole = form(x, 2.0, 4)
        assert torch.allclose(whole[::997], form(x[::997].clone(), 2.0, 4), rtol=1e-13, atol=0)


@pytest.mark.parametrize("categories", [2, 4, 20])
@pytest.mark.parametrize("several", [False, True])
def test_the_marginal_velocity_is_the_mean_of_the_fields_to_the_vertices(categories, several):
    generator = torch.Generator().manual_seed(0)
    x, p = (torch.rand(2, 7, categories, generator=generator, dtype=torch.float64) for _ in range(2))
    x, p = x / x.sum(-1, keepdim=True), p / p.sum(-1, keepdim=True)
    alpha = torch.tensor([1.5, 6.0], dtype=torch.float64)[:, None, None] if several else torch.tensor(3.0).double()
    found = marginal_velocity(x, p, alpha)
    expected = torch.zeros_like(x)
    for i in range(categories):
        speed = torch.stack(
            [dirichlet_speed(x[n, :, i], float(alpha[n, 0, 0] if several else alpha), categories) for n in range(2)]
        )
        expected += (p[..., i] * speed)[..., None] * (torch.eye(categories, dtype=torch.float64)[i] - x)
    assert (found - expected).abs().max() < 1e-7 * expected.abs().max()
    assert found.sum(-1).abs().max() < 1e-15


def test_a_vertex_is_reached_and_kept_without_nan():
    x = torch.eye(4)
    p = torch.full((4, 4), 0.25)
    velocity = marginal_velocity(x, p, 1.0)
    assert velocity.isfinite().all() and torch.equal(velocity, torch.zeros_like(velocity))


def test_nothing_waits_for_the_device():
    with FakeTensorMode():  # a value that is read on the host raises here
        x, p, alpha = torch.rand(2, 9, 4), torch.rand(2, 9, 4), torch.rand(()) + 1
        assert marginal_velocity(x, p, alpha).shape == x.shape
        assert marginal_velocity(x, p, torch.rand(2, 1, 1) + 1).shape == x.shape


def test_it_compiles_into_one_graph():
    x = torch.softmax(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), -1)
    compiled = torch.compile(marginal_velocity, fullgraph=True, backend="eager")
    alpha = torch.tensor(2.0)
    assert torch.allclose(compiled(x, x, alpha), marginal_velocity(x, x, alpha))
    exact = torch.compile(dirichlet_speed, fullgraph=True, backend="eager")
    assert torch.allclose(exact(x, alpha, 4), dirichlet_speed(x, alpha, 4))


def test_half_precision_points_are_worked_in_float32():
    x = logit_grid(101, torch.bfloat16)
    found = dirichlet_speed_table(2.0, 4, torch.bfloat16)(x)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), dirichlet_speed(x.double(), 2.0, 4), rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: dirichlet_speed(x, 2.0, 1), "categories must be at least 2"),
        (lambda x: dirichlet_speed(x, 0.5, 4), "alpha must be a finite number of at least 1, got 0.5"),
        (lambda x: dirichlet_speed_table(math.nan, 4), "alpha must be a finite number"),
        (lambda x: dirichlet_speed_table(torch.ones(2), 4), "alpha must be one number"),
    ],
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.rand(3))
