"""The crystal flow: positions on a torus, species as tokens, the cell as a positive-definite matrix, one model of all three."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.spd import LogEuclideanSPD
from manifoldflow.tasks.common.runs import configured
from manifoldflow.tasks.crystals.couplings import AtomOT
from manifoldflow.tasks.crystals.elements import ELEMENTS
from manifoldflow.tasks.crystals.equivariant import EquivariantCrystalNetwork
from manifoldflow.tasks.crystals.model import CrystalNetwork, NetworkConfig
from manifoldflow.tasks.crystals.sources import LogNormalCells

Method = Literal["geodesic", "diffusion", "interpolant", "bayesian"]
Architecture = Literal["pairs", "e3nn"]
CLOCKS = {"species": "chemistry", "frac": "structure", "lattice": "structure"}
BUILDER = "manifoldflow.tasks.crystals.flow:build"


@dataclass
class CrystalConfig:
    """Everything that defines a crystal flow.

    Args:
        network: size of the network.
        method: how positions are generated: "geodesic" flow matching, "diffusion" (wrapped normal), "interpolant" (stochastic),
            or the periodic "bayesian" flow.
        cell: metric of the space of cells: "log" (log-Euclidean) or "affine" (affine-invariant).
        architecture: of the network: "pairs" (:class:`CrystalNetwork`, invariant messages between pairs of atoms) or "e3nn"
            (:class:`EquivariantCrystalNetwork`, with vectors and tensors in real space).
        cell_mean, cell_scale: of the source of the cells, per atom; fitted to the training data by `train`.
        given_species: share of the training crystals whose species are given: 1 learns structure prediction alone, 0 de novo
            generation alone.
        transport: pair noise and data by optimal transport of the atoms.
        finest: training times and solver steps are even in the logarithm of what is left of the noise, down to this share.
        anneal: slope of the velocity at sampling, 0 for none; geodesic flow only.
        species_path: how species are generated: "masking" unmasks each once; "bayesian", for the method of that name, observes
            them as it does the positions, and the network sees beliefs of both.
        noise: of the interpolant, in turns; largest and smallest of the diffusion: 0.5 and ``least_noise``.
        least_noise: smallest noise of the diffusion, in turns.
        accuracy_steps: observations of the Bayesian flow.
        conditions: what a crystal may be asked to be ("space_group", "energy_above_hull", "band_gap"), any of them or none at a
            time; filled in by ``train --conditions``.
        condition_mean, condition_scale: of the conditions that are numbers, in their order.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    method: Method = "geodesic"
    cell: Literal["log", "affine"] = "log"
    architecture: Architecture = "pairs"
    cell_mean: tuple[float, ...] = (1.7, 1.7, 1.7, 0.0, 0.0, 0.0)
    cell_scale: tuple[float, ...] = (0.3, 0.3, 0.3, 0.3, 0.3, 0.3)
    given_species: float = 1.0
    transport: bool = True
    finest: float = 0.03
    anneal: float = 0.0
    noise: float = 0.05
    least_noise: float = 0.003
    accuracy_steps: int = 1000
    species_path: Literal["masking", "bayesian"] = "masking"
    conditions: tuple[str, ...] = ()
    condition_mean: tuple[float, ...] = ()
    condition_scale: tuple[float, ...] = ()


NETWORKS: dict[str, type[CrystalNetwork]] = {"pairs": CrystalNetwork, "e3nn": EquivariantCrystalNetwork}


