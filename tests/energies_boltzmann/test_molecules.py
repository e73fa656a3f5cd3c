"""Internal coordinates and rigid bodies against autograd, OpenMM's own numbers and the stored trajectories."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.energies import ConstrainedMolecule, InternalCoordinates, OpenMMEnergy, RigidBodies, make_z_matrix
from manifoldflow.energies.internal import Internal, dihedral
from manifoldflow.manifolds.rotation import quaternion_rotate, rotvec_to_matrix, rotvec_to_quaternion
from manifoldflow.tasks.energies import alanine, ice
from manifoldflow.tasks.energies.targets import load_target
from testkit.shared import SHARED_DATA, needs_shared_data

FRAMES = SHARED_DATA / "ensembles" / "alanine_dipeptide.npz"
ICE = SHARED_DATA / "rigid"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def molecule() -> InternalCoordinates:
    return InternalCoordinates(make_z_matrix(alanine.bonds(), alanine.BACKBONE))


def some_internal(n: int, seed: int = 0) -> Internal:
    """Of alanine dipeptide, far from any real one."""
    return Internal(
        1.2 + 0.1 * draw(n, 21, seed=seed).tanh(),
        1.9 + 0.2 * draw(n, 20, seed=seed + 1).tanh(),
        math.pi * draw(n, 19, seed=seed + 2).tanh(),
    )


def test_internal_coordinates_go_there_and_back_and_move_with_no_rotation() -> None:
    made, given = molecule(), some_internal(40)
    x = made.to_positions(given)
    turned = x @ rotvec_to_matrix(torch.tensor([0.4, 2.0, -1.0], dtype=torch.float64)).T + 3.0
    for positions in (x, turned):
        again = made.from_positions(positions)
        assert (again.bonds - given.bonds).abs().max() < 1e-12 and (again.angles - given.angles).abs().max() < 1e-11
        gap = again.torsions - given.torsions
        assert (gap.sin().abs().max() < 1e-10) and (gap.cos().min() > 0.999)


def test_torsions_have_the_sign_of_chemists() -> None:
    """Looking along the bond, the far end turned clockwise is positive; against an independent construction by rotation."""
    a, b, c = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.5]], dtype=torch.float64)
    for angle in (-2.5, -0.3, 0.7, 3.0):
        turn = rotvec_to_matrix(torch.tensor([0, 0, angle], dtype=torch.float64))
        d = c + turn @ torch.tensor([0.8, 0.0, 0.4], dtype=torch.float64)
        assert float(dihedral(a, b, c, d)) == pytest.approx(angle)


def test_volume_element_of_internal_coordinates_is_that_of_autograd() -> None:
    """The 66 x 66 determinant of positions by internal coordinates, a shift and a turn."""
    made = molecule()
    for seed in range(2):
        given = Internal(*(v[0] for v in some_internal(1, seed)))
        flat = torch.cat([*given, torch.zeros(6, dtype=torch.float64)])

        def positions(v: Tensor) -> Tensor:
            parts = Internal(*(p[None] for p in v[:60].split([21, 20, 19])))
            return (made.to_positions(parts)[0] @ rotvec_to_matrix(v[63:]).T + v[60:63]).flatten()

        jacobian = torch.func.jacfwd(positions)(flat)
        expected = torch.linalg.slogdet(jacobian)[1]
        assert abs(made.log_volume(given.bonds, given.angles) - expected) < 1e-9


def test_z_matrix_has_one_soft_torsion_for_every_bond_that_turns() -> None:
    """Turning about a bond changes a single torsion: the other atoms at its end are measured from the first."""
    made, given = molecule(), some_internal(1)
    base = made.from_positions(made.to_positions(given))
    for atom in alanine.SOFT.values():
        row = made.rows[:, 0].tolist().index(atom)
        turned = given.torsions.clone()
        turned[:, row - 3] += 0.5
        moved = made.from_positions(made.to_positions(given._replace(torsions=turned)))
        assert ((moved.torsions - base.torsions).sin().abs() > 1e-6).sum() == 1
        about = set(made.rows[row, 1:3].tolist())
        same = [r for r in range(3, 22) if set(made.rows[r, 1:3].tolist()) == about]
        assert same[0] == row, "the soft torsion is the first about its bond"


@pytest.mark.parametrize(
    "rows, message",
    [
        ([[0, -1, -1, -1]], "at least 4 rows"),
        ([[0, -1, -1, -1], [1, 0, -1, -1], [2, 1, 0, -1], [2, 1, 0, 1]], "names each of the atoms 0 to 3 once"),
        ([[0, -1, -1, -1], [1, 0, -1, -1], [2, 1, 0, -1], [3, 2, 1, 1]], "row 3 .atom 3.: the references"),
        ([[0, -1, -1, -1], [1, 2, -1, -1], [2, 1, 0, -1], [3, 2, 1, 0]], "row 1 .atom 1.: the references"),
    ],
)
def test_a_wrong_z_matrix_is_named(rows: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InternalCoordinates(rows)


def constrained() -> ConstrainedMolecule:
    mean = torch.cat([torch.full((9,), 1.4), torch.full((20,), 1.9), draw(14)]).double()
    return alanine.make_potential(mean, torch.full((43,), 0.05).double(), energy=lambda x: (x**2).sum((-1, -2)))


def test_a_constrained_molecule_goes_there_and_back_and_keeps_its_rigid_bonds() -> None:
    made = constrained()
    x = {"line": draw(20, 43), "turn": draw(20, 5, seed=1).remainder(2 * math.pi)}
    positions = made.positions(x)
    again = made.state(positions)
    assert all((again[k] - x[k]).abs().max() < 1e-9 for k in x)
    lengths = (positions[:, 0] - positions[:, 1]).norm(dim=-1)
    assert (lengths - 1.09).abs().max() < 1e-7
    x["line"][0, 0] = -100.0  # a bond of negative length
    assert made.energy(x)[0].isnan() and made.energy(x)[1:].isfinite().all() and made.log_volume(x).isfinite().all()


def test_volume_element_of_a_constrained_molecule_is_that_of_its_kinetic_energy() -> None:
    """Of rigid constraints: sqrt(det J' M J) over the coordinates that are left, a shift and a turn, up to a constant."""
    made = constrained()
    masses = torch.tensor([alanine.MASSES[a[0]] for names in alanine.ATOMS for a in names], dtype=torch.float64)
    values = []
    for seed in range(3):
        line, turn = draw(43, seed=seed), draw(5, seed=seed + 9)

        def positions(v: Tensor) -> Tensor:
            x = made.positions({"line": v[None, :43], "turn": v[None, 43:48]})[0]
            return (x @ rotvec_to_matrix(v[51:]).T + v[48:51]).flatten()

        jacobian = torch.func.jacfwd(positions)(torch.cat([line, turn, torch.zeros(6, dtype=torch.float64)]))
        metric = jacobian.T @ (masses.repeat_interleave(3).unsqueeze(-1) * jacobian)
        expected = 0.5 * torch.linalg.slogdet(metric)[1]
        values.append(float(made.log_volume({"line": line[None], "turn": turn[None]})[0] - expected))
    assert max(values) - min(values) < 1e-8


def test_rigid_bodies_go_there_and_back() -> None:
    rotations = torch.nn.functional.normalize(draw(6, 4), dim=-1)
    bodies = RigidBodies([[0, 0, 0], [0.06, 0.07, 0], [0.06, -0.07, 0], [0.0125, 0, 0]], draw(6, 3, seed=1), rotations)
    x = {"pos": 0.1 * draw(5, 6, 3, seed=2), "rot": rotvec_to_quaternion(draw(5, 6, 3, seed=3).tanh())}
    sites = bodies.sites(x)
    again = bodies.state(sites)
    assert all((again[k] - x[k]).abs().max() < 1e-7 for k in x)
    own = quaternion_rotate(rotations, bodies.template[1].to(rotations).expand(6, 3)) + bodies.positions
    still = bodies.sites({"pos": torch.zeros(1, 6, 3).double(), "rot": torch.eye(1, 4).double().expand(1, 6, 4)})
    assert (still[0].unflatten(0, (6, 4))[:, 1] - own).abs().max() < 1e-12


def test_the_rule_of_a_harmonic_crystal_inverts_with_the_log_determinant_of_autograd() -> None:
    rule = ice.Shrink(0.6)
    x = {"pos": 0.1 * draw(2, 3, 3), "rot": rotvec_to_quaternion(0.3 * draw(2, 3, 3, seed=1))}
    there, log_det = rule(x)
    back, log_back = rule.inverse(there)
    assert all((back[k] - x[k]).abs().max() < 1e-12 for k in x) and (log_det + log_back).abs().max() < 1e-12
    assert (there["pos"].mean(1) - x["pos"].mean(1)).abs().max() < 1e-15

    def chart(v: Tensor) -> Tensor:
        rot = torch.nn.functional.normalize(torch.nn.functional.pad(v[9:].reshape(1, 3, 3), (1, 0), value=1.0), dim=-1)
        made = rule({"pos": v[:9].reshape(1, 3, 3), "rot": rot})[0]
        return torch.cat([made["pos"].flatten(), (made["rot"][..., 1:] / made["rot"][..., :1]).flatten()])

    v = torch.cat([x["pos"][0].flatten(), (x["rot"][0, :, 1:] / x["rot"][0, :, :1]).flatten()])
    image, volume = chart(v), lambda u: -2 * (1 + u[9:].reshape(3, 3).square().sum(-1)).log().sum()
    expected = torch.linalg.slogdet(torch.func.jacfwd(chart)(v))[1] + volume(image) - volume(v)
    assert abs(expected - log_det[0]) < 1e-10


# OpenMM


def test_openmm_absent_is_one_line() -> None:
    code = (
        "import sys; sys.modules['openmm'] = None\n"
        "from manifoldflow.tasks.energies import alanine\n"
        "g = alanine.build(); x = g.sample(2); g.log_prob(x)\n"  # geometry needs no OpenMM
        "try: g.weighted(2)\n"
        "except ImportError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "OpenMM is not installed; its energies need: pip install 'manifoldflow[energies]'"


def argon(temperature: float = 0.0, **options: object) -> OpenMMEnergy:
    openmm = pytest.importorskip("openmm")
    system, force = openmm.System(), openmm.NonbondedForce()
    for _ in range(4):
        system.addParticle(39.9)
        force.addParticle(0.0, 0.34, 1.0)
    system.addForce(force)
    return OpenMMEnergy(system, temperature, platform="Reference", **options)  # type: ignore[arg-type]


def lennard_jones(x: Tensor) -> Tensor:
    i, j = torch.triu_indices(4, 4, 1)
    s6 = (0.34 / (x[..., i, :] - x[..., j, :]).norm(dim=-1)) ** 6
    return 4 * (s6 * s6 - s6).sum(-1)


@pytest.mark.parametrize("workers", [1, 2])
def test_openmm_energies_and_gradients_are_those_of_the_formula(workers: int) -> None:
    energy = argon(workers=workers)
    corners = 0.4 * torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    x = (corners + 0.02 * draw(5, 4, 3)).requires_grad_()
    value = energy(x)
    (gradient,) = torch.autograd.grad((value * torch.arange(1.0, 6)).sum(), x)
    expected = lennard_jones(x)
    (expected_gradient,) = torch.autograd.grad((expected * torch.arange(1.0, 6)).sum(), x)
    assert (value - expected).abs().max() < 1e-8 and (gradient - expected_gradient).abs().max() < 1e-6
    assert energy.calls == 5
    small = energy(x.detach().float())
    assert small.dtype == torch.float32 and (small - expected.detach()).abs().max() < 1e-4


def test_openmm_units_temperatures_and_what_is_no_number() -> None:
    x = 0.4 * torch.eye(4, 3, dtype=torch.float64).unsqueeze(0)
    kilojoule = float(argon()(x))
    assert float(argon(300.0)(x)) == pytest.approx(kilojoule / 2.4943388, rel=1e-6)
    warm = argon(300.0)
    assert float(warm.at(600.0)(x)) == pytest.approx(float(warm(x)) / 2)
    assert float(argon(length="angstrom")(10 * x)) == pytest.approx(kilojoule)
    bad = torch.cat([x, x * math.nan, torch.zeros_like(x)]).requires_grad_()
    value = argon()(bad)
    (gradient,) = torch.autograd.grad(value[:2].nan_to_num().sum() + value[2] * 0, bad)
    assert value[0].isfinite() and value[1].isnan() and gradient.isfinite().all()
    with pytest.raises(ValueError, match=r"shape \(..., 4, 3\), got \(2, 5, 3\)"):
        argon()(torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="no platform 'Tarot' here; it has Reference"):
        OpenMMEnergy(argon().system, 300.0, platform="Tarot")(x)
    with pytest.raises(ValueError, match="'nanometer' or 'angstrom', got 'inch'"):
        argon(length="inch")


def test_alanine_dipeptide_in_openmm_has_the_constants_of_the_potential_and_the_gradient_of_its_energy() -> None:
    pytest.importorskip("openmm")
    system = alanine.make_system()
    made = alanine.make_potential(torch.zeros(43), torch.ones(43))
    assert [system.getParticleMass(i)._value for i in range(22)] == pytest.approx([float(1 / w) for w in made.weight])
    fixed = {
        frozenset(system.getConstraintParameters(k)[:2]): system.getConstraintParameters(k)[2]._value for k in range(12)
    }
    assert {frozenset(p.tolist()) for p in made.pairs} == set(fixed) and system.getNumConstraints() == 12
    for (i, j), length in zip(made.pairs.tolist(), made.lengths.tolist(), strict=True):
        assert length == pytest.approx(10 * fixed[frozenset((i, j))])
    energy = OpenMMEnergy(system, 300.0, length="angstrom", platform="Reference")
    x = made.coordinates.to_positions(some_internal(2, 5)).requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x).sum(), x)
    direction, step = draw(2, 22, 3, seed=4), 1e-6
    slope = (energy(x.detach() + step * direction) - energy(x.detach() - step * direction)) / (2 * step)
    expected = (gradient * direction).sum((-1, -2))
    assert ((slope - expected) / expected).abs().max() < 1e-5


