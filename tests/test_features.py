"""What networks see of a point."""

import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow.nn import Coordinates, FourierFeatures, LandmarkFeatures, NearestLandmarks

DOUBLE = torch.float64
SPACES = [mf.Sphere(2), mf.Torus(2, 2 * math.pi), mf.Torus(3), mf.SO3(), mf.UnitQuaternion(), mf.Simplex(4)]
each = pytest.mark.parametrize("space", SPACES, ids=str)


def kinds(space):
    marks = space.sample_uniform((20,), dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    return [Coordinates(space), FourierFeatures(space, 12, 8.0), LandmarkFeatures(space, marks, 0.1, waves=8)]


def see(features, x, t=0.7):
    batch = x.shape[: x.ndim - features.waves.base.manifold.event_ndim] if hasattr(features, "places") else ()
    return features(x, torch.full(batch, t, dtype=x.dtype)) if batch else features(x)


@each
def test_features_have_the_size_they_say_and_any_batch_shape(space):
    x = space.sample_uniform((2, 3), dtype=DOUBLE)
    for features in kinds(space):
        out = see(features.double(), x)
        assert out.shape == (2, 3, features.size)
        assert (see(features, x[1]) - out[1]).abs().max() < 1e-12


def test_features_are_functions_of_the_point_not_of_its_representative():
    q = mf.UnitQuaternion().sample_uniform((5,), dtype=DOUBLE)
    x = mf.Torus(2).sample_uniform((5,), dtype=DOUBLE)
    for features in kinds(mf.UnitQuaternion()):
        assert torch.equal(see(features.double(), q), see(features, -q))
    for features in kinds(mf.Torus(2)):
        assert (see(features.double(), x) - see(features, x + torch.tensor([1.0, -2.0]))).abs().max() < 1e-11


def kernel_sums(marks, x, left, octaves):
    """The formula of the docstring, one point at a time."""
    rows = []
    for point, rest in zip(x, left, strict=True):
        row = []
        for i in range(octaves[1], octaves[0] - 1, -1):
            scale = 2.0**i * rest
            k = torch.exp(-((point - marks) ** 2).sum(-1) / (2 * scale**2))
            total = k.sum()
            shift = (k.unsqueeze(-1) * (marks - point)).sum(0) / (scale * (total + 1e-3))
            row += [torch.stack([torch.log1p(total), total / (1 + total)]), shift]
        rows.append(torch.cat(row))
    return torch.stack(rows)


def test_landmark_features_are_the_kernel_sums_they_say():
    sphere = mf.Sphere(2)
    marks, x = sphere.sample_uniform((9,), dtype=DOUBLE), sphere.sample_uniform((4,), dtype=DOUBLE)
    t = torch.tensor([0.0, 0.5, 0.9, 0.999], dtype=DOUBLE)
    features = LandmarkFeatures(sphere, marks, 0.25, waves=4, octaves=(-2, 3)).double()
    out = features(x, t)[:, features.waves.size :]
    assert (
        out - kernel_sums(marks, x, [1.0, 0.5, 0.25, 0.25], (-2, 3))
    ).abs().max() < 1e-5  # kernels under 1e-9 are cut


def test_each_point_is_blind_to_its_own_row_but_not_to_a_copy_of_it():
    sphere = mf.Sphere(2)
    marks = sphere.sample_uniform((6,), dtype=DOUBLE)
    twice = torch.cat([marks, marks[:1]])  # row 6 is a copy of row 0
    x = sphere.exp(marks[:4], sphere.to_tangent(marks[:4], 1e-3 * torch.randn(4, 3, dtype=DOUBLE)))
    features = LandmarkFeatures(sphere, twice, 0.01, waves=4).double()
    t = torch.full((4,), 0.99, dtype=DOUBLE)
    out = features(x, t, torch.tensor([0, 1, -1, 5]))[:, features.waves.size :]
    for row, gone in enumerate((0, 1, None, 5)):
        seen = twice if gone is None else twice[torch.arange(7) != gone]
        truth = kernel_sums(seen, x[row : row + 1], [0.01], features.octaves)
        assert (out[row] - truth[0]).abs().max() < 1e-6, row


def test_nothing_of_a_hidden_row_is_left_in_single_precision():
    sphere = mf.Sphere(2)
    generator = torch.Generator().manual_seed(0)
    marks = sphere.sample_uniform((50,), generator=generator)
    x = sphere.exp(marks, sphere.to_tangent(marks, 1e-4 * torch.randn(50, 3, generator=generator)))
    features = LandmarkFeatures(sphere, marks, 1e-3, waves=4)
    out = features(x, torch.ones(50), torch.arange(50))[:, features.waves.size :].unflatten(-1, (-1, 5))
    assert out[:, -1].abs().max() < 1e-9  # at the finest scale all the others are out of sight


def test_a_hidden_batch_is_hidden_from_every_point():
    sphere = mf.Sphere(2)
    marks = sphere.sample_uniform((6,), dtype=DOUBLE)
    twice = torch.cat([marks, marks[:1]])
    x, t = sphere.sample_uniform((4,), dtype=DOUBLE), torch.rand(4, dtype=DOUBLE)
    features = LandmarkFeatures(sphere, twice, 0.25, waves=4, hide="batch").double()
    gone = features(x, t, torch.tensor([0, 6, -1, -1]))
    rest = LandmarkFeatures(sphere, marks[1:], 0.25, waves=4).double()
    rest.counts.mul_(7 / 5)
    assert (gone - rest(x, t)).abs().max() < 1e-12
    assert torch.equal(features(x, t, torch.tensor([-1, -1, -1, -1])), features(x, t))


def test_landmark_features_keep_their_digits_at_a_fine_scale():
    sphere = mf.Sphere(2)
    mark = sphere.sample_uniform((1,), dtype=DOUBLE)
    move = sphere.to_tangent(mark, torch.randn(1, 3, dtype=DOUBLE))
    x = sphere.exp(mark, 1e-4 * move / move.norm())
    fine = LandmarkFeatures(sphere, mark.float(), 1e-4, waves=4)
    exact = LandmarkFeatures(sphere, mark.float().double(), 1e-4, waves=4).double()
    a, b = fine(x.float(), torch.ones(1)), exact(x.float().double(), torch.ones(1, dtype=DOUBLE))
    assert (a[:, fine.waves.size :] - b[:, fine.waves.size :]).abs().max() < 0.02


def test_tangent_mlp_hides_the_landmarks_that_cond_names():
    sphere = mf.Sphere(2)
    marks = sphere.sample_uniform((5,))
    net = mf.nn.TangentMLP(sphere, 8, 1, features=LandmarkFeatures(sphere, marks, 0.25, waves=4))
    flow = mf.Flow(sphere, model=net)
    x, t = sphere.sample_uniform((3,)), torch.full((3,), 0.5)
    assert not torch.equal(flow.predict(x, t, cond=torch.tensor([0, 1, 2])), flow.predict(x, t))
    assert torch.isfinite(flow.loss(x, cond=torch.tensor([0, 1, 2])))
    assert torch.isfinite(flow.log_prob(x, steps=3)).all()
    with pytest.raises(ValueError, match="no other condition"):
        mf.nn.TangentMLP(sphere, 8, 1, condition=2, features=LandmarkFeatures(sphere, marks, 0.25))


def test_late_times_are_told_apart_where_asked_for():
    sphere = mf.Sphere(2)
    x = sphere.sample_uniform((1,)).expand(2, 3)
    t = torch.tensor([0.999, 0.9999])
    for finest, expected in ((None, 0.05), (1e-4, 0.5)):
        net = mf.nn.TangentMLP(sphere, 8, 1, finest_time=finest)
        inputs = []
        net.net.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        net(x, t)
        gap = (inputs[0][0] - inputs[0][1]).norm()
        assert gap > expected if finest else gap < expected
    with pytest.raises(ValueError, match="finest_time"):
        mf.nn.TangentMLP(sphere, 8, 1, finest_time=2.0)


def test_landmarks_travel_with_the_weights():
    sphere = mf.Sphere(2)
    marks, x, t = sphere.sample_uniform((5,)), sphere.sample_uniform((3,)), torch.rand(3)
    net = mf.nn.TangentMLP(sphere, 8, 1, features=LandmarkFeatures(sphere, marks, 0.25, waves=4))
    other = mf.nn.TangentMLP(sphere, 8, 1, features=LandmarkFeatures(sphere, marks[:1], 0.25, waves=4))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x, t), net(x, t))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="hide"):
        LandmarkFeatures(mf.Sphere(2), torch.eye(3), 0.1, hide="none")
    with pytest.raises(ValueError, match="finest"):
        LandmarkFeatures(mf.Sphere(2), torch.eye(3), 0.0)


