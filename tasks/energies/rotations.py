"""A flow of single rotations for the target ``rotations2``: the smallest test of layers that know what a rotation is."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from manifoldflow.distributions import Uniform
from manifoldflow.energies import BoltzmannGenerator, Product
from manifoldflow.flows import rotation_flow
from manifoldflow.manifolds import UnitQuaternion
from manifoldflow.manifolds.rotation import quaternion_to_matrix
from manifoldflow.state import State
from manifoldflow.tasks.energies.targets import load_target


@dataclass
class RotationConfig:
    """A flow of single rotations.

    Args:
        layers: groups of couplings.
        bins, width: of splines and networks.
        seed: of the constant turns.
    """

    layers: int = 4
    bins: int = 8
    width: int = 48
    seed: int = 0


def build(config: RotationConfig | dict[str, Any] | None = None) -> BoltzmannGenerator:
    """A generator of ``rotations2`` as unit quaternions, from the uniform law."""
    c = config if isinstance(config, RotationConfig) else RotationConfig(**(config or {}))
    log_density = load_target("rotations2").log_density

    def energy(q: State) -> Tensor:
        assert isinstance(q, Tensor)
        return -log_density(quaternion_to_matrix(q))

    flow = rotation_flow(c.layers, bins=c.bins, width=c.width, seed=c.seed)
    made = BoltzmannGenerator(Product(Uniform(UnitQuaternion())), flow, energy)
    made.builder, made.config = "manifoldflow.tasks.energies.rotations:build", asdict(c)
    return made
