"""The generated sets: they are what their generator makes, follow their laws, and flows learn them."""

import math

import pytest
import torch

import manifoldflow as mf
from tasks.densities.data import load_data
from tasks.densities.embedded import LAWS, embedded_names, load_embedded, make_set
from tasks.densities.kde import fit_kde


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


def grid(space, count=120):
    """Midpoints of a grid in two coordinates and the volume of a cell."""
    side = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    a, b = (g.flatten() for g in torch.meshgrid(side, side, indexing="ij"))
    if isinstance(space, mf.Torus):
        return torch.stack([a, b], -1) * space.period, space.period**2 / count**2
    z = 2 * b - 1
    flat = (1 - z * z).sqrt()
    turn = 2 * math.pi * a
    return torch.stack([flat * turn.cos(), flat * turn.sin(), z], -1), 4 * math.pi / count**2


def network(space):
    if isinstance(space, mf.Torus):
        return mf.nn.TangentMLP(space, 128, 3, features=mf.nn.Coordinates(space, harmonics=4))
    return mf.nn.TangentMLP(space, 128, 3, features=mf.nn.FourierFeatures(space, 48, 8.0))


def learn(made, steps, batch=256, rate=3e-3):
    """A short training on the embedded points."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    space = made.space
    flow = mf.Flow(space, model=network(space), path=mf.Geodesic(average_targets=True))
    average = torch.optim.swa_utils.AveragedModel(flow, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    optimiser = torch.optim.AdamW(flow.parameters(), lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(made.train), (batch,), generator=generator)
        loss = flow.loss(made.train[rows], generator=generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(flow)
    return average.module


def divergence_from_law(flow, made, steps=24):
    """KL(law || flow) over the test points, in nats, and its standard error."""
    with torch.no_grad():
        gap = (made.law.log_prob(made.test) - flow.log_prob(made.test, steps=steps)).double()
    return float(gap.mean()), float(gap.std()) / len(gap) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name, steps", [("sphere_mixture", 700), ("torus_mixture", 700)])
def test_a_trained_flow_has_the_density_of_the_law(name, steps):
    """Done when: KL below 0.02 nats after a short training, the density integrates to 1 within 1 %."""
    made = load_embedded(name)
    flow = learn(made, steps)
    kl, error = divergence_from_law(flow, made)
    assert -3 * error < kl < 0.02
    x, cell = grid(made.space)
    with torch.no_grad():
        mass = float(flow.log_prob(x.float(), steps=24).double().exp().sum() * cell)
    assert abs(mass - 1) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name, steps", [("torus5_mixture", 1000), ("so3_modes", 0)])
def test_a_trained_flow_has_the_density_of_the_law_in_more_dimensions(name, steps):
    """As above by uniform points: on T^5 trained, on rotations with the kernel estimate as a check of the law's volume."""
    made = load_embedded(name)
    if not steps:
        kernel = fit_kde(made.space, made.train, made.test[:1000])
        gap = made.law.log_prob(made.test[1000:]).double() - kernel.log_prob(made.test[1000:])
        assert 0 < float(gap.mean()) < 0.25
        return
    flow = learn(made, steps)
    kl, error = divergence_from_law(flow, made, steps=16)
    assert -3 * error < kl < 0.03
    x = made.space.sample_uniform((20_000,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        share = (flow.log_prob(x, steps=12) + made.space.log_volume).double().exp()
    assert abs(float(share.mean()) - 1) < 0.01 + 3 * float(share.std()) / len(x) ** 0.5
