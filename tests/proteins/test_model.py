"""The network: equivariance, padding, chain breaks, per-residue time, self-conditioning."""

import pytest
import torch

import manifoldflow as mf
from manifoldflow.manifolds.rotation import matrix_to_quaternion
from manifoldflow.tasks.proteins.flow import ProteinConfig, RandomMotif, build
from manifoldflow.tasks.proteins.model import FrameTransformer, NetworkConfig

SMALL = NetworkConfig(width=32, depth=3, heads=4, points=3, hidden=64, pair_hidden=8)


@pytest.fixture(scope="module")
def network() -> FrameTransformer:
    torch.manual_seed(0)
    model = FrameTransformer(SMALL)
    for layer in model.layers:
        # The motions start at zero; a trained network is imitated by giving them weight.
        torch.nn.init.normal_(layer.move.weight, std=0.1)
    return model.eval()


def frames(b: int, n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"trans": 10 * torch.randn(b, n, 3, generator=g), "rots": mf.Uniform(mf.SO3()).sample((b, n), generator=g)}


def test_clean_frames_turn_and_shift_with_the_noisy_ones(network):
    x, previous, t = frames(2, 20), frames(2, 20, seed=1), torch.tensor([0.2, 0.7])
    turn = mf.Uniform(mf.SO3()).sample((2, 1), generator=torch.Generator().manual_seed(5))
    shift = torch.tensor([5.0, -3.0, 8.0])

    def move(y):
        return {"trans": (turn @ y["trans"].unsqueeze(-1)).squeeze(-1) + shift, "rots": turn @ y["rots"]}

    out = network(move(x), t, previous=move(previous))
    expected = move(network(x, t, previous=previous))
    torch.testing.assert_close(out["trans"], expected["trans"], atol=1e-4, rtol=0)
    torch.testing.assert_close(out["rots"], expected["rots"], atol=1e-4, rtol=0)


def test_a_chain_alone_and_padded_in_a_batch_gives_the_same_output(network):
    x, t = frames(1, 17), torch.tensor([0.4])
    alone = network(x, t)
    padded = {"trans": torch.zeros(3, 40, 3), "rots": torch.eye(3).expand(3, 40, 3, 3).clone()}
    mask = torch.zeros(3, 40, dtype=torch.bool)
    other = frames(2, 40, seed=3)
    for k in padded:
        padded[k][0, :17], padded[k][1:] = x[k][0], other[k]
    mask[0, :17], mask[1:] = True, True
    out = network(padded, t.expand(3), mask=mask)
    torch.testing.assert_close(out["trans"][:1, :17], alone["trans"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out["rots"][:1, :17], alone["rots"], atol=1e-5, rtol=0)


def test_quaternions_and_matrices_give_the_same_frames(network):
    x, t = frames(2, 11), torch.tensor([0.1, 0.9])
    out = network(x, t)
    quaternions = network({"trans": x["trans"], "rots": matrix_to_quaternion(x["rots"])}, t)
    torch.testing.assert_close(quaternions["trans"], out["trans"], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        mf.SO3().dist(out["rots"], _matrix(quaternions["rots"])), torch.zeros(2, 11), atol=1e-3, rtol=0
    )


def _matrix(q: torch.Tensor) -> torch.Tensor:
    from manifoldflow.manifolds.rotation import quaternion_to_matrix

    return quaternion_to_matrix(q)


def test_a_chain_break_changes_the_prediction(network):
    x, t = frames(1, 12), torch.tensor([0.5])
    joined = network(x, t)
    index = torch.arange(12)[None] + 33 * (torch.arange(12) > 5)
    assert (network(x, t, cond={"residue_index": index})["trans"] - joined["trans"]).abs().max() > 1e-3


def test_a_residue_pinned_at_the_end_of_time_barely_moves(network):
    x, t = frames(1, 12), torch.full((1, 12), 0.3)
    t[:, :4] = 1.0
    moved = (network(x, t)["trans"] - x["trans"]).norm(dim=-1)
    assert moved[:, :4].max() < 0.1 * moved[:, 4:].mean()


def test_self_conditioning_reaches_the_output(network):
    x, t = frames(1, 12), torch.tensor([0.5])
    assert (network(x, t, previous=frames(1, 12, seed=9))["trans"] - network(x, t)["trans"]).abs().max() > 1e-3


@pytest.mark.parametrize("rotations", ["so3", "quaternion"])
def test_a_flow_on_either_rotation_space_trains_and_samples(rotations):
    torch.manual_seed(0)
    flow = build(ProteinConfig(network=SMALL, rotations=rotations, pin=0.5))
    space = flow.spaces["rots"]
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[0, 8:] = False
    x1 = {"trans": 5 * torch.randn(3, 12, 3), "rots": mf.Uniform(space).sample((3, 12), mask=mask)}
    loss = flow.loss(x1, mask=mask)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters() if p.grad is not None)
    x, made = flow.sample(lengths=[12, 7], steps=5, generator=torch.Generator().manual_seed(0))
    again, _ = flow.sample(lengths=[12, 7], steps=5, generator=torch.Generator().manual_seed(0))
    space.check(x["rots"], atol=1e-4)
    assert torch.equal(x["trans"], again["trans"]) and made.sum() == 19
    assert x["trans"][1, 7:].abs().max() == 0


def test_a_known_motif_is_kept_exactly():
    flow = build(ProteinConfig(network=SMALL))
    known = frames(1, 6)
    mask = torch.tensor([[True, True, False, False, True, True]])
    x, _ = flow.sample(lengths=[10, 10], steps=4, known=known, known_mask=mask)
    assert torch.equal(x["trans"][:, :6][:, mask[0]], known["trans"][:, mask[0]].expand(2, -1, -1))


def test_a_motif_longer_than_the_sample_is_an_error():
    flow = build(ProteinConfig(network=SMALL))
    with pytest.raises(ValueError, match="known_mask covers 12 elements, but a sample has only 10"):
        flow.sample(lengths=[10], steps=2, known=frames(1, 12), known_mask=torch.ones(1, 12, dtype=torch.bool))


def test_random_motifs_cover_between_a_tenth_and_half_of_the_chosen_chains():
    mask = torch.ones(4000, 100, dtype=torch.bool)
    mask[:, 80:] = False
    pinned = RandomMotif(0.3)(mask, torch.Generator().manual_seed(0))
    share = pinned.sum(-1) / 80
    assert not (pinned & ~mask).any()
    assert abs((share > 0).float().mean() - 0.3) < 0.03
    assert share.max() <= 0.55 and share[share > 0].min() >= 0.03


def test_an_unknown_configuration_key_is_one_clear_error():
    with pytest.raises(ValueError, match="protein flow configuration: got an unexpected keyword argument 'widht'"):
        build({"network": {"widht": 3}})
