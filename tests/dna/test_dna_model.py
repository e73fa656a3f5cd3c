"""The networks read every representation, know what is padding, and take their conditions."""

import pytest
import torch

import manifoldflow as mf
from manifoldflow.tasks.dna.autoregressive import CausalConvNet
from manifoldflow.tasks.dna.flow import REPRESENTATIONS, DnaConfig, build, sample_tokens, to_state, to_tokens
from manifoldflow.tasks.dna.model import ConvNet, Transformer

NETS = [ConvNet, Transformer]


def lively(net):
    """Zero-initialised layers made to matter."""
    torch.manual_seed(0)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return net.eval()


@pytest.mark.parametrize("network", ["conv", "transformer"])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_one_description_many_representations(representation, network):
    if representation == "autoregressive" and network == "transformer":
        pytest.skip("the autoregressive baseline has no transformer")
    torch.manual_seed(0)
    flow = build(
        DnaConfig(representation=representation, network=network, length=12, classes="a,b", width=16, cond_dropout=0.5)
    )
    tokens = torch.randint(4, (6, 12))
    label = torch.tensor([0, 1, 0, 1, 0, 1])
    state = to_state(flow, tokens)
    assert (to_tokens(state) == tokens).all()
    loss = flow.loss(state, cond=label)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in flow.parameters())
    made = sample_tokens(flow, 5, 12, 4, part=2, cond=torch.zeros(5, dtype=torch.int64))
    assert made.shape == (5, 12) and (made >= 0).all() and (made < 4).all()
    guided = mf.guidance.ClassifierFree(flow, 2.0).sample((2, 12), steps=12, cond=torch.tensor([0, 1]))
    assert len(to_tokens(guided)) == 2
    again = build(flow.config)
    again.load_state_dict(flow.state_dict())


@pytest.mark.parametrize("representation", [name for name in REPRESENTATIONS if name != "autoregressive"])
def test_known_pieces_are_shown_clean_and_kept(representation):
    torch.manual_seed(0)
    flow = build(DnaConfig(representation=representation, length=30, width=16, pin_share=1.0))
    tokens = torch.randint(4, (200, 30))
    draw = flow.draw(to_state(flow, tokens), generator=torch.Generator().manual_seed(0))
    shown = draw.pinned
    assert 0.02 < shown.float().mean() < 0.3 and shown.any(1).float().mean() > 0.7
    assert (to_tokens(draw.xt)[shown] == tokens[shown]).all() and (draw.t[shown] == 1).all()
    assert (draw.xt[shown] == to_state(flow, tokens)[shown]).all()
    assert flow.loss_of(draw)["flow"].isfinite()
    known_mask = torch.zeros(5, 30, dtype=torch.bool)
    known_mask[:, 10:16] = True
    made = flow.sample((5, 30), steps=3, known=to_state(flow, tokens[:5]), known_mask=known_mask)
    assert (to_tokens(made)[known_mask] == tokens[:5][known_mask]).all()


@pytest.mark.parametrize("kind", NETS)
def test_padding_does_not_change_what_is_predicted(kind):
    net = lively(kind(20, 2, width=16))
    x = torch.randint(5, (3, 12))
    t, mask = torch.rand(3), torch.ones(3, 12, dtype=torch.bool)
    alone = net(x, t, mask=mask, cond=torch.tensor([0, 1, 0]))
    padded = torch.cat([x, torch.randint(5, (3, 8))], 1)
    longer = net(padded, t, mask=torch.nn.functional.pad(mask, (0, 8)), cond=torch.tensor([0, 1, 0]))
    assert (longer[:, :12] - alone).abs().max() < 1e-5


