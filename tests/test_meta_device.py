"""No host read and no tensor left behind: everything that trains and samples runs on ``device="meta"``.

A meta tensor has a shape and no numbers, so ``.item()``, ``bool(tensor)``, ``.tolist()``, ``nonzero`` and a CPU tensor beside it
raise. What passes here waits for no accelerator and leaves nothing on the host.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import manifoldflow as mf
from manifoldflow.guidance import ClassifierFree, NoisyClassifier, Oracle, Particles
from manifoldflow.manifolds import LogEuclideanSPD
from manifoldflow.manifolds.mesh_shapes import torus_mesh
from manifoldflow.sampling import langevin, score

META = torch.device("meta")
B, N = 4, 3
SPACES = {
    "euclidean": mf.Euclidean(3),
    "centred": mf.Centered(mf.Euclidean(3)),
    "sphere": mf.Sphere(2),
    "torus": mf.Torus(3),
    "so3": mf.SO3(),
    "quaternion": mf.UnitQuaternion(),
    "simplex": mf.Simplex(4),
    "flat simplex": mf.Simplex(4, metric="flat"),
    "box": mf.Box((0.0, -1.0), (1.0, 3.0)),
    "half space": mf.HalfSpace((1.0, 2.0), 0.7),
    "ball": mf.Ball(3),
    "reflected simplex": mf.ReflectedSimplex(4),
    "poincare": mf.PoincareBall(3),
    "lorentz": mf.Lorentz(3),
    "spd": mf.SPD(2),
    "log-euclidean spd": LogEuclideanSPD(2),
}
METHODS = ["euler", "midpoint", "heun", "rk4"]


class OnDevice(TorchDispatchMode):
    """Raise if a tensor on the CPU meets one on the device (one number may: it travels with the launch)."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [v for v in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        kinds = {v.device.type for v in tensors if v.ndim > 0}
        assert len(kinds) < 2, (
            f"{function} takes tensors of {kinds}: {[(v.device.type, tuple(v.shape)) for v in tensors]}"
        )
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _on_device(monkeypatch):
    """What torch lacks for meta tensors and has for accelerators: draws of a binomial, and a context without autocast."""
    binomial, autocast, is_enabled = torch.binomial, torch.autocast, torch.is_autocast_enabled
    monkeypatch.setattr(
        torch, "binomial", lambda n, p, generator=None: torch.empty_like(n) if n.is_meta else binomial(n, p, generator)
    )
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **options: autocast("cpu" if kind == "meta" else kind, **options)
    )
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind=None: False if kind == "meta" else is_enabled(kind))
    with OnDevice():
        yield


def check(value, what):
    for part in torch.utils._pytree.tree_leaves(value):
        if isinstance(part, torch.Tensor) and part.ndim > 0:
            assert part.device == META, f"{what} is on {part.device}"


def mask_of(*shape):
    return torch.ones(shape, dtype=torch.bool, device=META)


def train_and_sample(flow, x1, *, methods=METHODS, shape=(B, N), **batch):
    """Loss, backward, and samples by every method."""
    flow = flow.to(META)
    mask = batch.get("mask")
    loss = flow.loss(x1, **batch)
    check(loss.reshape(1), "the loss")
    loss.backward()
    for name, parameter in flow.named_parameters():
        check(parameter.grad, f"the gradient of {name}")
    cond = batch.get("cond")
    for method in methods:
        x = flow.sample(shape, steps=1, mask=mask, cond=cond, method=method, trajectory=method == methods[0])
        check(x, f"a sample by {method}")


# ---------------------------------------------------------------- spaces


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_every_space_trains_and_samples_on_the_device(space):
    source = space.origin((B, N), device=META)
    flow = mf.Flow(
        space, mf.nn.TangentMLP(space, 8, 1), source=None if has_uniform(space) else mf.WrappedNormal(scale=1.0)
    )
    train_and_sample(flow, source)