@needs_shared_data
def test_openmm_reproduces_the_stored_energies_of_alanine_dipeptide() -> None:
    pytest.importorskip("openmm")
    frames = alanine.read_frames(FRAMES)
    x = torch.as_tensor(frames.positions[::40], dtype=torch.float64)
    energy = alanine.make_energy(0.0, platform="Reference")
    gap = energy(x).numpy() - frames.energy[::40]
    assert len(gap) == 200 and np.std(gap) < 5e-4 and np.mean(gap) == pytest.approx(38.492, abs=0.002)
    mean, scale = alanine.measure(torch.as_tensor(frames.positions))
    made = alanine.make_potential(mean.double(), scale.double(), energy=energy)
    rebuilt = made.energy(made.state(x)).numpy() - energy(x).numpy()
    assert np.abs(rebuilt).max() < 0.01  # the data hold single precision, the rigid bonds do not stretch


@needs_shared_data
def test_ice_has_its_energy_and_sites_of_rigid_water() -> None:
    pytest.importorskip("openmm")
    crystal = ice.read_crystal(ICE / "iceXI_T100_N16.json")
    energy = ice.make_energy(crystal, 0.0, platform="Reference")
    x = torch.as_tensor(crystal.positions, dtype=torch.float64).unsqueeze(0)
    assert float(energy(x)) == pytest.approx(-950.874, abs=0.01)
    bodies = ice.make_bodies(x)
    rest = {"pos": torch.zeros(1, 16, 3).double(), "rot": torch.eye(1, 4).double().expand(1, 16, 4)}
    drift = x.unflatten(1, (16, 4))[:, :, 0].mean(1)
    assert (bodies.sites(rest) + drift - x).abs().max() < 2e-5
    potential = ice.IcePotential(energy, bodies, 0.005)
    moved = {"pos": 0.005 * draw(1, 16, 3), "rot": rotvec_to_quaternion(0.05 * draw(1, 16, 3, seed=1))}
    moved = {k: v.requires_grad_() for k, v in moved.items()}
    pos, rot = torch.autograd.grad(potential.energy(moved).sum(), [moved["pos"], moved["rot"]])
    for name, gradient in (("pos", pos), ("rot", rot)):
        direction, step = draw(*gradient.shape, seed=7), 1e-6
        ends = [potential.energy({**moved, name: moved[name].detach() + s * direction}).detach() for s in (step, -step)]
        slope, expected = float((ends[0] - ends[1]).sum()) / (2 * step), float((gradient * direction).sum())
        assert slope == pytest.approx(expected, rel=2e-3)


def test_the_embedded_generator_knows_alanine_dipeptide() -> None:
    """Of fresh samples: the weights are worth something, most of the mass has phi < 0, rigid bonds are rigid."""
    pytest.importorskip("openmm")
    model = mf.load("alanine")
    made = model.weighted(1500, generator=torch.Generator().manual_seed(3))
    assert made.effective_share > 0.05
    assert float(made.log_z.value) == pytest.approx(-18.45, abs=0.2)
    phi = (made.x["turn"][:, 0] + math.pi).remainder(2 * math.pi) - math.pi
    assert float(made.weights[phi > 0].sum()) < 0.2
    x = model.potential.positions(made.x)
    assert ((x[:, 6] - x[:, 7]).norm(dim=-1) - 1.01).abs().max() < 1e-4
    target = load_target("alanine")
    few = {k: v[:8] for k, v in made.x.items()}
    expected = made.log_weight[:8] + made.log_prob[:8]
    assert (target.log_density(few) - expected).abs().max() < 1e-2
