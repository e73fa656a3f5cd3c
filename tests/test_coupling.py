"""Couplings change which source meets which data point, and nothing else."""

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation
from torch import Tensor

import manifoldflow as mf
from manifoldflow.coupling import geodesic_cost
from manifoldflow.manifolds.rotation import quaternion_to_matrix

DOUBLE = torch.float64


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(x: Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(v.tolist()) for v in x.flatten(1))


@pytest.mark.parametrize("space", [mf.Euclidean(3), mf.Sphere(2), mf.Torus(3), mf.SO3()], ids=str)
def test_minibatch_ot_uses_every_source_exactly_once(space):
    draw = (
        (lambda s: torch.randn(256, 3, generator=gen(s)))
        if isinstance(space, mf.Euclidean)
        else (lambda s: space.sample_uniform((256,), generator=gen(s)))
    )
    x0, x1 = draw(0), draw(1)
    paired, kept = mf.MinibatchOT()(x0, x1, spaces=space)
    assert kept is x1
    assert rows(paired) == rows(x0)
    assert space.dist(paired, x1).square().mean() < 0.5 * space.dist(x0, x1).square().mean()


@pytest.mark.parametrize("space", [mf.Sphere(2), mf.Torus(3), mf.SO3()], ids=str)
def test_minibatch_ot_is_optimal_by_brute_force(space):
    x0, x1 = (space.sample_uniform((6,), generator=gen(s), dtype=DOUBLE) for s in (0, 1))
    paired, _ = mf.MinibatchOT()(x0, x1, spaces=space)
    least = min(float(space.dist(x0[list(p)], x1).square().sum()) for p in itertools.permutations(range(6)))
    assert float(space.dist(paired, x1).square().sum()) == pytest.approx(least, rel=1e-12)


def test_the_cost_of_a_set_sums_fields_and_real_elements_only():
    spaces = {"trans": mf.Euclidean(3), "rots": mf.SO3()}
    mask = torch.tensor([[True, True, False], [True, True, False], [True, True, False]])
    x0, x1 = (
        {
            "trans": torch.randn(3, 3, 3, generator=gen(s), dtype=DOUBLE),
            "rots": mf.SO3().sample_uniform((3, 3), generator=gen(s), dtype=DOUBLE),
        }
        for s in (0, 1)
    )
    cost = geodesic_cost(x0, x1, spaces, mask=mask)
    for i, j in itertools.product(range(3), range(3)):
        straight = ((x0["trans"][i, :2] - x1["trans"][j, :2]) ** 2).sum()
        relative = Rotation.from_matrix((x0["rots"][i, :2].mT @ x1["rots"][j, :2]).numpy()).magnitude()
        assert float(cost[i, j]) == pytest.approx(float(straight) + float((relative**2).sum()), rel=1e-10)
    _, order = linear_sum_assignment(cost.T.numpy())
    paired, _ = mf.MinibatchOT()(x0, x1, spaces=spaces, mask=mask)
    assert all(torch.equal(paired[name], x0[name][torch.as_tensor(order)]) for name in x0)


def test_samples_are_exchanged_between_equal_masks_only():
    lengths = torch.tensor([3, 5, 3, 5, 4, 3, 5, 3])
    mask = torch.arange(5) < lengths.unsqueeze(-1)
    x0, x1 = (torch.where(mask.unsqueeze(-1), torch.randn(8, 5, 3, generator=gen(s)), 0.0) for s in (0, 1))
    paired, _ = mf.MinibatchOT()(x0, x1, spaces=mf.Euclidean(3), mask=mask)
    assert torch.equal((paired != 0).any(-1), mask)
    for n in (3, 4, 5):
        assert rows(paired[lengths == n]) == rows(x0[lengths == n])


@pytest.mark.parametrize("as_dict", [False, True])
def test_samples_are_exchanged_between_equal_conditions_only(as_dict):
    label = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2])
    x0, x1 = (torch.randn(10, 3, generator=gen(s)) for s in (0, 1))
    x1 = x1 + 100.0 * torch.arange(10).unsqueeze(-1)  # crossing a stratum would pay
    paired, _ = mf.MinibatchOT()(x0, x1, spaces=mf.Euclidean(3), cond={"label": label} if as_dict else label)
    for k in range(3):
        assert rows(paired[label == k]) == rows(x0[label == k])
    free, _ = mf.MinibatchOT(stratify=False)(x0, x1, spaces=mf.Euclidean(3), cond=label)
    assert not torch.equal(free, paired)


def test_all_fields_travel_together():
    x0 = {"a": torch.randn(20, 3, generator=gen(0)), "b": torch.arange(20.0).unsqueeze(-1)}
    x1 = {"a": torch.randn(20, 3, generator=gen(1)), "b": torch.zeros(20, 1)}
    paired, _ = mf.MinibatchOT(names=["a"])(x0, x1, spaces={"a": mf.Euclidean(3), "b": mf.Euclidean(1)})
    assert torch.equal(x0["a"][paired["b"].long().squeeze(-1)], paired["a"])


@pytest.mark.parametrize("count", [3, 4, 60])
def test_kabsch_finds_scipys_rotation(count):
    x, y = (torch.randn(5, count, 3, generator=gen(s), dtype=DOUBLE) for s in (0, 1))
    r = mf.kabsch(x, y)
    for k in range(5):
        expected, _ = Rotation.align_vectors(y[k].numpy(), x[k].numpy())
        assert (r[k] - torch.as_tensor(expected.as_matrix())).abs().max() < 1e-7