def has_uniform(space):
    try:
        mf.Uniform().bind(space).sample((2,))
    except (TypeError, ValueError, NotImplementedError):
        return isinstance(space, mf.Euclidean | mf.Centered)
    return True


class Scaled(torch.nn.Module):
    """An answer of any shape times a weight."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, torch.nn.Parameter(torch.ones(()))

    def forward(self, x, t, *, mask=None, cond=None, cond_mask=None, previous=None):
        made = self.answer(x)
        return {n: self.weight * v for n, v in made.items()} if isinstance(made, dict) else self.weight * made


def logits(k):
    return Scaled(lambda x: torch.zeros(B_of(x), N, k, device=x.device))


def B_of(x):
    return x.shape[0]


@pytest.mark.parametrize(
    "space", [v for n, v in SPACES.items() if n not in ("box", "half space", "ball", "reflected simplex")], ids=str
)
def test_endpoint_predictions_run_on_the_device(space):
    source = None if has_uniform(space) else mf.WrappedNormal(scale=1.0)
    train_and_sample(
        mf.Flow(space, Scaled(lambda x: x), predicts="endpoint", source=source), space.origin((B, N), device=META)
    )


@pytest.mark.xfail(
    strict=True, raises=RuntimeError, reason="a line on a mesh looks on the host whether all points have arrived"
)
def test_meshes_train_and_sample_on_the_device():
    mesh = torus_mesh(16, 8)
    x1 = mesh.origin((B,), device=META)
    flow = mf.Flow(mesh, mf.nn.TangentMLP(mesh, 8, 1), path=mf.Premetric())
    train_and_sample(flow, x1, shape=(B,))


# ---------------------------------------------------------------- paths


def tokens(*shape):
    return torch.zeros(shape or (B, N), dtype=torch.int64, device=META)


def corners(k):
    return torch.zeros(B, N, k, device=META)


PATHS = {
    "masking": (lambda: mf.Flow(mf.Tokens(4, mask=True), logits(4)), tokens),
    "masking, elbo": (lambda: mf.Flow(mf.Tokens(4, mask=True), logits(4), path=mf.Masking(objective="elbo")), tokens),
    "uniform": (lambda: mf.Flow(mf.Tokens(4), logits(4), path=mf.UniformJump(own_evidence=True)), tokens),
    "uniform, elbo": (lambda: mf.Flow(mf.Tokens(4), logits(4), path=mf.UniformJump(objective="elbo")), tokens),
    "metric": (lambda: mf.Flow(mf.Tokens(4), logits(4), path=mf.MetricJump(own_evidence=True)), tokens),
    "counts": (lambda: mf.Flow(mf.Counts(4), logits(5), path=mf.BirthDeath(own_evidence=True)), tokens),
    "births": (
        lambda: mf.Flow(mf.Counts(4), Scaled(lambda x: 0.0 * x), path=mf.BirthDeath(predicts="births")),
        tokens,
    ),
    "beliefs": (lambda: mf.Flow(mf.Tokens(4), logits(4), path=mf.CategoricalBayes()), tokens),
    "beliefs, expected": (
        lambda: mf.Flow(
            mf.Tokens(4),
            logits(4),
            path=mf.CategoricalBayes(objective="cross_entropy", observe="expected", resample=True),
        ),
        tokens,
    ),
    "dirichlet": (lambda: mf.Flow(mf.Simplex(4), logits(4), path=mf.DirichletPath()), lambda: corners(4)),
    "corners": (
        lambda: mf.Flow(mf.Simplex(4), logits(4), path=mf.Geodesic(predicts="logits", own_evidence=True)),
        lambda: corners(4),
    ),
    "bridge": (
        lambda: mf.Flow(mf.Simplex(4), logits(4), path=mf.SphericalBridge(own_evidence=True)),
        lambda: corners(4),
    ),
    "bridge from the mask": (
        lambda: mf.Flow(mf.Simplex(5), logits(4), path=mf.SphericalBridge("mask")),
        lambda: corners(5),
    ),
}
HOWS = {
    "masking": [
        mf.Jumps(temperature=0.5, top_p=0.9),
        mf.Jumps(order="confidence", confidence_noise=1.0),
        mf.Jumps(leap="tau"),
    ],
    "uniform": [mf.Jumps(corrector=1.0), mf.Jumps(leap="tau", temperature=0.0)],
    "metric": [mf.Jumps(leap="tau")],
    "counts": [mf.Jumps(leap="tau"), mf.Jumps(temperature=0.5)],
    "dirichlet": ["midpoint"],
    "corners": METHODS[1:],
    "bridge": ["midpoint", "rk4"],
}


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", PATHS)
def test_every_path_of_categories_trains_and_samples_on_the_device(name, masked):
    make, data = PATHS[name]
    batch = {"mask": mask_of(B, N)} if masked else {}
    train_and_sample(make(), data(), methods=["euler", *HOWS.get(name, [])], **batch)


@pytest.mark.parametrize("space", ["euclidean", "torus", "sphere", "so3", "quaternion"])
def test_stochastic_interpolants_and_their_noise_run_on_the_device(space):
    manifold = SPACES[space]
    flow = mf.Flow(
        manifold, mf.nn.TangentMLP(manifold, 8, 1, heads=2), path=mf.StochasticInterpolant(mf.BumpNoise(0.2))
    )
    x1 = manifold.origin((B, N), device=META)
    train_and_sample(flow, x1, methods=[*METHODS, mf.SDE(1.0), mf.SDE(lambda t: 0.1 + 0 * t)], mask=mask_of(B, N))
    check(langevin(flow, x1, 0.5, steps=2), "langevin")
    check(score(flow, x1, torch.tensor(0.5, device=META)), "the score")


@pytest.mark.parametrize("predicts", ["velocity", "endpoint"])
def test_gaussian_sources_take_noise_on_the_device(predicts):
    flow = mf.Flow(mf.Centered(mf.Euclidean(3)), Scaled(lambda x: x), predicts=predicts)
    train_and_sample(flow, torch.zeros(B, N, 3, device=META), methods=[mf.SDE(1.0)], mask=mask_of(B, N))


@pytest.mark.parametrize("space", ["sphere", "torus", "so3"])
def test_average_targets_run_on_the_device(space):
    manifold = SPACES[space]
    flow = mf.Flow(manifold, mf.nn.TangentMLP(manifold, 8, 1), path=mf.Geodesic(average_targets=True))
    train_and_sample(flow, manifold.origin((B,), device=META), shape=(B,), methods=["euler"])


SOURCES = {
    "normal": (mf.Normal(2.0), "euclidean"),
    "wrapped normal": (mf.WrappedNormal(scale=0.5), "sphere"),
    "igso3": (mf.IGSO3(0.5), "so3"),
    "igso3 of quaternions": (mf.IGSO3(0.5), "quaternion"),
    "von Mises-Fisher": (mf.VonMisesFisher(5.0), "sphere"),
    "dirichlet": (mf.Dirichlet((1.0, 2.0, 3.0, 4.0)), "simplex"),
    "reflected normal": (mf.ReflectedNormal(scale=0.5), "ball"),
    "mixture": (mf.Mixture((mf.VonMisesFisher(5.0), mf.VonMisesFisher(1.0)), (1.0, 3.0)), "sphere"),
    "uniform in a box": (mf.Uniform(), "box"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_draws_on_the_device(name):
    source, space = SOURCES[name]
    flow = mf.Flow(SPACES[space], mf.nn.TangentMLP(SPACES[space], 8, 1), source=source).to(META)
    check(flow.draw_source((B, N), mask=mask_of(B, N)), "a draw")
    check(source.bind(SPACES[space]).sample((B,), device=META), "a draw")


# ---------------------------------------------------------------- all at once: pins, couplings, conditions, guidance


def test_pins_conditions_self_conditioning_and_known_elements_run_on_the_device():
    spaces = {"pos": mf.Centered(mf.Euclidean(3)), "rot": mf.SO3(), "type": mf.Tokens(4, mask=True)}
    flow = mf.Flow(
        spaces,
        Scaled(lambda x: {"pos": x["pos"], "rot": x["rot"], "type": torch.zeros(*x["type"].shape, 4, device=META)}),
        predicts={"pos": "endpoint", "rot": "endpoint", "type": "logits"},
        coupling=mf.Align(points="pos", frames=["rot"]),
        self_condition=0.999999,
        cond_dropout=0.5,
        pin=lambda mask, generator: mask & (torch.rand(mask.shape, device=mask.device) < 0.5),
        time_warp=mf.Late(0.1),
    )
    x1 = {n: s.origin((B, N), device=META) for n, s in spaces.items()}
    cond = torch.zeros(B, 2, device=META)
    train_and_sample(flow, x1, methods=["euler", mf.Jumps(corrector=0.5)], mask=mask_of(B, N), cond=cond)
    check(flow.sample((B, N), steps=2, cond=cond, known=x1, known_mask=mask_of(B, N)), "a sample with a known part")
    check(flow.sample(lengths=[3, 2], steps=2, cond=cond[:2]), "a padded sample")


GUIDES = {
    "classifier-free": lambda flow: ClassifierFree(flow, 2.0),
    "scale of time": lambda flow: ClassifierFree(flow, lambda t: 1 + t),
    "oracle": lambda flow: Oracle(flow, lambda p: p.sum((1, 2))),
    "classifier": lambda flow: NoisyClassifier(flow, lambda x, t: x.float().sum(1)),
    "its gradient": lambda flow: NoisyClassifier(flow, lambda x, t: x.sum((1, 2)), method="gradient"),
    "particles": lambda flow: Particles(flow, lambda x: x.float().sum(1), count=2),
}


@pytest.mark.parametrize("space", [mf.Tokens(4, mask=True), mf.Tokens(4)], ids=["masking", "uniform"])
@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
def test_guidance_runs_on_the_device(guide, space):
    flow = mf.Flow(space, logits(4), cond_dropout=0.1).to(META)
    check(guide(flow).sample((B, N), steps=2, cond=torch.zeros(B, device=META), mask=mask_of(B, N)), "a guided sample")


# ---------------------------------------------------------------- likelihoods: their input checks read once, at the door


@pytest.mark.parametrize("how", ["exact", "hutchinson"])
@pytest.mark.parametrize("space", ["euclidean", "sphere", "torus", "so3"])
def test_log_prob_reads_the_host_once_at_the_door(space, how, monkeypatch):
    manifold, reads = SPACES[space], []
    monkeypatch.setattr(type(manifold), "check", lambda *args, **kwargs: reads.append(1), raising=True)
    flow = mf.Flow(manifold, mf.nn.TangentMLP(manifold, 8, 1)).to(META)
    value = flow.log_prob(manifold.origin((B,), device=META), steps=4, divergence=how)
    check(value, "log_prob")
    assert value.shape == (B,) and len(reads) == 1


@pytest.mark.parametrize("name", ["masking", "uniform", "metric", "counts"])
def test_elbo_reads_the_host_once_at_the_door(name, monkeypatch):
    make, data = PATHS[name]
    flow, reads = make().to(META), []
    monkeypatch.setattr(type(flow.spaces), "check", lambda *args, **kwargs: reads.append(1), raising=True)
    value = flow.elbo(data(), samples=3)
    check(value, "elbo")
    assert value.shape == (B,) and len(reads) == 1


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("rotations", ["so3", "quaternion"])
def test_the_flow_of_proteins_runs_on_the_device(rotations):
    from manifoldflow.tasks.proteins.flow import ProteinConfig, build
    from manifoldflow.tasks.proteins.model import NetworkConfig

    network = NetworkConfig(width=16, depth=1, heads=2, points=2, hidden=16, pair_hidden=4)
    flow = build(ProteinConfig(network=network, rotations=rotations, self_condition=0.999999, pin=0.5))
    x1 = {"trans": torch.zeros(2, 8, 3, device=META), "rots": flow.spaces["rots"].origin((2, 8), device=META)}
    cond = {"residue_index": torch.zeros(2, 8, dtype=torch.int64, device=META)}
    train_and_sample(flow, x1, methods=["euler"], shape=(2, 8), mask=mask_of(2, 8), cond=cond)


@pytest.mark.parametrize("network", ["conv", "transformer"])
@pytest.mark.parametrize("kind", ["masking", "uniform", "dirichlet", "fisher_rao", "linear"])
def test_the_flow_of_sequences_runs_on_the_device(kind, network):
    from manifoldflow.tasks.dna.flow import DnaConfig, build

    config = DnaConfig(representation=kind, length=12, classes="a,b", width=16, network=network, stacks=4)
    flow = build(config)
    x1 = tokens(B, 12) if kind in ("masking", "uniform", "autoregressive") else torch.zeros(B, 12, 4, device=META)
    cond = torch.zeros(B, dtype=torch.int64, device=META)
    train_and_sample(flow, x1, methods=["euler"], shape=(B, 12), mask=mask_of(B, 12), cond=cond)


@pytest.mark.xfail(
    strict=True, raises=RuntimeError, reason="the baseline checks on the host that a step has one letter"
)
def test_the_autoregressive_baseline_samples_on_the_device():
    from manifoldflow.tasks.dna.flow import DnaConfig, build

    train_and_sample(build(DnaConfig(representation="autoregressive", length=4, width=16)), tokens(B, 4), shape=(B, 4))


@pytest.mark.parametrize("manifold", ["sphere:2", "torus:2", "so3"])
@pytest.mark.parametrize("features", ["coordinates", "waves", "landmarks"])
def test_the_flow_of_densities_runs_on_the_device(manifold, features):
    from manifoldflow.tasks.densities.flow import DensityConfig, build

    for network, averages in (("mlp", False), ("resnet", True)):
        config = DensityConfig(
            manifold=manifold, features=features, network=network, width=16, depth=1, finest=0.05, low_variance=averages
        )
        flow = build(config)
        train_and_sample(flow, flow.spaces.origin((B,), device=META), methods=["euler", "rk4"], shape=(B,))


# ---------------------------------------------------------------- molecules and graphs


def test_molecules_in_three_dimensions_train_and_sample_without_a_loop_over_them():
    from manifoldflow.tasks.molecules.three_d import ThreeDConfig, build

    flow = build(ThreeDConfig(width=8, pair_width=8, vectors=2, depth=1))
    x1 = {"pos": torch.zeros(B, N, 3, device=META), "kind": tokens(), "charge": tokens(), "bond": tokens(B, 3)}
    train_and_sample(flow, x1, mask=mask_of(B, N), methods=["euler", mf.Jumps(corrector=1.0, temperature=0.5)])


@pytest.mark.parametrize("method", ["jumps", "gdss"])
def test_graphs_train_and_sample_without_a_loop_over_them(method):
    from manifoldflow.tasks.molecules.graphs import GraphConfig, build

    flow = build(GraphConfig(method=method, width=8, edge_width=8, depth=1))
    x1 = {"node": tokens(), "edge": tokens(B, 3)}
    if method == "gdss":
        x1 = {"node": torch.zeros(B, N, 8, device=META), "edge": torch.zeros(B, 3, 1, device=META)}
    train_and_sample(flow, x1, mask=mask_of(B, N), methods=["euler"])
    if method == "gdss":
        kernel = mf.PredictorCorrector(flow, mf.SDE(mf.VariancePreserving().reverse))
        start = flow.draw_source((B, N), mask=mask_of(B, N))
        check(mf.simulate(kernel, start, [0.0, 0.5, 1.0], mask=mask_of(B, N)), "a corrected sample")


def test_points_are_permuted_and_turned_without_a_loop_over_sets():
    space = mf.Centered(mf.Euclidean(3))
    x = torch.zeros(B, 5, 3, device=META)
    check(mf.Permute(align=mf.Align(), rounds=2)(x, x, spaces=space, mask=mask_of(B, 5)), "a permuted set")


@pytest.mark.parametrize("method", ["geodesic", "interpolant"])
@pytest.mark.parametrize("architecture", ["pairs", "e3nn"])
def test_the_flow_of_crystals_runs_on_the_device_without_a_loop_over_them(architecture, method):
    from manifoldflow.tasks.crystals.flow import CrystalConfig, build
    from manifoldflow.tasks.crystals.model import NetworkConfig

    network = NetworkConfig(width=8, layers=2, vectors=2)
    config = CrystalConfig(network=network, architecture=architecture, method=method, transport=False)
    flow, counts = build(config).to(META), []
    for size in (3 * B, 8 * B):
        x1 = {"frac": torch.zeros(size, N, 3, device=META), "species": tokens(size, N)}
        x1["lattice"] = torch.zeros(size, 3, 3, device=META)
        with Counted() as seen:
            train_and_sample(flow, x1, methods=["euler"], shape=(size, N), mask=mask_of(size, N))
        counts.append(seen.count)
    assert counts[0] == counts[1]


class Counted(TorchDispatchMode):
    """How many operations are done."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [{}, {"loss": "fl", "backward": "uniform"}, {"start": "*c1ccc(*)nc1"}, {"environment": "atoms", "max_atoms": 6}],
    ids=str,
)
def test_molecules_of_fragments_and_atoms_train_and_sample_without_a_loop_over_them(options):
    from manifoldflow.tasks.molecules.design import FragmentConfig, build

    model = build(FragmentConfig(width=16, depth=1, replay=0.0, offspring=False, **options))
    # Rewards are of names, which the host writes; everything else stays.
    model.env.log_reward = lambda x, cond=None: torch.zeros(len(x["done"]), device=x["done"].device)
    model.env.log_partial_reward = model.log_reward = model.env.log_reward
    model.to(META)
    model.sample(1)  # the tables of the blocks move once
    counts = []
    for size in (3, 50):
        model.zero_grad()
        with Counted() as seen:
            made = model.sample(size)
            sum(model.loss_of(model.draw(size)).values()).backward()
        check(made, "a sample")
        counts.append(seen.count)
    check([p.grad for p in model.parameters()], "a gradient")
    assert counts[0] == counts[1]


