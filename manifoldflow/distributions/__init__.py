"""Sources, noises and their densities."""

from manifoldflow.distributions.base import Distribution
from manifoldflow.distributions.igso3 import IGSO3
from manifoldflow.distributions.normal import Normal
from manifoldflow.distributions.uniform import Uniform
from manifoldflow.distributions.wrapped_normal import WrappedNormal

__all__ = ["IGSO3", "Distribution", "Normal", "Uniform", "WrappedNormal"]
