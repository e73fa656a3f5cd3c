"""Densities against quadrature, 50-digit sums and Kolmogorov-Smirnov tests; samples against their densities."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from manifoldflow.distributions import IGSO3, Normal, Uniform, WrappedNormal
from manifoldflow.distributions.igso3 import _series_coefficients, _turns, heat_kernel_slope, log_heat_kernel
from manifoldflow.manifolds import SO3, Centered, Euclidean, Simplex, Sphere, Torus, UnitQuaternion
from manifoldflow.manifolds.rotation import rotvec_to_matrix

COMPACT = [
    Sphere(2),
    Sphere(5),
    Torus(2),
    Torus(2, 2 * math.pi),
    SO3(),
    UnitQuaternion(),
    Simplex(4),
    Simplex(4, "flat"),
]
SCALES = [0.01, 0.1, 0.5, 1.0, 1.49, 1.51, 2.0, 5.0]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def integrate(density, high, count=200_001):
    grid = torch.linspace(0, high, count, dtype=torch.float64)
    return float(torch.trapezoid(density(grid), grid))


def heat_kernel_50_digits(angle, scale):
    with mpmath.workdps(50):
        w, s, total = mpmath.mpf(angle), mpmath.mpf(scale), mpmath.mpf(0)
        for degree in range(int(16 / scale) + 5):
            total += (
                (2 * degree + 1)
                * mpmath.exp(-degree * (degree + 1) * s**2 / 2)
                * mpmath.sin((degree + mpmath.mpf(1) / 2) * w)
            )
        return total / mpmath.sin(w / 2)


@pytest.mark.parametrize("manifold", COMPACT, ids=str)
def test_uniform_density_is_one_over_the_volume_of_nearby_balls(manifold):
    # The share of samples in a small geodesic ball, over its volume, is the density.
    x = Uniform(manifold).sample((400_000,), generator=generator())
    centre = manifold.origin()
    radius = 0.25 * (manifold.period if isinstance(manifold, Torus) else 1.0)
    share = float((manifold.dist(centre, x) < radius).double().mean())
    d = manifold.dim
    curved = {
        "Sphere": lambda r: torch.sin(r) ** (d - 1),
        "SO3": lambda r: 4 * torch.sin(r / 2) ** 2,
        "Simplex": lambda r: (2 * torch.sin(r / 2)) ** (d - 1),
    }
    name = "SO3" if isinstance(manifold, SO3 | UnitQuaternion) else type(manifold).__name__
    shell = (
        curved.get(name, lambda r: r ** (d - 1))
        if getattr(manifold, "metric", "") != "flat"
        else (lambda r: r ** (d - 1))
    )
    area = 2 * math.pi ** (d / 2) / math.gamma(d / 2)
    volume = area * integrate(shell, radius)
    density = float(Uniform(manifold).log_prob(x[:1]).exp())
    error = math.sqrt(density * volume / 400_000)
    assert abs(share - density * volume) < 4 * error


def test_uniform_has_no_meaning_on_flat_space():
    with pytest.raises(ValueError, match="infinite volume"):
        Uniform(Euclidean(3)).sample((2,))


def test_unbound_distributions_say_what_to_do():
    with pytest.raises(ValueError, match="bind"):
        Uniform().sample((2,))
    with pytest.raises(ValueError, match="scale must be positive"):
        Normal(0.0)
    with pytest.raises(ValueError, match="WrappedNormal"):
        Normal(1.0).bind(SO3())


@pytest.mark.parametrize(
    "distribution",
    [Uniform(SO3()), Uniform(Torus(3)), IGSO3(0.3), WrappedNormal(Sphere(2), 0.3), Normal(2.0, Centered(Euclidean(3)))],
)
def test_padding_holds_the_origin_and_generators_repeat(distribution):
    mask = torch.arange(6) < torch.tensor([[6], [3]])
    x = distribution.sample((2, 6), mask=mask, generator=generator(1))
    assert torch.equal(x, distribution.sample((2, 6), mask=mask, generator=generator(1)))
    assert torch.equal(x[1, 3:], distribution.space.origin((3,)))
    assert distribution.sample((2, 6), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_normal_matches_scipy_and_its_samples():
    normal = Normal(2.0, Euclidean(3))
    x = normal.sample((20_000,), generator=generator(), dtype=torch.float64)
    assert (
        np.abs(
            normal.log_prob(x).numpy() - stats.multivariate_normal(np.zeros(3), 4 * np.eye(3)).logpdf(x.numpy())
        ).max()
        < 1e-12
    )
    assert stats.kstest(x[:, 0].numpy(), stats.norm(scale=2).cdf).pvalue > 1e-3


def test_centered_normal_is_the_density_on_the_mean_free_subspace():
    space = Centered(Euclidean(2))
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    x = Normal(3.0, space).sample((2, 5), mask=mask, generator=generator(), dtype=torch.float64)
    assert x.sum(1).abs().max() < 1e-13
    got = Normal(3.0, space).log_prob(x, mask=mask)
    for b, n in enumerate((5, 3)):
        helmert = torch.from_numpy(np.linalg.qr(np.concatenate([np.ones((n, 1)), np.eye(n)[:, 1:]], 1))[0][:, 1:])
        free = (helmert.T @ x[b, :n]).flatten().numpy()
        assert abs(float(got[b]) - stats.norm(scale=3).logpdf(free).sum()) < 1e-12


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.5, 1.0, 1.49, 1.5, 2.0, 5.0])
def test_igso3_density_matches_50_digits(scale):
    angles = [a for a in (1e-3, 0.01, 0.1, 1.0, 2.0, 3.0, math.pi) if a < 30 * scale]
    got = log_heat_kernel(torch.tensor(angles, dtype=torch.float64), scale)
    for angle, value in zip(angles, got.tolist(), strict=True):
        # The series cancels down to exp(-angle^2 / 2 scale^2): 50 digits resolve it up to 15 standard deviations.
        if angle < 12 * scale:
            truth = float(mpmath.log(heat_kernel_50_digits(angle, scale)))
            assert abs(value - truth) < 1e-8 * max(1.0, abs(truth))


def test_igso3_forms_agree_at_the_switch():
    w = torch.linspace(1e-3, math.pi, 500, dtype=torch.float64)
    below, above = log_heat_kernel(w, math.nextafter(1.5, 0)), log_heat_kernel(w, 1.5)
    assert (below - above).abs().max() < 1e-10
    assert (heat_kernel_slope(w, math.nextafter(1.5, 0)) - heat_kernel_slope(w, 1.5)).abs().max() < 1e-7


@pytest.mark.parametrize("scale", SCALES)
def test_igso3_is_normalised(scale):
    total = integrate(lambda w: (log_heat_kernel(w, scale)).exp() * (1 - w.cos()) / math.pi, math.pi)
    assert abs(total - 1) < 1e-6


@pytest.mark.parametrize("scale", SCALES)
def test_igso3_angles_pass_a_kolmogorov_smirnov_test(scale):
    angle = SO3().dist(torch.eye(3), IGSO3(scale).sample((20_000,), generator=generator()))
    grid = torch.linspace(0, min(math.pi, 12 * scale), 20_001, dtype=torch.float64)
    cdf = torch.cumulative_trapezoid((log_heat_kernel(grid, scale)).exp() * (1 - grid.cos()) / math.pi, grid)
    assert stats.kstest(angle.double().numpy(), lambda a: np.interp(a, grid[1:].numpy(), cdf.numpy())).pvalue > 1e-3


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("manifold", [SO3(), UnitQuaternion()], ids=["matrices", "quaternions"])
def test_igso3_score_is_the_gradient_of_the_log_density(scale, manifold):
    mean = manifold.sample_uniform((), generator=generator(3), dtype=torch.float64)
    law = IGSO3(scale, mean, manifold)
    x = law.sample((50,), generator=generator(), dtype=torch.float64)
    step = 1e-5 * min(1.0, scale)
    axes = step * torch.eye(3, dtype=torch.float64)
    slope = torch.stack(
        [(law.log_prob(manifold.exp(x, e)) - law.log_prob(manifold.exp(x, -e))) / (2 * step) for e in axes], -1
    )
    assert (slope - law.score(x)).abs().max() < 1e-5 / min(1.0, scale)
    assert law.score(mean).abs().max() < 1e-6


def test_igso3_agrees_on_matrices_and_quaternions_and_has_finite_gradients():
    w = torch.tensor([[0.0, 0, 0], [1e-4, 0, 0], [1.0, 0.5, 0], [math.pi, 0, 0]])
    x = rotvec_to_matrix(w).requires_grad_()
    IGSO3(0.7).log_prob(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("scale", [0.2, 1.0, 2.5])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_wrapped_normal_on_the_sphere_is_normalised(scale, dim):
    sphere = Sphere(dim)
    area = math.exp(Sphere(dim - 1).log_volume) if dim > 1 else 2.0

    def density(r):
        x = torch.stack([r.cos(), r.sin(), *[torch.zeros_like(r)] * (dim - 1)], -1)
        value = WrappedNormal(sphere, scale).log_prob(x).exp() * r.sin() ** (dim - 1)
        return torch.nan_to_num(value, nan=0.0, posinf=0.0)

    assert abs(area * integrate(density, math.pi) - 1) < 1e-3


@pytest.mark.parametrize("scale", [0.2, 1.0, 2.5])
def test_wrapped_normal_on_rotations_is_normalised(scale):
    def density(r):
        x = rotvec_to_matrix(torch.stack([r, torch.zeros_like(r), torch.zeros_like(r)], -1))
        return WrappedNormal(SO3(), scale).log_prob(x).exp() * 4 * math.pi * (2 - 2 * r.cos())

    assert abs(integrate(density, math.pi) - 1) < 1e-3


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0])
def test_wrapped_normal_on_the_torus_is_the_sum_over_images(scale):
    torus, mean = Torus(1), torch.tensor([0.9], dtype=torch.float64)
    x = torch.linspace(0, 1, 101, dtype=torch.float64)[:-1].unsqueeze(-1)
    truth = sum(stats.norm(0.9 + k, scale).pdf(x.squeeze(-1).numpy()) for k in range(-20, 21))
    got = WrappedNormal(torus, scale, mean).log_prob(x).exp().numpy()
    assert np.abs(got - truth).max() < 1e-12 * truth.max() + 1e-13


@pytest.mark.parametrize("manifold", [Sphere(2), Torus(2, 2 * math.pi), SO3(), UnitQuaternion(), Euclidean(2)], ids=str)
def test_wrapped_normal_samples_have_the_stated_entropy(manifold):
    # The mean log-density of samples equals minus the entropy of the tangent Gaussian plus the mean log volume factor.
    mean = manifold.origin(dtype=torch.float64)
    law = WrappedNormal(manifold, 0.2, mean)
    x = law.sample((40_000,), generator=generator(), dtype=torch.float64)
    r = manifold.dist(mean, x)
    d = manifold.dim
    assert abs(float((r**2).mean()) / (d * 0.2**2) - 1) < 0.03
    factor = {"Sphere": (d - 1) * torch.sinc(r / math.pi).log(), "SO3": 2 * torch.sinc(r / (2 * math.pi)).log()}
    factor["UnitQuaternion"] = factor["SO3"]
    expected = (
        -0.5 * (r / 0.2) ** 2
        - d * math.log(0.2 * math.sqrt(2 * math.pi))
        - factor.get(type(manifold).__name__, torch.zeros_like(r))
    )
    assert (law.log_prob(x) - expected).abs().max() < 1e-6


def test_wrapped_normal_log_density_is_finite_everywhere_with_finite_gradient():
    x = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [1.0, 1e-6, 0]], requires_grad=True)
    value = WrappedNormal(Sphere(2), 1.5).log_prob(x)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(x.grad).all()


def test_helpers_of_both_forms_are_finite_at_the_ends():
    w = torch.tensor([1e-4, math.pi], dtype=torch.float64)
    assert all(torch.isfinite(v).all() for v in (*_turns(w, 0.01), *_series_coefficients(5.0, w)))
