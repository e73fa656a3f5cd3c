"""The generated sets: they are what their generator makes, follow their laws, and flows learn them."""

import math

import pytest
import torch

import manifoldflow as mf
from manifoldflow.manifolds.rotation import quaternion_to_matrix
from manifoldflow.tasks.densities.data import load_data
from manifoldflow.tasks.densities.embedded import (
    LAWS,
    embedded_names,
    load_embedded,
    make_set,
    so3_mixture,
    sphere_mixture,
    torus5_mixture,
    torus_mixture,
)


@pytest.mark.parametrize("name", embedded_names())
def test_files_hold_what_the_generator_makes(name):
    made = load_embedded(name)
    train, test = make_set(name)
    # Vector instructions differ between machines in the last digits.
    assert (made.train - train).abs().max() < 1e-4
    assert (made.test - test).abs().max() < 1e-4
    made.space.check(made.train, 1e-4)


@pytest.mark.parametrize("name", LAWS)
def test_points_have_the_entropy_of_their_law(name):
    made = load_embedded(name)
    law = made.law
    fresh = -law.log_prob(law.sample((20_000,), generator=torch.Generator().manual_seed(3))).double()
    held = -law.log_prob(made.test).double()
    error = math.sqrt(float(fresh.var()) / len(fresh) + float(held.var()) / len(held))
    assert abs(float(fresh.mean() - held.mean())) <= 4 * error + 1e-6


def test_every_set_is_found_by_name():
    for name in embedded_names():
        assert len(load_data(name)) >= 1900
    with pytest.raises(ValueError, match="unknown generated set"):
        load_embedded("nothing")


def quadrature(space, steps=100):
    """Points and volumes: midpoints of a grid in two coordinates, uniform points in more."""
    if space.dim != 2 or isinstance(space, mf.Simplex):
        x = space.sample_uniform((20_000,), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return x, math.exp(space.log_volume) / len(x)
    side = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    a, b = (g.flatten() for g in torch.meshgrid(side, side, indexing="ij"))
    if isinstance(space, mf.Torus):
        return torch.stack([a, b], -1) * space.period, space.period**2 / steps**2
    z = 2 * b - 1
    flat = (1 - z * z).sqrt()
    turn = 2 * math.pi * a
    return torch.stack([flat * turn.cos(), flat * turn.sin(), z], -1), 4 * math.pi / steps**2


def learn(law, train, steps, batch=256, rate=3e-3):
    """A short training on the points."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    space = law.space
    waves = mf.nn.Coordinates(space, 4) if isinstance(space, mf.Torus) else mf.nn.FourierFeatures(space, 32, 6.0)
    net = mf.nn.TangentResNet(space, 96, 2, features=waves)
    if isinstance(space, mf.Simplex):  # no point may come from outside, where it would have no density
        net = mf.nn.NoFlux(net, space, 0.02)
    path = mf.Geodesic(average_targets=not isinstance(space, mf.Simplex))
    source = mf.Dirichlet(2.0) if isinstance(space, mf.Simplex) else None  # none of it at the sides
    flow = mf.Flow(space, model=net, path=path, source=source)
    average = torch.optim.swa_utils.AveragedModel(flow, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    optimiser = torch.optim.AdamW(flow.parameters(), lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(train), (batch,), generator=generator)
        loss = flow.loss(train[rows], generator=generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(flow)
    return average.module


def so3_mixture_as_matrices():
    law = so3_mixture()
    parts = tuple(mf.IGSO3(p.scale, mean=quaternion_to_matrix(p.mean)) for p in law.components)
    return mf.Mixture(parts, manifold=mf.SO3())


LEARNT = {
    "sphere_mixture": sphere_mixture,
    "torus_mixture": torus_mixture,
    "torus5_mixture": torus5_mixture,
    "so3_mixture": so3_mixture,
    "so3_mixture as matrices": so3_mixture_as_matrices,
    "simplex": lambda: mf.Dirichlet((2.0, 4.0, 3.0), mf.Simplex(3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNT)
def test_a_trained_flow_has_the_density_of_the_law(name):
    """KL(law || flow) below 0.02 nats after a short training, and the density integrates to 1 within 1 %."""
    law = LEARNT[name]()
    generator = torch.Generator().manual_seed(9)
    train = load_embedded(name).train if name in LAWS else law.sample((20_000,), generator=generator)
    test = load_embedded(name).test if name in LAWS else law.sample((2_000,), generator=generator)
    flow = learn(law, train, 1200 if law.space.dim > 2 else 900)
    with torch.no_grad():
        gap = (law.log_prob(test) - flow.log_prob(test, steps=32)).double()
        assert -3 * float(gap.std()) / len(gap) ** 0.5 < float(gap.mean()) < 0.02
        x, volume = quadrature(law.space)
        density = flow.log_prob(x.float(), steps=20).double().exp()
    error = float(density.std()) * volume * len(x) ** 0.5 if law.space.dim != 2 or name == "simplex" else 0.0
    assert abs(float(density.sum()) * volume - 1) < 0.01 + 3 * error
