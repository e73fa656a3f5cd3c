"""Which law a flow starts from when nobody says."""

from typing import Any

from manifoldflow.distributions.base import Distribution
from manifoldflow.distributions.normal import Normal
from manifoldflow.distributions.uniform import Uniform
from manifoldflow.distributions.wrapped_normal import WrappedNormal
from manifoldflow.manifolds.base import Manifold


def default_source(manifold: Manifold) -> Distribution:
    """The source of a flow on ``manifold`` that names none, by :attr:`Manifold.default_source`; bound to it."""
    kinds: dict[str, Any] = {"normal": Normal, "uniform": Uniform, "wrapped normal": WrappedNormal}
    if manifold.default_source not in kinds:
        raise ValueError(
            f"{manifold}: default_source must be one of {', '.join(kinds)}, got {manifold.default_source!r}"
        )
    return kinds[manifold.default_source](manifold=manifold)
