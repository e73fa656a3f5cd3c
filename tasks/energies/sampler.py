"""The diffusion sampler of a target, on one screen."""

from dataclasses import asdict, dataclass, fields, replace
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
)
from manifoldflow.tasks.common.runs import configured
from manifoldflow.tasks.energies.targets import TARGETS, Target, load_target, space_of

Method = Literal["tb", "dgfs", "vargrad", "pis", "dds"]


@dataclass
class SamplerConfig:
    r"""How a diffusion sampler is made. What is None is the target's own, or the method's.

    Args:
        method: ``tb`` (trajectory balance with exploration, buffer and local search), ``dgfs`` (balance of all pieces of
            trajectories, with a learned flow), ``vargrad`` (the batch's own log Z), ``pis`` (reverse divergence, Brownian
            reference), ``dds`` (reverse divergence, Ornstein-Uhlenbeck reference).
        steps: of the diffusion.
        power: of the time grid; above 1 the last steps are the shortest.
        sigma: length of the reference's noise in all.
        network: ``mlp``, or ``coordinates``: one small network shared by all coordinates.
        width, depth: of the network.
        guided: the slope of the target steers, too: as many energy calls a trajectory as steps.
        explore, explore_steps: wider noise in training, and until when.
        replayed: share of training steps from the buffer.
        search_every, search_moves: local search.
        widest: bound on the log of the factor on the noise.
        target, space, scale: what it was trained on.
    """

    method: Method = "tb"
    steps: int = 50
    power: float = 2.0
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
    widest: float = 1.0
    target: str = ""
    space: str | None = None
    scale: float | None = None


def make(config: SamplerConfig, target: Target, *, timeout: float = 0.0) -> DiffusionSampler:
    """The untrained sampler of a target."""
    space, scale = target.space, config.sigma or target.scale
    slow = config.method in ("dgfs", "pis", "dds")  # these learn from slopes
    guided = slow if config.guided is None else config.guided
    reference: Any = Brownian(space, scale)
    if config.method == "dds":
        reference = OrnsteinUhlenbeck(space, scale)
    network: Any = (
        CoordinateControl(space, scale, width=config.width, depth=config.depth, sloped=guided)
        if config.network == "coordinates"
        else MlpControl(space, scale, width=config.width, depth=config.depth, sloped=guided)
    )
    loss: Any = {
        "tb": bounded_balance(),
        "dgfs": gf.subtrajectory_balance(1.0),
        "vargrad": bounded_balance(learned=False),
        "pis": "kl",
        "dds": "kl",
    }[config.method]
    local = config.method in ("tb", "vargrad")
    return DiffusionSampler(
        Energy(target.log_density, space, name=f"the energy of {target.name}", timeout=timeout),
        reference, network, grid(config.steps, config.power), loss=loss, guided=guided,
        explore=config.explore, explore_steps=config.explore_steps, replayed=config.replayed if local else 0.0,
        search_every=config.search_every if local else 0, search_moves=config.search_moves, widest=config.widest,
    )  # fmt: skip


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


def configured_for(config: SamplerConfig, target: Target, given: set[str]) -> SamplerConfig:
    """The configuration with the target's own settings where nothing was given."""
    own = target.settings.get(config.method, {}) | {}
    known = {f.name for f in fields(SamplerConfig)}
    return replace(config, **{k: v for k, v in own.items() if k in known and k not in given})
