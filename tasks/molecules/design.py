"""The GFlowNet of fragments: its configuration, and the model that a checkpoint is rebuilt as."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from manifoldflow.gflownet import (
    Env,
    GFlowNet,
    Replay,
    detailed_balance,
    log_partition_variance,
    subtrajectory_balance,
    trajectory_balance,
)
from manifoldflow.tasks.common.runs import configured
from manifoldflow.tasks.molecules.atom_env import AtomEnv, AtomPolicy
from manifoldflow.tasks.molecules.baselines import Offspring
from manifoldflow.tasks.molecules.fragment_env import FragmentEnv
from manifoldflow.tasks.molecules.molecule_env import MoleculeEnv
from manifoldflow.tasks.molecules.policies import GraphPolicy
from manifoldflow.tasks.molecules.rewards import Objective

BUILDER = "manifoldflow.tasks.molecules.design:build"
DEFAULT_CHECKPOINT = "molecules_fragments"
CROSSOVER = {"fragments": 0.5, "atoms": 0.0}
"""Share of children of two parents: trees exchange branches, graphs of atoms do not."""
LossName = Literal["tb", "vargrad", "db", "subtb", "fl"]


@dataclass(frozen=True)
class FragmentConfig:
    """A generator of molecules from fragments, or from atoms and bonds.

    Args:
        environment: fragments, or atoms: an atom is added by a bond, or a ring is closed.
        vocabulary: own (embedded), a JSON of the published layout, or a list of SMILES with `*`.
        reward: such as qed*sa, seh*logp[1,4], mine.py:score; with commas (seh,qed*sa) a front of several.
        lead: SMILES that the term similarity refers to.
        exponent: molecules are made in proportion to the reward to this power.
        max_fragments: most blocks of a molecule.
        min_fragments: least blocks.
        max_atoms: most heavy atoms; by default 45 of fragments, 12 of atoms.
        atoms: kinds of atoms, with spaces between them, such as C N O F S Cl N+ O-.
        max_rings: most rings that are closed atom by atom.
        start: SMILES of a scaffold or lead that every molecule grows from.
        stable: only bonds between blocks that chemists would make.
        forbidden: SMARTS that no molecule may hold, with spaces between them.
        loss: tb (trajectory balance), vargrad, db (detailed balance), subtb (pieces), or fl (forward-looking subtb, which asks
            for the reward of unfinished molecules too).
        backward: what a block was added last by: uniform, or maxent (every order of building is as likely). Atoms take uniform.
        width: of the network.
        depth: rounds of messages.
        replay: share of a batch that is drawn from molecules seen before.
        offspring: learn also from as many children of the best molecules seen as the policy makes itself.
        epsilon: share of random actions while training.
        pieces: learn from random pieces of this many steps, not whole trajectories; 0 for whole ones.
        decay: weight of longer pieces in subtb and fl.
    """

    environment: Literal["fragments", "atoms"] = "fragments"
    vocabulary: str = "own"
    reward: str = "qed*sa"
    lead: str | None = None
    exponent: float = 32.0
    max_fragments: int = 8
    min_fragments: int = 2
    max_atoms: int | None = None
    atoms: str = "C N O F"
    max_rings: int = 3
    start: str | None = None
    stable: bool = True
    forbidden: str = ""
    loss: LossName = "tb"
    backward: Literal["uniform", "maxent"] = "maxent"
    width: int = 96
    depth: int = 3
    replay: float = 0.5
    offspring: bool = True
    epsilon: float = 0.02
    pieces: int = 0
    decay: float = 0.9

    def __post_init__(self) -> None:
        if self.environment not in ("fragments", "atoms"):
            raise ValueError(f"environment must be 'fragments' or 'atoms', got {self.environment!r}")
        for name, least in (("exponent", 0), ("max_fragments", 1), ("max_atoms", 1), ("width", 1), ("depth", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in ("replay", "epsilon"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.pieces and self.loss not in ("db", "subtb", "fl"):
            raise ValueError(f"pieces need the loss db, subtb or fl, got {self.loss}")


class Later:
    """A reward that is made when it is first asked for: the proxy of a checkpoint is not read for those who only sample.

    Args:
        expression, lead: see :class:`Objective`.
        own: the expression is the caller's. That of a checkpoint may name no function: loading a file must run none.
    """

    def __init__(self, expression: str, lead: str | None, own: bool = True) -> None:
        self.expression, self.lead, self.own = expression, lead, own
        self._made: list[Any] | None = None

    def part(self, index: int) -> Any:
        """SMILES -> rewards of one objective."""

        def score(smiles: list[str]) -> Tensor:
            if self._made is None:
                if not self.own:
                    check_reward(self.expression)
                objective = Objective(self.expression, self.lead)
                self._made = [objective.function(i) for i in range(len(objective))]
            return torch.as_tensor(self._made[index](smiles), dtype=torch.float64)

        return score


def check_reward(expression: str, where: str = "the model") -> None:
    """Raise ValueError if a checkpoint's reward names a function of the user: a file must not say what is run."""
    if ":" in expression:
        raise ValueError(f"{where} was trained on a reward of yours ({expression}); name it with --reward")