# ---------------------------------------------------------------- energies


@pytest.mark.parametrize("method", ["tb", "guided", "kl", "annealed kl, learned way back"])
@pytest.mark.parametrize("space", ["torus", "so3", "euclidean"])
def test_samplers_of_energies_train_and_sample_on_the_device(space, method, monkeypatch):
    from manifoldflow import energies as en

    class Seeded:  # meta tensors have no generator; None stands for it
        def __init__(self, device=None):
            self.manual_seed = lambda seed: None

    monkeypatch.setattr(torch, "Generator", Seeded)
    where = SPACES[space]
    energy = en.Energy(lambda x: x.flatten(1).cos().sum(-1), where)
    control = en.MlpControl(where, width=8)
    options = {
        "tb": {"loss": en.bounded_balance(), "search_every": 2, "search_moves": 6, "search_size": B},
        "guided": {"loss": mf.gflownet.losses.subtrajectory_balance(0.9), "guided": True},
        "kl": {"loss": "kl", "guided": True},
        "annealed kl, learned way back": {"loss": "kl", "anneal_steps": 5, "back": en.MlpControl(where, width=8)},
    }[method]
    sampler = en.DiffusionSampler(energy, en.Brownian(where, 1.0), control, en.grid(3), **options).to(META)
    for _ in range(4):  # from itself, from the buffer, after a search
        sum(sampler.loss_of(sampler.draw(B)).values()).backward()
    check([p.grad for p in sampler.parameters()], "a gradient")
    made = sampler.weighted(B)
    check((made.x, made.log_weight), "a weighted sample")
