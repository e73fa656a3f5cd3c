"""Alanine dipeptide: 22 atoms, AMBER99SB-ILDN in implicit water (OBC), bonds to hydrogen rigid, as in the stored trajectories."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manifoldflow.distributions import Normal, Uniform
from manifoldflow.energies import BoltzmannGenerator, InternalCoordinates, OpenMMEnergy, Product
from manifoldflow.energies.internal import ConstrainedMolecule, make_z_matrix
from manifoldflow.energies.openmm import require_openmm
from manifoldflow.files import open_npz
from manifoldflow.flows import Chain, CircularSpline, LineSpline, SplitCoupling, Transform
from manifoldflow.manifolds import Euclidean, Torus

TEMPERATURE = 300.0
ATOMS = (
    "HH31 CH3 HH32 HH33 C O".split(),
    "N H CA HA CB HB1 HB2 HB3 C O".split(),
    "N H C H1 H2 H3".split(),
)
"""Names of the atoms of ACE, ALA and NME, in the order of the stored frames."""
BACKBONE = (4, 6, 8, 14, 16, 1, 18)
"""C and N of the peptide, first to last, and the carbons of the caps: the first atoms of the Z-matrix."""
SOFT = {"phi": 14, "psi": 16, "methyl ACE": 0, "methyl CB": 11, "methyl NME": 19}
"""Atoms whose torsion is soft: phi and psi, and one hydrogen of every methyl group."""


class Frames(NamedTuple):
    """Stored trajectories.

    Attributes:
        positions: ``(F, 22, 3)`` angstrom, of full frames.
        energy: ``(F,)`` kJ/mol as stored, of the same.
        trajectory: ``(F,)``.
        phi, psi: ``(A,)`` degrees, of all frames.
    """

    positions: np.ndarray
    energy: np.ndarray
    trajectory: np.ndarray
    phi: np.ndarray
    psi: np.ndarray


def read_frames(path: str | Path) -> Frames:
    """The stored trajectories, ``alanine_dipeptide.npz``."""
    data = open_npz(path)
    rows = data["frame_index"]
    return Frames(data["positions"], data["potential_energy"][rows], data["trajectory"][rows], data["phi"], data["psi"])


def make_system() -> Any:
    """The OpenMM system, and nothing from disk but the force field of OpenMM."""
    require_openmm()
    from openmm import app

    topology = app.Topology()
    chain = topology.addChain()
    atoms: list[Any] = []
    for name, names in zip(("ACE", "ALA", "NME"), ATOMS, strict=True):
        residue = topology.addResidue(name, chain)
        for atom in names:
            atoms.append(topology.addAtom(atom, app.Element.getBySymbol(atom[0]), residue))
    for i, j in bonds():
        topology.addBond(atoms[i], atoms[j])
    forces = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    return forces.createSystem(topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds)


def bonds() -> list[tuple[int, int]]:
    """The 21 bonds."""
    heavy = [(1, 4), (4, 5), (4, 6), (6, 8), (8, 10), (8, 14), (14, 15), (14, 16), (16, 18)]
    hydrogen = [
        (1, 0),
        (1, 2),
        (1, 3),
        (6, 7),
        (8, 9),
        (10, 11),
        (10, 12),
        (10, 13),
        (16, 17),
        (18, 19),
        (18, 20),
        (18, 21),
    ]
    return heavy + hydrogen


def make_energy(temperature: float = TEMPERATURE, *, platform: str = "CPU", workers: int = 1) -> OpenMMEnergy:
    """E / kT of positions ``(B, 22, 3)`` in angstrom."""
    return OpenMMEnergy(make_system(), temperature, length="angstrom", platform=platform, workers=workers)


MASSES = {"H": 1.007947, "C": 12.01078, "N": 14.00672, "O": 15.99943}
"""Dalton, as in OpenMM."""


class LazyEnergy:
    """:func:`make_energy`, made at the first call: geometry needs no OpenMM."""

    def __init__(self, temperature: float = TEMPERATURE, *, platform: str = "CPU", workers: int = 1) -> None:
        self.options = {"temperature": temperature, "platform": platform, "workers": workers}
        self._made: OpenMMEnergy | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.made(x)

    @property
    def made(self) -> OpenMMEnergy:
        """The OpenMM energy."""
        if self._made is None:
            self._made = make_energy(**self.options)  # type: ignore[arg-type]
        return self._made


def make_potential(
    mean: Sequence[float] | Tensor, scale: Sequence[float] | Tensor, energy: Any = None
) -> ConstrainedMolecule:
    """The molecule with rigid bonds to hydrogen: 43 stiff numbers and 5 soft torsions.

    Args:
        mean, scale: of the stiff coordinates (:func:`measure`).
        energy: of positions; OpenMM's at 300 K if absent.
    """
    coordinates = InternalCoordinates(make_z_matrix(bonds(), BACKBONE))
    elements = [atom[0] for names in ATOMS for atom in names]
    parent = {int(row[0]): int(row[1]) for row in coordinates.rows}
    rigid = {a: 1.01 if elements[parent[a]] == "N" else 1.09 for a, e in enumerate(elements) if e == "H"}
    return ConstrainedMolecule(
        energy or LazyEnergy(),
        coordinates,
        rigid=rigid,
        soft=list(SOFT.values()),
        mean=torch.as_tensor(mean),
        scale=torch.as_tensor(scale),
        masses=[MASSES[e] for e in elements],
    )


def measure(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the stiff coordinates of frames ``(F, 22, 3)`` in angstrom, ``(43,)`` each."""
    rough = make_potential(torch.zeros(43), torch.ones(43))
    torsions = rough.coordinates.from_positions(positions.double()).torsions[:, rough.stiff]
    centre = torch.atan2(torsions.sin().mean(0), torsions.cos().mean(0))
    guess = torch.cat([torch.zeros(43 - len(centre), dtype=torch.float64), centre])
    line = make_potential(guess, torch.ones(43)).state(positions.double())["line"] + guess
    return line.mean(0).float(), line.std(0).float()


