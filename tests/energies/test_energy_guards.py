"""What an energy does wrong is said in one line, with the sample that it was given."""

import threading

import pytest
import torch

import manifoldflow as mf
from manifoldflow.energies import Base, Energy, hmc, sequential_monte_carlo, walkers_at
from manifoldflow.energies.energy import describe

PLANE = mf.Euclidean(2)


def flat(x):
    return -0.5 * x.square().sum(-1)


def broken(kind):
    def log_density(x):
        value = flat(x)
        at_third = torch.arange(len(x)) == 3
        if kind == "nan":
            return torch.where(at_third, torch.nan, value)
        if kind == "infinite":
            return torch.where(at_third, torch.inf, value)
        if kind == "length":
            return value[:-1]
        if kind == "type":
            return value.tolist()
        if kind == "raises" and bool((x[:, 0] > 90).any()):
            raise ZeroDivisionError("no such place")
        if kind == "ends" and bool((x[:, 0] > 90).any()):
            raise SystemExit(0)
        if kind == "times out" and bool((x[:, 0] > 90).any()):
            raise TimeoutError("the host is silent")
        if kind == "hangs" and bool((x[:, 0] > 90).any()):
            threading.Event().wait(20)
        return value

    return log_density


@pytest.mark.parametrize("verb", ["__call__", "value_and_gradient"])
@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("nan", ValueError, r"alanine is nan for sample 3 of 5, x = \(99, 7\)"),
        ("infinite", ValueError, r"alanine is inf for sample 3 of 5"),
        ("length", ValueError, r"alanine must return one number a sample, shape \(5,\), got shape \(4,\)"),
        ("type", ValueError, r"got list"),
        ("raises", ValueError, r"alanine raised ZeroDivisionError: no such place; first at sample 3, x = \(99, 7\)"),
        ("ends", ValueError, r"alanine raised SystemExit: 0; first at sample 3, x = \(99, 7\)"),
        ("times out", ValueError, r"alanine raised TimeoutError: the host is silent; first at sample 3"),
        ("hangs", TimeoutError, r"no answer within 0.2 s for 5 samples; first at sample 3"),
    ],
)
def test_every_mistake_of_an_energy_names_the_sample(kind, error, words, verb):
    energy = Energy(broken(kind), PLANE, name="alanine", timeout=0.2 if kind == "hangs" else 0.0)
    x = torch.ones(5, 2)
    x[3] = torch.tensor([99.0, 7.0])
    with pytest.raises(error, match=words):
        getattr(energy, verb)(x)


def test_calls_are_counted_by_sample_and_a_gradient_comes_with_its_value():
    energy = Energy(flat, PLANE, timeout=5.0)
    x = torch.randn(7, 2)
    value, slope = energy.value_and_gradient(x)
    assert energy.calls == 7 and torch.equal(value, flat(x)) and torch.equal(slope, -x)
    energy(x[:3])
    assert energy.calls == 10
    y = x.clone().requires_grad_(True)
    energy(y).sum().backward()  # through the thread of the time limit, too
    assert torch.equal(y.grad, -x)


def test_no_mass_is_an_answer_and_its_gradient_is_zero():
    energy = Energy(lambda x: torch.where(x[:, 0] > 0, flat(x), -torch.inf), PLANE)
    value, slope = energy.value_and_gradient(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert value[1] == -torch.inf and slope[1].abs().sum() == 0 and slope[0, 0] == -1


def test_gradients_are_tangents_of_every_field():
    sphere = mf.Sphere(2)
    energy = Energy(lambda s: s["v"] @ torch.tensor([1.0, 2.0, 3.0]) + s["r"].diagonal(dim1=-2, dim2=-1).sum(-1),
                    {"v": sphere, "r": mf.SO3()})  # fmt: skip
    x = {"v": sphere.sample_uniform((4,)), "r": mf.SO3().sample_uniform((4,))}
    _, slope = energy.value_and_gradient(x)
    assert (slope["v"] * x["v"]).sum(-1).abs().max() < 1e-6 and slope["r"].shape == (4, 3)
    h = 1e-3
    for axis in range(3):
        w = h * torch.eye(3)[axis].expand(4, 3)
        rise = (energy({**x, "r": mf.SO3().exp(x["r"], w)}) - energy({**x, "r": mf.SO3().exp(x["r"], -w)})) / (2 * h)
        assert (rise - slope["r"][:, axis]).abs().max() < 2e-3


def test_chains_reject_points_without_a_value_and_say_how_many():
    """A wall of NaN at x0 > 1: the chain stays on its side, as at a wall of no mass."""
    energy = Energy(lambda x: torch.where(x[:, 0] > 1, torch.nan, flat(x)), PLANE)
    base = Base(lambda n, g=None: 0.3 * torch.randn(n, 2, generator=g), lambda x: flat(x))
    g = torch.Generator().manual_seed(0)
    start = base.sample(200, g).clamp_max(0.9)
    now = walkers_at(energy, base, start)
    for _ in range(30):
        now, _ = hmc(energy, base, now, torch.ones(200), torch.tensor(0.7), leapfrogs=3, generator=g)
    assert energy.refused > 50 and bool((now.x[:, 0] <= 1).all()) and bool((now.x[:, 0] > 0.5).any())
    with pytest.raises(ValueError, match="the energy is nan for sample"):
        sequential_monte_carlo(energy, Base(lambda n, g=None: 3 * torch.randn(n, 2, generator=g), flat), size=50)


def test_a_sample_is_described_by_its_first_numbers():
    x = {"a": torch.arange(20.0).view(2, 10), "b": torch.zeros(2, 1)}
    assert describe(x, 1) == "a = (10, 11, 12, 13, 14, 15, ...) and b = (0)"
