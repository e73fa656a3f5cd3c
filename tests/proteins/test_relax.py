"""Relaxation: bonds become sound, everything else stays where it was."""

import math

import pytest
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.rotation import matrix_to_quaternion, rotvec_to_matrix
from manifoldflow.tasks.proteins.geometry import (
    C_N,
    C_N_CA,
    CA_C,
    CA_C_N,
    N_CA,
    N_CA_C,
    atoms_from_frames,
    frames_from_atoms,
)
from manifoldflow.tasks.proteins.metrics import torsions
from manifoldflow.tasks.proteins.relax import backbone_atoms, relax, restraints

Frames = dict[str, Tensor]


def place(a: Tensor, b: Tensor, c: Tensor, length: float, angle: float, torsion: float) -> Tensor:
    """The atom d with |cd| = length, angle bcd and dihedral abcd (the usual internal coordinates)."""
    bc = torch.nn.functional.normalize(c - b, dim=-1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, bc), dim=-1)
    across = torch.linalg.cross(normal, bc)
    return c + length * (
        -math.cos(angle) * bc + math.sin(angle) * (math.cos(torsion) * across + math.sin(torsion) * normal)
    )


def ideal_chain(length: int, phi: float = -119.0, psi: float = 113.0) -> Frames:
    """A strand (or a helix at -57, -47) with textbook bond lengths, angles and trans peptides, built atom by atom."""
    f, s = math.radians(phi), math.radians(psi)
    n, ca = torch.tensor([0.0, 0, 0]).double(), torch.tensor([N_CA, 0, 0]).double()
    c = ca + CA_C * torch.tensor([-math.cos(N_CA_C), math.sin(N_CA_C), 0]).double()
    atoms = [torch.stack([n, ca, c])]
    for _ in range(length - 1):
        n2 = place(n, ca, c, C_N, CA_C_N, s)
        ca2 = place(ca, c, n2, N_CA, C_N_CA, math.pi)
        c2 = place(c, n2, ca2, CA_C, N_CA_C, f)
        n, ca, c = n2, ca2, c2
        atoms.append(torch.stack([n, ca, c]))
    return {k: v.float() for k, v in frames_from_atoms(torch.stack(atoms)[None]).items()}


def shaken(x: Frames, shift: float, turn: float, seed: int = 0) -> Frames:
    g = torch.Generator().manual_seed(seed)
    b, n = x["trans"].shape[:2]
    noise = torch.randn(b, n, 3, generator=g)
    return {
        "trans": x["trans"] + shift * noise,
        "rots": x["rots"] @ rotvec_to_matrix(turn * torch.randn(b, n, 3, generator=g)),
    }


def stacked(*chains: Frames) -> Frames:
    return {k: torch.cat([c[k] for c in chains]) for k in ("trans", "rots")}


def links(x: Frames) -> tuple[Tensor, Tensor]:
    """CA-CA and C-N distances of neighbours, read from the written atoms."""
    atoms = atoms_from_frames(x)
    return (atoms[:, 1:, 1] - atoms[:, :-1, 1]).norm(dim=-1), (atoms[:, 1:, 0] - atoms[:, :-1, 2]).norm(dim=-1)


def gap(x: Frames, y: Frames) -> float:
    return max(float((x[k] - y[k]).abs().max()) for k in ("trans", "rots"))


@pytest.mark.parametrize("torsions", [(-119.0, 113.0), (-57.0, -47.0)], ids=["strand", "helix"])
def test_ideal_geometry_stays_as_it_is(torsions: tuple[float, float]) -> None:
    x = ideal_chain(20, *torsions)
    ca_ca, c_n = links(x)
    assert (ca_ca - 3.80).abs().max() < 0.015 and (c_n - 1.329).abs().max() < 1e-3  # the chain is what it claims
    assert restraints(x, torch.ones(1, 20, dtype=torch.bool)).max() < 1e-2
    after = relax(x)
    assert (after["trans"] - x["trans"]).norm(dim=-1).max() < 0.1
    turned = mf.SO3().dist(after["rots"], x["rots"])
    assert turned[:, 1:-1].max() < 0.1 and turned.max() < 0.25  # Adam's first steps shake; the ends are loose


def test_a_shaken_chain_gets_sound_bonds_back_and_keeps_its_fold() -> None:
    ideal = stacked(ideal_chain(24), ideal_chain(24, -57.0, -47.0))
    x = shaken(ideal, 0.25, 0.15)
    before = links(x)
    assert (before[0] - 3.80).abs().max() > 0.4 and (before[1] - 1.329).abs().max() > 0.4
    after = relax(x)
    ca_ca, c_n = links(after)
    assert (ca_ca - 3.80).abs().max() < 0.05
    assert (c_n - 1.329).abs().max() < 0.05
    moved = (after["trans"] - x["trans"]).norm(dim=-1)
    assert moved.max() < 1.2 and moved.mean() < 0.5
    mf.SO3().check(after["rots"], atol=1e-5)
    mask = torch.ones(2, 24, dtype=torch.bool)
    assert (restraints(after, mask) < 0.01 * restraints(x, mask)).all()