@dataclass
class AlanineConfig:
    """A Boltzmann generator of alanine dipeptide.

    Args:
        mean, scale: of the stiff coordinates; measured on the training frames.
        layers: coupling layers; two neighbours map all 48 coordinates once.
        width, depth: of their networks.
        bins: of the splines.
        seed: of the choice of what each layer keeps.
        soft_above: kT above the lowest of a batch from which energies count as their logarithm in training.
    """

    mean: list[float] = field(default_factory=lambda: [0.0] * 43)
    scale: list[float] = field(default_factory=lambda: [1.0] * 43)
    layers: int = 12
    width: int = 128
    depth: int = 2
    bins: int = 8
    seed: int = 0
    soft_above: float = 60.0


def build(config: AlanineConfig | dict[str, Any] | None = None) -> BoltzmannGenerator:
    """The generator: splines of lines and circles, from a normal law and a uniform one."""
    c = config if isinstance(config, AlanineConfig) else AlanineConfig(**(config or {}))
    transforms: dict[str, Transform] = {"line": LineSpline(c.bins, bound=6.0), "turn": CircularSpline(c.bins)}
    generator = torch.Generator().manual_seed(c.seed)
    layers = []
    for _ in range((c.layers + 1) // 2):
        kept = torch.zeros(48, dtype=torch.bool)
        kept[torch.randperm(48, generator=generator)[:24]] = True
        for mask in (kept, ~kept):
            parts = {"line": mask[:43], "turn": mask[43:]}
            layers.append(SplitCoupling(transforms, parts, width=c.width, depth=c.depth))
    source = Product({"line": Normal(manifold=Euclidean(43)), "turn": Uniform(Torus(5, 2 * math.pi))})
    potential = make_potential(c.mean, c.scale)
    made = BoltzmannGenerator(source, Chain(layers[: c.layers]), potential, soft_above=c.soft_above)
    made.builder, made.config = "manifoldflow.tasks.energies.alanine:build", asdict(c)
    return made
