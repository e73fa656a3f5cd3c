"""A wrapped normal whose mean and scale are a network's output: one law per sample, differentiable in both."""

import math

import pytest
import torch

import manifoldflow as mf

DOUBLE = torch.float64
SPACES = [mf.Euclidean(2), mf.Torus(2, 2 * math.pi), mf.Sphere(2), mf.SO3(), mf.UnitQuaternion(), mf.PoincareBall(2)]
each = pytest.mark.parametrize("space", SPACES, ids=str)


def batch(space, n=6):
    g = torch.Generator().manual_seed(0)
    origin = space.origin((n,), dtype=DOUBLE)
    mean = space.exp(origin, 0.5 * space.random_tangent(origin, generator=g))
    x = space.exp(mean, 0.7 * space.random_tangent(mean, generator=g))
    return mean, x, torch.linspace(0.2, 1.5, n, dtype=DOUBLE)


@each
def test_every_sample_has_the_law_of_its_own_scale(space):
    mean, x, scale = batch(space)
    got = mf.WrappedNormal(space, scale, mean).log_prob(x)
    want = [mf.WrappedNormal(space, float(s), m).log_prob(p) for s, m, p in zip(scale, mean, x, strict=True)]
    assert (got - torch.stack(want)).abs().max() < 1e-10
    sets = mf.WrappedNormal(space, scale, mean.unsqueeze(1)).log_prob(x.unsqueeze(1).expand(-1, 3, *x.shape[1:]))
    assert (sets - got.unsqueeze(1)).abs().max() < 1e-12


@each
def test_log_density_and_draws_have_gradients_in_mean_and_scale(space):
    mean, x, scale = batch(space)
    shift = torch.zeros(space.random_tangent(mean).shape, dtype=DOUBLE, requires_grad=True)
    scale = scale.requires_grad_()

    def log_prob(shift, scale):
        return mf.WrappedNormal(space, scale, space.exp(mean, shift)).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, (shift + 0.01, scale), atol=1e-6)
    generator = torch.Generator().manual_seed(3)
    drawn = mf.WrappedNormal(space, scale, space.exp(mean, shift)).sample((6,), generator=generator, dtype=DOUBLE)
    law = mf.WrappedNormal(space, scale.detach(), mean).sample((6,), generator=generator.manual_seed(3), dtype=DOUBLE)
    assert (drawn - law).abs().max() < 1e-12
    for g in torch.autograd.grad(drawn.square().sum() + drawn.sum(), (shift, scale)):
        assert g.isfinite().all() and g.abs().max() > 0


@pytest.mark.parametrize("space", [mf.Sphere(1), mf.Sphere(2), mf.Torus(1), mf.SO3()], ids=str)
def test_densities_of_scales_that_are_tensors_integrate_to_one(space):
    x = space.sample_uniform((400_000,), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    for scale in (0.3, 1.0, 3.0):
        density = mf.WrappedNormal(space, torch.tensor(scale, dtype=DOUBLE)).log_prob(x).exp()
        mass = density.mean() * math.exp(space.log_volume)
        error = float(density.std()) / len(x) ** 0.5 * math.exp(space.log_volume)
        assert abs(float(mass) - 1) < 5 * error + 1e-6, scale


def test_laws_of_numbers_are_equal_by_value_and_of_tensors_by_identity():
    assert mf.WrappedNormal(scale=0.5) == mf.WrappedNormal(scale=0.5) != mf.WrappedNormal(scale=0.6)
    head = mf.WrappedNormal(mf.Sphere(2), torch.tensor([0.5, 0.6]))
    assert head == head and head != mf.WrappedNormal(mf.Sphere(2), torch.tensor([0.5, 0.6]))
    assert isinstance(hash(head), int)
