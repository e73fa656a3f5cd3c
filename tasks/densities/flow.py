"""The density flow: a source, a path and a network on one manifold, from a configuration."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.base import Manifold
from manifoldflow.tasks.common.runs import configured
from manifoldflow.tasks.densities.spaces import space_of

Features = Literal["auto", "coordinates", "waves", "landmarks"]


@dataclass
class DensityConfig:
    """Everything that defines a density flow.

    Args:
        manifold: where the points live, such as "sphere:2", "torus:5" or "so3"; filled in from the data.
        features: what the network sees of a point: "coordinates" (the plain network of the papers), "waves" (plane waves
            at many scales), or "landmarks" (the training points around it, its own left out); "auto" chooses by the data.
        nearest: with landmarks: how many of the nearest ones are seen beside a sample of all; 0 for all, which costs more.
        network: "mlp", or "resnet": residual blocks modulated by the time, better in several dimensions and dearer.
        width: hidden width.
        depth: hidden layers, or blocks of two.
        harmonics: multiples of every angle of a torus, among its coordinates.
        finest: smallest detail of the data, in radians: landmarks resolve it, and the network tells times apart that are
            so close to 1. 0: measured from the data where landmarks or waves need it, else no such detail.
        late: training times and solver steps are spread over all scales down to ``finest``.
        waves: number of plane waves.
        wave_length: largest frequency of the waves in radians per unit (whole waves per turn on tori).
        low_variance: regress on the mean velocity of the batch (compact spaces with a uniform source).
    """

    manifold: str = ""
    features: Features = "auto"
    nearest: int = 0
    network: Literal["mlp", "resnet"] = "mlp"
    width: int = 256
    depth: int = 3
    harmonics: int = 4
    finest: float = 0.0
    late: bool = True
    waves: int = 128
    wave_length: float = 32.0
    low_variance: bool = False

    def __post_init__(self) -> None:
        if self.features not in ("auto", "coordinates", "waves", "landmarks"):
            raise ValueError(f"features must be 'auto', 'coordinates', 'waves' or 'landmarks', got {self.features!r}")
        if self.network not in ("mlp", "resnet"):
            raise ValueError(f"network must be 'mlp' or 'resnet', got {self.network!r}")
        if not 0 <= self.finest < 1:
            raise ValueError(f"finest must lie in [0, 1), got {self.finest}")
        for name in ("width", "depth", "harmonics", "waves", "wave_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.nearest < 0:
            raise ValueError(f"nearest must be at least 0, got {self.nearest}")


def build(config: DensityConfig | dict[str, Any], landmarks: Tensor | None = None) -> mf.Flow:
    """A density flow from its configuration (or the dict that a checkpoint holds).

    Args:
        config: the configuration, its manifold filled in.
        landmarks: training points, for ``features="landmarks"``; those of a checkpoint come with its weights.
    """
    config = configured(DensityConfig, config, "density flow")
    if config.features == "auto":
        raise ValueError(
            "features='auto' is resolved by the data (manifoldflow.tasks.densities.fitting.suited); name them here"
        )
    if config.features == "landmarks" and not config.finest:
        raise ValueError(
            "landmarks need the data's finest detail, 0 < finest < 1; manifoldflow.tasks.densities.fitting.suited measures it"
        )
    space = space_of(config.manifold)
    kind = mf.nn.TangentResNet if config.network == "resnet" else mf.nn.TangentMLP
    network = kind(
        space,
        config.width,
        config.depth,
        features=_features(config, space, landmarks),
        finest_time=config.finest or None,
    )
    flow = mf.Flow(
        space,
        model=network,
        path=mf.Geodesic(average_targets=config.low_variance),
        time_warp=mf.Late(config.finest) if config.finest and config.late else None,
    )
    flow.builder, flow.config = "manifoldflow.tasks.densities.flow:build", asdict(config)
    return flow


def _features(c: DensityConfig, space: Manifold, landmarks: Tensor | None) -> mf.nn.PointFeatures | None:
    if c.features == "coordinates":
        return mf.nn.Coordinates(space, c.harmonics)
    if c.features == "waves":
        return mf.nn.FourierFeatures(space, c.waves, c.wave_length)
    points = landmarks if landmarks is not None else space.origin((1,))
    hide: Literal["own", "batch"] = "batch" if c.low_variance else "own"
    points = points.to(torch.get_default_dtype())
    if c.nearest:
        return mf.nn.NearestLandmarks(
            space, points, c.finest, nearest=c.nearest, hide=hide, waves=c.waves, wave_length=c.wave_length
        )
    return mf.nn.LandmarkFeatures(space, points, c.finest, hide=hide, waves=c.waves, wave_length=c.wave_length)
