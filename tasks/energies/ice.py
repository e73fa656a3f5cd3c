"""Ice XI as rigid TIP4P-Ew water: the system, its crystal as rigid bodies, and a flow from one temperature to another."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manifoldflow.energies import BoltzmannGenerator, Ensemble, OpenMMEnergy, RigidBodies
from manifoldflow.energies.openmm import require_openmm
from manifoldflow.files import open_text
from manifoldflow.flows import Affine, BodyTransformer, Chain, FieldCoupling, Layer, Projective, Pushed
from manifoldflow.flows.base import with_field
from manifoldflow.manifolds.rotation import quaternion_to_matrix
from manifoldflow.state import State, first_tensor

SITES = 4
"""O, H, H, M of a molecule."""
OXYGEN_HYDROGEN, HYDROGEN_HYDROGEN, OXYGEN_M = 0.09572, 0.15139, 0.0125
"""Nanometers, of TIP4P-Ew."""


class Crystal(NamedTuple):
    """A stored configuration.

    Attributes:
        positions: ``(4 N, 3)`` nm.
        box: ``(3, 3)`` nm.
        cutoff: of the direct sum, nm.
    """

    positions: np.ndarray
    box: np.ndarray
    cutoff: float


def read_crystal(path: str | Path) -> Crystal:
    """A configuration of the shared set, ``iceXI_T250_N16.json``."""
    with open_text(path) as file:
        made = json.load(file)
    if made.get("water_type") != "tip4pew":
        raise ValueError(f"{path}: water_type is {made.get('water_type')!r}, expected 'tip4pew'")
    return Crystal(np.array(made["positions"]), np.array(made["box"]), float(made["nonbondedCutoff"]))


def make_system(crystal: Crystal) -> Any:
    """The OpenMM system: particle-mesh Ewald to 1e-4, Lennard-Jones switched off over the last tenth of the cutoff, with the
    correction for what lies beyond it. These are the settings of the reference free energies."""
    openmm = require_openmm()
    from openmm import app, unit

    topology = app.Topology()
    chain = topology.addChain()
    oxygen, hydrogen = (app.Element.getBySymbol(s) for s in "OH")
    for _ in range(len(crystal.positions) // SITES):
        residue = topology.addResidue("HOH", chain)
        o, *h = (topology.addAtom(n, e, residue) for n, e in (("O", oxygen), ("H1", hydrogen), ("H2", hydrogen)))
        topology.addAtom("M", None, residue)
        for atom in h:
            topology.addBond(o, atom)
    topology.setPeriodicBoxVectors(crystal.box * unit.nanometer)
    system = app.ForceField("tip4pew.xml").createSystem(
        topology, nonbondedMethod=app.PME, nonbondedCutoff=crystal.cutoff, rigidWater=True, removeCMMotion=True
    )
    force = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    force.setUseSwitchingFunction(True)
    force.setSwitchingDistance(0.9 * crystal.cutoff)
    force.setUseDispersionCorrection(True)
    force.setEwaldErrorTolerance(1e-4)
    return system


def make_energy(crystal: Crystal, temperature: float, *, platform: str = "CPU", workers: int = 1) -> OpenMMEnergy:
    """E / kT of site positions ``(B, 4 N, 3)`` in nm."""
    return OpenMMEnergy(make_system(crystal), temperature, platform=platform, workers=workers)


def simulate_crystal(
    crystal: Crystal,
    temperature: float,
    frames: int,
    *,
    every: int = 100,
    equilibration: int = 15_000,
    step_fs: float = 2.0,
    friction: float = 5.0,
    seed: int = 0,
    progress: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Molecular dynamics at fixed volume: rigid water, Langevin, periodic.

    Args:
        crystal: where it begins.
        temperature: kelvin.
        frames: how many to keep.
        every: steps between them.
        equilibration: steps before the first.
        step_fs: time step in femtoseconds.
        friction: of the thermostat, per picosecond.
        seed: of its noise.
        progress: called every 500 frames with the number so far, the positions and the energies.

    Returns:
        positions ``(F, 4 N, 3)`` nm, float32, molecules whole; energies ``(F,)`` kJ/mol.
    """
    openmm = require_openmm()
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, step_fs / 1000)
    integrator.setRandomNumberSeed(seed)
    integrator.setConstraintTolerance(1e-7)
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(make_system(crystal), integrator, platform, {"Threads": "1"})
    context.setPositions(crystal.positions)
    context.computeVirtualSites()
    context.setVelocitiesToTemperature(temperature, seed)
    integrator.step(equilibration)
    positions, energies = np.empty((frames, len(crystal.positions), 3), np.float32), np.empty(frames)
    for i in range(frames):
        integrator.step(every)
        state = context.getState(getEnergy=True, getPositions=True)
        energies[i] = state.getPotentialEnergy()._value
        positions[i] = state.getPositions(asNumpy=True)._value
        if progress is not None and (i + 1) % 500 == 0:
            progress(i + 1, positions[: i + 1], energies[: i + 1])
    return positions, energies


