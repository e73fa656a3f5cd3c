"""torch.export with a batch of any size: no code may look at the number of points."""

import pytest
import torch
from torch.export import Dim, export

import manifoldflow as mf
from manifoldflow.testing import pairs_at_length

SPACES = [mf.Sphere(2), mf.SO3(), mf.Simplex(4), mf.Lorentz(2)]


class Maps(torch.nn.Module):
    """What a sampler and a training step call, and a network between."""

    def __init__(self, space):
        super().__init__()
        self.space = space
        self.model = mf.nn.TangentMLP(space, 8, 1, features=mf.nn.FourierFeatures(space, 4))

    def forward(self, x, y, t):
        space, u = self.space, self.space.log(x, y)
        v = space.transport(x, u, y)
        parts = [space.exp(x, u), *space.geodesic(x, y, t), space.interpolate(x, y, t), space.dist(x, y), v]
        return [*parts, space.dexp_inv(x, u, v), space.log_exp_volume(x, u), space.project(x), self.model(x, t)]


@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
def test_one_exported_graph_serves_every_batch_size(space):
    torch.manual_seed(0)
    maps, batch = Maps(space), Dim("batch", min=2)
    x, y = pairs_at_length(space, 0.05, 8, torch.float32)
    with torch.no_grad():
        graph = export(maps, (x, y, torch.rand(8)), dynamic_shapes=({0: batch},) * 3).module()
        x, y = pairs_at_length(space, 0.05, 9000, torch.float32)  # beyond the size from which eager code differs
        t = torch.rand(9000)
        for got, want in zip(graph(x, y, t), maps(x, y, t), strict=True):
            assert (got - want).abs().max() < 1e-5 * (1 + want.abs().max())


def test_landmarks_are_seen_at_every_batch_size():
    torch.manual_seed(0)
    space = mf.Sphere(2)
    marks = space.sample_uniform((50,))
    model = mf.nn.TangentMLP(space, 8, 1, features=mf.nn.LandmarkFeatures(space, marks, waves=4))
    batch = Dim("batch", min=2)
    with torch.no_grad():
        graph = export(model, (space.sample_uniform((8,)), torch.rand(8)), dynamic_shapes=({0: batch},) * 2).module()
        x, t = space.sample_uniform((6000,)), torch.rand(6000)
        assert (graph(x, t) - model(x, t)).abs().max() < 1e-4
