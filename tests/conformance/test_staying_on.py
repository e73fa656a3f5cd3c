"""A thousand steps of any integrator leave the points on the manifold, whatever the field's part across it."""

import itertools

import pytest
import torch

import manifoldflow as mf
from manifoldflow.sampling.steps import METHODS

ALL = [(space, method) for space in (mf.Sphere(2), mf.Simplex(4)) for method in METHODS]
SOME = [(space, "euler") for space in (mf.Sphere(9), mf.Simplex(4, "flat"), mf.UnitQuaternion())]


@pytest.mark.parametrize(("space", "method"), ALL + SOME, ids=str)
def test_fields_that_point_inward_do_not_drive_points_off(space, method):
    generator = torch.Generator().manual_seed(0)
    start = space.sample_uniform((64,), generator=generator)
    tangent = space.tangent_basis(start).shape[2:]
    wind = torch.randn(64, *tangent, generator=generator)
    for inward, steps in ((150.0, 1000), (8.0, 100), (150.0, 20)):

        def field(x, t, inward=inward):
            return space.to_tangent(x, wind - inward * x if x.shape == wind.shape else (1 + inward**0.5) * wind)

        x, times = start, torch.linspace(0, 1, steps + 1)
        for t, s in itertools.pairwise(times):
            x = METHODS[method](field, space, x, t, s)
        off = (x.sum(-1) - 1) if isinstance(space, mf.Simplex) else torch.linalg.vector_norm(x, dim=-1) - 1
        assert off.abs().max() < 1e-6, (inward, steps)