def build(config: CrystalConfig | dict[str, Any] | None = None) -> mf.Flow:
    """A crystal flow from its configuration (a :class:`CrystalConfig`, or the dict that a checkpoint holds).

    Its lattice is that of :func:`manifoldflow.tasks.crystals.batches.per_atom`: the metric tensor over the number of atoms to
    the power 2/3.

    Raises:
        ValueError: beliefs of species beside positions without.
    """
    c = _as_config(config)
    if c.architecture not in NETWORKS:
        raise ValueError(f"architecture must be one of {', '.join(NETWORKS)}, got {c.architecture!r}")
    is_believed = c.species_path == "bayesian"
    if is_believed and c.method != "bayesian":
        raise ValueError(f'species_path "bayesian" is for method "bayesian", not for {c.method!r}')
    cells = LogEuclideanSPD(3) if c.cell == "log" else mf.SPD(3)
    source = LogNormalCells(tuple(c.cell_mean), tuple(c.cell_scale))  # type: ignore[arg-type]
    scale = max(c.cell_scale)
    network = NETWORKS[c.architecture](
        c.network,
        outputs=2 if c.method == "interpolant" else 1,
        frac_scale={"diffusion": (1.0,), "interpolant": (0.25, 1.0)}.get(c.method, (0.25,)),
        centred=c.method != "bayesian",  # a belief has a place of its own, which the guess may correct
        beliefs=c.method == "bayesian",
        lattice_endpoint=c.method == "bayesian",
        lattice_mean=c.cell_mean,
        lattice_scale=scale,
        affine=c.cell == "affine",
        conditions=(c.conditions, c.condition_mean, c.condition_scale),
    )
    flow = mf.Flow(
        spaces={
            "species": mf.Tokens(ELEMENTS, mask=not is_believed),
            "frac": mf.Torus(3),
            "lattice": mf.Field(cells, per="graph"),
        },
        source={"frac": mf.Uniform()} | ({} if c.method == "bayesian" else {"lattice": source}),
        path={
            "species": mf.CategoricalBayes(objective="cross_entropy") if is_believed else mf.Masking(),
            **_paths(c, source),
        },
        coupling=AtomOT(across=c.given_species < 1)
        if c.transport and c.method in ("geodesic", "interpolant")
        else None,
        model=network,
        weights={
            "species": 0.3,
            **WEIGHTS[c.method],
            **({} if c.method == "bayesian" else {"lattice": 0.15 / scale**2}),
        },
        pin=GivenSpecies(c.given_species),
        clocks=CLOCKS,
        time_warp=mf.Late(c.finest) if c.method in ("geodesic", "interpolant") else None,
    )
    flow.builder, flow.config = BUILDER, asdict(c)
    return flow


WEIGHTS: dict[str, dict[str, float]] = {
    "geodesic": {"frac": 6.0},
    "interpolant": {"frac": 6.0},
    "diffusion": {"frac": 0.33},
    "bayesian": {"frac": 0.1, "lattice": 0.03},
}
"""Of the fields' losses: those of positions are of order 1 at the start."""


def _paths(c: CrystalConfig, source: LogNormalCells) -> dict[str, Any]:
    anneal = mf.Annealed(c.anneal) if c.anneal else None
    if c.method == "diffusion":
        return {"frac": mf.WrappedDiffusion(0.5, c.least_noise), "lattice": mf.Geodesic()}
    if c.method == "bayesian":
        cells = mf.GaussianBayes(scale=source.scale, centre=source.centre)
        return {"frac": mf.PeriodicBayes(steps=c.accuracy_steps), "lattice": cells}
    if c.method == "interpolant":
        return {
            "frac": mf.StochasticInterpolant(noise=mf.BumpNoise(c.noise), noise_weight=0.03),
            "lattice": mf.Geodesic(),
        }
    return {"frac": mf.Geodesic(sample_schedule=anneal), "lattice": mf.Geodesic(sample_schedule=anneal)}


def _as_config(config: CrystalConfig | dict[str, Any] | None) -> CrystalConfig:
    if not isinstance(config, dict):
        return config or CrystalConfig()
    given = config.get("network")
    if isinstance(given, dict):  # a checkpoint from before there were shells
        given = {"radial": 0, **given}
    network = configured(NetworkConfig, given, "crystal flow")
    return configured(CrystalConfig, {**config, "network": network}, "crystal flow")


@dataclass(frozen=True)
class GivenSpecies:
    """Which training crystals show their species clean: a share of them, all atoms each.

    Args:
        share: of the crystals.
    """

    share: float

    def __call__(self, mask: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        draw = torch.rand(mask.shape[0], 1, device=mask.device, generator=generator)
        return {"species": mask & (draw < self.share)}


def annealed(flow: mf.Flow, slope: float) -> mf.Flow:
    """``flow`` with another slope of the velocity at sampling; changed in place and returned."""
    for name in ("frac", "lattice"):
        path = flow.path[name]
        if isinstance(path, mf.Geodesic):
            flow.path[name] = replace(path, sample_schedule=mf.Annealed(slope) if slope else None)
    return flow
