"""What the targets say of themselves, by independent ways."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from manifoldflow.energies import Energy
from manifoldflow.tasks.energies.targets import (
    TARGETS,
    WELL_NORMALISER,
    fisher_normaliser,
    from_angles,
    load_target,
    space_of,
    torsion_energy,
)

KNOWN = ["mixture9", "funnel", "manywell", "torsion", "sphere3", "rotations2"]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def uniform_log_z(target, count=400_000):
    x = target.space.sample_uniform((count,), generator=gen(), dtype=torch.float64)
    value = target.log_density(x)
    weight = (value - value.max()).exp()
    error = float(weight.std() / weight.mean() / count**0.5)
    return float(weight.mean().log() + value.max()) + target.space.log_volume, error


@pytest.mark.parametrize("name", ["torsion", "sphere3", "rotations2"])
def test_normalisers_of_compact_targets_agree_with_uniform_draws(name):
    target = load_target(name)
    found, error = uniform_log_z(target)
    assert abs(found - target.log_z) < 4 * error


def test_normalisers_of_flat_targets_by_quadrature_and_by_known_laws():
    line = torch.linspace(-9, 9, 901, dtype=torch.float64)
    plane = torch.cartesian_prod(line, line)
    mixture, funnel = load_target("mixture9"), load_target("funnel")
    mass = mixture.log_density(plane).exp().sum() * (line[1] - line[0]) ** 2
    assert abs(float(mass.log()) - mixture.log_z) < 1e-6
    x = funnel.draw(5, gen()).double()
    spread = x[:, :1].exp().expand(5, 9)
    known = MultivariateNormal(torch.zeros(5, 9), torch.diag_embed(spread).float()).log_prob(x[:, 1:].float())
    known = known + torch.distributions.Normal(0, 3).log_prob(x[:, 0])
    assert (funnel.log_density(x) - known).abs().max() < 1e-3
    well = torch.linspace(-5, 5, 200_001, dtype=torch.float64)
    one = torch.trapezoid((-(well**4) + 6 * well**2 + 0.5 * well).exp(), well)
    assert abs(float(one) / WELL_NORMALISER - 1) < 1e-8
    assert abs(load_target("manywell").log_z - 164.69568) < 1e-4


@pytest.mark.parametrize("name", ["mixture9", "manywell", "sphere3"])
def test_exact_draws_have_the_modes_and_bins_that_are_written_down(name):
    target = load_target(name)
    x = target.draw(40_000, gen())
    seen = target.modes(x)
    assert (seen < 0).float().mean() < 1e-3  # four deviations off
    share = torch.bincount(seen[seen >= 0], minlength=len(target.mode_mass)) / 40_000
    off = (share - torch.tensor(target.mode_mass)).abs()
    assert off.max() < 0.015 and target.modes_found(x) == len(target.mode_mass)
    assert target.modes_found(x[target.modes(x) > 0]) == len(target.mode_mass) - 1
    if target.bins is not None:
        assert target.total_variation(x) < 1.2 * target.floor(40_000)


def test_draws_of_the_wells_have_the_moments_of_quadrature():
    x = load_target("manywell").draw(20_000, gen())
    line = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    mass = (-(line**4) + 6 * line**2 + 0.5 * line).exp()
    assert abs(float(x[:, ::2].mean()) - float((mass * line).sum() / mass.sum())) < 0.02
    assert abs(float(x[:, 1::2].std()) - 1) < 0.01


def test_rotations_have_the_normaliser_of_their_closed_form_and_angles_go_round():
    """Lee 2018: one integral of Bessel functions a mode, beside the grid over all rotations."""
    target = load_target("rotations2")
    value = [
        float(fisher_normaliser(torch.tensor(s).double())) - sum(s) + w
        for s, w in (([9.0, 6.0, 2.0], 0.0), ([7.0, 7.0, 4.0], 0.5))
    ]
    closed = float(torch.tensor(value).double().logsumexp(0)) + math.log(8 * math.pi**2)
    assert abs(closed - target.log_z) < 2e-3
    share = torch.rand(500, 3, generator=gen(), dtype=torch.float64)
    x = from_angles(share)
    target.space.check(x, 1e-6)
    place = (share * 12).long()
    assert torch.equal(target.bins(x), (place[:, 0] * 12 + place[:, 1]) * 12 + place[:, 2])
    many = target.space.sample_uniform((100_000,), generator=gen(1), dtype=torch.float64)
    counts = torch.bincount(target.bins(many), minlength=1728).double()
    assert ((counts - 100_000 / 1728).square() / (100_000 / 1728)).mean() < 1.2  # bins of equal volume


@pytest.mark.parametrize("name", KNOWN)
def test_every_target_is_evaluated_with_gradients_and_looked_at(name):
    target = load_target(name)
    x = target.base.sample(9, gen())
    value, slope = Energy(target.log_density, target.space, name=name).value_and_gradient(x)
    assert value.shape == (9,) and slope.isfinite().all() and slope.abs().sum() > 0
    assert target.base.log_prob(x).shape == (9,) and target.view(x).shape == (9, 2)
    assert set(KNOWN) <= set(TARGETS)


def test_the_torsion_energy_has_several_basins():
    angle = torch.arange(120) * (2 * math.pi / 120)
    e = torsion_energy(angle[:, None], angle[None])
    low = torch.ones_like(e, dtype=torch.bool)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            low &= (e < e.roll((i, j), (0, 1))) | (i == 0 and j == 0)
    assert int(low.sum()) >= 3


def test_functions_of_the_user_are_targets(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text("def energy(x):\n    return 0.5 * (x ** 2).sum(-1)\n")
    target = load_target(f"{file}:energy", "euclidean:2", 2.0)
    assert target.name == "energy" and target.scale == 2.0
    assert torch.equal(target.log_density(torch.ones(3, 2)), -torch.ones(3))
    monkeypatch.chdir(tmp_path)
    assert load_target("mine:energy", "torus:2").space.period == 2 * math.pi
    for name, space, error, words in [
        ("mixture10", None, ValueError, "no target 'mixture10'; there are mixture9"),
        ("funnel", "so3", ValueError, "has its own space"),
        (f"{file}:energy", None, ValueError, "needs --space"),
        (f"{file}:nothing", "so3", ImportError, "has no function 'nothing'"),
        ("nowhere.py:energy", "so3", FileNotFoundError, "there is no file"),
        ("no_such_module:energy", "so3", ImportError, "no_such_module"),
    ]:
        with pytest.raises(error, match=words):
            load_target(name, space)
    file.write_text("import nothing_like_it\n")
    with pytest.raises(ImportError, match=r"mine\.py cannot be imported: ModuleNotFoundError"):
        load_target(f"{file}:energy", "so3")
    with pytest.raises(ValueError, match="scale must be positive"):
        load_target("funnel", scale=0.0)


def test_spaces_by_name():
    assert space_of("so3").event_ndim == 2 and space_of("euclidean:4").dim == 4
    for text in ("so3:2", "cube:3", "torus:0", "torus", "sphere:x"):
        with pytest.raises(ValueError, match="must be euclidean:D"):
            space_of(text)
