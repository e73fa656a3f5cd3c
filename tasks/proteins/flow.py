"""The protein backbone flow: SE(3) flow matching of residue frames (FrameFlow, Yim et al. 2023; ReQFlow on quaternions)."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.rotation import quaternion_to_matrix
from manifoldflow.state import count_of, masked_mean
from manifoldflow.tasks.common.runs import configured
from manifoldflow.tasks.proteins.geometry import atoms_from_frames, bonded
from manifoldflow.tasks.proteins.model import FrameTransformer, NetworkConfig

ROTATIONS = {"so3": mf.SO3(), "quaternion": mf.UnitQuaternion()}


@dataclass
class ProteinConfig:
    """Everything that defines a protein flow.

    Args:
        network: size of the network.
        rotations: representation of residue orientations: "so3" (matrices) or "quaternion".
        noise_scale: standard deviation of the source positions in angstrom.
        rotation_rate: rate of the exponential schedule that rotations follow at sampling.
        self_condition: probability of self-conditioning in training.
        pin: probability that a training chain shows a random motif, for motif scaffolding.
        auxiliary_from: auxiliary losses count at times above this.
        local_weight: weight of the loss on atom pairs closer than 6 A.
        bond_weight: weight of the loss on the distances across each peptide bond.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    rotations: Literal["so3", "quaternion"] = "so3"
    noise_scale: float = 10.0
    rotation_rate: float = 10.0
    self_condition: float = 0.5
    pin: float = 0.15
    auxiliary_from: float = 0.25
    local_weight: float = 1.0
    bond_weight: float = 0.5


def build(config: ProteinConfig | dict[str, Any] | None = None) -> mf.Flow:
    """A protein flow from its configuration (a :class:`ProteinConfig`, or the dict that a checkpoint holds)."""
    c = _as_config(config)
    flow = mf.Flow(
        spaces={"trans": mf.Centered(mf.Euclidean(3)), "rots": ROTATIONS[c.rotations]},
        source={"trans": mf.Normal(scale=c.noise_scale), "rots": mf.Uniform()},
        path={"trans": mf.Geodesic(), "rots": mf.Geodesic(sample_schedule=mf.Exponential(c.rotation_rate))},
        coupling=mf.Align(points="trans", frames=["rots"]),
        model=FrameTransformer(c.network),
        predicts="endpoint",
        weights={"trans": 0.02, "rots": 1.0},  # (0.1 per angstrom)^2 times 2, as in FrameFlow
        auxiliary=BackboneLoss(c.auxiliary_from, c.local_weight, c.bond_weight),
        self_condition=c.self_condition,
        pin=RandomMotif(c.pin) if c.pin > 0 else None,
    )
    flow.builder, flow.config = "manifoldflow.tasks.proteins.flow:build", asdict(c)
    return flow


def _as_config(config: ProteinConfig | dict[str, Any] | None) -> ProteinConfig:
    if not isinstance(config, dict):
        return config or ProteinConfig()
    network = configured(NetworkConfig, config.get("network"), "protein flow")
    return configured(ProteinConfig, {**config, "network": network}, "protein flow")


@dataclass(frozen=True)
class RandomMotif:
    """Which residues a training chain shows clean: with some probability, one to three segments of 10 to 50 % in all.

    Args:
        probability: share of chains with a motif.
    """

    probability: float

    def __call__(self, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        b, n = mask.shape
        device = mask.device
        length = mask.sum(-1, keepdim=True)
        draw = torch.rand(b, 8, device=device, generator=generator)
        segments = (draw[:, :1] * 3).floor() + 1
        share = (0.1 + 0.4 * draw[:, 1:2]) * length / segments
        position = torch.arange(n, device=device).expand(b, n)
        pinned = torch.zeros_like(mask)
        for k in range(3):
            start = draw[:, 2 + k : 3 + k] * (length - share)
            pinned = pinned | ((position >= start) & (position < start + share) & (k < segments))
        return pinned & mask & (draw[:, 5:6] < self.probability)


@dataclass(frozen=True)
class BackboneLoss:
    """Losses on the atoms that predicted frames imply, at late times only (FrameDiff, FrameFlow).

    Args:
        start: from this time on.
        local_weight: of the distances between atoms that are closer than 6 A in the data.
        bond_weight: of the three distances across a peptide bond: C-N, CA-N and C-CA.
    """

    start: float
    local_weight: float
    bond_weight: float

    def __call__(
        self, pred: dict[str, Tensor], x1: dict[str, Tensor], points: dict[str, Any], mask: Tensor | None, cond: Any
    ) -> dict[str, Tensor]:
        index = cond.get("residue_index") if isinstance(cond, dict) else None
        made = atoms_from_frames(_matrices(pred), None, index)[..., :3, :]
        true = atoms_from_frames(_matrices(x1), None, index)[..., :3, :]
        t = points["trans"].t
        t = t if t.ndim == 2 else t.unsqueeze(-1).expand(made.shape[:2])
        if mask is None:
            mask = torch.ones(made.shape[:2], dtype=torch.bool, device=made.device)
        # Per residue; a pinned residue has t = 1 and the same weight as the last noisy ones.
        weight = 0.01 * (t > self.start) / (1 - t).clamp_min(0.1) ** 2
        parts = {"atoms": masked_mean(((made - true) ** 2).sum(-1).mean(-1), mask, weight)}
        # From every CA to all atoms nearby: a third of the pairs, and the bond term has the rest that matters.
        distance = _distance(true[:, :, None, None, 1], true.unsqueeze(1))
        error = _distance(made[:, :, None, None, 1], made.unsqueeze(1)) - distance
        near = (distance < 6.0) & mask[:, :, None, None] & mask[:, None, :, None]
        parts["local"] = self.local_weight * (near * weight[:, :, None, None] * error**2).sum() / count_of(near)
        joined = bonded(index, mask, made)
        bond = torch.zeros_like(weight[:, 1:])
        for i, j in ((2, 0), (1, 0), (2, 1), (1, 1)):
            gap = _distance(made[:, :-1, i], made[:, 1:, j]) - _distance(true[:, :-1, i], true[:, 1:, j])
            bond = bond + gap**2
        parts["bonds"] = self.bond_weight * masked_mean(bond, joined, weight[:, 1:])
        return parts


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum(-1).add(1e-8).sqrt()


def _matrices(x: dict[str, Tensor]) -> dict[str, Tensor]:
    rots = x["rots"]
    return {"trans": x["trans"], "rots": quaternion_to_matrix(rots) if rots.shape[-1] == 4 else rots}
