"""Boltzmann generators: densities, weights, both losses, annealing, free-energy differences from an ensemble."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from manifoldflow.distributions import Normal, Uniform
from manifoldflow.energies import (
    BoltzmannGenerator,
    Ensemble,
    Product,
    cooling,
    one_sided,
    reweighting,
    soften,
    two_sided,
)
from manifoldflow.energies.annealing import truncated
from manifoldflow.flows import Chain, CircularSpline, LineSpline, SplitCoupling
from manifoldflow.manifolds import Euclidean, Torus
from manifoldflow.manifolds.rotation import quaternion_to_matrix
from manifoldflow.tasks.energies.rotations import build
from manifoldflow.tasks.energies.targets import load_target
from manifoldflow.training import TrainConfig, fit

QUICK: dict[str, Any] = {"weight_decay": 0.0, "ema": 0.98, "warmup_steps": 10, "gradient_clip": 5.0, "progress": False}


def mixed_flow(seed: int = 0, scale: float = 0.2) -> Chain:
    """Of one line and one circle."""
    transforms = {"line": LineSpline(6), "angle": CircularSpline(6)}
    masks = [{"line": [True], "angle": [False]}, {"line": [False], "angle": [True]}] * 2
    flow = Chain(SplitCoupling(transforms, kept, width=24) for kept in masks)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return flow


def source() -> Product:
    return Product({"line": Normal(manifold=Euclidean(1)), "angle": Uniform(Torus(1, 2 * math.pi))})


def pair_energy(x: Any) -> Tensor:
    """A well that moves with an angle; log Z = log(2 pi) / 2 + log(0.5) + log(2 pi I_0(1))."""
    line, angle = x["line"].squeeze(-1), x["angle"].squeeze(-1)
    return 0.5 * ((line - angle.sin()) / 0.5) ** 2 - angle.cos()


LOG_Z = 0.5 * math.log(2 * math.pi) + math.log(0.5) + math.log(2 * math.pi * float(torch.special.i0(torch.tensor(1.0))))


def test_density_of_a_generator_integrates_to_one_and_is_that_of_its_samples() -> None:
    model = BoltzmannGenerator(source(), mixed_flow(), pair_energy)
    line, angle = torch.meshgrid(torch.linspace(-8, 8, 400), torch.linspace(0, 2 * math.pi, 201)[:-1], indexing="ij")
    grid = {"line": line.reshape(-1, 1), "angle": angle.reshape(-1, 1)}
    mass = model.log_prob(grid).exp().sum() * (16 / 399) * (2 * math.pi / 200)
    assert float(mass.detach()) == pytest.approx(1, abs=5e-3)
    laws = {"line": Normal(manifold=Euclidean(1)), "angle": Uniform(Torus(1, 2 * math.pi))}
    exact = BoltzmannGenerator(Product(laws, dtype=torch.float64), mixed_flow().double(), pair_energy)
    made = exact.weighted(500, generator=torch.Generator().manual_seed(0))
    assert (made.log_prob - exact.log_prob(made.x)).abs().max() < 1e-8


def test_weights_of_an_untrained_generator_give_log_z_and_averages() -> None:
    model = BoltzmannGenerator(source(), mixed_flow(scale=0.02), pair_energy)
    made = model.weighted(40_000, batch=9000, generator=torch.Generator().manual_seed(0))
    assert abs(float(made.log_z.value) - LOG_Z) < 4 * float(made.log_z.error) < 0.2
    cosine = float((made.weights * made.x["angle"].squeeze(-1).cos()).sum())
    assert cosine == pytest.approx(0.44639, abs=0.05)  # I_1(1) / I_0(1)
    again = made.resampled(5000, generator=torch.Generator().manual_seed(1))
    assert float(again["angle"].cos().mean()) == pytest.approx(cosine, abs=0.04)


def test_weights_at_another_temperature_are_those_of_a_new_weighing() -> None:
    model = BoltzmannGenerator(source(), mixed_flow(), pair_energy)
    hot = model.weighted(300, temperature=2.0, generator=torch.Generator().manual_seed(0))
    cold = model.weighted(300, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(hot.at(1.0, before=2.0).log_weight, cold.log_weight, atol=1e-5)
    assert not torch.allclose(hot.log_weight, cold.log_weight, atol=1e-2)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_both_losses_lead_to_the_target(kind: str) -> None:
    torch.manual_seed(0)
    model = BoltzmannGenerator(source(), mixed_flow(scale=0.0), pair_energy)
    start = model.weighted(4000, generator=torch.Generator().manual_seed(9))
    batches: Any = [{"size": 128}]
    if kind == "forward":  # samples of the target by resampling many uniform ones
        data = model.weighted(40_000, batch=40_000, generator=torch.Generator().manual_seed(8)).resampled(4000)
        batches = [{"x": {k: v[i : i + 128] for k, v in data.items()}} for i in range(0, 3968, 128)]
    model = fit(model, batches, TrainConfig(max_steps=90, learning_rate=1.2e-2, **QUICK), out=None)
    made = model.weighted(4000, generator=torch.Generator().manual_seed(9))
    assert made.effective_share > 0.8 and made.effective_share > start.effective_share + 0.2
    assert float(made.log_z.value) == pytest.approx(LOG_Z, abs=0.02)


def test_weighted_data_move_the_forward_loss_to_the_weighted_law() -> None:
    model = BoltzmannGenerator(source(), mixed_flow(), pair_energy)
    x = model.sample(6, generator=torch.Generator().manual_seed(0))
    only = torch.tensor([0.0, -math.inf, -math.inf, 0.0, -math.inf, -math.inf])
    loss = model.loss_of(model.draw(x=x, log_weight=only))["forward"]
    two = {k: v[[0, 3]] for k, v in x.items()}
    assert float((loss - model.loss_of(model.draw(x=two))["forward"]).abs().detach()) < 1e-5


def test_rotations_of_a_bimodal_law_are_learned_from_its_energy_alone() -> None:
    torch.manual_seed(0)
    steps = 120
    config = TrainConfig(max_steps=steps, learning_rate=6e-3, **QUICK)
    model = build({"layers": 3, "width": 32})
    batches = reweighting(model, 192, hot=5.0, steps=steps // 2, buffer=1536, every=8)
    made = fit(model, batches, config, out=None).weighted(20_000, generator=torch.Generator().manual_seed(1))
    target = load_target("rotations2")
    assert target.log_z is not None and target.modes is not None
    assert made.effective_share > 0.6
    assert abs(float(made.log_z.value) - target.log_z) < 0.02
    first = target.modes(quaternion_to_matrix(made.x)) == 0
    assert float(made.weights[first].sum()) == pytest.approx(target.mode_mass[0], abs=0.02)


def test_an_ensemble_as_source_gives_the_free_energy_difference() -> None:
    """From the well x^2/2 to one of scale 0.5 around 1, by samples of the first and a flow of one affine step."""
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    hot = Ensemble(x, lambda v: 0.5 * v.squeeze(-1) ** 2)
    flow = SplitCoupling({"": LineSpline(4)}, {"": [False]}, width=4)
    cold = lambda v: 0.5 * ((v.squeeze(-1) - 1) / 0.5) ** 2 + 7  # noqa: E731
    model = BoltzmannGenerator(hot, flow, cold)
    exact = 7 - math.log(0.5)
    made = model.weigh(hot.take(torch.arange(4000)))
    ends = 1 + 0.5 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    both = two_sided(-made.log_weight, model.reverse_work(ends))
    assert abs(float(one_sided(-made.log_weight).value) - exact) < 0.15
    assert abs(float(both.value) - exact) < 4 * float(both.error) < 0.2
    with torch.no_grad():  # the exact map: no work is lost
        free = list(flow.network.layers)[-1].bias
        free[-2:] = torch.tensor([math.log(0.5), 1.0])
    perfect = model.weigh(hot.take(torch.arange(4000)))
    assert perfect.effective_share == pytest.approx(1, abs=1e-3)
    assert float(-perfect.log_z.value) == pytest.approx(exact, abs=1e-3)


def test_cooling_is_geometric_and_goes_on_where_it_stopped() -> None:
    batches = cooling(8, 16.0, 4)
    first = batches(0)
    assert [next(first)["temperature"] for _ in range(6)] == pytest.approx([16, 8, 4, 2, 1, 1])
    assert next(batches(3)) == {"size": 8, "temperature": pytest.approx(2)}
    with pytest.raises(ValueError, match="hot >= 1"):
        cooling(8, 0.5, 4)


def test_batches_of_reweighting_follow_the_law_at_their_temperature() -> None:
    model = BoltzmannGenerator(source(), mixed_flow(scale=0.02), pair_energy)
    batches = reweighting(model, 4000, hot=4.0, steps=2, buffer=20_000, every=1, keep=2, own=3)(0)
    for temperature in (4.0, 2.0, 1.0):
        batch = next(batches)
        assert batch["temperature"] == pytest.approx(temperature) and batch["size"] == 3
        ratio = torch.special.i1(torch.tensor(1 / temperature)) / torch.special.i0(torch.tensor(1 / temperature))
        assert float(batch["x"]["angle"].cos().mean()) == pytest.approx(float(ratio), abs=0.06)
    again = next(reweighting(model, 4000, buffer=500, own=3)(7))
    assert torch.equal(next(reweighting(model, 4000, buffer=500, own=3)(7))["x"]["line"], again["x"]["line"])
    weights = truncated(torch.tensor([50.0, *[0.0] * 99]))
    assert float(weights.max() / weights.sum()) == pytest.approx(1.0, abs=1e-3)  # one weight is all there is
    weights = truncated(torch.tensor([6.0, *[0.0] * 99], dtype=torch.float64))
    assert float(weights[0] / weights[1]) == pytest.approx(0.1 / (1 / (math.exp(6) + 99)), rel=1e-6)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        reweighting(model, 0)


def test_clashes_are_softened_in_training_and_never_in_weights() -> None:
    energy = torch.tensor([1.0, 5.0, 1e9, math.nan], requires_grad=True)
    soft = soften(energy, 10.0)
    assert torch.equal(soft[:2], energy[:2]) and 11 < float(soft[2].detach()) < 35 and soft[3].isnan()
    assert soften(energy, math.inf) is energy
    slope = torch.autograd.grad(soft[:3].sum(), energy)[0]
    assert slope[0] == 1 and slope[1] == 1 and 0 < slope[2] < 1e-6

    def spiky(x: Any) -> Tensor:
        return torch.where(x["line"].squeeze(-1) > 0, torch.nan, pair_energy(x))

    model = BoltzmannGenerator(source(), mixed_flow(), spiky, soft_above=5.0)
    loss = model.loss_of(model.draw(size=64, generator=torch.Generator().manual_seed(0)))["reverse"]
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    made = model.weighted(64, generator=torch.Generator().manual_seed(0))
    assert (made.log_weight[made.x["line"].squeeze(-1) > 0] == -math.inf).all() and made.log_z.value.isfinite()


def test_mistakes_are_named() -> None:
    model = BoltzmannGenerator(source(), mixed_flow())
    with pytest.raises(ValueError, match="a batch needs 'x'"):
        model.draw()
    with pytest.raises(ValueError, match="no energy="):
        model.weighted(3)
    assert copy.deepcopy(model).log_prob(model.sample(3)).shape == (3,)