@pytest.mark.parametrize("kind", NETS)
def test_hidden_conditions_are_as_none(kind):
    net = lively(kind(8, 3, scalars=2, width=16))
    x, t = torch.randint(4, (4, 8)), torch.rand(4)
    cond = {"label": torch.tensor([0, 1, 2, 0]), "scalars": torch.randn(4, 2)}
    seen = torch.tensor([True, False, True, False])
    mixed, bare, full = net(x, t, cond=cond, cond_mask=seen), net(x, t), net(x, t, cond=cond)
    assert torch.allclose(mixed[~seen], bare[~seen], atol=1e-6) and torch.allclose(mixed[seen], full[seen], atol=1e-6)
    assert (full - bare).abs().amax((1, 2)).min() > 1e-3
    zero = net(x, t, cond={"scalars": torch.zeros(4, 2)})
    assert (zero - bare).abs().max() > 1e-3  # a scalar of 0 is not an absent one


@pytest.mark.parametrize("kind", NETS)
def test_times_may_differ_by_position(kind):
    net = lively(kind(8, width=16))
    x, t = torch.randint(4, (3, 8)), torch.rand(3)
    assert torch.allclose(net(x, t), net(x, t[:, None].expand(3, 8)), atol=1e-6)
    other = t[:, None].expand(3, 8).clone()
    other[:, 0] = 1.0
    assert (net(x, other) - net(x, t)).abs().max() > 1e-4


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ConvNet(8)(torch.zeros(1, 9, dtype=torch.int64), torch.rand(1)), "up to 8"),
        (lambda: ConvNet(8)(torch.zeros(1, 8, dtype=torch.int64), torch.rand(1), cond=torch.zeros(1)), "0 classes"),
        (lambda: ConvNet(8, 2)(torch.zeros(1, 8, dtype=torch.int64), torch.rand(1), cond={"colour": 1}), "colour"),
        (lambda: ConvNet(8, kernel=4), "odd"),
        (lambda: Transformer(8, width=18, heads=4), "multiple"),
        (lambda: DnaConfig(representation="words"), "representation"),
        (lambda: build({"depth": 3}), "configuration"),
        (lambda: build(DnaConfig(representation="autoregressive", network="transformer")), "convolutions"),
        (lambda: build(DnaConfig(representation="autoregressive", length=9)).sample((1, 9), steps=4), "steps=9"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def autoregressive():
    flow = build(DnaConfig(representation="autoregressive", length=3, width=16, kernel=3)).double()
    lively(flow.model)
    return flow.eval()


def test_the_causal_network_sees_only_what_is_to_the_left():
    net, t = lively(CausalConvNet(20, width=16, kernel=5)), torch.zeros(1)
    x = torch.randint(4, (1, 20))
    for at in range(20):
        other = x.clone()
        other[:, at:] = (other[:, at:] + 1) % 4
        before, after = net(x, t)[0], net(other, t)[0]
        assert torch.allclose(before[: at + 1], after[: at + 1], atol=1e-6)
        assert at == 19 or not torch.allclose(before[at + 1 :], after[at + 1 :], atol=1e-3)


def test_the_autoregressive_baseline_samples_the_law_that_its_bound_states():
    flow = autoregressive()
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    with torch.no_grad():
        law = flow.elbo(every, samples=1).double().exp()
    assert abs(law.sum() - 1) < 1e-5  # the bound is the log-probability itself
    made = sample_tokens(flow, 40_000, 3, 1, part=40_000, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(made @ torch.tensor([16, 4, 1]), minlength=64).double() / len(made)
    assert (law - law.mean()).abs().sum() / 2 > 0.1  # far from the uniform law
    assert (share - law).abs().sum() / 2 < 0.03


def test_the_autoregressive_baseline_keeps_known_letters():
    known = torch.tensor([[0, 3, 0]]).expand(50, 3)
    mask = torch.tensor([[False, True, False]]).expand(50, 3)
    with pytest.warns(UserWarning, match="pin"):
        made = autoregressive().sample((50, 3), steps=3, known=known, known_mask=mask)
    assert (made[:, 1] == 3).all() and len(made[:, 0].unique()) > 1 and len(made[:, 2].unique()) > 1
