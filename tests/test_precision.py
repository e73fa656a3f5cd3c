"""Where float32 and round-off used to end: far out on the hyperboloid, at sides of the simplex, at equal eigenvalues.

Truth: mpmath with 40 digits, scipy, finite differences.
"""

import math

import mpmath
import pytest
import torch
from scipy import stats

import manifoldflow as mf
from manifoldflow.manifolds.spd import matrix_exp, matrix_log, matrix_log_rate

DOUBLE = torch.float64


def hyperbolic_distance(x, y):
    with mpmath.workdps(40):
        x, y = ([mpmath.mpf(float(v)) for v in p[1:]] for p in (x, y))
        time = mpmath.sqrt(1 + sum(v * v for v in x)) * mpmath.sqrt(1 + sum(v * v for v in y))
        return float(mpmath.re(mpmath.acosh(time - sum(a * b for a, b in zip(x, y, strict=True)))))


@pytest.mark.parametrize("radii", [(8, 10), (9, 13), (10, 14), (12, 12), (0, 12), (3, 12), (11.5, 12)], ids=str)
@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-4, 1e-2, 1.0, math.pi])
def test_hyperbolic_distances_in_float32_are_right_far_out(radii, angle):
    space = mf.Lorentz(2)
    ways = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=DOUBLE)
    radius = torch.tensor(radii, dtype=DOUBLE).unsqueeze(-1)
    x, y = space.project(torch.cat([radius.cosh(), radius.sinh() * ways], -1).float())
    want = hyperbolic_distance(x, y)
    assert abs(float(space.dist(x, y)) - want) < 1e-5
    u = space.log(x, y)
    if max(radii) <= 12:  # beyond, float32 cannot hold the tangent
        assert abs(float(space.inner(x, u, u).sqrt()) - want) < 1e-4 * max(want, 1)
        again = space.to_tangent(x, u)  # what is tangent stays: the projection enlarged round-off by e^24
        assert abs(float(space.inner(x, again, again).sqrt()) - want) < 1e-4 * max(want, 1)


def test_geodesics_of_wide_wrapped_normals_in_many_dimensions_hit_their_middle():
    space, g = mf.Lorentz(128), torch.Generator().manual_seed(0)
    x, y = (mf.WrappedNormal(space, 1.0).sample((64,), generator=g) for _ in range(2))
    middle, velocity = space.geodesic(x, y, torch.full((64,), 0.5))
    half = 0.5 * space.dist(x, y)
    assert (space.dist(x, middle) - half).abs().max() < 1e-3
    assert (space.dist(middle, y) - half).abs().max() < 1e-3
    assert (space.inner(middle, velocity, velocity).sqrt() / (2 * half) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("d", [2, 5])
def test_untrained_networks_on_hyperbolic_space_do_not_run_away(d):
    torch.manual_seed(0)
    space = mf.Lorentz(d)
    net = mf.nn.TangentMLP(space, 64, 3)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2.0)
    flow = mf.Flow(space, model=net, source=mf.WrappedNormal(scale=1.0))
    x = flow.sample(2000, steps=50, generator=torch.Generator().manual_seed(1))
    assert x.isfinite().all() and space.residual(x).max() < 1e-4


@pytest.mark.parametrize("alpha", [1e-3, 1e-2, 0.1, 0.5, 0.7])
@pytest.mark.parametrize("metric", ["fisher_rao", "flat"])
def test_dirichlet_scores_its_own_draws(alpha, metric):
    law = mf.Dirichlet(alpha, mf.Simplex(4, metric))
    x = law.sample((20_000,), generator=torch.Generator().manual_seed(0))
    assert law.log_prob(x).isfinite().all()


def test_dirichlet_of_one_half_is_uniform_at_the_sides_too():
    space = mf.Simplex(3)
    x = torch.tensor([[0.0, 0.4, 0.6], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5]], dtype=DOUBLE)
    assert (mf.Dirichlet(0.5, space).log_prob(x) - mf.Uniform(space).log_prob(x)).abs().max() < 1e-12
    assert mf.Dirichlet(0.4, space).log_prob(x[0]) > mf.Dirichlet(0.4, space).log_prob(x[2])
    assert mf.Dirichlet(2.0, space).log_prob(x[0]) == -math.inf


def test_dirichlet_is_scipys_inside():
    for space in (mf.Simplex(3, "flat"), mf.manifolds.ReflectedSimplex(3)):
        x = space.sample_uniform((5,), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
        got = mf.Dirichlet((0.3, 1.0, 2.5), space).log_prob(x) + 0.5 * math.log(3)
        want = [stats.dirichlet([0.3, 1.0, 2.5]).logpdf(p / p.sum()) for p in x.numpy()]
        assert (got - torch.tensor(want)).abs().max() < 1e-9


SPECTRA = [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (1.0, 1.00001, 1.0002), (0.5, 1.0, 4.0)]


@pytest.mark.parametrize("spectrum", SPECTRA, ids=str)
@pytest.mark.parametrize("function", [matrix_exp, matrix_log])
def test_functions_of_matrices_have_two_derivatives_in_both_modes(function, spectrum):
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE))[0]
    a = ((q * torch.tensor(spectrum, dtype=DOUBLE)) @ q.mT).requires_grad_()

    def of_symmetric(b):
        return function(0.5 * (b + b.mT))

    assert torch.autograd.gradcheck(of_symmetric, (a,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(of_symmetric, (a,))


@pytest.mark.parametrize("spectrum", SPECTRA, ids=str)
def test_the_rate_of_a_logarithm_is_its_derivative_and_has_one(spectrum):
    g = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=DOUBLE))[0]
    a = ((q * torch.tensor(spectrum, dtype=DOUBLE)) @ q.mT).requires_grad_()
    v = torch.randn(3, 3, generator=g, dtype=DOUBLE)
    v = (v + v.mT).requires_grad_()
    want = torch.func.jvp(matrix_log, (a.detach(),), (v.detach(),))[1]
    assert (matrix_log_rate(a, v) - want).abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda b, u: matrix_log_rate(0.5 * (b + b.mT), 0.5 * (u + u.mT)), (a, v))


def test_the_derivative_of_a_derivative_in_forward_mode_is_not_lost():
    swap, one = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=DOUBLE), torch.ones((), dtype=DOUBLE)

    def slope(t):
        return torch.func.jvp(lambda s: matrix_exp(s * swap)[0, 0], (t,), (one,))[1]

    assert abs(float(torch.func.jvp(slope, (0 * one,), (one,))[1]) - 1) < 1e-12  # cosh'' at 0


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_affine_invariant_distances_in_float32_are_right_at_any_condition(condition):
    g = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(2, 3, 3, generator=g, dtype=DOUBLE))[0]
    spectrum = torch.tensor([condition**-0.5, 1.0, condition**0.5], dtype=DOUBLE)
    x, y = mf.SPD(3).project(((q * spectrum) @ q.mT).float())
    with mpmath.workdps(40):
        inverse = mpmath.inverse(mpmath.cholesky(mpmath.matrix(x.double().tolist())))
        values = mpmath.eigsy(inverse * mpmath.matrix(y.double().tolist()) * inverse.T, eigvals_only=True)
        want = float(mpmath.sqrt(sum(mpmath.log(v) ** 2 for v in values)))
    assert abs(float(mf.SPD(3).dist(x, y)) - want) < 1e-5 * want
