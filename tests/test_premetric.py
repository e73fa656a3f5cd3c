"""The path of a premetric: against closed forms on the sphere, its own law on meshes, and in a flow."""

import pytest
import torch

import manifoldflow as mf
from manifoldflow.distributions.mesh_bumps import MeshBumps
from manifoldflow.manifolds import Sphere, Torus
from manifoldflow.manifolds.mesh_shapes import bumpy_sphere_mesh, torus_mesh
from manifoldflow.paths import Cosine, Geodesic, Linear, Polynomial
from manifoldflow.paths.premetric import Premetric


class GeodesicPremetric(Sphere):
    """The sphere with its own distance as the premetric."""

    def premetric(self, x, y):
        u = self.log(x, y)
        d = u.norm(dim=-1, keepdim=True)
        return d.squeeze(-1), -u / d.clamp_min(1e-30)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MANIFOLDFLOW_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module", params=["bumpy", "torus"])
def mesh(request):
    made = {"bumpy": lambda: bumpy_sphere_mesh(3, pairs=60), "torus": lambda: torus_mesh(40, 16, pairs=60)}
    return made[request.param]()


def ends(space, n, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return (
        *(space.sample_uniform((n,), generator=g, dtype=dtype) for _ in range(2)),
        torch.rand(n, generator=g, dtype=dtype),
    )


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(2.0)])
def test_with_the_geodesic_distance_it_is_the_geodesic_path(schedule):
    space = GeodesicPremetric(2)
    x0, x1, t = ends(space, 200)
    made = Premetric(steps=7, schedule=schedule).bind(space).sample(x0, x1, t)
    expected = Geodesic(schedule=schedule).bind(space).sample(x0, x1, t)
    assert (made.x - expected.x).abs().max() < 1e-10
    assert (made.velocity - expected.velocity).abs().max() < 1e-8


def test_shapes_and_times_follow_the_contract_of_paths():
    space = GeodesicPremetric(2)
    x0, x1, _ = ends(space, 24)
    x0, x1 = x0.reshape(6, 4, 3), x1.reshape(6, 4, 3)
    path = Premetric(steps=3).bind(space)
    t = torch.rand(6, dtype=torch.float64)
    sets, flat = path.sample(x0, x1, t), path.sample(x0.flatten(0, 1), x1.flatten(0, 1), t.repeat_interleave(4))
    assert sets.x.shape == (6, 4, 3) and (sets.x.flatten(0, 1) - flat.x).abs().max() < 1e-12
    assert (sets.velocity.flatten(0, 1) - flat.velocity).abs().max() < 1e-12
    assert path.loss(torch.zeros_like(sets.x), sets).shape == (6, 4)
    assert path.sample(x0, x1, torch.rand(6, 4)).x.shape == (6, 4, 3)


@pytest.mark.parametrize("kernel", ["biharmonic", "diffusion"])
def test_the_distance_to_the_data_falls_in_proportion(mesh, kernel):
    space = mesh.with_premetric(kernel)
    x0, x1, t = ends(space, 300)
    point = Premetric(steps=60).bind(space).sample(x0, x1, t)
    share = space.premetric(point.x, x1)[0] / space.premetric(x0, x1)[0]
    assert (share - (1 - t)).abs().median() < 5e-3
    assert (share - (1 - t)).abs().quantile(0.9) < 0.03
    assert space.residual(point.x).max() < 1e-12


@pytest.mark.parametrize("kernel, gap", [("biharmonic", 0.02), ("commute", 0.02), ("diffusion", 0.3)])
def test_paths_end_at_the_data(mesh, kernel, gap):
    # The diffusion distance hardly sees the small circle of the torus, so the last bit of way is left there.
    space = mesh.with_premetric(kernel)
    x0, x1, _ = ends(space, 300)
    landed = Premetric(steps=60).bind(space).trajectory(x0, x1)[-1]
    assert (landed - x1).norm(dim=-1).quantile(0.9) < gap


def test_the_target_is_the_velocity_of_the_simulated_path(mesh):
    x0, x1, t = ends(mesh, 300)
    t = 0.2 + 0.6 * t
    path = Premetric(steps=50).bind(mesh)
    point = path.sample(x0, x1, t)
    dt = 1e-5
    # The rest of the path, one tiny step on.
    after = mesh.premetric_path(point.x, x1, path.schedule.fraction(t, t + dt).unsqueeze(0))[-1]
    assert ((after - point.x) / dt - point.velocity).norm(dim=-1).median() < 1e-4