def make_bodies(positions: Tensor) -> RigidBodies:
    """The crystal at rest: mean sites and mean orientations of frames ``(F, 4 N, 3)``, their common drift removed."""
    x = positions.double().unflatten(-2, (-1, SITES))
    x = x - x[..., :1, :].mean(-3, keepdim=True)
    angle = 2 * math.asin(0.5 * HYDROGEN_HYDROGEN / OXYGEN_HYDROGEN)
    cos, sin = OXYGEN_HYDROGEN * math.cos(angle / 2), OXYGEN_HYDROGEN * math.sin(angle / 2)
    template = torch.tensor([[0, 0, 0], [cos, sin, 0], [cos, -sin, 0], [OXYGEN_M, 0, 0]], dtype=torch.float64)
    count = x.shape[-3]
    identity = torch.eye(1, 4, dtype=torch.float64).expand(count, 4)
    q = RigidBodies(template, torch.zeros(count, 3), identity).state(x.flatten(-3, -2))["rot"]
    second = torch.einsum("fni,fnj->nij", q, q)  # blind to the sign; its first eigenvector is the mean orientation
    mean = torch.linalg.eigh(second).eigenvectors[..., -1]
    return RigidBodies(template, x[..., 0, :].mean(0), mean)


class Symmetries(NamedTuple):
    """Proper symmetries of a crystal at rest that keep the axes: half turns and shifts. Molecule i goes to ``order[g, i]``.

    Attributes:
        order: ``(G, N)``.
        signs: ``(G, 3)``, the diagonal of the turn.
    """

    order: Tensor
    signs: Tensor

    def apply(self, x: State, which: Tensor) -> dict[str, Tensor]:
        """The images of samples under one symmetry each, ``which`` ``(B,)``: displacements and turns are carried along."""
        assert not isinstance(x, Tensor)
        source = self.order[which].argsort(-1).unsqueeze(-1)  # who comes to k
        signs = self.signs[which].unsqueeze(1).to(x["pos"])
        pos = x["pos"].gather(1, source.expand(-1, -1, 3)) * signs
        rot = x["rot"].gather(1, source.expand(-1, -1, 4)) * torch.nn.functional.pad(signs, (1, 0), value=1.0)
        return {"pos": pos, "rot": rot}


def find_symmetries(bodies: RigidBodies, box: np.ndarray, tolerance: float = 0.1) -> Symmetries:
    """Of an orthorhombic crystal: turns by signs with shifts that put every molecule upon another, hydrogens exchanged or not.

    Args:
        bodies: the crystal at rest.
        box: ``(3, 3)`` nm.
        tolerance: how far sites may lie apart, nm, and orientations, in the norm of the difference of their matrices.
    """
    turns, places = quaternion_to_matrix(bodies.rotations), bodies.positions
    sides, swap = torch.tensor(np.diag(box)), torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=turns.dtype))
    orders, kept = [], []
    for signs in torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=turns.dtype):
        for other in range(len(places)):
            image = places * signs + (places[other] - places[0] * signs)
            gap = image.unsqueeze(1) - places
            gap = (gap - sides * torch.round(gap / sides)).norm(dim=-1)
            order = gap.argmin(1)
            turned, there = signs.unsqueeze(-1) * turns, turns[order]
            off = torch.minimum((turned - there).norm(dim=(-1, -2)), (turned @ swap - there).norm(dim=(-1, -2)))
            is_whole = len(order.unique()) == len(order)
            if is_whole and float(gap.amin(1).max()) < 0.1 * tolerance and float(off.max()) < tolerance:
                orders.append(order)
                kept.append(signs)
    return Symmetries(torch.stack(orders), torch.stack(kept))


class IcePotential:
    """The crystal at one temperature in the coordinates of :class:`RigidBodies`.

    The energy does not know where the crystal is as a whole. So that all N molecules are alike, none is pinned: the mean
    displacement gets a normal law of its own, the same at every temperature, whose normaliser leaves every difference.

    Args:
        energy: of sites.
        bodies: the crystal at rest.
        drift: standard deviation of the mean displacement, nm.
        symmetries: of the crystal, for :meth:`multiply`.
    """

    def __init__(
        self, energy: OpenMMEnergy, bodies: RigidBodies, drift: float, symmetries: Symmetries | None = None
    ) -> None:
        self.function, self.bodies, self.drift, self.symmetries = energy, bodies, drift, symmetries

    def energy(self, x: State) -> Tensor:
        """E / kT ``(B,)``."""
        return self.function(self.bodies.sites(x))

    def log_volume(self, x: State) -> Tensor:
        """Log-density of the mean displacement, up to a constant."""
        assert not isinstance(x, Tensor)
        return -0.5 * (x["pos"].mean(-2) / self.drift).square().sum(-1)

    def reduced(self, x: State) -> Tensor:
        """What the density is exp(-) of."""
        return self.energy(x) - self.log_volume(x)

    def refresh(self, x: State, generator: torch.Generator | None) -> State:
        """Fresh mean displacements, and fresh signs of the quaternions: symmetries of the ensemble."""
        assert not isinstance(x, Tensor)
        pos, rot = x["pos"], x["rot"]
        where = self.drift * torch.randn(len(pos), 1, 3, generator=generator, dtype=pos.dtype)
        sign = torch.randint(0, 2, (*rot.shape[:-1], 1), generator=generator).to(rot) * 2 - 1
        return {"pos": pos - pos.mean(-2, keepdim=True) + where, "rot": rot * sign}

    def multiply(self, x: State, generator: torch.Generator | None) -> State:
        """:meth:`refresh`, and an image under a random symmetry of the crystal: as many more frames as it has symmetries, up to
        the noise of the crystal at rest. For training."""
        if self.symmetries is not None:
            count = len(first_tensor(x))
            x = self.symmetries.apply(x, torch.randint(len(self.symmetries.order), (count,), generator=generator))
        return self.refresh(x, generator)

    def state(self, positions: Tensor) -> dict[str, Tensor]:
        """The state of frames ``(F, 4 N, 3)``, computed in float64, given in float32."""
        made = self.bodies.state(positions.double())
        made["pos"] = made["pos"] - made["pos"].mean(-2, keepdim=True)
        return {k: v.float() for k, v in made.items()}


