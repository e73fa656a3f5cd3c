"""geoopt's manifolds under our checks, and ours under geoopt's optimisers."""

import geoopt
import pytest
import torch

import manifoldflow as mf
from manifoldflow.manifolds import SO3, FromGeoopt, Simplex, Sphere, ToGeoopt, Torus, UnitQuaternion
from manifoldflow.testing import check_manifold, check_path, pairs_at_length, point_gap

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


OURS_AND_GEOOPTS = [
    (mf.PoincareBall(3), geoopt.PoincareBall()),
    (mf.Lorentz(2), geoopt.Lorentz()),
    (mf.SPD(3), geoopt.SymmetricPositiveDefinite()),
    (mf.Sphere(2), geoopt.Sphere()),
]


@pytest.mark.parametrize(("ours", "theirs"), OURS_AND_GEOOPTS, ids=lambda m: type(m).__name__)
def test_gradients_are_those_of_geoopt(ours, theirs):
    x = pairs_at_length(ours, 0.7, 20)[1]
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if isinstance(ours, mf.SPD):
        g = 0.5 * (g + g.mT)  # of a function of symmetric matrices
    gap = ToGeoopt(ours).egrad2rgrad(x, g) - theirs.egrad2rgrad(x, g)
    assert gap.abs().max() < 1e-12


def geoopt_points(manifold, shape):
    torch.manual_seed(0)
    return manifold.random(*shape, dtype=torch.float64).as_subclass(torch.Tensor).detach()


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [(geoopt.EuclideanStiefel(), (4, 2)), (geoopt.CanonicalStiefel(), (4, 2)), (geoopt.BirkhoffPolytope(500, 1e-14), (3, 3))],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_what_geoopt_alone_has_projects_once_and_has_gradients_of_its_metric(manifold, shape):
    ours, x = FromGeoopt(manifold, shape), geoopt_points(manifold, shape)
    u, g = torch.randn(2, *shape, dtype=torch.float64)
    tangent = ours.to_tangent(x, u)
    assert (ours.to_tangent(x, tangent) - tangent).abs().max() < 1e-10
    back = ToGeoopt(ours)
    assert back is manifold
    # <grad f, v> is the derivative of f along v
    gradient = ours.riemannian_gradient(x, g)
    assert abs(float(ours.inner(x, gradient, tangent) - (g * tangent).sum())) < 1e-10
    assert (ours.to_tangent(x, gradient) - gradient).abs().max() < 1e-10


@pytest.mark.parametrize(
    "space", [mf.SPD(2), mf.manifolds.LogEuclideanSPD(2), mf.SO3(), mf.UnitQuaternion(), mf.Simplex(3)], ids=str
)
def test_geoopt_tangents_are_velocities_of_points(space):
    adapted = ToGeoopt(space)
    x, y = pairs_at_length(space, 0.3, 6)
    u = adapted.logmap(x, y)
    assert point_gap(space, adapted.expmap(x, u), y) < 1e-10
    h = 1e-6
    velocity = (adapted.expmap(x, h * u) - adapted.expmap(x, -h * u)) / (2 * h)
    assert (velocity - u).abs().max() < 1e-8 * (1 + u.abs().max())
    assert (adapted.proju(x, u) - u).abs().max() < 1e-12
    moved = adapted.transp(x, y, u)
    assert (adapted.inner(y, moved) - adapted.inner(x, u)).abs().max() < 1e-10


@pytest.mark.parametrize("make", [geoopt.optim.RiemannianSGD, geoopt.optim.RiemannianAdam], ids=["RSGD", "RAdam"])
@pytest.mark.parametrize(
    ("ours", "theirs"), [*OURS_AND_GEOOPTS[:3], (mf.manifolds.LogEuclideanSPD(3), None)], ids=lambda m: type(m).__name__
)
def test_optimisers_converge_as_with_geoopts_own_manifolds(ours, theirs, make):
    start, target = (v[0] for v in pairs_at_length(ours, 1.0, 1, seed=4))
    ends = []
    for manifold in (ToGeoopt(ours), theirs):
        if manifold is None:
            continue
        p = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
        optimiser = make([p], lr=0.1)
        for step in range(300):
            if step == 200:
                optimiser.param_groups[0]["lr"] = 0.02
            optimiser.zero_grad()
            ours.dist(p.as_subclass(torch.Tensor), target).square().backward()
            optimiser.step()
        ends.append(float(ours.dist(p.detach().as_subclass(torch.Tensor), target)))
    assert ends[0] < (1e-5 if make is geoopt.optim.RiemannianSGD else 1e-2), ends
    assert ends[0] < 10 * max(ends) + 1e-9


def test_parameters_and_manifolds_survive_pickle_and_compare_by_value():
    import copy
    import pickle

    p = geoopt.ManifoldParameter(torch.tensor([0.6, 0.8, 0.0]), manifold=ToGeoopt(mf.Sphere(2)))
    for again in (pickle.loads(pickle.dumps(p)), copy.deepcopy(p)):
        assert torch.equal(again, p) and again.manifold.ours == mf.Sphere(2)
    one, two = (FromGeoopt(geoopt.PoincareBall(c=0.5), (3,)) for _ in range(2))
    assert one == two and hash(one) == hash(two)
    assert one != FromGeoopt(geoopt.PoincareBall(c=0.7), (3,)) and one != FromGeoopt(geoopt.PoincareBall(c=0.5), (2,))
    assert FromGeoopt(geoopt.EuclideanStiefel(), (4, 2)) == FromGeoopt(geoopt.EuclideanStiefel(), (4, 2))
    assert FromGeoopt(geoopt.EuclideanStiefel(), (4, 2)) != FromGeoopt(geoopt.CanonicalStiefel(), (4, 2))
    assert FromGeoopt(geoopt.Stereographic(k=0.5), (3,)) != FromGeoopt(geoopt.Stereographic(k=0.6), (3,))
