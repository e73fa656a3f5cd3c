"""What the studies of alanine dipeptide and ice compute, against laws and crystals whose answers are known."""

import math

import numpy as np
import pytest
import torch

from manifoldflow.energies import RigidBodies, Weighted
from manifoldflow.energies.openmm import GAS_CONSTANT
from manifoldflow.manifolds.rotation import rotvec_to_quaternion
from manifoldflow.tasks.energies.alanine import Frames
from manifoldflow.tasks.energies.alanine_study import Profile
from manifoldflow.tasks.energies.ice import find_symmetries
from manifoldflow.tasks.energies.ice_study import LADDER, inefficiency, ladder_difference

BOX = np.diag([0.9, 0.8, 0.7])


def crystal() -> RigidBodies:
    """Six bodies: any one, its image under a half turn about z with a screw, and both shifted by thirds of the box along x."""
    template = torch.tensor([[0, 0, 0], [0.06, 0.07, 0], [0.06, -0.07, 0]], dtype=torch.float64)
    place = torch.tensor([0.11, 0.07, -0.2], dtype=torch.float64)
    q = rotvec_to_quaternion(torch.tensor([0.4, -1.1, 0.6], dtype=torch.float64))
    turned = torch.stack([-q[3], -q[2], q[1], q[0]])  # (0, 0, 0, 1) times q: half a turn about z
    screwed = place * torch.tensor([-1.0, -1, 1]) + torch.tensor([0.0, 0, 0.35])
    shifts = torch.tensor([[0.0, 0, 0], [0.3, 0, 0], [0.6, 0, 0]], dtype=torch.float64)
    places = torch.stack([place, screwed]) + shifts.unsqueeze(1)
    return RigidBodies(template, places.flatten(0, 1), torch.stack([q, turned, q, -turned, -q, turned]))


def test_symmetries_of_a_crystal_carry_its_sites_along() -> None:
    bodies = crystal()
    found = find_symmetries(bodies, BOX)
    assert len(found.order) == 6 and sorted(found.signs[:, 0].tolist()) == [-1] * 3 + [1] * 3
    generator = torch.Generator().manual_seed(0)
    noise = [0.02 * torch.randn(6, 6, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    x = {"pos": noise[0], "rot": rotvec_to_quaternion(10 * noise[1])}
    image = found.apply(x, torch.arange(6))
    before, after = bodies.sites(x).unflatten(1, (6, 3)), bodies.sites(image).unflatten(1, (6, 3))
    sides = torch.as_tensor(np.diag(BOX).copy())
    for g in range(6):
        moved = before[g] * found.signs[g] + (
            bodies.positions[found.order[g, 0]] - bodies.positions[0] * found.signs[g]
        )
        gap = after[g][found.order[g]] - moved
        gap = gap - sides * torch.round(gap / sides)
        assert gap.abs().max() < 1e-7


def test_a_bent_crystal_has_fewer_symmetries() -> None:
    bodies = crystal()
    bodies.rotations[3] = rotvec_to_quaternion(torch.tensor([0.4, 0, 0], dtype=torch.float64))
    assert len(find_symmetries(bodies, BOX).order) == 1


def test_ladder_of_a_harmonic_crystal_has_its_free_energy() -> None:
    """E of n / 2 oscillators is kT times a gamma law, and F / kT falls by (n / 2) log T."""
    rng, n = np.random.default_rng(0), 30
    energies = [GAS_CONSTANT * t * rng.gamma(n / 2, size=1500) for t in LADDER]
    value, error = ladder_difference(energies, repeats=10)
    exact = n / 2 * math.log(LADDER[0] / LADDER[-1])
    assert abs(value - exact) < 4 * error < 1.0


def test_inefficiency_counts_how_long_frames_remember() -> None:
    rng, keep = np.random.default_rng(0), 0.6
    e = [0.0]
    for kick in rng.normal(size=30_000):
        e.append(keep * e[-1] + kick)
    assert inefficiency(np.array(e)) == pytest.approx((1 + keep) / (1 - keep), rel=0.12)
    assert inefficiency(rng.normal(size=5000)) == pytest.approx(1, abs=0.1)


def test_profile_of_weighted_samples_is_that_of_the_law_they_stand_for() -> None:
    rng = np.random.default_rng(0)
    phi = np.degrees(rng.vonmises(-1.5, 3.0, size=80_000))
    frames = Frames(np.zeros((1, 22, 3)), np.zeros(1), np.zeros(1), phi, phi)
    profile = Profile(frames)
    uniform = 2 * math.pi * torch.rand(300_000, 5, generator=torch.Generator().manual_seed(0))
    log_weight = 3 * (uniform[:, 0] + 1.5).cos()
    made = Weighted({"turn": uniform}, log_weight, torch.zeros(300_000), -log_weight)
    gap = profile.gap(made)
    assert gap["bins compared"] >= 20 and gap["largest gap (kT)"] < 0.3 and gap["mean gap (kT)"] < 0.06
    flat = profile.gap(made._replace(log_weight=torch.zeros(300_000)))
    assert flat["largest gap (kT)"] > 1
