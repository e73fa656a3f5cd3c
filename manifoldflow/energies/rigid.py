"""Rigid molecules as positions and unit quaternions: the sites of each, there and back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from manifoldflow.manifolds.rotation import matrix_to_quaternion, quaternion_multiply, quaternion_rotate
from manifoldflow.state import State


class RigidBodies:
    r"""N copies of a rigid body of s sites: a state of ``"pos"`` ``(B, N, 3)`` and ``"rot"`` ``(B, N, 4)``.

    ``pos`` is the displacement of the body's first site from its own reference site, and ``rot`` the turn from its own reference
    orientation, so that a crystal at rest is all zeros and identities. Sites are :math:`r_i + \delta_i + R(q_i q_i^0)\, s`. The
    measure is Lebesgue's times Haar's, on which the turns by references have no influence: nothing is added to the energy.

    Args:
        template: ``(s, 3)``, sites of one body with the first at the origin.
        positions: ``(N, 3)``, reference positions of the first sites.
        rotations: ``(N, 4)``, reference orientations.
    """

    def __init__(self, template: Sequence[Sequence[float]] | Tensor, positions: Tensor, rotations: Tensor) -> None:
        self.template, self.positions, self.rotations = torch.as_tensor(template), positions, rotations
        if self.template[0].abs().max() > 1e-9:
            raise ValueError("the first site of the template must be at the origin")

    def __len__(self) -> int:
        return len(self.positions)

    def sites(self, x: State) -> Tensor:
        """Positions of all sites, ``(B, N s, 3)``."""
        assert not isinstance(x, Tensor)
        pos, rot = x["pos"], x["rot"]
        q = quaternion_multiply(*torch.broadcast_tensors(rot, self.rotations.to(rot)))
        made = quaternion_rotate(q.unsqueeze(-2), self.template.to(pos))
        return (made + (pos + self.positions.to(pos)).unsqueeze(-2)).flatten(-3, -2)

    def state(self, sites: Tensor) -> dict[str, Tensor]:
        """The state of positions ``(B, N s, 3)``, by the plane of the first three sites of each body; quaternions have w >= 0."""
        parts = sites.unflatten(-2, (len(self), -1))
        frame, own = _frame(parts), _frame(self.template.to(sites))
        q = matrix_to_quaternion(frame @ own.transpose(-1, -2))
        reference = self.rotations.to(sites)
        back = torch.cat([reference[..., :1], -reference[..., 1:]], -1)
        rot = quaternion_multiply(*torch.broadcast_tensors(q, back))
        rot = torch.where(rot[..., :1] < 0, -rot, rot)
        return {"pos": parts[..., 0, :] - self.positions.to(sites), "rot": rot}


def _frame(sites: Tensor) -> Tensor:
    """Rotation matrices ``(..., 3, 3)`` of the first three sites: the bisector, the plane, the normal, as columns."""
    a, b = sites[..., 1, :] - sites[..., 0, :], sites[..., 2, :] - sites[..., 0, :]
    x = torch.nn.functional.normalize(a + b, dim=-1)
    z = torch.nn.functional.normalize(torch.linalg.cross(a, b), dim=-1)
    return torch.stack([x, torch.linalg.cross(z, x), z], -1)