def rewarded(model: Any, path: Any, reward: str | None) -> Any:
    """A loaded model with the reward that is named, or with its own if that is one of ours."""
    config = dict(model.config)
    if "reward" not in config:
        if reward is not None:
            raise ValueError(f"{path} has no reward: --reward is for GFlowNets of fragments")
        return model
    if reward is None:
        check_reward(str(config["reward"]), str(path))
        return model
    later = Later(reward, config.get("lead"))
    count = len(Objective(reward, config.get("lead")))
    model.config = config | {"reward": reward}
    model.env.reward = later.part(0) if count == 1 else [later.part(i) for i in range(count)]
    return model


def make_env(config: FragmentConfig, own: bool = True) -> FragmentEnv | AtomEnv:
    """The environment; its rewards are computed without a budget until ``env.reward`` is replaced. With ``own=False`` the
    configuration is a file's, whose reward may name no function."""
    objectives = 1 + sum(c == "," for c in _outside_brackets(config.reward))
    later = Later(config.reward, config.lead, own)
    rewards = [later.part(i) for i in range(objectives)]
    if config.environment == "atoms":
        return AtomEnv(
            rewards[0] if objectives == 1 else rewards,
            atoms=config.atoms.split(),
            max_atoms=config.max_atoms or 12,
            max_rings=config.max_rings,
            start=config.start,
            exponent=config.exponent,
            forbidden=config.forbidden.split(),
        )
    return FragmentEnv(
        config.vocabulary,
        rewards[0] if objectives == 1 else rewards,
        exponent=config.exponent,
        max_fragments=config.max_fragments,
        max_atoms=config.max_atoms or 45,
        min_fragments=config.min_fragments,
        start=config.start,
        stable=config.stable,
        forbidden=config.forbidden.split(),
    )


def build(config: FragmentConfig | dict[str, Any] | None = None) -> GFlowNet:
    """The GFlowNet of a configuration, ready to be trained."""
    own = not isinstance(config, dict)  # a dict is what a checkpoint holds
    config = configured(FragmentConfig, config, "fragment GFlowNet")
    env = make_env(config, own)
    objectives = 1 if callable(env.reward) else len(env.reward or [1])
    forward_looking, flows = config.loss == "fl", config.loss in ("db", "subtb", "fl")
    losses: dict[str, Any] = {
        "tb": trajectory_balance,
        "vargrad": log_partition_variance,
        "db": detailed_balance,
        "subtb": subtrajectory_balance(config.decay),
        "fl": subtrajectory_balance(config.decay),
    }
    several = objectives if objectives > 1 else 0
    of_atoms = isinstance(env, AtomEnv)
    if of_atoms and several:
        raise ValueError(
            "a front of several rewards is learned by the policy of fragments only; take environment fragments"
        )
    children: Any = Offspring(env, CROSSOVER[config.environment]) if config.offspring and config.replay else None
    policy: Any = (
        AtomPolicy(env, config.width, config.depth, flows=flows)
        if isinstance(env, AtomEnv)
        else GraphPolicy(env, config.width, config.depth, flows=flows, conditions=several)
    )
    model = GFlowNet(
        env,
        policy,
        loss=losses[config.loss],
        backward="uniform" if of_atoms else config.backward,
        flows=flows,
        forward_looking=forward_looking,
        epsilon=config.epsilon,
        conditions=(lambda n, g: preferences(n, several, g)) if several else None,
        partition=torch.nn.Sequential(torch.nn.Linear(several, 32), torch.nn.SiLU(), torch.nn.Linear(32, 1))
        if several
        else None,
        replay=Replay(kind="prioritised", share=config.replay, alpha=0.01) if config.replay else None,
        local_search=children,
        pieces=config.pieces or None,
        z_rate=30.0,
    )
    model.builder, model.config = BUILDER, asdict(config)
    return model


def preferences(count: int, objectives: int, generator: torch.Generator | None = None) -> Tensor:
    """Weights of several objectives, evenly on the simplex, ``(count, objectives)``."""
    share = -torch.rand(count, objectives, generator=generator).clamp_min(1e-12).log()
    return share / share.sum(-1, keepdim=True)


@torch.no_grad()
def set_log_z(model: GFlowNet, size: int = 64, generator: torch.Generator | None = None) -> None:
    """Begin log Z where the untrained policy has it, rather than at 0, from which it has far to go.

    The rewards that this asks for are counted, as all are.
    """
    scores = model.scores(model.draw(size, generator=generator))
    off = scores.log_reward + scores.log_backward.sum(0) - scores.log_forward.sum(0)
    model.log_z.fill_(float(off.mean()))


def with_settings(config: FragmentConfig, **settings: Any) -> FragmentConfig:
    """The same with those settings that are not None."""
    return replace(config, **{k: v for k, v in settings.items() if v is not None})


def environment(model: Any) -> MoleculeEnv:
    """The environment of a loaded model.

    Raises:
        ValueError: it is not one of molecules.
    """
    env: Env = model.env
    if not isinstance(env, MoleculeEnv):
        raise ValueError("this model does not build molecules")
    return env


def _outside_brackets(text: str) -> str:
    depth, kept = 0, []
    for c in text:
        depth += (c == "[") - (c == "]")
        if depth == 0:
            kept.append(c)
    return "".join(kept)
