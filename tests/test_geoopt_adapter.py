"""geoopt's manifolds under our checks, and ours under geoopt's optimisers."""

import geoopt
import pytest
import torch

from manifoldflow.manifolds import SO3, FromGeoopt, Simplex, Sphere, ToGeoopt, Torus, UnitQuaternion
from manifoldflow.testing import check_manifold, check_path

THEIRS = [
    FromGeoopt(geoopt.PoincareBall(), (3,)),
    FromGeoopt(geoopt.Lorentz(), (4,)),
    FromGeoopt(geoopt.SymmetricPositiveDefinite(), (3, 3)),
]
OURS = [Sphere(3), Torus(3), SO3(), UnitQuaternion(), Simplex(5), Simplex(5, "flat")]


@pytest.mark.parametrize("manifold", THEIRS, ids=lambda m: m.manifold.name)
def test_geoopt_manifold_conforms(manifold):
    check_manifold(manifold, lengths=(0.0, 1e-8, 1e-4, 1e-2, 0.3, 1.0), tolerance=1e-11)


def test_a_manifold_without_closed_form_runs_on_geoopts_own_formulas():
    # A curvature above 0 through the general stereographic model, which is not one of ours.
    manifold = FromGeoopt(geoopt.Stereographic(0.5).double(), (3,))
    assert manifold.closed_form is None
    check_manifold(manifold, lengths=(1e-2, 0.3, 1.0), tolerance=1e-7, step=1e-2, transforms=False)


@pytest.mark.parametrize("manifold", THEIRS, ids=lambda m: m.manifold.name)
def test_geoopt_manifold_runs_through_our_path(manifold):
    from manifoldflow.paths import Geodesic

    check_path(Geodesic(), manifold)


@pytest.mark.parametrize(
    "manifold, dim",
    [(THEIRS[0], 3), (THEIRS[1], 3), (THEIRS[2], 6), (FromGeoopt(geoopt.EuclideanStiefel(), (4, 2)), 5)],
)
def test_dimension_is_that_of_the_tangent_space(manifold, dim):
    assert manifold.dim == dim


def test_stiefel_exp_stays_on_the_manifold():
    stiefel = FromGeoopt(geoopt.EuclideanStiefel(), (4, 2))
    x = stiefel.origin((3,), dtype=torch.float64)
    y = stiefel.exp(x, stiefel.to_tangent(x, torch.randn(3, 4, 2, dtype=torch.float64)))
    stiefel.check(y, 1e-10)


def test_wrong_number_of_axes_is_refused():
    with pytest.raises(ValueError, match="2 axes"):
        FromGeoopt(geoopt.SymmetricPositiveDefinite(), (3,))


@pytest.mark.parametrize("manifold", OURS, ids=str)
@pytest.mark.parametrize("optimiser", [geoopt.optim.RiemannianAdam, geoopt.optim.RiemannianSGD], ids=["adam", "sgd"])
def test_riemannian_optimiser_reaches_the_target(manifold, optimiser):
    target = manifold.sample_uniform((8,), dtype=torch.float64)
    target = 0.8 * target + 0.2 * manifold.origin(dtype=torch.float64) if isinstance(manifold, Simplex) else target
    start = (
        manifold.origin((8,), dtype=torch.float64).clone()
        if isinstance(manifold, Simplex)
        else manifold.sample_uniform((8,), dtype=torch.float64)
    )
    x = geoopt.ManifoldParameter(start, manifold=ToGeoopt(manifold))
    optim = optimiser([x], lr=0.1)
    for _ in range(250 if optimiser is geoopt.optim.RiemannianAdam else 120):
        optim.zero_grad()
        loss = manifold.dist(x, target).square().sum()
        loss.backward()
        optim.step()
    assert loss < 1e-4
    manifold.check(x.detach(), 1e-6)


@pytest.mark.parametrize("manifold", OURS, ids=str)
def test_riemannian_gradient_of_half_squared_distance_is_minus_log(manifold):
    adapted = ToGeoopt(manifold)
    x, y = (
        0.5 * (manifold.sample_uniform((6,), dtype=torch.float64) + manifold.origin(dtype=torch.float64))
        for _ in range(2)
    )
    x, y = manifold.project(x), manifold.project(y)
    x.requires_grad_()
    (g,) = torch.autograd.grad(0.5 * manifold.dist(x, y).square().sum(), x)
    assert (adapted.egrad2rgrad(x, g) + adapted.logmap(x, y)).abs().max() < 1e-9
    v = adapted.logmap(x, y)
    assert (adapted.inner(x, v) - manifold.dist(x, y) ** 2).abs().max() < 1e-9
    assert (adapted.inner(y, adapted.transp(x, y, v)) - adapted.inner(x, v)).abs().max() < 1e-9
    assert adapted.check_vector_on_tangent(x, v)