def test_overlapping_residues_move_apart() -> None:
    strand = ideal_chain(10)
    over = {"trans": strand["trans"] + torch.tensor([0.0, 0.0, 2.0]), "rots": strand["rots"]}
    x = {k: torch.cat([strand[k], over[k]], 1) for k in strand}
    index = torch.arange(20)[None] + 33 * (torch.arange(20) >= 10)

    def closest(y: Frames) -> float:
        return float((y["trans"][:, :10].unsqueeze(2) - y["trans"][:, 10:].unsqueeze(1)).norm(dim=-1).min())

    after = relax(x, residue_index=index)
    assert closest(x) < 2.1 and closest(after) > 3.7
    assert (links(after)[0][:, [*range(9), *range(10, 19)]] - 3.80).abs().max() < 0.1


def test_a_chain_break_is_not_pulled_together() -> None:
    first, second = ({k: v.double() for k, v in ideal_chain(8).items()} for _ in range(2))
    apart = {
        "trans": torch.cat([first["trans"], second["trans"] + torch.tensor([0.0, 0.0, 60.0])], 1),
        "rots": torch.cat([first["rots"], second["rots"]], 1),
    }
    index = torch.arange(16)[None] + 33 * (torch.arange(16) >= 8)
    broken = relax(apart, residue_index=index)
    halves = [relax(first), relax(second)]
    for k, shift in (("trans", torch.tensor([0.0, 0.0, 60.0])), ("rots", 0.0)):
        alone = torch.cat([halves[0][k], halves[1][k] + shift], 1)
        assert (broken[k] - alone).abs().max() < 1e-5  # the ends do not know of each other
    pulled = relax(apart)  # the same frames as one chain
    assert (pulled["trans"][:, 7] - apart["trans"][:, 7]).norm() > 1.0


def test_padding_neither_moves_nor_matters() -> None:
    x = shaken(ideal_chain(12), 0.2, 0.1)
    alone = relax(x)
    for seed in (0, 1):  # whatever the padding holds, even on top of the chain
        rest = shaken({k: v[:, :6] for k, v in x.items()}, 1.0, 1.0, seed)
        padded = {k: torch.cat([x[k], rest[k]], 1) for k in x}
        mask = torch.arange(18)[None] < 12
        after = relax(padded, mask)
        assert gap({k: v[:, :12] for k, v in after.items()}, alone) < 2e-3
        assert torch.equal(after["trans"][:, 12:], rest["trans"])
        assert (after["rots"][:, 12:] - rest["rots"]).abs().max() < 1e-6


def test_a_chain_relaxes_alike_alone_and_in_a_batch() -> None:
    chains = [shaken(ideal_chain(14), 0.2, 0.1, seed) for seed in range(3)]
    together = relax(stacked(*chains))
    for i, chain in enumerate(chains):
        assert gap({k: v[i : i + 1] for k, v in together.items()}, relax(chain)) < 2e-3


def test_fixed_residues_stay_bit_for_bit_while_the_others_adapt() -> None:
    x = shaken(ideal_chain(20), 0.25, 0.15)
    # The motif comes from a real structure, so it is sound in itself.
    part = slice(6, 11)
    for k, v in ideal_chain(20).items():
        x[k][:, part] = v[:, part]
    fixed = torch.zeros(1, 20, dtype=torch.bool)
    fixed[:, part] = True
    after = relax(x, fixed=fixed)
    assert torch.equal(after["trans"][:, part], x["trans"][:, part])
    assert (after["rots"][:, part] - x["rots"][:, part]).abs().max() < 1e-6
    assert (after["trans"] - x["trans"])[~fixed].abs().max() > 0.05
    assert (links(after)[0] - 3.80).abs().max() < 0.06 and (links(after)[1] - 1.329).abs().max() < 0.06


