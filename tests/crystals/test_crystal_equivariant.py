"""The equivariant network of the crystal flows: orientation, cell vectors, its tensor product, gradients."""

import numpy as np
import pytest
import torch
from e3nn import o3

import manifoldflow as mf
from manifoldflow.manifolds.spd import matrix_exp, matrix_log
from manifoldflow.tasks.crystals import equivariant
from manifoldflow.tasks.crystals.batches import state_of
from manifoldflow.tasks.crystals.flow import CrystalConfig, build
from manifoldflow.tasks.crystals.model import NetworkConfig
from manifoldflow.tasks.crystals.structure import Crystal, collate

METHODS = ("geodesic", "diffusion", "interpolant", "bayesian")
SMALL = NetworkConfig(width=24, layers=2, vectors=5, harmonics=0)


def stirred(method="geodesic", network=SMALL, **settings) -> mf.Flow:
    """A small flow whose last layers are not zero, as if it were trained."""
    torch.manual_seed(0)
    config = CrystalConfig(network=network, method=method, architecture="e3nn", accuracy_steps=50, **settings)
    flow = build(config).double()
    with torch.no_grad():
        for parameter in flow.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def some_state(length=4.0, sizes=(5, 3, 8), cells=None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Crystals of low symmetry in cells of about this length, in angstrom, for one atom."""
    rng = np.random.default_rng(0)
    made = []
    for n in sizes:
        cell = length * n ** (1 / 3) * (np.eye(3) + 0.15 * rng.normal(size=(3, 3)))
        made.append(Crystal(rng.integers(5, 9, n), rng.random((n, 3)), cell))
    batch = collate(made, dtype=torch.float64)
    return state_of(batch), batch.mask


def answers(flow, state, mask):
    x = {n: flow.path[n].state_of(v) for n, v in state.items()}
    with torch.set_grad_enabled(any(v.requires_grad for v in x.values())):
        return flow.model(x, torch.full((len(mask),), 0.4, dtype=x["frac"].dtype), mask=mask)


def largest_gap(a, b) -> float:
    """Of real atoms; padding is nobody's."""
    return max(float((a[n] - b[n]).abs().max()) for n in a)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cell", ["log", "affine"])
def test_orientation_does_not_matter(method, cell, monkeypatch):
    """Another root of the metric tensor is the crystal turned, or mirrored."""
    flow = stirred(method, cell=cell)
    state, mask = some_state()
    before = answers(flow, state, mask)
    assert before["frac"].abs().max() > 1e-2
    monkeypatch.setattr(flow.model, "_root", torch.linalg.cholesky)
    assert largest_gap(before, answers(flow, state, mask)) < 1e-7
    mirror = torch.linalg.qr(torch.randn(3, 3, 3, dtype=torch.float64))[0]
    mirror = mirror * torch.linalg.det(mirror).sign().neg()[:, None, None]
    monkeypatch.setattr(flow.model, "_root", lambda g: torch.linalg.cholesky(g) @ mirror)
    assert largest_gap(before, answers(flow, state, mask)) < 1e-7


@pytest.mark.parametrize("cell", ["log", "affine"])
def test_cell_vectors_do_not_matter_to_what_is_seen_in_space(cell):
    """In cells so large that 27 of them hold all neighbours, whichever vectors describe them; without the six numbers."""
    flow = stirred(cell=cell)
    with torch.no_grad():
        flow.model.graph_map[0].weight[:, :6] = 0
        for parameter in flow.model.lattice_head.parameters():
            parameter.zero_()
    state, mask = some_state(length=7.0)
    steps = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, -1]], dtype=torch.float64)
    moved = {
        "species": state["species"],
        "frac": (state["frac"] @ torch.linalg.inv(steps)) % 1,
        "lattice": steps @ state["lattice"] @ steps.mT,
    }
    before, after = answers(flow, state, mask), answers(flow, moved, mask)
    assert largest_gap({"species": before["species"]}, after) < 1e-6
    assert (before["frac"] @ torch.linalg.inv(steps) - after["frac"]).abs().max() < 1e-6
    rates = [rate_of(s["lattice"], made["lattice"], cell) for s, made in ((state, before), (moved, after))]
    assert (steps @ rates[0] @ steps.mT - rates[1]).abs().max() < 1e-4 * rates[0].abs().max() > 0


def rate_of(lattice, tangent, cell):
    """The change of the metric tensor, by finite differences."""
    if cell == "affine":
        return tangent
    log, small = matrix_log(lattice), 1e-5
    return (matrix_exp(log + small * tangent) - matrix_exp(log - small * tangent)) / (2 * small)


def test_nothing_jumps_where_two_images_are_equally_near():
    flow = stirred()
    state, mask = some_state(length=8.0, sizes=(4, 4))
    made = []
    for side in (-1e-9, 1e-9):
        frac = state["frac"].clone()
        frac[:, 1] = (frac[:, 0] + torch.tensor([0.5 + side, 0.0, 0.3])) % 1
        made.append(answers(flow, {**state, "frac": frac}, mask))
    assert largest_gap(*made) < 1e-5


