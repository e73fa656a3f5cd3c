"""Frames and atoms: inverse maps, and the geometry of the peptide bond against real chains."""

import math

import numpy as np
import torch

from manifoldflow.tasks.proteins.geometry import CA_C_O, N_CA_C, atoms_from_frames, frames_from_atoms
from manifoldflow.tasks.proteins.metrics import angle
from testkit.shared import SHARED_DATA, needs_shared_data


def random_frames(n: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(2, n, 3, 3, dtype=dtype, generator=generator))
    q = q * torch.linalg.det(q)[..., None, None].sign()
    return {"trans": 10 * torch.randn(2, n, 3, dtype=dtype, generator=generator), "rots": q}


def test_frames_of_the_atoms_of_frames_are_the_frames():
    x = random_frames(9)
    back = frames_from_atoms(atoms_from_frames(x))
    torch.testing.assert_close(back["trans"], x["trans"], atol=1e-12, rtol=0)
    torch.testing.assert_close(back["rots"], x["rots"], atol=1e-12, rtol=0)


def test_ideal_angles_hold_in_every_residue():
    n, ca, c, o = atoms_from_frames(random_frames(9)).unbind(-2)
    torch.testing.assert_close(angle(n, ca, c), torch.full((2, 9), N_CA_C, dtype=torch.float64))
    torch.testing.assert_close(angle(ca, c, o)[:, -1], torch.full((2,), CA_C_O, dtype=torch.float64))


def test_atoms_move_with_the_frames():
    x = random_frames(7)
    turn, shift = random_frames(1)["rots"][:1, 0], torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    moved = {"trans": x["trans"] @ turn.mT + shift, "rots": turn @ x["rots"]}
    expected = atoms_from_frames(x) @ turn.mT.unsqueeze(1) + shift
    torch.testing.assert_close(atoms_from_frames(moved), expected, atol=1e-10, rtol=0)


def test_padding_gives_the_identity_frame_and_zero_atoms():
    coords = torch.zeros(1, 3, 4, 3)
    frames = frames_from_atoms(coords)
    assert torch.equal(frames["rots"], torch.eye(3).expand(1, 3, 3, 3))
    mask = torch.tensor([[True, False, False]])
    assert atoms_from_frames(frames, mask)[0, 1:].abs().max() == 0


def test_a_chain_break_does_not_bend_the_oxygen_towards_the_next_residue():
    x = random_frames(2)
    joined = atoms_from_frames(x, residue_index=torch.tensor([[0, 1], [0, 1]]))
    broken = atoms_from_frames(x, residue_index=torch.tensor([[0, 34], [0, 34]]))
    assert (joined - broken)[:, 0, 3].norm(dim=-1).min() > 1e-3
    torch.testing.assert_close(
        angle(*broken[:, 0, 1:].unbind(-2)), torch.full((2,), math.radians(120.1), dtype=torch.float64)
    )


@needs_shared_data
def test_oxygens_of_real_chains_are_rebuilt_within_a_tenth_of_an_angstrom():
    data = np.load(SHARED_DATA / "proteins" / "backbones.npz")
    offset, errors = data["offset"], []
    for i in range(60):
        part = slice(offset[i], offset[i + 1])
        coords = torch.as_tensor(data["coords"][part])[None]
        breaks = torch.as_tensor(data["break_after"][part])[:-1].long().cumsum(0)
        index = torch.arange(coords.shape[1]) + 33 * torch.cat([torch.zeros(1, dtype=torch.long), breaks])
        rebuilt = atoms_from_frames(frames_from_atoms(coords), residue_index=index[None])
        errors.append((rebuilt - coords)[0, :-1, 3].norm(dim=-1))
    assert torch.cat(errors).median() < 0.1