class Shrink(Layer):
    """The rule of a harmonic crystal, which needs no learning: displacements and turns times one factor, the mean displacement
    left alone.

    Turns are scaled in the gnomonic chart around the orientation at rest, where the layer is a matrix.

    Args:
        factor: :math:`\\sqrt{T'/T}`.
        count: number of molecules.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: State, cond: Any = None) -> Pushed:
        return self._map(x, self.factor, cond, inverse=False)

    def inverse(self, y: State, cond: Any = None) -> Pushed:
        return self._map(y, self.factor, cond, inverse=True)

    def _map(self, x: State, factor: float, cond: Any, *, inverse: bool) -> Pushed:
        assert not isinstance(x, Tensor)
        pos, rot = x["pos"], x["rot"]
        mean = pos.mean(-2, keepdim=True)
        log = math.log(factor)
        free = rot.new_zeros(*rot.shape[:-1], 9)
        free[..., :3] = log  # of the diagonal
        rot, log_det = Projective()(rot, free, inverse=inverse)
        pos = mean + (pos - mean) * (1 / factor if inverse else factor)
        shrunk = 3 * (pos.shape[-2] - 1) * (-log if inverse else log)
        return Pushed(with_field({"pos": pos, "rot": rot}, "pos", pos), log_det.sum(-1) + shrunk)


@dataclass
class IceConfig:
    """A flow from one temperature of a crystal to another.

    Args:
        hot, cold: temperatures in kelvin.
        rounds: each maps the turns of half of the molecules, then the other half's, and the same of displacements.
        width, heads, blocks: of the transformers.
    """

    hot: float = 250.0
    cold: float = 100.0
    rounds: int = 2
    width: int = 64
    heads: int = 4
    blocks: int = 2


def make_flow(config: IceConfig, count: int, scales: dict[str, float]) -> Chain:
    """The harmonic rule, then couplings that learn the rest.

    Args:
        config: its sizes.
        count: number of molecules.
        scales: of the features that the networks see.
    """
    c = config
    fields: dict[str, Any] = {"pos": ScaledAffine(1 / scales["pos"]), "rot": Turns()}
    layers: list[Layer] = [Shrink(math.sqrt(c.cold / c.hot))]
    even = torch.arange(count) % 2 == 0
    for _ in range(c.rounds):
        for name in ("rot", "pos"):
            for mask in (even, ~even):
                network = BodyTransformer(
                    fields, fields[name].free, sites=count, scales=scales, width=c.width, heads=c.heads, blocks=c.blocks
                )
                layers.append(FieldCoupling(name, fields[name], network, mask))
    return Chain(layers)


def build(config: IceConfig, hot: IcePotential, cold: IcePotential, samples: dict[str, Tensor]) -> BoltzmannGenerator:
    """The generator of the cold crystal from samples of the hot one; its log Z is minus the free-energy difference."""
    spread = float(samples["pos"].std())
    scales = {"pos": 1 / spread, "rot": float(1 / samples["rot"][..., 1:].std())}
    flow = make_flow(config, samples["pos"].shape[1], scales)
    made = BoltzmannGenerator(Ensemble(samples, hot.reduced, hot.multiply), flow, cold)
    made.config = asdict(config)
    return made


@dataclass(frozen=True)
class ScaledAffine:
    """:class:`Affine` of displacements whose shift is measured in units of ``unit``."""

    unit: float
    d: int = 3
    event_ndim = 1
    free = 9

    def __call__(self, x: Tensor, free: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        image, log_det = Affine(3)(x / self.unit, 0.3 * free, inverse=inverse)
        return image * self.unit, log_det

    def features(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Turns:
    """:class:`Projective` of quaternions near the identity; networks see the turn, blind to the sign."""

    event_ndim = 1
    free = 9

    def __call__(self, x: Tensor, free: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return Projective()(x, 0.1 * free, inverse=inverse)

    def features(self, x: Tensor) -> Tensor:
        return x[..., :1] * x[..., 1:]
