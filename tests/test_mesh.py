"""Meshes: straight lines, areas, tangents, spectra, files, and what is refused."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch

from manifoldflow.distributions.mesh_bumps import MeshBumps
from manifoldflow.manifolds import mesh_spectral
from manifoldflow.manifolds.mesh import Mesh
from manifoldflow.manifolds.mesh_reading import read_arrays
from manifoldflow.manifolds.mesh_search import squared_distances
from manifoldflow.manifolds.mesh_shapes import bumpy_sphere_mesh, torus_mesh
from manifoldflow.manifolds.mesh_tables import place, walk

TETRAHEDRON = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]) / 2**0.5  # edges of length 1
TETRAHEDRON_FACES = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
CUBE_OBJ = """
v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 1\nv 1 0 1\nv 1 1 1\nv 0 1 1
f 4 3 2 1\nf 5 6 7 8\nf 1 2 6 5\nf 2 3 7 6\nf 3 4 8 7\nf 4 1 5 8
"""


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MANIFOLDFLOW_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def bumpy():
    return bumpy_sphere_mesh(3)


@pytest.fixture(scope="module")
def torus():
    return torus_mesh(40, 16)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tangents(mesh, x, length, seed=1):
    u = (torch.randn(*x.shape[:-1], 2, 1, generator=seeded(seed), dtype=x.dtype) * mesh.tangent_basis(x)).sum(-2)
    return length * u / u.norm(dim=-1, keepdim=True)


# ---------------------------------------------------------------- straight lines


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("length", [0.0, 0.3, 3.0, 40.0])
def test_lines_on_a_tetrahedron_follow_the_triangular_tiling_of_the_plane(length, dtype, tolerance):
    # Rolled over the plane, a regular tetrahedron prints the corner (i mod 2, j mod 2) on the lattice point (i, j).
    mesh = Mesh.from_arrays(TETRAHEDRON, TETRAHEDRON_FACES)
    p = torch.tensor(TETRAHEDRON, dtype=torch.float64)
    angle = 2 * math.pi * torch.rand(400, generator=seeded(), dtype=torch.float64)
    start = torch.tensor([0.3, 0.25], dtype=torch.float64)  # p0 + 0.3 (p1 - p0) + 0.25 (p2 - p0)
    third = 3**0.5 / 2
    move = torch.stack([angle.cos() - angle.sin() / 3**0.5, angle.sin() / third], -1) * length
    x = p[0] + start @ torch.stack([p[1] - p[0], p[2] - p[0]])
    u = move @ torch.stack([p[1] - p[0], p[2] - p[0]])
    at = start + move
    corner, part = at.floor(), at - at.floor()
    above = part.sum(-1) > 1
    lattice = torch.stack(
        [corner + torch.tensor([1.0, 0]), corner + torch.tensor([0.0, 1]), corner + above[:, None]], 1
    )
    weights = torch.where(above[:, None], 1 - part.flip(-1), part)
    weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
    parity = lattice.long().remainder(2)
    labels = parity[..., 0] + 2 * parity[..., 1]
    expected = (weights.unsqueeze(-1) * p[labels]).sum(1)
    y = mesh.exp(x.to(dtype).expand(400, 3), u.to(dtype))
    assert (y - expected).abs().max() < tolerance * (1 + length)


def test_straight_lines_stay_on_the_surface_keep_their_length_and_can_be_walked_back(bumpy, torus):
    for mesh in (bumpy, torus):
        x = mesh.sample_uniform((500,), generator=seeded())
        for length in (1e-4, 0.1, 5.0):
            u = tangents(mesh, x, length)
            y, v = mesh.walk(x, u)
            assert mesh.residual(y).max() < 1e-6
            assert (v.norm(dim=-1) - length).abs().max() < 1e-5 * max(1, length)
            if length < 1:
                back = (mesh.exp(y, -v) - x).norm(dim=-1)
                assert back.max() < 1e-5


def test_a_line_into_a_vertex_or_along_an_edge_is_finite_and_on_the_surface(bumpy):
    corners = bumpy.tables(torch.float32).corners
    middle = corners.mean(1)
    edge = bumpy.to_tangent(corners[:, 0], corners[:, 1] - corners[:, 0])  # of the face that the vertex is counted to
    for x, u in ((middle, corners[:, 0] - middle), (middle, 3 * (corners[:, 0] - middle)), (corners[:, 0], edge)):
        y, v = bumpy.walk(x, u)
        assert torch.isfinite(y).all() and bumpy.residual(y).max() < 1e-5
        assert (v.norm(dim=-1) - u.norm(dim=-1)).abs().max() < 1e-4


def test_the_exponential_map_of_a_round_mesh_approaches_the_great_circle():
    errors = []
    for level in (2, 3, 4):
        mesh = bumpy_sphere_mesh(level, bumps=0.0)
        x = mesh.sample_uniform((300,), generator=seeded(), dtype=torch.float64)
        y, _ = mesh.walk(x, u := tangents(mesh, x, 1.0))
        p = x / x.norm(dim=-1, keepdim=True)
        q = u - (u * p).sum(-1, keepdim=True) * p
        great = p * math.cos(1) + q / q.norm(dim=-1, keepdim=True) * math.sin(1)
        errors.append((y - great).norm(dim=-1).median().item())
    assert errors[2] < 0.01 and errors[0] > 2.5 * errors[2]


def test_small_moves_by_a_fixed_frame_preserve_area(bumpy):
    # The walk unfolds: within one strip it is an isometry, so its derivative has determinant 1.
    x = bumpy.sample_uniform((200,), generator=seeded(), dtype=torch.float64)
    u = tangents(bumpy, x, 0.4)
    basis = bumpy.tangent_basis(x)
    y = bumpy.exp(x, u)
    moved = torch.stack([(bumpy.exp(x + 1e-7 * basis[:, k], u) - y) / 1e-7 for k in range(2)], 1)
    gram = moved @ moved.mT
    assert (torch.linalg.det(gram) - 1).abs().median() < 1e-5
    assert ((torch.linalg.det(gram) - 1).abs() < 1e-4).float().mean() > 0.98  # the rest splits at a vertex


def test_dexp_inv_undoes_the_transport_along_the_line(bumpy):
    x = bumpy.sample_uniform((300,), generator=seeded(), dtype=torch.float64)
    w, v = tangents(bumpy, x, 0.7, 1), tangents(bumpy, x, 0.9, 2)
    y, moved = bumpy.walk(x, w, v)
    assert (bumpy.dexp_inv(x, w, moved) - v).abs().max() < 1e-12
    assert (bumpy.to_tangent(y, moved) - moved).abs().max() < 1e-12


def test_transport_is_exact_to_a_neighbour_and_orthogonal_everywhere(bumpy):
    table = bumpy.tables(torch.float64)
    x = table.corners.mean(1)
    y = x[table.across.reshape(-1, 3)[:, 0]]
    # The line through the middle of the shared edge.
    gate = table.corners[:, 1:].mean(1)
    u = tangents(bumpy, x, 1.0)
    _, walked = bumpy.walk(x, 1.001 * (gate - x), u)
    assert (bumpy.transport(x, u, y) - walked).abs().max() < 1e-12
    far = bumpy.sample_uniform((len(x),), generator=seeded(), dtype=torch.float64)
    turned = bumpy.transport(x, u, far)
    assert (turned.norm(dim=-1) - 1).abs().max() < 1e-9
    assert (bumpy.transport(far, turned, x) - u).abs().max() < 1e-6


# ---------------------------------------------------------------- points and areas


def test_areas_approach_those_of_the_smooth_surfaces():
    assert abs(bumpy_sphere_mesh(4, bumps=0.0, radius=2.0).area / (16 * math.pi) - 1) < 2e-3
    assert abs(torus_mesh(160, 64, major=1.0, minor=0.4).area / (4 * math.pi**2 * 0.4) - 1) < 2e-3
    assert abs(math.exp(torus_mesh(40, 16).log_volume) - torus_mesh(40, 16).area) < 1e-9


def test_shapes_have_2000_vertices_and_point_outward():
    for mesh, euler in ((bumpy_sphere_mesh(), 2), (torus_mesh(), 0)):
        vertices, faces = mesh.geometry.counts
        assert vertices >= 2000 and vertices - faces / 2 == euler
        corners = mesh.tables(torch.float64).corners
        assert torch.linalg.det(corners).sum() > 0  # six times the enclosed volume


@pytest.mark.parametrize("spread", [1e-6, 0.02, 0.3, 3.0])
def test_project_is_the_closest_point_by_brute_force(bumpy, torus, spread):
    for mesh in (bumpy, torus):
        x = mesh.sample_uniform((60,), generator=seeded(), dtype=torch.float64)
        x = x + spread * torch.randn(60, 3, generator=seeded(3), dtype=torch.float64)
        x[0] = 0.0
        table = mesh.tables(torch.float64)
        everything = torch.arange(len(table.areas)).expand(60, -1)
        best = squared_distances(table, everything, x).amin(1).sqrt()
        p = mesh.project(x)
        assert ((p - x).norm(dim=-1) - best).abs().max() < 1e-12
        # Independent of the distance routine: no point of a dense cloud on the surface is nearer.
        cloud = mesh.sample_uniform((20000,), generator=seeded(4), dtype=torch.float64)
        assert (best <= torch.cdist(x, cloud).amin(1) + 1e-9).all()
        assert (mesh.residual(x) - best).abs().max() < 1e-12
        assert (mesh.project(p) - p).abs().max() < 1e-12


def test_face_of_finds_the_face_of_points_made_on_it(torus):
    table = torus.tables(torch.float32)
    faces = torch.randint(0, len(table.areas), (2000,), generator=seeded())
    b = torch.rand(2000, 3, generator=seeded(1)) + 0.05
    assert (torus.face_of(place(table, faces, b / b.sum(-1, keepdim=True))) == faces).all()


def test_uniform_samples_fill_faces_by_area(bumpy):
    n = 200_000
    x = bumpy.sample_uniform((n,), generator=seeded())
    counts = torch.bincount(bumpy.face_of(x), minlength=bumpy.geometry.counts[1])
    expected = n * bumpy.tables(torch.float64).areas / bumpy.area
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)
    assert bumpy.residual(x).max() < 1e-6
    bumpy.check(x)
    with pytest.raises(ValueError, match="off the manifold"):
        bumpy.check(1.2 * x[:100])


# ---------------------------------------------------------------- tangents


def test_to_tangent_keeps_tangents_and_returns_tangents(bumpy, torus):
    for mesh in (bumpy, torus):
        x = mesh.sample_uniform((500,), generator=seeded())
        u = tangents(mesh, x, 1.0)
        assert (mesh.to_tangent(x, u) - u).abs().max() < 1e-6
        v = mesh.to_tangent(x, torch.randn(500, 3, generator=seeded()))
        assert (mesh.tables().normals[mesh.face_of(x)] * v).sum(-1).abs().max() < 1e-5
        basis = mesh.tangent_basis(x)
        assert (basis @ basis.mT - torch.eye(2)).abs().max() < 1e-6


def test_a_continuous_field_flows_through_edges_without_loss(torus):
    # Both sides of every edge, 1e-9 away from it: the same component along the unfolded normal of the edge.
    table = torus.tables(torch.float64)
    face = torch.arange(len(table.areas))
    there, entry = table.across.reshape(-1, 3), table.entry.reshape(-1, 3)
    for i in range(3):
        b = torch.rand(len(face), 3, generator=seeded(i), dtype=torch.float64) + 0.1
        b[:, i] = 0
        b = b / b.sum(-1, keepdim=True)
        gate = place(table, face, b)
        middle = table.corners.mean(1)
        near, behind = gate + 1e-9 * (middle - gate), gate + 1e-9 * (middle[there[:, i]] - gate)
        w = torch.sin(3 * gate) + gate.roll(1, -1) + 2 * gate
        leaving = (torus.to_tangent(near, w) * table.planes[face, i + 1, :3]).sum(-1)
        entering = -(torus.to_tangent(behind, w) * table.planes[there[:, i], entry[:, i] + 1, :3]).sum(-1)
        assert (leaving - entering).abs().max() < 1e-6
        flat = [w - (w * n).sum(-1, keepdim=True) * n for n in (table.normals, table.normals[there[:, i]])]
        jump = (flat[0] * table.planes[face, i + 1, :3]).sum(-1)
        jump = jump + (flat[1] * table.planes[there[:, i], entry[:, i] + 1, :3]).sum(-1)
        assert jump.abs().max() > 0.01  # the orthogonal projection does not have this property


def test_the_divergence_of_a_field_integrates_to_zero(bumpy):
    table = bumpy.tables(torch.float64)
    face = torch.arange(len(table.areas)).repeat_interleave(40)
    b = torch.rand(len(face), 3, generator=seeded(), dtype=torch.float64).log()
    x = place(table, face, b / b.sum(-1, keepdim=True))

    def field(x):
        ambient = torch.stack([x[..., 0] + torch.sin(x[..., 1]), x[..., 1] ** 2, x[..., 2] * (1 + x[..., 0])], -1)
        return bumpy.to_tangent(x, ambient)

    total = torch.zeros(len(x), dtype=x.dtype)
    for e in bumpy.tangent_basis(x).unbind(-2):
        total += (torch.func.jvp(field, (x,), (e,))[1] * e).sum(-1)
    per_face = total.reshape(-1, 40)
    integral = (per_face.mean(1) * table.areas).sum() / bumpy.area
    error = ((per_face.var(1) / 40) * table.areas**2).sum().sqrt() / bumpy.area
    assert error < 0.005
    assert integral.abs() < 4 * error + 0.002  # 1.3 with the orthogonal projection


def test_gradients_through_exp_project_and_to_tangent_match_finite_differences(bumpy):
    x = bumpy.sample_uniform((6,), generator=seeded(), dtype=torch.float64)
    u = tangents(bumpy, x, 0.3)
    basis = bumpy.tangent_basis(x)

    def all_of_it(a, v):
        at, along = x + (a.unsqueeze(-1) * basis).sum(-2), (v.unsqueeze(-1) * basis).sum(-2)
        return bumpy.exp(at, u + along), bumpy.to_tangent(at, at.roll(1, -1)), bumpy.project(at)

    zero = torch.zeros(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(all_of_it, (zero, zero.detach().clone().requires_grad_()), atol=1e-5, rtol=1e-3)


def test_log_says_what_to_use_instead(bumpy):
    x = bumpy.origin((2,))
    with pytest.raises(NotImplementedError, match="Premetric"):
        bumpy.dist(x, x)


# ---------------------------------------------------------------- spectrum


def test_eigenvalues_of_a_round_mesh_are_those_of_the_sphere():
    mesh = bumpy_sphere_mesh(4, bumps=0.0, radius=2.0, pairs=24)
    expected = torch.tensor(
        [ell * (ell + 1) / 4 for ell in range(1, 5) for _ in range(2 * ell + 1)], dtype=torch.float64
    )
    assert (mesh.eigenvalues / expected - 1).abs().max() < 0.01


@pytest.mark.parametrize("kernel", ["biharmonic", "diffusion", "commute"])
def test_premetrics_of_a_round_mesh_have_their_legendre_series(kernel):
    # Whole shells l <= 8: d^2 = sum_l w(l(l+1)) (2l+1)/(2 pi) (1 - P_l(cos)), by the addition theorem.
    mesh = bumpy_sphere_mesh(4, bumps=0.0, pairs=80, kernel=kernel)
    x = mesh.sample_uniform((200,), generator=seeded(), dtype=torch.float64)
    y = mesh.sample_uniform((200,), generator=seeded(1), dtype=torch.float64)
    cosine = (x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1)
    squared = 0
    for ell in range(1, 9):
        value = ell * (ell + 1)
        weight = {"biharmonic": value**-2, "diffusion": math.exp(-0.5 * value), "commute": 1 / value}[kernel]
        legendre = np.polynomial.legendre.legval(cosine.numpy(), [0] * ell + [1])
        squared = squared + torch.from_numpy(weight * (2 * ell + 1) / (2 * math.pi) * (1 - legendre))
    d, _ = mesh.premetric(x, y)
    assert (d - squared**0.5).abs().max() < 0.02 * d.max()


@pytest.mark.parametrize("kernel", ["biharmonic", "diffusion", "commute"])
def test_the_gradient_of_the_premetric_is_its_derivative(bumpy, kernel):
    mesh = bumpy.with_premetric(kernel, pairs=30)
    x = mesh.sample_uniform((100,), generator=seeded(), dtype=torch.float64)
    y = mesh.sample_uniform((100,), generator=seeded(1), dtype=torch.float64)
    d, gradient = mesh.premetric(x, y)
    assert (mesh.to_tangent(x, gradient) - gradient).abs().max() < 1e-9
    for e in mesh.tangent_basis(x).unbind(-2):
        slope = (mesh.premetric(x + 1e-6 * e, y)[0] - mesh.premetric(x - 1e-6 * e, y)[0]) / 2e-6
        assert ((gradient * e).sum(-1) - slope).abs().median() < 1e-7 * d.max()
    zero, flat = mesh.premetric(x, x)
    assert zero.max() < 1e-7 and torch.isfinite(flat).all()


def test_features_are_orthonormal_over_the_surface(bumpy):
    x = bumpy.sample_uniform((60_000,), generator=seeded())
    f = bumpy.with_premetric("commute", pairs=12).features(x)
    assert f.shape == (60_000, 12)
    assert (f.mT @ f / len(f) - torch.eye(12)).abs().max() < 0.06
    assert bumpy.features(x[:5].reshape(1, 5, 3), 7).shape == (1, 5, 7)


def test_eigenpairs_are_kept_and_a_damaged_file_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MANIFOLDFLOW_CACHE", str(tmp_path / "new"))
    geometry = torus_mesh(12, 8).geometry
    mesh_spectral.eigenpairs.cache_clear()
    values, functions = mesh_spectral.eigenpairs(geometry, 5)
    (file,) = (tmp_path / "new").iterdir()  # and no temporary beside it

    mesh_spectral.eigenpairs.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(mesh_spectral, "_solve", lambda *_: pytest.fail("computed again"))
        again = mesh_spectral.eigenpairs(geometry, 5)
    assert (again[0] == values).all() and (again[1] == functions).all()

    for damage in (b"", b"not a zip file", file.read_bytes()[:400]):
        file.write_bytes(damage)
        mesh_spectral.eigenpairs.cache_clear()
        with pytest.warns(UserWarning, match="damaged"):
            again = mesh_spectral.eigenpairs(geometry, 5)
        assert np.allclose(again[0], values) and np.allclose(again[1], functions)

    monkeypatch.setenv("MANIFOLDFLOW_CACHE", "/proc/nowhere")
    mesh_spectral.eigenpairs.cache_clear()
    with pytest.warns(UserWarning, match="could not be kept"):
        mesh_spectral.eigenpairs(geometry, 5)


def test_long_computations_show_progress_on_stderr(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MANIFOLDFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr(mesh_spectral, "LONG", 1)
    mesh_spectral.eigenpairs(torus_mesh(12, 9).geometry, 5)
    said = capsys.readouterr()
    assert "5 eigenpairs of a mesh with 108 vertices" in said.err and "solves" in said.err and not said.out


def test_more_eigenpairs_than_vertices_are_refused():
    with pytest.raises(ValueError, match="has 1 to 2 eigenpairs"):
        Mesh.from_arrays(TETRAHEDRON, TETRAHEDRON_FACES, pairs=10).eigenvalues  # noqa: B018


# ---------------------------------------------------------------- values, files, bad input


def test_a_mesh_is_a_value(bumpy):
    again = bumpy_sphere_mesh(3)
    assert again == bumpy and hash(again) == hash(bumpy) and again != bumpy.with_premetric("commute")
    for other in (pickle.loads(pickle.dumps(bumpy)), copy.deepcopy(bumpy)):
        assert other == bumpy and (other.geometry.vertices == bumpy.geometry.vertices).all()
    assert "642 vertices" in repr(bumpy) and len(repr(bumpy)) < 100


@pytest.mark.parametrize("suffix", ["obj", "off", "ply", "stl"])
def test_files_of_every_format_give_the_same_surface(bumpy, tmp_path, suffix):
    trimesh = pytest.importorskip("trimesh")
    file = tmp_path / f"shape.{suffix}"
    trimesh.Trimesh(bumpy.geometry.vertices, bumpy.geometry.faces, process=False).export(file)
    mesh = Mesh.from_file(file)
    assert mesh.geometry.counts == bumpy.geometry.counts and mesh.name == file.name
    assert abs(mesh.area / bumpy.area - 1) < 1e-5


def test_quadrilaterals_in_a_file_are_cut_and_in_arrays_refused(tmp_path):
    pytest.importorskip("trimesh")
    (tmp_path / "cube.obj").write_text(CUBE_OBJ)
    cube = Mesh.from_file(tmp_path / "cube.obj")
    assert cube.geometry.counts == (8, 12) and abs(cube.area - 6) < 1e-12
    with pytest.raises(ValueError, match="quadrilaterals"):
        Mesh.from_arrays(np.zeros((8, 3)), [[0, 1, 2, 3]])


def test_unused_vertices_are_dropped():
    extra = np.concatenate([[[9.0, 9, 9]], TETRAHEDRON, [[np.nan] * 3]])
    assert Mesh.from_arrays(extra, TETRAHEDRON_FACES + 1).geometry.counts == (4, 4)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v, f: (v, f[:-1]), "open"),
        (lambda v, f: (v, np.concatenate([f, f[:1]])), "not a manifold"),
        (lambda v, f: (v, np.concatenate([f[:1, ::-1], f[1:]])), "opposite orientations"),
        (lambda v, f: (np.where(v == v[2], np.nan, v), f), "NaN"),
        (lambda v, f: (np.concatenate([v[:3], v[2:3]]), f), "no area"),
        (lambda v, f: (np.concatenate([v, v + 5]), np.concatenate([f, f + 4])), "2 separate pieces"),
        (lambda v, f: (v, f + 1), "counted from 1"),
        (lambda v, f: (v, f.astype(float)), "whole numbers"),
        (lambda v, f: (v[:, :2], f), r"shape \(V, 3\)"),
        (lambda v, f: (v, f[:0]), "at least one face"),
    ],
)
def test_bad_meshes_end_in_one_clear_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        Mesh.from_arrays(*change(TETRAHEDRON, TETRAHEDRON_FACES))
    assert "\n" not in str(caught.value)


def test_bad_files_end_in_one_clear_line(tmp_path):
    pytest.importorskip("trimesh")
    with pytest.raises(FileNotFoundError, match="no mesh file"):
        read_arrays(tmp_path / "none.obj")
    for name, text, message in (
        ("empty.obj", "", "is empty"),
        ("mesh.step", "x", "unknown mesh format"),
        ("points.obj", "v 0 0 0\nv 1 0 0\n", "no triangles"),
        ("broken.ply", "ply\nformat ascii 1.0\nelement vertex x\n", "could not be read"),
        ("words.obj", "v a b c\nf 1 2 3\n", "could not be read|no triangles"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_arrays(tmp_path / name)
    for options in ({"kernel": "heat"}, {"tau": 0.0}, {"pairs": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Mesh.from_arrays(TETRAHEDRON, TETRAHEDRON_FACES, **options)


# ---------------------------------------------------------------- the target


def test_bumps_integrate_to_one_and_samples_follow_them(torus):
    target = MeshBumps.spread(torus)
    u = torus.sample_uniform((200_000,), generator=seeded())
    density = target.log_prob(u).exp() * torus.area
    assert abs(density.mean() - 1) < 5 * density.std() / len(u) ** 0.5
    x = target.sample((50_000,), generator=seeded(1))
    assert torus.residual(x).max() < 1e-6
    for f in (lambda p: p, lambda p: p.square(), lambda p: p * p.roll(1, -1)):
        here, there = f(x), density.unsqueeze(-1) * f(u)
        error = (here.var(0) / len(x) + there.var(0) / len(u)).sqrt()
        assert ((here.mean(0) - there.mean(0)).abs() < 5 * error).all()
    assert torus.log_volume + target.log_prob(x).mean() > 1.0  # nats below uniform


def test_bumps_keep_their_weights_and_refuse_nonsense(bumpy):
    target = MeshBumps(((0.0, 0, 1), (0.0, 0, -1)), 0.2, weights=(3.0, 1.0), manifold=bumpy)
    x = target.sample((4000,), generator=seeded())
    assert abs((x[:, 2] > 0).float().mean() - 0.75) < 0.03
    for bad in ({"scale": 0.0}, {"weights": (1.0,)}, {"weights": (1.0, -1.0)}, {"centers": ()}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            MeshBumps(**{"centers": ((0.0, 0, 1), (0.0, 0, -1)), "scale": 0.2, **bad})


def test_a_walk_that_meets_its_bound_stops_on_the_surface(bumpy):
    table = bumpy.tables(torch.float64)
    face = torch.arange(50)
    b = torch.full((50, 3), 1 / 3, dtype=torch.float64)
    rates = torch.tensor([[30.0, -10.0, -20.0]], dtype=torch.float64).expand(50, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        face, b, _, _ = walk(table, face, b, rates, None, 3)
    assert (b >= 0).all() and bumpy.residual(place(table, face, b)).max() < 1e-12