def test_relaxation_turns_and_shifts_with_the_chain() -> None:
    x = {k: v.double() for k, v in shaken(ideal_chain(12), 0.2, 0.1).items()}
    turn = mf.Uniform(mf.SO3()).sample((), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    shift = torch.tensor([30.0, -12.0, 7.0], dtype=torch.float64)

    def move(y: Frames) -> Frames:
        return {"trans": y["trans"] @ turn.mT + shift, "rots": turn @ y["rots"]}

    straight, turned = move(relax(x)), relax(move(x))
    assert (straight["trans"] - x["trans"]).norm(dim=-1).min() > 1  # the pose is another one
    assert (straight["trans"] - turned["trans"]).norm(dim=-1).max() < 1e-6
    assert mf.SO3().dist(straight["rots"], turned["rots"]).max() < 1e-6


def test_a_residue_that_nothing_holds_stays() -> None:
    x = shaken(ideal_chain(6), 0.2, 0.1)
    far = {"trans": torch.tensor([[[90.0, 0.0, 0.0]]]), "rots": torch.eye(3).expand(1, 1, 3, 3)}
    both = {k: torch.cat([x[k], far[k]], 1) for k in x}
    index = torch.tensor([[0, 1, 2, 3, 4, 5, 39]])
    assert gap({k: v[:, 6:] for k, v in relax(both, residue_index=index).items()}, far) < 1e-5


def test_energy_does_not_change_with_the_pose() -> None:
    x = {k: v.double() for k, v in shaken(ideal_chain(12), 0.2, 0.1).items()}
    mask = torch.ones(1, 12, dtype=torch.bool)
    turn = mf.Uniform(mf.SO3()).sample((), dtype=torch.float64)
    moved = {"trans": x["trans"] @ turn.mT + 5.0, "rots": turn @ x["rots"]}
    assert restraints(moved, mask).item() == pytest.approx(restraints(x, mask).item(), rel=1e-9)


def test_quaternions_give_the_same_result_and_gradients_may_be_off() -> None:
    x = shaken(ideal_chain(8), 0.2, 0.1)
    with torch.no_grad():
        after = relax({"trans": x["trans"], "rots": matrix_to_quaternion(x["rots"])}, steps=40)
    assert gap(after, relax(x, steps=40)) < 1e-3
    assert not after["trans"].requires_grad


def test_inputs_are_not_changed() -> None:
    x = shaken(ideal_chain(8), 0.2, 0.1)
    copy = {k: v.clone() for k, v in x.items()}
    relax(x, steps=5)
    assert gap(x, copy) == 0


def closest(x: Frames, apart: Tensor) -> Tensor:
    """The closest two backbone atoms of residues i and j where ``apart[i, j]``, one number a chain."""
    atoms = atoms_from_frames(x)
    b, n = atoms.shape[:2]
    flat = atoms.reshape(b, n * 4, 3)
    gaps = (flat[:, :, None] - flat[:, None]).norm(dim=-1)
    return gaps.where(apart.repeat_interleave(4, 0).repeat_interleave(4, 1), 99.0).amin((1, 2))


@pytest.mark.parametrize("shift", [(0.1, 0.3, 3.9), (1.0, 3.9, -3.5), (-3.7, 1.1, -3.5)])
def test_atoms_other_than_ca_move_apart_too(shift: tuple[float, float, float]) -> None:
    strand = ideal_chain(8)
    over = {"trans": strand["trans"] + torch.tensor(shift), "rots": strand["rots"]}
    x = {k: torch.cat([strand[k], over[k]], 1) for k in strand}
    index = torch.arange(16)[None] + 33 * (torch.arange(16) >= 8)
    two = torch.zeros(16, 16, dtype=torch.bool)
    two[:8, 8:] = True
    before, after = closest(x, two), closest(relax(x, residue_index=index), two)
    ca = (x["trans"][:, :8, None] - x["trans"][:, None, 8:]).norm(dim=-1).min()
    assert ca > 3.8 and before < 2.0  # CA atoms alone would not tell
    assert before + 0.4 < after and after > 2.5


def test_hydrogen_bonds_that_are_nearly_there_close() -> None:
    x = shaken(ideal_chain(20, -57.0, -47.0), 0.25, 0.15, seed=2)

    def n_o(y: Frames) -> Tensor:
        atoms = atoms_from_frames(y)
        return (atoms[0, 4:, 0] - atoms[0, :-4, 3]).norm(dim=-1)

    assert n_o(x).max() > 3.6
    assert n_o(relax(x)).max() < 3.35 and n_o(relax(x)).min() > 2.6


def test_a_motif_keeps_its_own_atoms_and_the_peptides_at_its_ends_are_flat() -> None:
    ideal = ideal_chain(24, -75.0, 130.0)
    atoms = atoms_from_frames(ideal)
    fixed = torch.zeros(1, 24, dtype=torch.bool)
    fixed[:, 8:14] = True
    g = torch.Generator().manual_seed(1)
    atoms = torch.where(
        fixed[..., None, None], atoms + 0.03 * torch.randn(atoms.shape, generator=g), 0.0
    )  # as measured
    x = shaken(ideal, 0.35, 0.5, seed=5)
    for k in x:
        x[k][:, 8:14] = frames_from_atoms(atoms)[k][:, 8:14]
    mask = torch.ones(1, 24, dtype=torch.bool)

    def omega(y: Frames) -> Tensor:
        return torch.rad2deg(
            torsions(backbone_atoms(y, mask, fixed=fixed, atoms=atoms), mask)["omega"][0][0, :-1].abs()
        )

    after = relax(x, fixed=fixed, atoms=atoms)
    written = backbone_atoms(after, mask, fixed=fixed, atoms=atoms)
    assert torch.equal(written[fixed], atoms[fixed])
    assert omega(x)[[7, 13]].min() < 150 < 165 < omega(after)[[7, 13]].min()
    assert omega(after).min() > 150
    carbonyl = written[0, :-1, 3], written[0, 1:, 0]
    assert (
        (carbonyl[0] - carbonyl[1]).norm(dim=-1) - 2.25
    ).abs().max() < 0.12  # the motif's last O faces the right way