def near_sums(marks, x, scale, k, hidden=None):
    """The sums over the nearest landmarks in plain loops."""
    rows = []
    for i, point in enumerate(x):
        seen = [m for j, m in enumerate(marks) if hidden is None or j != hidden[i]]
        seen = sorted(seen, key=lambda m: float((m - point).norm()))
        edge = float((seen[k] - point).norm())
        total, shift = 0.0, torch.zeros(3, dtype=DOUBLE)
        for m in seen[:k]:
            d = float((m - point).norm())
            weight = math.exp(-(d**2) / (2 * scale**2)) * (1 - d**2 / edge**2) ** 2
            total, shift = total + weight, shift + weight * (m - point)
        rows.append(torch.tensor([math.log1p(total), total / (1 + total), *(shift / (scale * (total + 1e-3)))]))
    return torch.stack(rows)


@pytest.fixture
def crowd():
    g = torch.Generator().manual_seed(5)
    sphere = mf.Sphere(2)
    marks = sphere.sample_uniform((60,), generator=g, dtype=DOUBLE)
    return sphere, marks, sphere.sample_uniform((7,), generator=g, dtype=DOUBLE)


def test_the_nearest_landmarks_are_summed_with_a_window_and_the_own_row_is_not_among_them(crowd):
    sphere, marks, x = crowd
    features = NearestLandmarks(sphere, marks, 0.01, nearest=4, sample=100, waves=4, octaves=(0, 1)).double()
    t = torch.full((7,), 0.7, dtype=DOUBLE)
    for hidden in (None, [3, 59, 0, 1, 2, 4, 5]):
        told = None if hidden is None else torch.tensor(hidden)
        out = features(x, t, told)[:, -10:].unflatten(-1, (2, 5))
        for place, scale in enumerate((0.6, 0.3)):
            assert (out[:, place] - near_sums(marks, x, scale, 4, hidden)).abs().max() < 1e-9
    # With a sample that holds them all, the other half is that of all landmarks.
    plain = LandmarkFeatures(sphere, marks, 0.01, waves=4, octaves=(0, 1)).double()
    told = torch.arange(7)
    assert (features(x, t, told)[:, : plain.size] - plain(x, t, told)).abs().max() < 1e-6


