"""Flow: the loss against its formula, exact transport of simple laws, arguments and errors."""

import math

import pytest
import torch
from torch import nn

import manifoldflow as mf


class Constant(nn.Module):
    """Predicts one endpoint for everything."""

    def __init__(self, point):
        super().__init__()
        self.register_buffer("point", point)

    def forward(self, x, t, *, mask=None):
        return self.point.expand_as(x)


def test_an_endpoint_flow_lands_on_its_prediction():
    target = torch.tensor([0.0, 0.6, 0.8])
    flow = mf.Flow(mf.Sphere(2), Constant(target), predicts="endpoint")
    for steps in (1, 2, 17):
        x = flow.sample(50, steps=steps, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(x, target.expand_as(x), atol=1e-5, rtol=0)


def test_the_exact_velocity_of_a_gaussian_carries_the_source_to_the_data():
    """x1 ~ N(m, s^2), x0 ~ N(0, 1): the marginal velocity is known, and so is the law of the samples."""
    mean, scale = 2.0, 0.5

    class Exact(nn.Module):
        def forward(self, x, t):
            t = t.view(-1, 1)
            variance = (1 - t) ** 2 + (t * scale) ** 2
            slope = (t * scale**2 - (1 - t)) / variance
            return mean + slope * (x - t * mean)

    flow = mf.Flow(mf.Euclidean(1), Exact())
    x = flow.sample(200_000, steps=100, method="midpoint", generator=torch.Generator().manual_seed(0))
    assert abs(x.mean() - mean) < 4 * scale / math.sqrt(200_000) + 1e-3
    assert abs(x.std() - scale) < 5e-3


def test_the_loss_of_the_true_conditional_velocity_is_zero():
    sphere = mf.Sphere(2)
    x0, x1 = mf.Uniform(sphere).sample((64,)), mf.Uniform(sphere).sample((64,))
    t = torch.rand(64)
    truth = mf.Geodesic(manifold=sphere).sample(x0, x1, t).velocity

    class Oracle(nn.Module):
        def forward(self, x, t):
            return truth

    assert mf.Flow(sphere, Oracle()).loss(x1, x0=x0, t=t) < 1e-10


def test_masked_elements_do_not_reach_the_loss():
    torch.manual_seed(0)
    space = mf.Euclidean(3)
    model = mf.nn.TangentMLP(space, width=8, depth=1)
    flow = mf.Flow(space, model)
    x1, mask = torch.randn(2, 5, 3), torch.tensor([[True] * 5, [True, True, False, False, False]])
    x0, t = torch.randn(2, 5, 3), torch.tensor([0.3, 0.6])
    changed = torch.where(mask[..., None], x1, 100.0)
    assert torch.equal(flow.loss(x1, x0=x0, t=t, mask=mask), flow.loss(changed, x0=x0, t=t, mask=mask))


@pytest.mark.parametrize("space", [mf.Sphere(2), mf.Torus(3), mf.SO3(), mf.UnitQuaternion(), mf.Euclidean(2)])
def test_training_lowers_the_loss_on_every_space(space):
    torch.manual_seed(0)
    flow = mf.Flow(space, mf.nn.TangentMLP(space, width=32, depth=2))
    source = mf.Uniform(space) if not isinstance(space, mf.Euclidean) else mf.Normal(manifold=space)
    centre = source.sample((1,))
    tangent = 0.1 * torch.randn(512, *space.tangent_basis(centre)[0].shape[1:])
    x1 = space.exp(
        centre.expand(512, *centre.shape[1:]), space.to_tangent(centre.expand(512, *centre.shape[1:]), tangent)
    )
    optimizer = torch.optim.Adam(flow.parameters(), 3e-3)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = flow(x1)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])
    x = flow.sample(256, steps=20)
    assert space.dist(x, centre.expand_as(x)).median() < 0.8


def test_a_condition_for_a_model_without_one_is_an_error():
    flow = mf.Flow(mf.Sphere(2), Constant(torch.tensor([0.0, 0.0, 1.0])), predicts="endpoint")
    with pytest.raises(ValueError, match="takes no condition"):
        flow.sample(3, steps=1, cond=torch.zeros(3, 1))


def test_known_elements_of_a_flow_without_pin_warn():
    flow = mf.Flow(mf.Euclidean(3), Constant(torch.zeros(3)), predicts="endpoint")
    with pytest.warns(UserWarning, match="trained without pin="):
        x = flow.sample(
            (2, 4), steps=2, known=torch.ones(2, 4, 3), known_mask=torch.tensor([[True, False, False, True]])
        )
    assert torch.equal(x[:, 0], torch.ones(2, 3)) and x[:, 1].abs().max() < 1e-6


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f: f.sample(), "say how many samples"),
        (lambda f: f.sample(0), "at least 1"),
        (lambda f: f.sample(lengths=[3, 0]), "lengths must be positive"),
        (lambda f: f.sample(4, lengths=[3]), "either lengths"),
        (lambda f: f.sample(4, steps=0), "steps must be at least 1, got 0"),
        (lambda f: f.sample(4, method="euler2"), "unknown method 'euler2'"),
    ],
)
def test_wrong_arguments_say_what_to_do(call, message):
    flow = mf.Flow(mf.Sphere(2), Constant(torch.tensor([0.0, 0.0, 1.0])), predicts="endpoint")
    with pytest.raises(ValueError, match=message):
        call(flow)


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="source names unknown fields"):
        mf.Flow({"a": mf.Sphere(2)}, Constant(torch.zeros(3)), source={"b": mf.Uniform()})


def test_centred_fields_have_no_mean_at_any_time():
    space = mf.Centered(mf.Euclidean(3))
    flow = mf.Flow(space, Constant(torch.zeros(3)), predicts="endpoint")
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    x0 = flow.draw_source((2, 6), mask=mask)
    assert x0.sum(1).abs().max() < 1e-5 and x0[1, 4:].abs().max() == 0


def test_old_names_work_and_name_the_new_ones():
    with pytest.warns(FutureWarning, match="BridgeNoise"):
        assert mf.Bridge is mf.BridgeNoise
    flow = mf.Flow(mf.Euclidean(1), mf.nn.TangentMLP(mf.Euclidean(1), width=4, depth=1))
    x = torch.zeros(2, 1)
    with pytest.warns(FutureWarning, match="chunk"):
        assert torch.equal(flow.log_prob(x, steps=4, rows=1), flow.log_prob(x, steps=4))
