"""The diffusion sampler of a target, on one screen."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from manifoldflow import gflownet as gf
from manifoldflow.energies import (
    Brownian,
    CoordinateControl,
    DiffusionSampler,
    Energy,
    MlpControl,
    OrnsteinUhlenbeck,
    bounded_balance,
    grid,
    resampled,
    sequential_monte_carlo,
)
from manifoldflow.tasks.common.runs import configured
from manifoldflow.tasks.common.seeds import generator_of
from manifoldflow.tasks.energies.targets import TARGETS, Target, load_target, space_of

Method = Literal["tb", "dgfs", "vargrad", "pis", "dds", "adaptive"]


@dataclass
class SamplerConfig:
    r"""How a diffusion sampler is made. What is None is the target's own, or the method's.

    Args:
        method: ``tb`` (trajectory balance with exploration, buffer and local search), ``dgfs`` (balance of all pieces of
            trajectories, with a learned flow), ``vargrad`` (the batch's own log Z), ``pis`` (reverse divergence, Brownian
            reference), ``dds`` (reverse divergence, Ornstein-Uhlenbeck reference), ``adaptive`` (the same in few steps, with a
            learned way back, wide bounds on the noise, and a learned centre, scale and rate of the reference).
        steps: of the diffusion.
        power: of the time grid; above 1 the last steps are the shortest.
        sigma: length of the reference's noise in all.
        network: ``mlp``, or ``coordinates``: one small network shared by all coordinates.
        width, depth: of the network.
        guided: the slope of the target steers, too: as many energy calls a trajectory as steps.
        explore, explore_steps: wider noise in training, and until when.
        replayed: share of training steps from the buffer.
        search_every, search_moves: local search.
        sharpness: of the buffer's preference for good states; large for none.
        seed_calls: energy calls of a tempered Monte Carlo run whose states fill the buffer first; they count with the training's.
        anneal_steps, anneal_from: of ``pis``, ``dds`` and ``adaptive``, until when the target is between the reference's law and
            its own, and how little of its own it begins with.
        widest: bound on the log of the factor on the noise.
        learned_back: the way back has a network of its own.
        learned_reference: centre, scale and rate of an Ornstein-Uhlenbeck reference are learned, for every coordinate.
        bound: gap of balance beyond which the loss of a trajectory grows linearly only.
        target, space, scale: what it was trained on.
    """

    method: Method = "tb"
    steps: int | None = None
    power: float | None = None
    sigma: float | None = None
    network: Literal["mlp", "coordinates"] = "mlp"
    width: int = 64
    depth: int = 3
    guided: bool | None = None
    explore: float = 0.2
    explore_steps: int = 1000
    replayed: float = 0.5
    search_every: int = 50
    search_moves: int = 20
    sharpness: float = 0.1
    seed_calls: int = 0
    anneal_steps: int = 0
    anneal_from: float = 1e-4
    widest: float | None = None
    learned_back: bool | None = None
    learned_reference: bool | None = None
    bound: float = 50.0
    target: str = ""
    space: str | None = None
    scale: float | None = None


def make(config: SamplerConfig, target: Target, *, timeout: float = 0.0) -> DiffusionSampler:
    """The untrained sampler of a target."""
    space, scale = target.space, config.sigma or target.scale
    slow = config.method in ("dgfs", "pis", "dds")  # these learn from slopes
    guided = slow if config.guided is None else config.guided
    adaptive = config.method == "adaptive"
    learned_back = adaptive if config.learned_back is None else config.learned_back
    learned_reference = adaptive if config.learned_reference is None else config.learned_reference
    reference: Any = Brownian(space, scale)
    if config.method in ("dds", "adaptive"):
        reference = OrnsteinUhlenbeck(space, scale, learned=learned_reference)
    loss: Any = {
        "tb": bounded_balance(config.bound),
        "dgfs": gf.subtrajectory_balance(1.0),
        "vargrad": bounded_balance(config.bound, learned=False),
    }.get(config.method, "kl")
    local = config.method in ("tb", "vargrad")
    times = grid(config.steps or (8 if adaptive else 50), config.power or (1.0 if adaptive else 2.0))
    widest = config.widest if config.widest is not None else 3.0 if adaptive else 1.0
    return DiffusionSampler(
        Energy(target.log_density, space, name=f"the energy of {target.name}", timeout=timeout),
        reference, network(config, space, scale, guided), times, loss=loss, guided=guided,
        explore=config.explore, explore_steps=config.explore_steps, replayed=config.replayed if local else 0.0,
        search_every=config.search_every if local else 0, search_moves=config.search_moves, widest=widest,
        sharpness=config.sharpness, anneal_steps=config.anneal_steps, anneal_from=config.anneal_from,
        back=network(config, space, scale, False) if learned_back else None,
    )  # fmt: skip


def network(config: SamplerConfig, space: Any, scale: float, sloped: bool) -> Any:
    """A network that steers."""
    make_one: Any = CoordinateControl if config.network == "coordinates" else MlpControl
    return make_one(space, scale, width=config.width, depth=config.depth, sloped=sloped)


def build(config: SamplerConfig | dict[str, Any] | None = None) -> DiffusionSampler:
    """The sampler of a checkpoint. A function of the user's is never imported from here: it is named again where it is needed."""
    config = configured(SamplerConfig, config, "energy sampler")
    if config.target in TARGETS:
        target = load_target(config.target, None, config.scale)
    elif config.space is not None:
        target = Target("yours", space_of(config.space), _absent, scale=config.scale or 1.0)
    else:
        raise ValueError(f"energy sampler configuration: no target {config.target!r} and no space")
    made = make(config, target)
    made.builder, made.config = "manifoldflow.tasks.energies.sampler:build", asdict(config)
    return made


def _absent(x: Any) -> torch.Tensor:
    raise ValueError(
        "this sampler was trained on a function of yours, which a checkpoint does not hold: name it with --target"
    )


def fill_buffer(model: DiffusionSampler, target: Target, calls: int, number: int) -> None:
    """Fill the buffer by tempered sequential Monte Carlo of 20 temperatures."""
    before = model.energy.calls
    made = sequential_monte_carlo(
        model.energy, target.base, size=max(2, round(calls / 101)), temperatures=20, step=0.1 * target.scale,
        generator=generator_of(number),
    )  # fmt: skip
    model.seeded(resampled(made, len(made.log_weight), generator=generator_of(number, 1)), made.log_z)
    assert model.energy.calls > before