def test_nearest_landmarks_have_no_jumps_where_the_neighbours_change(crowd):
    sphere, marks, x = crowd
    features = NearestLandmarks(sphere, marks, 0.1, nearest=3, sample=5, waves=4).double()
    t = torch.tensor(0.5, dtype=DOUBLE)
    times = torch.linspace(0, 1, 20_001, dtype=DOUBLE)
    line, _ = sphere.geodesic(x[:1].expand(20_001, 3), x[1:2].expand(20_001, 3), times)
    out = features(line, t.expand(20_001))
    index = torch.cdist(line, marks).topk(4, largest=False).indices.sort(-1).values
    assert (index[1:] != index[:-1]).any(-1).sum() > 5  # the neighbours do change on the way
    step = (out[1:] - out[:-1]).abs()
    assert step.max() < 50 * step.mean(0).max()  # a jump would be thousands of them
    some, moves = line[:-1:500], (line[1:] - line[:-1])[::500]
    _, pushed = features.push(some, moves.unsqueeze(0), t.expand(len(some)))
    ends = [features(some + h * moves, t.expand(len(some))) for h in (1e-3, -1e-3)]
    assert (pushed[0] - (ends[0] - ends[1]) / 2e-3).abs().max() < 1e-6


def test_a_sample_stands_for_all_landmarks_and_travels_with_the_weights(crowd):
    sphere, marks, x = crowd
    t = torch.zeros(7, dtype=DOUBLE)
    some = NearestLandmarks(sphere, marks, 0.1, nearest=3, sample=30, waves=4, octaves=(4, 4)).double()
    plain = LandmarkFeatures(sphere, marks, 0.1, waves=4, octaves=(4, 4)).double()
    at = plain.waves.size
    assert (some(x, t)[:, at] - plain(x, t)[:, at]).abs().max() < 0.01  # log(1 + K), K about 60
    told = torch.arange(7)
    assert (some(x, t, told)[:, at] - plain(x, t, told)[:, at]).abs().max() < 0.02
    other = NearestLandmarks(sphere, marks[:9], 0.1, nearest=3, sample=30, waves=4, octaves=(4, 4)).double()
    other.load_state_dict(some.state_dict())
    assert torch.equal(other(x, t), some(x, t))
    with pytest.raises(ValueError, match="nearest and sample"):
        NearestLandmarks(sphere, marks, nearest=0)
    few = NearestLandmarks(sphere, marks[:2], 0.1, waves=4).double()  # fewer than are looked for
    assert torch.isfinite(few(x, t, torch.tensor([0, 1, -1, 0, 1, -1, 0]))).all()