def test_kabsch_recovers_a_rotation_and_never_reflects():
    x = torch.randn(8, 10, 3, generator=gen(0), dtype=DOUBLE)
    r = mf.SO3().sample_uniform((8,), generator=gen(1), dtype=DOUBLE)
    assert (mf.kabsch(x, x @ r.mT) - r).abs().max() < 1e-12
    mirrored = x * torch.tensor([1.0, 1.0, -1.0], dtype=DOUBLE)
    assert (torch.linalg.det(mf.kabsch(x, mirrored)) - 1).abs().max() < 1e-12


def test_kabsch_does_not_look_at_padding():
    mask = torch.arange(10) < torch.tensor([[6], [9]])
    x, y = (torch.randn(2, 10, 3, generator=gen(s), dtype=DOUBLE) for s in (0, 1))
    for k, n in enumerate((6, 9)):
        assert (mf.kabsch(x, y, mask)[k] - mf.kabsch(x[k, :n], y[k, :n])).abs().max() < 1e-12


@pytest.mark.parametrize("rotations", [mf.SO3(), mf.UnitQuaternion()], ids=str)
def test_align_is_one_rigid_motion_of_points_and_frames(rotations):
    g = gen(0)
    x0, x1 = (
        {
            "trans": torch.randn(3, 7, 3, generator=g, dtype=DOUBLE),
            "rots": rotations.sample_uniform((3, 7), generator=g, dtype=DOUBLE),
        }
        for _ in range(2)
    )
    spaces = {"trans": mf.Centered(mf.Euclidean(3)), "rots": rotations}
    out, same = mf.Align()(x0, x1, spaces=spaces)
    assert same is x1
    assert (torch.cdist(out["trans"], out["trans"]) - torch.cdist(x0["trans"], x0["trans"])).abs().max() < 1e-12
    before, after = ((x["rots"] if x["rots"].ndim == 4 else quaternion_to_matrix(x["rots"])) for x in (x0, out))
    # Seen from its own frame, a residue's neighbours stay where they are.
    local = [torch.einsum("bnij,bmi->bnmj", r, x["trans"]) for r, x in ((before, x0), (after, out))]
    assert (local[0] - local[1]).abs().max() < 1e-12
    assert ((out["trans"] - x1["trans"]) ** 2).sum() < ((x0["trans"] - x1["trans"]) ** 2).sum()
    assert (mf.kabsch(out["trans"], x1["trans"]) - torch.eye(3, dtype=DOUBLE)).abs().max() < 1e-10


def test_align_without_its_field_says_so():
    with pytest.raises(ValueError, match=r"no field 'trans'.*a, b"):
        mf.Align(points="trans")(
            {"a": torch.zeros(1, 2, 3), "b": torch.zeros(1)},
            {"a": torch.zeros(1, 2, 3), "b": torch.zeros(1)},
            spaces={},
        )


class Zero(torch.nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_stored_pairs_are_not_coupled_again():
    seen = []

    def coupling(x0, x1, **kwargs):
        seen.append(1)
        return x0.flip(0), x1

    flow = mf.Flow(mf.Euclidean(3), Zero(), coupling=coupling)
    x0, x1 = (torch.randn(4, 3, generator=gen(s)) for s in (0, 1))
    assert float(flow.loss(x1, x0=x0)) == pytest.approx(float(((x1 - x0) ** 2).sum(-1).mean()), rel=1e-6)
    assert not seen
    flow.loss(x1)
    assert seen


def test_strata_of_one_sample_each_are_said_and_tokens_have_a_distance():
    x0, x1 = torch.rand(6, 2), torch.rand(6, 2)
    with pytest.warns(UserWarning, match="nothing to exchange"):
        same, _ = mf.MinibatchOT()(x0, x1, spaces=mf.Torus(2), cond=torch.rand(6))
    assert torch.equal(same, x0)
    tokens = mf.Tokens(3)
    a, b = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[2, 2], [0, 0]])
    paired, _ = mf.MinibatchOT()(a, b, spaces=tokens)
    assert torch.equal(paired, a.flip(0))


def test_align_turns_every_field_that_turns_with_space():
    spaces = {"pos": mf.Centered(mf.Euclidean(3)), "rot": mf.SO3(), "kind": mf.Tokens(3), "load": mf.Euclidean(1)}
    g = torch.Generator().manual_seed(0)
    x1 = {
        "pos": spaces["pos"].center(torch.randn(2, 5, 3, generator=g)),
        "rot": mf.SO3().sample_uniform((2, 5), generator=g),
        "kind": torch.randint(3, (2, 5), generator=g),
        "load": torch.randn(2, 5, 1, generator=g),
    }
    turn = mf.SO3().sample_uniform((2,), generator=g)
    x0 = {**x1, "pos": x1["pos"] @ turn.mT.mT, "rot": turn.mT.unsqueeze(1) @ x1["rot"]}
    made, _ = mf.Align()(x0, x1, spaces=spaces)
    assert all((made[n] - x1[n]).abs().max() < 1e-5 for n in x1)
    with pytest.raises(ValueError, match="say which field"):
        mf.Align()({"a": x1["load"]}, {"a": x1["load"]}, spaces={"a": mf.Euclidean(1)})
