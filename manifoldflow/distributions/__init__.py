"""Sources, noises and their densities."""

from manifoldflow.distributions.base import Distribution
from manifoldflow.distributions.checkerboard import Checkerboard
from manifoldflow.distributions.default import default_source
from manifoldflow.distributions.dirichlet import Dirichlet
from manifoldflow.distributions.igso3 import IGSO3
from manifoldflow.distributions.mesh_bumps import MeshBumps
from manifoldflow.distributions.mixture import Mixture
from manifoldflow.distributions.normal import Normal
from manifoldflow.distributions.reflected_normal import ReflectedNormal
from manifoldflow.distributions.tokens import AllMasked, Categorical, TokenSource
from manifoldflow.distributions.uniform import Uniform
from manifoldflow.distributions.von_mises import VonMisesFisher
from manifoldflow.distributions.wrapped_normal import WrappedNormal

__all__ = [
    "IGSO3",
    "AllMasked",
    "Categorical",
    "Checkerboard",
    "Dirichlet",
    "Distribution",
    "MeshBumps",
    "Mixture",
    "Normal",
    "ReflectedNormal",
    "TokenSource",
    "Uniform",
    "VonMisesFisher",
    "WrappedNormal",
    "default_source",
]
