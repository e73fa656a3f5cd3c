"""Pictures of densities: every space has one, and what is drawn is where it belongs."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

import manifoldflow as mf
from manifoldflow.manifolds.mesh_shapes import torus_mesh
from manifoldflow.manifolds.rotation import matrix_to_quaternion, quaternion_to_matrix, rotvec_to_matrix
from manifoldflow.tasks.common.plots import save_figure
from manifoldflow.tasks.densities import maps
from manifoldflow.tasks.densities.plot_rotations import axis_density, spread_rotations, weighted_rotations
from manifoldflow.tasks.densities.plot_style import colour_range, pretty
from manifoldflow.tasks.densities.plot_surfaces import is_visible
from manifoldflow.tasks.densities.plots import density_figure
from manifoldflow.tasks.densities.spaces import angles_to_sphere

SPACES = {
    "sphere": mf.Sphere(2),
    "torus 2": mf.Torus(2, 2 * math.pi),
    "torus 2 of period 1": mf.Torus(2),
    "torus 1": mf.Torus(1, 2 * math.pi),
    "torus 3": mf.Torus(3, 2 * math.pi),
    "so3": mf.SO3(),
    "quaternion": mf.UnitQuaternion(),
    "simplex": mf.Simplex(3),
    "flat simplex": mf.Simplex(3, "flat"),
    "simplex of 4": mf.Simplex(4),
    "euclidean 1": mf.Euclidean(1),
    "euclidean 2": mf.Euclidean(2),
    "euclidean 3": mf.Euclidean(3),
    "sphere 3": mf.Sphere(3),
    "mesh": torus_mesh(20, 12),
}


def image_of(figure, panel=0):
    """The first image of a panel and the positions of its pixels."""
    image = figure.axes[panel].images[0]
    array = np.ma.filled(image.get_array(), np.nan)
    left, right, bottom, top = image.get_extent()
    assert image.origin == "lower"
    x = left + (np.arange(array.shape[1]) + 0.5) / array.shape[1] * (right - left)
    y = bottom + (np.arange(array.shape[0]) + 0.5) / array.shape[0] * (top - bottom)
    return array, x, y


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
@pytest.mark.parametrize("what", ["density", "everything"])
def test_every_space_has_a_picture(space, what, tmp_path):
    generator = torch.Generator().manual_seed(0)
    flat = isinstance(space, mf.Euclidean)
    x = (
        torch.randn(60, *space.event_shape, generator=generator)
        if flat
        else space.sample_uniform((60,), generator=generator)
    )
    more = (
        {"samples": x[:30], "reference_log_density": lambda y: y.reshape(len(y), -1)[:, 0]}
        if what == "everything"
        else {}
    )
    seen = []

    def log_density(y):
        seen.append(y)
        assert not torch.is_grad_enabled() and y.dtype == torch.float32
        return y.reshape(len(y), -1).square()[:, 0]

    figure = density_figure(space, log_density, points=x, title="a density", resolution=16, batch=500, **more)
    path = save_figure(figure, tmp_path / "new" / "a.png", dpi=40)
    assert path.stat().st_size > 2000 and [p.name for p in path.parent.iterdir()] == ["a.png"]
    if seen:
        assert max(map(len, seen)) <= 500
        space.check(torch.cat(seen), atol=1e-3)  # the density is asked for at points of the manifold only


@pytest.mark.parametrize(
    "lat, lon", [(0, 0), (35, 139), (-33, -70), (64, -150), (-75, 170), (88, 20), (10, 179.5), (10, -179.5)]
)
def test_the_maximum_of_a_law_at_a_place_on_earth_is_painted_at_that_place(lat, lon):
    from matplotlib.projections.geo import MollweideAxes

    centre = angles_to_sphere(torch.tensor([lat, lon], dtype=torch.float64))
    figure = density_figure(mf.Sphere(2), lambda x: 200 * (x.double() @ centre), resolution=80)
    array, x, y = image_of(figure)
    row, column = np.unravel_index(np.nanargmax(array), array.shape)
    # matplotlib's own projection, an independent one, good to a thousandth
    truth = MollweideAxes.MollweideTransform(10).transform(np.radians([[lon, lat]]))[0]
    gap = math.hypot(x[column] - truth[0], y[row] - truth[1])
    assert gap < 1.5 * (y[1] - y[0]), (lat, lon)


def test_dots_are_painted_where_the_density_of_the_same_place_is():
    centre = angles_to_sphere(torch.tensor([35.0, 139.0]))
    figure = density_figure(mf.Sphere(2), lambda x: 500 * (x @ centre), points=centre.expand(4, 3), resolution=80)
    array, x, y = image_of(figure)
    row, column = np.unravel_index(np.nanargmax(array), array.shape)
    dots = figure.axes[0].collections[-1].get_offsets()
    assert np.hypot(dots[:, 0] - x[column], dots[:, 1] - y[row]).max() < 1.5 * (y[1] - y[0])


def test_map_is_the_inverse_of_its_inverse_and_keeps_areas():
    generator = np.random.default_rng(0)
    lat, lon = np.degrees(np.arcsin(generator.uniform(-1, 1, 20_000))), generator.uniform(-180, 180, 20_000)
    x, y = maps.mollweide(lat, lon)
    back = maps.inverse_mollweide(x, y)
    assert np.abs(maps.angles_to_vector(lat, lon) - maps.angles_to_vector(*back)).max() < 1e-4
    vectors, numbers, shape = maps.map_grid(60)
    assert numbers.shape == shape == (60, 120) and np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-12
    # Pixels of equal area: they integrate polynomials on the sphere, with the area 4 pi / N each.
    assert np.abs(vectors.mean(0)).max() < 2e-3
    assert np.abs(vectors.T @ vectors / len(vectors) - np.eye(3) / 3).max() < 4e-3
    assert abs(len(vectors) * (2 * maps.HEIGHT / 60) ** 2 - 4 * np.pi) < 0.02 * 4 * np.pi


def test_pixels_beyond_the_rim_hold_what_the_rim_holds():
    vectors, numbers, _ = maps.map_grid(40)
    lat, lon = maps.vector_to_angles(vectors[numbers])
    assert np.ptp(lat, axis=1).max() < 1e-9  # a row is one latitude, also outside
    assert (lon[:, 0] < -150).all() and (lon[:, -1] > 150).all() and (np.diff(lon, axis=1) >= 0).all()


def test_a_torus_joins_at_its_edges_and_is_drawn_the_right_way_up():
    space, centre = mf.Torus(2, 2 * math.pi), torch.tensor([math.radians(-170), math.radians(60)])
    asked = []

    def log_density(x):
        asked.append(x)
        return 6 * (x - centre).cos().sum(-1)

    figure = density_figure(space, log_density, points=centre.remainder(2 * math.pi).expand(2, 2), resolution=60)
    axes = figure.axes[0]
    assert axes.get_xlim() == axes.get_ylim() == (-180, 180)
    np.testing.assert_allclose(axes.collections[-1].get_offsets(), [[-170, 60]] * 2, atol=1e-3)
    contours = axes.collections[0]
    top = contours.get_paths()[
        -1
    ].vertices  # the highest of the filled regions: near the centre, on both sides of the edge
    assert np.abs((top[:, 0] + 170 + 180) % 360 - 180).max() < 20 and np.abs(top[:, 1] - 60).max() < 20
    # Both edges are evaluated and are the same points, so contours meet there.
    x = torch.cat(asked).reshape(61, 61, 2).double()
    assert (space.log(x[:, 0], x[:, -1]).abs().max() < 1e-6) and (space.log(x[0], x[-1]).abs().max() < 1e-6)


def test_marginals_of_a_corner_plot_are_those_of_the_points():
    space = mf.Torus(3, 2 * math.pi)
    x = torch.tensor([[3.1, -1.0, 0.5]]).repeat(200, 1).remainder(2 * math.pi)
    figure = density_figure(space, None, points=x, samples=x)
    grid = [figure.axes[3 * i : 3 * i + 3] for i in range(3)]
    for row in range(3):
        for column in range(3):
            if row == column:
                continue
            mesh = grid[row][column].collections[0]
            counts = np.ma.filled(mesh.get_array(), -np.inf)
            high = np.unravel_index(counts.argmax(), counts.shape)
            place = mesh.get_coordinates()[high[0] : high[0] + 2, high[1] : high[1] + 2].reshape(-1, 2)
            for k, which in enumerate((column, row)):
                value = math.degrees([3.1, -1.0, 0.5][which])
                assert place[:, k].min() - 1e-6 <= value <= place[:, k].max() + 1e-6


@pytest.mark.parametrize("space", [mf.SO3(), mf.UnitQuaternion()], ids=["so3", "quaternion"])
def test_maps_of_rotations_show_where_each_axis_points(space):
    mean = rotvec_to_matrix(torch.tensor([0.4, -1.1, 0.9], dtype=torch.float64))

    def log_density(x):
        r = (quaternion_to_matrix(x) if isinstance(space, mf.UnitQuaternion) else x).double()
        return 60 * (r * mean).sum((-1, -2)) / 2

    point = (matrix_to_quaternion(mean) if isinstance(space, mf.UnitQuaternion) else mean)[None]
    figure = density_figure(space, log_density, points=point, resolution=40)
    for k in range(3):
        array, x, y = image_of(figure, k)
        row, column = np.unravel_index(array.argmax(), array.shape)
        truth = maps.mollweide(*maps.vector_to_angles(mean[:, k].numpy()))  # column k is the k-th axis of the frame
        assert math.hypot(x[column] - truth[0], y[row] - truth[1]) < 0.15
        np.testing.assert_allclose(figure.axes[k].collections[-1].get_offsets()[0], truth, atol=1e-6)


def test_weighted_rotations_have_the_mean_and_the_axis_density_of_the_law():
    kappa = 80.0
    rotations, weights, width = weighted_rotations(lambda r: kappa * np.trace(r, axis1=1, axis2=2) / 2, 40_000)
    assert len(rotations) <= 40_000 and abs(weights.sum() - 1) < 1e-12
    assert np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max() < 1e-9
    # E[cos angle] of exp(kappa cos) with the measure (1 - cos) on [0, pi], by quadrature
    angle = np.linspace(0, np.pi, 20_001)
    mass = np.exp(kappa * (np.cos(angle) - 1)) * (1 - np.cos(angle))
    truth = (mass * np.cos(angle)).sum() / mass.sum()
    assert abs(weights @ ((np.trace(rotations, axis1=1, axis2=2) - 1) / 2) - truth) < 2e-3
    vectors, _, _ = maps.map_grid(60)
    density = 10 ** axis_density(rotations[:, :, 0], weights, vectors, width)
    assert abs(density.mean() * 4 * np.pi - 1) < 0.01


def test_spread_rotations_are_even():
    r = spread_rotations(4000)
    assert np.abs(r.mean(0)).max() < 5e-3 and np.abs(np.linalg.det(r) - 1).max() < 1e-9
    angle = np.arccos(np.clip((np.trace(r, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert abs((angle < 1).mean() - (1 - math.sin(1)) / math.pi) < 3e-3  # Haar measure


def test_triangle_has_its_corners_where_the_labels_are():
    figure = density_figure(
        mf.Simplex(3, "flat"), lambda p: 40 * p[:, 1], points=torch.tensor([[0.02, 0.96, 0.02]]), labels=["A", "B", "C"]
    )
    axes = figure.axes[0]
    faces = axes.collections[0]
    best = faces.get_array().argmax()
    middle = faces.get_paths()[best].vertices[:3].mean(0)
    label = next(t for t in axes.texts if t.get_text() == "B")
    assert np.hypot(*(middle - np.asarray(label.xy))) < 0.03
    assert np.hypot(*(axes.collections[1].get_offsets()[0] - np.asarray(label.xy))) < 0.05


def test_triangle_shows_the_density_per_flat_area_whatever_the_metric():
    """A law that is uniform in the plane is one colour, given with respect to either volume."""
    for metric in ("flat", "fisher_rao"):
        space = mf.Simplex(3, metric)
        uniform = density_figure(space, lambda p, s=space: math.log(2) - s.log_volume_per_lebesgue(p), resolution=30)
        values = uniform.axes[0].collections[0].get_array()
        np.testing.assert_allclose(values, math.log10(2 / math.sqrt(3)), atol=1e-5)  # the area is sqrt(3) / 2


def test_torsions_are_written_in_greek():
    space = mf.Torus(3, 2 * math.pi)
    figure = density_figure(space, None, points=space.sample_uniform((50,)), labels=["phi", "psi", "chi1"])
    assert [figure.axes[4 * i].texts[0].get_text() for i in range(3)] == ["φ", "ψ", "χ₁"]
    assert [pretty(name) for name in ("x1", "chi12", "chip")] == ["x1", "χ₁₂", "chip"]


def test_points_behind_the_surface_are_hidden():
    front = np.array([[[0.0, 0, 1], [2, 0, 1], [0, 2, 1]]])
    points = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 1.0], [0.5, 0.5, 2.0], [1.8, 1.8, 0.0]])
    assert is_visible(points, front, 1e-6).tolist() == [False, True, True, True]


def test_colours_span_the_decades_that_hold_the_probability():
    x = np.linspace(-30, 30, 60_001)
    low, high = colour_range(-(x**2) / 2 / math.log(10))
    assert high == pytest.approx(0, abs=1e-6)
    assert low == pytest.approx(-(3.0902**2) / 2 / math.log(10), abs=0.01)  # 99.8 % of a normal law: 3.09 deviations
    low, high = colour_range(np.zeros(100))
    assert (low, high) == (-1.5, 0)
    low, high = colour_range(np.concatenate([np.zeros(1), np.full(10**6, -6.0)]))
    assert high - low == 4  # at most


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(ValueError, match=r"samples must have shape \(N, 3\), got \(5, 2\)"):
        density_figure(mf.Sphere(2), lambda x: x[:, 0], samples=torch.zeros(5, 2))
    with pytest.raises(ValueError, match="nothing to draw"):
        density_figure(mf.Sphere(2), None)
    with pytest.raises(ValueError, match="corner plot"):
        density_figure(mf.Torus(4), lambda x: x[:, 0])
    with pytest.raises(ValueError, match="finite nowhere"):
        density_figure(mf.Sphere(2), lambda x: x[:, 0] * torch.nan, resolution=8)


@pytest.mark.skipif(importlib.util.find_spec("global_land_mask") is None, reason="global-land-mask is not installed")
def test_coastlines_go_round_the_continents():
    from matplotlib.path import Path as Outline

    lines = [Outline(line) for line in maps.coastlines()]

    def is_land(lat, lon):
        return sum(line.contains_point((lat, lon)) for line in lines) % 2 == 1

    land = [(47, 8), (-23, 133), (0, 25), (40, -100), (-10, -55), (62, 100), (72, -40)]
    sea = [(0, 0), (30, -40), (0, -150), (-40, 90), (35, 18), (-60, 20), (15, 65)]
    assert all(is_land(*p) for p in land) and not any(is_land(*p) for p in sea)


def test_without_the_package_there_are_no_coastlines(monkeypatch):
    monkeypatch.setattr(maps.importlib.util, "find_spec", lambda name: None)
    assert maps.coastlines.__wrapped__() == ()


def test_a_mask_of_another_form_is_refused(tmp_path: Path):
    np.savez(tmp_path / "m.npz", mask=np.zeros((4, 4)))
    with pytest.raises(ValueError, match="not what version"):
        maps._block_means(tmp_path / "m.npz", 2, 2, 2)
