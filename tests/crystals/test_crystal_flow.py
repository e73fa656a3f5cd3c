"""The crystal flow: what does not change it, padding, its corners, its batches."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import manifoldflow as mf
from manifoldflow.manifolds.spd import LogEuclideanSPD
from manifoldflow.tasks.crystals.batches import SizedBatches, crystals_of, per_atom, state_of, training_batches, whole
from manifoldflow.tasks.crystals.couplings import AtomOT, align_atoms
from manifoldflow.tasks.crystals.elements import COVALENT, ELEMENTS
from manifoldflow.tasks.crystals.flow import CrystalConfig, annealed, build
from manifoldflow.tasks.crystals.model import NetworkConfig
from manifoldflow.tasks.crystals.sampling import Wanted, draw
from manifoldflow.tasks.crystals.sources import LogNormalCells
from manifoldflow.tasks.crystals.structure import Crystal, Crystals, collate

METHODS = ("geodesic", "diffusion", "interpolant", "bayesian", "bayesian species")
ARCHITECTURES = ("pairs", "e3nn")
SMALL = NetworkConfig(width=24, layers=2)


def some_crystals(sizes=(5, 3, 8), seed=0) -> list[Crystal]:
    """Cells of low symmetry with a few elements."""
    rng = np.random.default_rng(seed)
    made = []
    for n in sizes:
        cell = 3.5 * n ** (1 / 3) * (np.eye(3) + 0.15 * rng.normal(size=(3, 3)))
        made.append(Crystal(rng.integers(5, 9, n), rng.random((n, 3)), cell).standard())
    return made


def stirred(method="geodesic", **settings) -> mf.Flow:
    """A small flow whose last layers are not zero, as if it were trained."""
    torch.manual_seed(0)
    if method == "bayesian species":
        method, settings = "bayesian", {"species_path": "bayesian", **settings}
    flow = build(CrystalConfig(network=SMALL, method=method, accuracy_steps=50, **settings)).double()
    with torch.no_grad():
        for parameter in flow.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def double(crystals) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    batch = collate(crystals, dtype=torch.float64)
    return state_of(batch), batch.mask


def parts(flow, state, mask, x0, t) -> torch.Tensor:
    kept = {"x0": x0} if x0 is not None else {}
    made = flow.loss_parts(state, mask=mask, t=t, generator=torch.Generator().manual_seed(1), **kept)
    return torch.stack(list(made.values()))


TIMES = {n: torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64) for n in ("species", "frac", "lattice")}


def changed(kind: str, crystals: list[Crystal]) -> tuple[list[Crystal], np.ndarray | None]:
    """The same crystals described otherwise, and what permuted their atoms."""
    rng = np.random.default_rng(5)
    if kind == "shift":
        return [replace(c, frac=(c.frac + rng.random(3)) % 1) for c in crystals], None
    if kind == "rotation":
        turns = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in crystals]
        return [replace(c, cell=c.cell @ q) for c, q in zip(crystals, turns, strict=True)], None
    if kind == "permutation":
        size = max(map(len, crystals))
        orders = [rng.permutation(len(c)) for c in crystals]
        full = np.stack([np.concatenate([o, np.arange(len(o), size)]) for o in orders])
        return [replace(c, species=c.species[o], frac=c.frac[o]) for c, o in zip(crystals, orders, strict=True)], full
    steps = np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]])  # another cell of the same lattice, reduced again at reading
    moved = [replace(c, cell=steps @ c.cell, frac=c.frac @ np.linalg.inv(steps) % 1) for c in crystals]
    return [c.reduced() for c in moved], None


@pytest.mark.parametrize("kind", ["shift", "rotation", "permutation", "cell vectors"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_does_not_depend_on_how_a_crystal_is_described(method, kind, architecture):
    flow = stirred(method, architecture=architecture)
    crystals = [c.reduced() for c in some_crystals()]
    state, mask = double(crystals)
    other, order = changed(kind, crystals)
    new, _ = double(other)
    if method in ("geodesic", "interpolant"):  # the same noise, aligned as in training
        noise = flow.draw_source((3, 8), mask=mask, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        moved = dict(noise)
        if order is not None:
            index = torch.as_tensor(order)
            moved["frac"] = noise["frac"].gather(1, index.unsqueeze(-1).expand(-1, -1, 3))
        coupling = AtomOT()
        first, _ = coupling(noise, state, mask=mask)
        second, _ = coupling(moved, new, mask=mask)
        if method == "interpolant" and kind == "permutation":
            pytest.skip("its noise is drawn per atom, in order")
        before, after = parts(flow, state, mask, first, TIMES), parts(flow, new, mask, second, TIMES)
    else:
        if kind == "permutation":
            pytest.skip("their noise is drawn per atom, in order; the network is tested below")
        before, after = parts(flow, state, mask, None, TIMES), parts(flow, new, mask, None, TIMES)
    assert before[1:].min() > 0
    assert torch.allclose(before, after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_network_moves_with_shift_and_permutation(method, architecture):
    flow = stirred(method, architecture=architecture)
    state, mask = double(some_crystals((5, 5)))
    g = torch.Generator().manual_seed(0)
    order, shift = torch.randperm(5, generator=g), torch.rand(2, 1, 3, generator=g, dtype=torch.float64)
    x = {n: flow.path[n].state_of(v) for n, v in state.items()}
    t = {n: torch.full((2,), 0.4, dtype=torch.float64) for n in x}
    moved = {**x, "species": x["species"][:, order], "frac": x["frac"][:, order]}
    moved["frac"] = torch.cat([(moved["frac"][..., :3] + shift) % 1, moved["frac"][..., 3:]], -1)
    a, b = flow.predict(x, t, mask=mask), flow.predict(moved, t, mask=mask)
    assert torch.allclose(a["species"][:, order], b["species"], atol=1e-9)
    assert torch.allclose(a["lattice"], b["lattice"], atol=1e-9)
    want = a["frac"][:, order]
    has_place = method.startswith("bayesian")
    gap = b["frac"] - want - (shift if has_place else 0)
    assert (gap - gap.round()).abs().max() < 1e-9
    if not has_place:
        assert want.mean(1).abs().max() < 1e-9  # no drift of the whole


@pytest.mark.parametrize("kind", ["shift", "rotation", "permutation", "cell vectors"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_likelihood_does_not_depend_on_how_a_crystal_is_described(kind, architecture):
    flow = stirred("geodesic", cell="log", architecture=architecture)
    crystals = [c.reduced() for c in some_crystals((3, 3))]
    state, mask = double(crystals)
    new, _ = double(changed(kind, crystals)[0])
    values = [structure_log_prob(flow, s, mask) for s in (state, new)]
    assert values[0].isfinite().all() and torch.allclose(values[0], values[1], atol=1e-4)


def structure_log_prob(flow: mf.Flow, state, mask) -> torch.Tensor:
    """Log-density of coordinates and cells with the species given."""
    from manifoldflow.tasks.crystals.likelihood import structure_log_prob

    return structure_log_prob(flow, state, mask, steps=6)


def test_shells_count_the_images_of_every_atom_and_point_to_them():
    """Against a loop over the atoms and the 27 cells."""
    network = stirred().model
    crystals = some_crystals((4, 3))
    batch = collate(crystals, dtype=torch.float64)
    gap = batch.frac.unsqueeze(-2) - batch.frac.unsqueeze(-3)
    count = batch.mask.sum(-1, keepdim=True).double()
    shells, towards = network._shells(gap, per_atom(batch.lattice, count.squeeze(-1)), batch.species, count)
    centres = np.linspace(0.25, 2.5, network.config.radial)
    width = centres[1] - centres[0]
    radii = COVALENT
    for b, crystal in enumerate(crystals):
        n = len(crystal)
        for i, j in itertools.product(range(n), repeat=2):
            number, way = np.zeros(len(centres)), np.zeros((3, len(centres)))
            near = crystal.frac[i] - crystal.frac[j]
            near = near - np.round(near)
            for image in itertools.product((-1, 0, 1), repeat=3):
                if i == j and image == (0, 0, 0):
                    continue
                apart = np.linalg.norm((near + image) @ crystal.cell)
                apart /= radii[crystal.species[i]] + radii[crystal.species[j]]
                inside = np.exp(-0.5 * ((apart - centres) / width) ** 2)
                number += inside
                way += np.outer(near + image, inside / max(apart, 0.3))
            assert np.allclose(shells[b, i, j].numpy(), number, atol=1e-5)
            assert np.allclose(towards[b, i, j].numpy(), n * way, atol=1e-5)


def test_checkpoints_from_before_the_shells_have_none():
    assert build({"network": {"width": 16, "layers": 1}}).model.config.radial == 0
    assert build({}).model.config.radial == build().model.config.radial == NetworkConfig().radial > 0


def test_network_of_beliefs_is_that_of_tokens_where_they_are_certain_and_sees_the_rest():
    flow = stirred("bayesian species")
    state, mask = double(some_crystals((5, 3)))
    x = {n: flow.path[n].state_of(v).double() for n, v in state.items()}
    assert x["species"].shape == (2, 5, ELEMENTS)
    assert torch.equal(x["species"].float().softmax(-1).argmax(-1), state["species"])
    assert torch.equal(x["species"].float().softmax(-1).amax(-1), torch.ones(2, 5))
    t = {n: torch.full((2,), 0.4, dtype=torch.float64) for n in x}
    soft, hard = flow.predict(x, t, mask=mask), flow.predict({**x, "species": state["species"]}, t, mask=mask)
    assert all(torch.allclose(soft[n], hard[n], atol=1e-12) for n in x)
    unsure = {**x, "species": 0.02 * x["species"]}
    other = flow.predict(unsure, t, mask=mask)
    assert all((other[n] - soft[n]).abs().max() > 1e-4 for n in ("species", "frac"))


def test_beliefs_of_species_go_with_beliefs_of_positions_and_old_checkpoints_have_none():
    assert isinstance(build({"method": "bayesian"}).path["species"], mf.Masking)
    assert isinstance(stirred("bayesian species").path["species"], mf.CategoricalBayes)
    with pytest.raises(ValueError, match='species_path "bayesian" is for method "bayesian"'):
        build(CrystalConfig(network=SMALL, species_path="bayesian"))


def test_guessed_crystals_are_refined_by_beliefs_too():
    flow = stirred("bayesian species", given_species=0.5).float()
    guesses = some_crystals((4, 4))
    free = [Wanted(4, guess=c) for c in guesses]
    held = [Wanted(4, tuple(c.species.tolist()), c) for c in guesses]
    assert all(len(c) == 4 for c in draw(flow, free, steps=4))
    assert all((a.species == b.species).all() for a, b in zip(draw(flow, held, steps=4), guesses, strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_changes_nothing(method, architecture):
    flow = stirred(method, architecture=architecture)
    crystals = some_crystals((4, 4))
    state, mask = double(crystals)
    longer = collate(crystals, size=7, dtype=torch.float64)
    x = {n: flow.path[n].state_of(v) for n, v in state.items()}
    padded = {n: flow.path[n].state_of(v) for n, v in state_of(longer).items()}
    t = {n: torch.full((2,), 0.4, dtype=torch.float64) for n in x}
    a, b = flow.predict(x, t, mask=mask), flow.predict(padded, t, mask=longer.mask)
    assert torch.allclose(a["frac"], b["frac"][:, :4]) and torch.allclose(a["lattice"], b["lattice"])
    assert torch.allclose(a["species"], b["species"][:, :4])
    data = state_of(longer)
    with_nan = {**data, "frac": torch.where(longer.mask.unsqueeze(-1), data["frac"], torch.nan)}
    losses = [flow.loss(s, mask=longer.mask, generator=torch.Generator().manual_seed(3)) for s in (data, with_nan)]
    losses[1].backward()
    assert losses[0] == losses[1] and all(p.grad.isfinite().all() for p in flow.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_corners_of_one_model_make_whole_crystals(method, given, architecture):
    flow = stirred(method, given_species=0.5, architecture=architecture).float()
    batch = collate(some_crystals((5, 3)))
    known = {"species": batch.species} if given else None
    x = flow.sample((2, 5), mask=batch.mask, steps=4, known=known, generator=torch.Generator().manual_seed(0))
    made = crystals_of(x, batch.mask)
    assert torch.linalg.eigvalsh(made.lattice).min() > 0 and made.frac.min() >= 0 and made.frac.max() < 1
    assert made.species.max() < ELEMENTS and (not given or (made.species == batch.species).all())
    structure = {n: v for n, v in state_of(batch).items() if n != "species"}
    named = flow.sample((2, 5), mask=batch.mask, steps=4, known=structure, generator=torch.Generator().manual_seed(0))
    assert (named["frac"] - structure["frac"]).abs().max() < 1e-6 and named["species"].max() < ELEMENTS


def test_atoms_change_places_within_their_species_only_and_come_nearer():
    g = torch.Generator().manual_seed(0)
    frac0, frac1 = torch.rand(50, 6, 3, generator=g), torch.rand(50, 6, 3, generator=g)
    kinds = torch.tensor([0, 0, 0, 1, 1, 2]).expand(50, 6)
    mask = torch.ones(50, 6, dtype=torch.bool)
    mask[:25, 5] = False
    torus = mf.Torus(3)

    def way(x: torch.Tensor) -> torch.Tensor:
        return (torus.log(x, frac1).square().sum(-1) * mask).sum(-1)

    moved = align_atoms(frac0, frac1, kinds, mask)
    free = align_atoms(frac0, frac1, None, mask)
    shifted = align_atoms(frac0, frac1, torch.arange(6).expand(50, 6), mask)
    assert (way(moved) <= way(shifted) + 1e-5).float().mean() > 0.9 and way(free).mean() < way(moved).mean() < way(
        frac0
    ).mean()
    drift = (torus.log(moved, frac1) * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    assert drift.abs().max() < 1e-3
    # Same differences up to one shift, within each kind: undo the shift by the circular mean of what moved.
    for kind in range(3):
        chosen = kinds[0] == kind
        a, b = frac0[30:, chosen], moved[30:, chosen]
        gaps = torus.log(a.unsqueeze(2).expand(-1, -1, b.shape[1], -1), b.unsqueeze(1).expand(-1, a.shape[1], -1, -1))
        shift = torus.log(frac0[30:, 5:6], moved[30:, 5:6]).unsqueeze(2)  # the only one of its kind stays itself
        off = (gaps - shift) - (gaps - shift).round()
        assert (off.abs().amax(-1).amin(-1) < 1e-5).all()


@pytest.mark.parametrize("space", [LogEuclideanSPD(3), mf.SPD(3)], ids=str)
def test_source_of_cells_is_fitted_and_normalised(space):
    g = torch.Generator().manual_seed(0)
    want = LogNormalCells((1.5, 0.2, -0.1, 1.8, 0.0, 1.2), (0.2, 0.1, 0.15, 0.3, 0.1, 0.2)).bind(space)
    draws = want.sample((5000,), generator=g, dtype=torch.float64)
    found = LogNormalCells.fit(draws)
    assert np.allclose(found.mean, want.mean, atol=0.02) and np.allclose(found.scale, want.scale, rtol=0.05)
    # Importance weights against another law of the same space average to 1.
    wide = mf.WrappedNormal(space, scale=0.4, mean=draws.mean(0)).sample((10_000,), generator=g, dtype=torch.float64)
    ratio = want.log_prob(wide) - mf.WrappedNormal(space, scale=0.4, mean=draws.mean(0)).log_prob(wide)
    assert float(ratio.exp().mean()) == pytest.approx(1.0, abs=0.1)


def test_lattices_per_atom_have_the_volume_per_atom():
    batch = collate(some_crystals((2, 9)))
    count = batch.mask.sum(-1)
    small = per_atom(batch.lattice, count)
    assert torch.allclose(torch.linalg.det(small).sqrt() * count, torch.linalg.det(batch.lattice).sqrt(), rtol=1e-4)
    assert torch.allclose(whole(small, count), batch.lattice, rtol=1e-5)
    again = crystals_of(state_of(batch), batch.mask)
    assert all(torch.allclose(a.float(), b.float(), rtol=1e-5) for a, b in zip(again, batch, strict=True))


def test_batches_hold_every_crystal_once_an_epoch_within_bounds_and_resume():
    sizes = np.random.default_rng(0).integers(1, 20, 500)
    sized = SizedBatches(sizes.tolist(), batch=32, max_pairs=4000, seed=3)
    epoch = sized.epoch(0)
    assert sorted(np.concatenate(epoch).tolist()) == list(range(500))
    assert max(len(b) for b in epoch) <= 32 and max(len(b) * sizes[b].max() ** 2 for b in epoch) <= 4000
    padded = sum(len(b) * sizes[b].max() ** 2 for b in epoch) / (sizes**2).sum()
    assert padded < 1.6  # of like size
    first = sized.from_number(0)
    for _ in range(len(epoch) + 3):
        next(first)
    assert (next(first) == next(sized.from_number(len(epoch) + 3))).all()
    crystals = collate(some_crystals((2, 9, 4)))
    batch = next(training_batches(crystals, 2, 200)(0))
    assert set(batch) == {"x", "mask"} and batch["mask"].any(0).all()
    with pytest.raises(ValueError, match="max_pairs"):
        SizedBatches([20], 4, 100)


def test_annealing_is_a_choice_of_sampling():
    flow = stirred("geodesic")
    assert flow.path["frac"].sample_schedule is None
    assert annealed(flow, 5.0).path["frac"].sample_schedule == mf.Annealed(5.0)
    assert annealed(flow, 0.0).path["lattice"].sample_schedule is None


def test_a_batch_is_one_padded_state_without_loops_over_crystals():
    batch = Crystals(*(part[:2] for part in collate(some_crystals())))
    assert isinstance(batch, Crystals) and batch.mask.shape == (2, 8)
