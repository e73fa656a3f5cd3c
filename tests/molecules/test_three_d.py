"""Molecules in three dimensions: symmetry, padding, batches, valences and what RDKit says."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

import manifoldflow as mf
from manifoldflow.assignment import assign
from manifoldflow.field import edges_of_pairs, pairs_of_edges
from manifoldflow.tasks.molecules.conformers import ARRAYS, Conformers, join, load_conformers
from manifoldflow.tasks.molecules.stability import connected, stability
from manifoldflow.tasks.molecules.three_d import (
    Made,
    ThreeDConfig,
    build,
    draw_sizes,
    sample_molecules,
    sized_batches,
    split_molecules,
    tensors_of,
)


def conformers(sizes=(5, 3, 4, 5, 2, 4), seed=0):
    """Molecules of carbon, oxygen and hydrogen in a chain; no chemistry is meant."""
    rng = np.random.default_rng(seed)
    bonds = [[(i, i + 1) for i in range(n - 1)] for n in sizes]
    return Conformers(
        rng.normal(size=(sum(sizes), 3)).astype(np.float32) * 2,
        rng.choice([1, 6, 8], sum(sizes)).astype(np.int8),
        np.zeros(sum(sizes), np.int8),
        np.cumsum([0, *sizes]).astype(np.int32),
        np.array([b for some in bonds for b in some], np.int16),
        rng.integers(1, 4, sum(map(len, bonds))).astype(np.int8),
        np.cumsum([0, *map(len, bonds)]).astype(np.int32),
        np.arange(len(sizes), dtype=np.int32),
    )


def small(**options):
    torch.manual_seed(0)
    data = tensors_of(conformers())
    return build(ThreeDConfig(width=16, pair_width=12, vectors=4, depth=2, **data.shares(), **options)), data


def turned(x, rotation, order):
    pair = pairs_of_edges(x["bond"])[:, order][:, :, order]
    return {
        "pos": x["pos"][:, order] @ rotation.mT,
        "kind": x["kind"][:, order],
        "charge": x["charge"][:, order],
        "bond": edges_of_pairs(pair),
    }


@pytest.mark.parametrize("reflect", [False, True])
def test_the_network_turns_with_its_input_and_forgets_the_order_of_atoms(reflect):
    flow, data = small()
    batch = data.batch(torch.arange(4), 5)
    x, mask, t = batch["x"], batch["mask"], torch.tensor([0.1, 0.5, 0.9, 1.0])
    x["pos"] = flow.spaces["pos"].center(x["pos"], mask)
    rotation = torch.tensor(Rotation.random(random_state=1).as_matrix(), dtype=torch.float32) * (-1 if reflect else 1)
    order = torch.tensor([3, 0, 4, 1, 2])
    one = flow.predict(x, t, mask=mask, previous=flow.predict(x, t, mask=mask))
    y, m = turned(x, rotation, order), mask[:, order]
    y["pos"] = y["pos"] + 3.0  # shifts are not seen
    other = flow.predict(y, t, mask=m, previous=flow.predict(y, t, mask=m))
    assert (other["pos"] - one["pos"][:, order] @ rotation.mT).abs().max() < 1e-4
    for name in ("kind", "charge"):
        assert (other[name] - one[name][:, order]).abs().max() < 1e-4
    assert (pairs_of_edges(other["bond"]) - pairs_of_edges(one["bond"])[:, order][:, :, order]).abs().max() < 1e-4


def test_trajectories_turn_with_their_start():
    """The whole sampler is equivariant: the same coins, a start that is turned, a result that is turned."""
    flow, _ = small()
    start = flow.draw_source((3, 6), generator=torch.Generator().manual_seed(0))
    rotation = torch.tensor(Rotation.random(random_state=2).as_matrix(), dtype=torch.float32)
    one = flow.sample(x0=start, steps=10, generator=torch.Generator().manual_seed(1))
    other = flow.sample(
        x0={**start, "pos": start["pos"] @ rotation.mT}, steps=10, generator=torch.Generator().manual_seed(1)
    )
    assert (other["pos"] - one["pos"] @ rotation.mT).abs().max() < 1e-4
    assert all(torch.equal(one[n], other[n]) for n in ("kind", "charge", "bond"))


@pytest.mark.parametrize("junk", [0.0, 9.0, float("nan")])
def test_padding_changes_nothing(junk):
    flow, data = small(distorted=0.0)
    rows = torch.tensor([1, 4])
    few, many = data.batch(rows, 3), data.batch(rows, 5)
    many["x"]["pos"] = torch.where(many["mask"].unsqueeze(-1), many["x"]["pos"], junk)
    pair = pairs_of_edges(many["x"]["bond"]).clone()
    pair[:, :, 3:] = pair[:, 3:, :] = 2
    many["x"]["bond"], many["x"]["kind"][:, 3:] = edges_of_pairs(pair), 4
    x0, t = {}, torch.tensor([0.3, 0.8])
    for name, given in (("few", few), ("many", many)):
        noise = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
        pos = torch.zeros_like(given["x"]["pos"])
        pos[:, :3] = noise
        x0[name] = {**given["x"], "pos": pos}
    flow.self_condition = 0.0  # its coin would fall anew
    one = flow.loss_parts(few["x"], x0=x0["few"], mask=few["mask"], t=t)
    other = flow.loss_parts(many["x"], x0=x0["many"], mask=many["mask"], t=t)
    assert all(torch.allclose(one[n], other[n], atol=1e-5) for n in one), (one, other)
    clean = {**x0["many"], "bond": edges_of_pairs(pairs_of_edges(few["x"]["bond"]).new_zeros(2, 5, 5))}
    sum(flow.loss_parts(many["x"], mask=many["mask"]).values()).backward()
    seen = flow.predict(x0["few"] | {"bond": clean["bond"][:, :3]}, t, mask=few["mask"])
    twice = flow.predict(clean, t, mask=many["mask"], previous=flow.predict(clean, t, mask=many["mask"]))
    once = flow.predict(x0["few"] | {"bond": clean["bond"][:, :3]}, t, mask=few["mask"], previous=seen)
    assert (twice["pos"][:, :3] - once["pos"]).abs().max() < 1e-5
    assert (pairs_of_edges(twice["bond"])[:, :3, :3] - pairs_of_edges(once["bond"])).abs().max() < 1e-5
    assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters())


def test_the_coupling_numbers_and_turns_every_molecule_at_once():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(8, 6, 3, generator=g, dtype=torch.double)
    mask = torch.arange(6) < torch.tensor([6, 5, 4, 6, 3, 6, 2, 6]).unsqueeze(-1)
    space = mf.Centered(mf.Euclidean(3))
    y = space.center(y, mask)
    x = space.center(torch.randn(8, 6, 3, generator=g, dtype=torch.double), mask)
    paired, kept = mf.Permute()(x, y, spaces=space, mask=mask)
    assert kept is y
    for a, b, c, m in zip(x, y, paired, mask, strict=True):
        cost = torch.cdist(b[m], a[m]).square().numpy()
        rows, columns = linear_sum_assignment(cost)
        assert float((c[m] - b[m]).square().sum()) == pytest.approx(cost[rows, columns].sum(), abs=1e-9)
        assert torch.equal(c[~m], a[~m])
    both, _ = mf.Permute(align=mf.Align())(x, y, spaces=space, mask=mask)
    assert (both - y).square().sum() < (paired - y).square().sum() < 0.8 * (x - y).square().sum()
    more, _ = mf.Permute(align=mf.Align(), rounds=4)(x, y, spaces=space, mask=mask)
    assert (more - y).square().sum() <= (both - y).square().sum() + 1e-9
    with pytest.raises(ValueError, match="no field 'pos'"):
        mf.Permute("pos")(x, y, spaces=space)
    with pytest.raises(ValueError, match="rounds"):
        mf.Permute(rounds=0)


def test_points_of_a_torus_are_permuted_among_equal_tokens():
    g, space = torch.Generator().manual_seed(0), mf.Torus(3)
    x, y = (torch.rand(7, 6, 3, generator=g, dtype=torch.double) for _ in range(2))
    kind = torch.randint(2, (7, 6), generator=g)
    spaces = {"frac": space, "kind": mf.Tokens(2)}
    coupling = mf.Permute("frac", within="kind")
    made, _ = coupling({"frac": x, "kind": kind}, {"frac": y, "kind": kind}, spaces=spaces)
    for a, b, c, k in zip(x, y, made["frac"], kind, strict=True):
        for token in (0, 1):
            cost = space.dist(b[k == token].unsqueeze(1), a[k == token].unsqueeze(0)).square().numpy()
            best = cost[linear_sum_assignment(cost)].sum()
            assert float(space.dist(c[k == token], b[k == token]).square().sum()) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("kind", ["random", "ties", "negative", "far"])
def test_assignments_are_those_of_scipy(kind):
    g = torch.Generator().manual_seed(3)
    for n in (1, 2, 5, 11):
        cost = torch.rand(20, n, n, generator=g)
        cost = {"ties": (3 * cost).floor(), "negative": cost - 2, "far": 1e4 * cost}.get(kind, cost)
        mask = torch.rand(20, n, generator=g) < 0.8
        for chosen in (None, mask):
            column = assign(cost, chosen)
            assert torch.equal(column.sort(-1).values, torch.arange(n).expand(20, n))
            for c, p, m in zip(cost, column, mask if chosen is not None else torch.ones_like(mask), strict=True):
                part = c[m][:, m].numpy()
                best = part[linear_sum_assignment(part)].sum()
                assert c[m, p[m]].sum().item() == pytest.approx(best, rel=1e-5, abs=1e-5)
                assert torch.equal(p[~m], torch.arange(n)[~m])


def test_calls_of_the_network_do_not_grow_with_the_batch():
    flow, _ = small()
    calls = []
    flow.model.register_forward_hook(lambda *_: calls.append(1))
    for count in (1, 40):
        calls.clear()
        sample_molecules(flow, [4] * count, steps=7, generator=torch.Generator().manual_seed(0))
        assert len(calls) == 7


def test_disturbed_geometry_keeps_its_endpoint_and_leaves_padding_alone():
    flow, data = small(distorted=1.0, distortion=5.0)
    plain, _ = small(distorted=0.0)
    batch, t = data.batch(torch.arange(6)), torch.full((6,), 0.999)
    drawn = flow.draw(batch["x"], mask=batch["mask"], t=t, generator=torch.Generator().manual_seed(0))
    off = (drawn.xt["pos"] - drawn.x1["pos"]).norm(dim=-1)
    assert (off[~batch["mask"]] == 0).all() and 0.1 < float((off[batch["mask"]] > 0.5).float().mean()) < 0.6
    assert torch.equal(drawn.points["pos"].endpoint, drawn.x1["pos"])
    near = plain.draw(batch["x"], mask=batch["mask"], t=t, generator=torch.Generator().manual_seed(0))
    assert (near.xt["pos"] - near.x1["pos"]).norm(dim=-1).max() < 0.05


# ---------------------------------------------------------------- data


def test_batches_hold_the_molecules_and_depend_on_seed_and_step_alone(tmp_path):
    flat = conformers()
    data = tensors_of(load_conformers(flat.save(tmp_path / "a.npz")))
    batch = data.batch(torch.tensor([1]))
    assert torch.equal(batch["x"]["pos"][0], torch.from_numpy(flat.positions[5:8]))
    pair = pairs_of_edges(batch["x"]["bond"])[0]
    assert pair[0, 1] == flat.bond_order[4] and pair[1, 2] == flat.bond_order[5] and pair[0, 2] == 0
    batches = sized_batches(data, 12, seed=3, buckets=3)
    run = [next(it) for it in [batches(0)] for _ in range(5)]
    later = next(batches(4))
    assert torch.equal(run[4]["x"]["pos"], later["x"]["pos"])
    sizes = {int(b["mask"].sum(-1).max()) for b in run}
    assert len(sizes) > 1
    chosen = data.shares()
    assert chosen["sizes"] == (0, 0, 1, 1, 2, 2) and abs(sum(chosen["bonds"]) - 1) < 1e-6


def test_sets_are_joined_split_and_named(tmp_path):
    flat = conformers()
    both = join([flat, flat])
    assert len(both) == 12 and both.molecule.tolist() == list(range(12))
    assert np.array_equal(both.rows(np.arange(6, 12)).positions, flat.positions)
    train, val = split_molecules(both, 0.25)
    assert set(train.molecule.tolist()).isdisjoint(val.molecule.tolist()) and len(train) + len(val) == 12
    assert flat.heavy.tolist() == [
        int((flat.atomic_number[a:b] > 1).sum()) for a, b in zip(flat.atom_offset, flat.atom_offset[1:], strict=False)
    ]
    np.savez(tmp_path / "b.npz", **{n: getattr(flat, n) for n in ARRAYS if n not in ("bonds", "charge")})
    with pytest.raises(ValueError, match="lacks the array bonds"):
        load_conformers(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="atomic number 17 is not one of"):
        tensors_of(Conformers(**{**vars(flat), "atomic_number": np.full_like(flat.atomic_number, 17)}))
    with pytest.raises(ValueError, match="give lengths"):
        draw_sizes(build(ThreeDConfig(width=8, pair_width=8, vectors=2, depth=1)), 3)
    with pytest.raises(ValueError, match="6 shares"):
        ThreeDConfig(kinds=(1.0,))


# ---------------------------------------------------------------- chemistry


def made_of(kinds, charges, bonds, nodes):
    """One molecule from lists, padded by one atom."""
    pair = torch.zeros(1, nodes + 1, nodes + 1, dtype=torch.long)
    for i, j, order in bonds:
        pair[0, i, j] = pair[0, j, i] = order
    pad = torch.nn.functional.pad
    generator = torch.Generator().manual_seed(0)
    return Made(
        {
            "pos": pad(torch.randn(1, nodes, 3, generator=generator), (0, 0, 0, 1)),
            "kind": pad(torch.tensor([kinds]), (0, 1), value=3),
            "charge": pad(torch.tensor([charges]), (0, 1)),
            "bond": edges_of_pairs(pair),
        },
        torch.arange(nodes + 1).unsqueeze(0) < nodes,
    )


METHANE = made_of([1, 0, 0, 0, 0], [0] * 5, [(0, i, 1) for i in range(1, 5)], 5)
AMMONIUM = made_of([2, 0, 0, 0, 0], [1, 0, 0, 0, 0], [(0, i, 1) for i in range(1, 5)], 5)
FIVE = made_of([2, 0, 0, 0, 0], [0] * 5, [(0, i, 1) for i in range(1, 5)], 5)
APART = made_of([0, 0, 0, 0], [0] * 4, [(0, 1, 1), (2, 3, 1)], 4)


def test_valences_are_judged_with_their_charge():
    assert stability(METHANE).molecule.all() and stability(METHANE).connected.all() and stability(METHANE).neutral.all()
    assert stability(AMMONIUM).molecule.all() and not stability(AMMONIUM).neutral.any()
    judged = stability(FIVE)
    assert judged.atom.tolist() == [[False, True, True, True, True, False]] and not judged.molecule.any()
    assert stability(APART).molecule.all() and not stability(APART).connected.any()


def test_connection_is_found_along_the_longest_chain():
    n = 17
    chain = torch.zeros(2, n, n, dtype=torch.bool)
    i = torch.arange(n - 1)
    chain[:, i, i + 1] = chain[:, i + 1, i] = True
    chain[1, 8, 9] = chain[1, 9, 8] = False
    assert connected(chain, torch.ones(2, n, dtype=torch.bool)).tolist() == [True, False]


def test_rdkit_gets_just_what_was_made():
    pytest.importorskip("rdkit")
    from manifoldflow.tasks.molecules.three_d_metrics import is_sound, measure, smiles_without_hydrogens, to_rdkit

    (methane,) = to_rdkit(METHANE)
    assert is_sound(methane) and smiles_without_hydrogens(methane) == "C" and methane.GetNumAtoms() == 5
    assert np.allclose(methane.GetConformer().GetPositions(), METHANE.state["pos"][0, :5].numpy(), atol=1e-5)
    assert not is_sound(to_rdkit(FIVE)[0]) and not is_sound(to_rdkit(APART)[0])
    radical = made_of([1, 0, 0, 0], [0] * 4, [(0, i, 1) for i in range(1, 4)], 4)
    assert not is_sound(to_rdkit(radical)[0])  # RDKit lets it pass as a radical
    scores, _, smiles = measure(AMMONIUM, reference={"C"}, poses=False)
    assert smiles == ["[NH4+]"] and (scores.sound, scores.stable, scores.novel) == (1, 1, 1)


def test_conformers_are_kekulised_and_complete():
    pytest.importorskip("rdkit")
    from manifoldflow.tasks.molecules.conformers import embed

    made, failed = embed(["c1ccccc1", "CC.O", "not a smiles", "C[N+](=O)[O-]"], seed=0)
    assert failed == ["CC.O", "not a smiles"] and made.molecule.tolist() == [0, 3]
    benzene = made.rows(np.array([0]))
    assert sorted(benzene.bond_order.tolist()) == [1] * 9 + [2] * 3 and benzene.heavy.tolist() == [6]
    assert sorted(made.rows(np.array([1])).charge.tolist())[0] == -1
    length = np.linalg.norm(np.diff(benzene.positions[benzene.bonds], axis=1)[:, 0], axis=-1)
    assert 1.0 < length.min() < 1.15 and 1.35 < length.max() < 1.45
    assert stability(Made(**_as_made(made))).molecule.all()


def test_charges_that_a_file_leaves_out_follow_from_the_valences(tmp_path):
    pytest.importorskip("rdkit")
    from manifoldflow.tasks.molecules.conformers import embed

    made, _ = embed(["C[N+](=O)[O-]", "C[NH3+]", "CCO", "CS(C)=O"], seed=0)
    np.savez(tmp_path / "a.npz", **{n: getattr(made, n) for n in ARRAYS if n not in ("charge", "molecule")})
    assert np.array_equal(load_conformers(tmp_path / "a.npz").charge, made.charge) and made.charge.any()


def _as_made(flat):
    batch = tensors_of(flat).batch(torch.arange(len(flat)))
    return {"state": batch["x"], "mask": batch["mask"]}


def test_a_flow_survives_its_checkpoint(tmp_path):
    flow, _ = small()
    mf.save(flow, tmp_path / "a.safetensors")
    again = mf.load(tmp_path / "a.safetensors", into=build(dict(flow.config)))
    made = [sample_molecules(f, [5, 3], steps=3, generator=torch.Generator().manual_seed(0)) for f in (flow, again)]
    assert all(torch.equal(made[0].state[n], made[1].state[n]) for n in made[0].state)
    assert made[0].mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]


def test_distillation_learns_from_sound_molecules_alone(monkeypatch):
    from manifoldflow.tasks.molecules import distil

    flow, _ = small()
    with pytest.raises(ValueError, match="none of 6 molecules is sound"):
        distil.make_pairs(flow, 6, steps=2, generator=torch.Generator().manual_seed(0))
    seen = []

    def every_other(made):
        judged = stability(made)
        good = torch.arange(len(made)) % 2 == 0
        seen.append({n: v[good] for n, v in made.state.items()})
        return type(judged)(judged.atom, good, good, good)

    monkeypatch.setattr(distil, "stability", every_other)
    pairs = distil.make_pairs(flow, 6, steps=2, batch=4, generator=torch.Generator().manual_seed(0))
    assert len(pairs) == 3 and pairs.asked == 6
    again = flow.sample(x0=pairs.groups[0][0], mask=pairs.groups[0][2], steps=2)["pos"].shape
    assert again == pairs.groups[0][1]["pos"].shape
    assert all(torch.equal(g[1][n], s[n]) for g, s in zip(pairs.groups, seen, strict=True) for n in s)
    first = next(distil.pair_batches(pairs, 5, 8, 0)(3))
    other = next(distil.pair_batches(pairs, 5, 8, 0)(3))
    assert torch.equal(first["t"], other["t"]) and set((first["t"] * 8).tolist()) <= set(map(float, range(8)))
    drawn = flow.draw(first["x"], mask=first["mask"], x0=first["x0"], t=torch.zeros(5))
    assert torch.equal(drawn.xt["bond"], first["x0"]["bond"])  # at t = 0 stored pairs start where they did
    assert flow.loss(first["x"], mask=first["mask"], x0=first["x0"], t=first["t"]).isfinite()
