"""What networks see of a point."""

import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow.nn import Coordinates, FourierFeatures, LandmarkFeatures

DOUBLE = torch.float64
SPACES = [mf.Sphere(2), mf.Torus(2, 2 * math.pi), mf.Torus(3), mf.SO3(), mf.UnitQuaternion(), mf.Simplex(4)]
each = pytest.mark.parametrize("space", SPACES, ids=str)


def kinds(space):
    marks = space.sample_uniform((20,), dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    return [Coordinates(space), FourierFeatures(space, 12, 8.0), LandmarkFeatures(space, marks, 0.1, waves=8)]


@each
def test_features_have_the_size_they_say_and_any_batch_shape(space):
    x = space.sample_uniform((2, 3), dtype=DOUBLE)
    for features in kinds(space):
        out = features.double()(x)
        assert out.shape == (2, 3, features.size)
        assert (features(x[1]) - out[1]).abs().max() < 1e-12


def test_features_are_functions_of_the_point_not_of_its_representative():
    q = mf.UnitQuaternion().sample_uniform((5,), dtype=DOUBLE)
    x = mf.Torus(2).sample_uniform((5,), dtype=DOUBLE)
    for features in kinds(mf.UnitQuaternion()):
        assert torch.equal(features.double()(q), features(-q))
    for features in kinds(mf.Torus(2)):
        assert (features.double()(x) - features(x + torch.tensor([1.0, -2.0]))).abs().max() < 1e-11


def test_landmark_features_are_the_kernel_sums_they_say():
    sphere = mf.Sphere(2)
    marks, x = sphere.sample_uniform((9,), dtype=DOUBLE), sphere.sample_uniform((4,), dtype=DOUBLE)
    features = LandmarkFeatures(sphere, marks, 0.25, waves=4).double()
    out = features(x)[:, features.waves.size :].unflatten(-1, (3, 5))
    assert features.scales == [1.0, 0.5, 0.25]
    for i, scale in enumerate(features.scales):
        k = torch.exp(-((x.unsqueeze(1) - marks) ** 2).sum(-1) / (2 * scale**2))
        shift = (k.unsqueeze(-1) * (marks - x.unsqueeze(1))).sum(1) / (scale * (k.sum(-1, keepdim=True) + 1e-3))
        assert (out[:, i, 0] - torch.log1p(k.sum(-1))).abs().max() < 1e-12
        assert (out[:, i, 1] - k.sum(-1) / (1 + k.sum(-1))).abs().max() < 1e-12
        assert (out[:, i, 2:] - shift).abs().max() < 1e-12


def test_hidden_rows_leave_their_duplicates_in_place():
    sphere = mf.Sphere(2)
    marks = sphere.sample_uniform((6,), dtype=DOUBLE)
    twice = torch.cat([marks, marks[:1]])
    x = sphere.sample_uniform((4,), dtype=DOUBLE)
    features = LandmarkFeatures(sphere, twice, 0.25, waves=4).double()
    # Row 6 is a copy of row 0: without it the six different places are seen, each counting 7/6.
    fewer = LandmarkFeatures(sphere, marks, 0.25, waves=4).double()
    fewer.counts.mul_(7 / 6)
    for row in (0, 6):
        assert (features(x, torch.tensor([row, -1])) - fewer(x)).abs().max() < 1e-12
    assert (features(x, torch.tensor([-1])) - features(x)).abs().max() == 0
    gone = features(x, torch.tensor([0, 6]))
    rest = LandmarkFeatures(sphere, marks[1:], 0.25, waves=4).double()
    rest.counts.mul_(7 / 5)
    assert (gone - rest(x)).abs().max() < 1e-12


def test_landmark_features_keep_their_digits_at_the_finest_scale():
    sphere = mf.Sphere(2)
    mark = sphere.sample_uniform((1,), dtype=DOUBLE)
    move = sphere.to_tangent(mark, torch.randn(1, 3, dtype=DOUBLE))
    x = sphere.exp(mark, 1e-5 * move / move.norm())
    fine = LandmarkFeatures(sphere, mark.float(), 1e-5, waves=4)
    exact = LandmarkFeatures(sphere, mark.float().double(), 1e-5, waves=4).double()
    a, b = fine(x.float()), exact(x.float().double())
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


def test_bad_scale_is_refused():
    with pytest.raises(ValueError, match="finest"):
        LandmarkFeatures(mf.Sphere(2), torch.eye(3), 0.0)