def test_the_shortcut_of_meshes_equals_the_loop_over_premetric_and_exp(mesh):
    x0, x1, t = ends(mesh, 100)
    path = Premetric(steps=10, top_speed=2.0).bind(mesh)
    quick = path.trajectory(x0, x1, t)

    class Plain:  # the same mesh without its shortcut
        event_ndim, tangent_ndim, dim = 1, 1, 2
        premetric, exp, inner, log_volume = mesh.premetric, mesh.exp, mesh.inner, mesh.log_volume

    slow = Premetric(steps=10, top_speed=2.0, manifold=Plain()).trajectory(x0, x1, t)
    gap = (quick - slow).norm(dim=-1)[-1]
    assert gap.median() < 1e-9 and gap.quantile(0.95) < 1e-6  # a last bit decides on which side of a vertex one passes


def test_no_velocity_is_faster_than_the_bound(mesh):
    x0, x1, t = ends(mesh, 500)
    free = Premetric(steps=10, top_speed=1e9).bind(mesh).sample(x0, x1, t).velocity.norm(dim=-1)
    bound = float(free.median())
    held = Premetric(steps=10, top_speed=bound).bind(mesh).sample(x0, x1, t).velocity.norm(dim=-1)
    assert free.max() > 1.5 * bound and held.max() < bound * (1 + 1e-9)


def test_the_path_at_its_ends_is_finite_and_starts_at_the_source(mesh):
    x0, x1, _ = ends(mesh, 50, torch.float32)
    path = Premetric(steps=20).bind(mesh)
    start, end = path.sample(x0, x1, torch.zeros(50)), path.sample(x0, x1, torch.ones(50))
    assert (start.x - x0).abs().max() < 1e-6
    for point in (start, end, path.sample(x1, x1, torch.full((50,), 0.5))):
        assert torch.isfinite(point.x).all() and torch.isfinite(point.velocity).all()


def test_settings_that_make_no_sense_are_refused(mesh):
    for options, message in (
        ({"steps": 0}, "steps"),
        ({"top_speed": -1.0}, "top_speed"),
        ({"predicts": "endpoint"}, "velocity"),
    ):
        with pytest.raises(ValueError, match=message):
            Premetric(**options)
    with pytest.raises(TypeError, match="Geodesic"):
        Premetric().bind(Torus(2))
    with pytest.raises(ValueError, match="no manifold yet"):
        Premetric().sample(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1))
    with pytest.raises(ValueError, match="velocity"):
        mf.Flow(mesh, model=mf.nn.TangentMLP(mesh, 8, 1), path=Premetric(), predicts="endpoint")


def test_a_flow_learns_three_bumps_and_stays_on_the_surface():
    mesh = bumpy_sphere_mesh(3, pairs=40)
    target = MeshBumps.spread(mesh)
    g = torch.Generator().manual_seed(0)
    flow = mf.Flow(mesh, model=mf.nn.TangentMLP(mesh, width=64, depth=3), path=Premetric(steps=10))
    optimizer = torch.optim.AdamW(flow.parameters(), lr=4e-3)
    rounds = 250
    for i in range(rounds):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - i / rounds)
        optimizer.zero_grad()
        flow.loss(target.sample((128,), generator=g), generator=g).backward()
        optimizer.step()
    x = flow.sample(500, steps=20, method="midpoint", generator=g)
    assert mesh.residual(x).max() < 1e-5
    nearest = torch.cdist(x, torch.tensor(target.centers)).amin(1)
    assert nearest.median() < 3 * target.scale  # 1.18 scales for the target itself
    test = target.sample((200,), generator=g)
    below_uniform = mesh.log_volume + flow.log_prob(test, steps=15, trace_every=1).mean()
    assert below_uniform > 0.5


def test_an_untrained_flow_has_a_density_that_integrates_to_one(mesh):
    # Large random velocities with normal parts: wrong by tens of percent with the orthogonal projection.
    torch.manual_seed(1)
    net = mf.nn.TangentMLP(mesh, width=32, depth=2)
    with torch.no_grad():
        net.net[-1].weight.mul_(6.0)
        net.net[-1].bias.mul_(6.0)
    flow = mf.Flow(mesh, model=net, path=Premetric())
    b = torch.rand(len(mesh.tables().corners), 2, 3, generator=torch.Generator().manual_seed(0)).log()
    points = b / b.sum(-1, keepdim=True) @ mesh.tables().corners
    density = flow.log_prob(points.reshape(-1, 3), steps=20, trace_every=1).detach().exp().reshape(-1, 2)
    spread = (density * mesh.area).std()
    assert spread > 0.15
    assert abs((density.mean(1) * mesh.tables().areas).sum() - 1) < 0.015