def test_products_are_those_of_e3nn():
    """Coupled after the sum over neighbours, against e3nn's product of every pair, summed afterwards."""
    irreps, names = o3.Irreps("4x0e + 4x1o + 4x2e"), ("0e", "1o", "2e")
    counts, coupling = equivariant._couplings((0, 1, 2))
    paths = [(a, b, c) for c in range(3) for a in range(3) for b in range(3) if equivariant._is_path(a, b, c)]
    assert len(paths) == sum(counts) == 11
    product = o3.TensorProduct(
        irreps,
        o3.Irreps("0e + 1o + 2e"),
        o3.Irreps([(4, names[c]) for *_, c in paths]),
        [(a, b, k, "uvu", True) for k, (a, b, _) in enumerate(paths)],
        path_normalization="none",
        shared_weights=False,
    )
    parts = [torch.randn(7, 2 * degree + 1, 4) for degree in range(3)]  # of 7 neighbours, channels last
    where, gates = torch.randn(7, 9), torch.rand(7, 3, 4)
    weights = torch.cat([gates[:, a] for a, *_ in paths], -1)
    flat = torch.cat([p.mT.flatten(1) for p in parts], -1)
    want = product(flat, where, weights).sum(0)
    carried = torch.cat([p * gates[:, None, a] for a, p in enumerate(parts)], 1)
    both = torch.einsum("jy,jxc->yxc", where, carried).flatten(0, 1)
    made, start = coupling @ both, 0
    for k, (*_, c) in enumerate(paths):
        block = made[start : start + 2 * c + 1]
        assert torch.allclose(want[product.irreps_out.slices()[k]], block.T.flatten(), atol=1e-5)
        start += 2 * c + 1


def test_harmonics_are_sums_over_the_images():
    """Against a loop over atoms and cells."""
    model = stirred().model
    state, mask = some_state(sizes=(3,))
    root = model._root(state["lattice"])
    count = mask.sum(-1, keepdim=True).double()
    gap = state["frac"].unsqueeze(-2) - state["frac"].unsqueeze(-3)
    seen = model._harmonics(gap, state["lattice"], root, state["species"], count)[0]
    cell, centres = root[0] * 3 ** (1 / 3), torch.linspace(0.25, 2.5, 10, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            want = torch.zeros(9, 10, dtype=torch.float64)
            near = gap[0, i, j] - gap[0, i, j].round()
            for image in torch.cartesian_prod(*[torch.arange(-1, 2)] * 3).double():
                way = (near + image) @ cell
                apart = way.norm() / (model.radii[state["species"][0, i]] + model.radii[state["species"][0, j]])
                if i == j and not image.any():
                    continue
                inside = (-0.5 * ((apart - centres) / 0.25) ** 2).exp()
                angular = o3.spherical_harmonics([0, 1, 2], way, normalize=True, normalization="component")
                short = (apart / 0.3).clamp(max=1)
                want += torch.outer(angular * torch.tensor([1.0] + [short] * 3 + [short**2] * 5), inside)
            assert torch.allclose(seen[i, j], want, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_all_parameters_learn(method):
    flow = stirred(method, given_species=0.0)
    state, mask = some_state()
    flow.loss(state, mask=mask, generator=torch.Generator().manual_seed(0)).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_cubic_cells_have_derivatives():
    flow = stirred()
    state, mask = some_state(sizes=(4,))
    state["lattice"] = (torch.eye(3, dtype=torch.float64) * 9).expand(1, 3, 3).clone().requires_grad_()
    made = answers(flow, state, mask)
    (slope,) = torch.autograd.grad(made["frac"].square().sum() + made["lattice"][:, 0, 1].sum(), state["lattice"])
    assert slope.isfinite().all()
    small = 1e-5 * torch.tensor([[1.0, 0.3, -0.2], [0.3, 0.5, 0.4], [-0.2, 0.4, 2.0]], dtype=torch.float64)
    ends = []
    for side in (1, -1):
        other = answers(flow, {**state, "lattice": state["lattice"].detach() + side * small}, mask)
        ends.append(float((other["frac"].square().sum() + other["lattice"][:, 0, 1].sum()).detach()))
    assert (ends[0] - ends[1]) / 2 == pytest.approx(float((slope * small).sum()), rel=1e-4)


def test_configurations_are_kept_and_checked(tmp_path):
    flow = stirred().float()
    mf.save(flow, tmp_path / "model.safetensors")
    again = mf.load(tmp_path / "model.safetensors")
    assert isinstance(again.model, equivariant.EquivariantCrystalNetwork)
    state, mask = some_state()
    single = {n: v.float() if v.is_floating_point() else v for n, v in state.items()}
    assert largest_gap(answers(flow, single, mask), answers(again, single, mask)) == 0
    config = {n: v for n, v in flow.config.items() if n != "architecture"}
    assert not isinstance(build(config).model, equivariant.EquivariantCrystalNetwork)  # from before there was a choice
    with pytest.raises(ValueError, match="radial"):
        stirred(network=NetworkConfig(width=8, layers=1, radial=0))
    with pytest.raises(ValueError, match="architecture"):
        build(CrystalConfig(architecture="gnn"))
    assert flow.loss(single, mask=mask).isfinite()
