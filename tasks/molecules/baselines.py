"""Searches without learning, at equal calls: random molecules, a genetic algorithm on trees of fragments, and local search."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from manifoldflow.gflownet import BackwardPolicy, ForwardPolicy
from manifoldflow.gflownet.kernels import action_times
from manifoldflow.sampling.simulate import simulate
from manifoldflow.tasks.molecules.oracle import Oracle

State = dict[str, Tensor]
Advance = Callable[[int, int], None]


def random_molecules(env: Any, count: int, generator: torch.Generator) -> State:
    """Molecules by evenly random actions."""
    x = env.initial(count)
    return simulate(ForwardPolicy(env), x, action_times(env, x), generator=generator)


def random_search(env: Any, oracle: Oracle, seed: int = 0, size: int = 64, advance: Advance | None = None) -> None:
    """Ask for random molecules until the budget is spent."""
    generator = torch.Generator().manual_seed(seed)
    _until_spent(oracle, advance, lambda: oracle.ask(env.to_smiles(random_molecules(env, size, generator))))


def genetic(
    env: Any,
    oracle: Oracle,
    seed: int = 0,
    population: int = 100,
    offspring: int = 64,
    crossover: float = 0.5,
    advance: Advance | None = None,
) -> None:
    """A genetic algorithm: parents by rank, subtrees exchanged at equal bonds, then a few blocks taken off and grown anew; the
    best different molecules survive.

    Args:
        env: the environment, whose masks keep every child valid.
        oracle: is asked until its budget is spent.
        seed: of everything random.
        population, offspring: molecules that survive, and children of a generation.
        crossover: share of children of two parents, which only trees of fragments have.
        advance: told of the calls used.
    """
    generator, dice = torch.Generator().manual_seed(seed), random.Random(seed)
    x = random_molecules(env, population, generator)
    value = _scores(oracle, env.to_smiles(x))

    def generation() -> None:
        nonlocal x, value
        rank = value.argsort(descending=True).argsort()
        weight = 1.0 / (0.2 * len(value) + rank)
        rows = torch.multinomial(weight, 2 * offspring, replacement=True, generator=generator).view(2, -1)
        children = _rows(x, rows[0])
        mates = _rows(x, rows[1])
        crossed = [i for i in range(offspring) if dice.random() < crossover]
        children = _crossed(env, children, mates, crossed, dice)
        children = mutated(env, children, generator)
        both = {n: torch.cat([v, children[n]]) for n, v in x.items()}
        scored = torch.cat([value, _scores(oracle, env.to_smiles(children))])
        names = env.to_smiles(both)
        first = {s: i for i, s in reversed(list(enumerate(names)))}
        different = torch.tensor(sorted(first.values()))
        keep = different[scored[different].topk(min(population, len(different))).indices]
        x, value = _rows(both, keep), scored[keep]

    _until_spent(oracle, advance, generation)


def local_search(
    env: Any,
    oracle: Oracle,
    seed: int = 0,
    walkers: int = 64,
    advance: Advance | None = None,
    patience: int = 20,
) -> None:
    """Greedy: every walker keeps a change that is no worse, and begins anew after ``patience`` that were."""
    generator = torch.Generator().manual_seed(seed)
    x = random_molecules(env, walkers, generator)
    value = _scores(oracle, env.to_smiles(x))
    still = torch.zeros(walkers, dtype=torch.long)

    def step() -> None:
        nonlocal x, value, still
        tired = still >= patience
        fresh = random_molecules(env, walkers, generator)
        tried: Any = env.hold(tired, fresh, mutated(env, x, generator))
        scored = _scores(oracle, env.to_smiles(tried))
        better = (scored >= value) | tired
        still = torch.where((scored > value) | tired, 0, still + 1)
        kept: Any = env.hold(better, tried, x)
        x, value = kept, torch.where(better, scored, value)

    _until_spent(oracle, advance, step)


class Offspring:
    """Children of the best molecules seen, to learn from beside those of the policy (genetic-guided GFlowNets, Kim et al. 2024).

    What ``GFlowNet(local_search=...)`` takes: as many children as the policy made molecules. Parents are drawn by rank from the
    replay store, subtrees are exchanged, a few blocks are grown anew; each child's reward is asked for, and a trajectory to it is
    drawn backward. Balance losses learn from any trajectory, so the law that is learned stays that of the reward.

    Args:
        env: the environment.
        crossover: share of children of two parents, which only trees of fragments have.
    """

    def __init__(self, env: Any, crossover: float = 0.5) -> None:
        self.env, self.crossover = env, crossover

    def __call__(self, model: Any, made: Any, generator: torch.Generator | None = None) -> list[Any]:
        """Trajectories to the children, with their rewards."""
        size = made.size
        if model.replay is None or not model.replay.count(size + 1):
            return []
        own = generator if generator is not None else torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        x, _, _ = model.replay.draw(2 * size, generator)
        dice = random.Random(int(torch.randint(2**31, (), generator=own)))
        first, second = (_rows(x, rows) for rows in torch.arange(2 * size).chunk(2))
        crossed = [i for i in range(size) if dice.random() < self.crossover]
        children = mutated(self.env, _crossed(self.env, first, second, crossed, dice), own)
        gained = model._paid(children, made.cond)
        return [model.taken_apart(children, made.cond, generator=generator)._replace(log_reward=gained)]


def mutated(env: Any, x: State, generator: torch.Generator, most: int = 3) -> State:
    """One to ``most`` blocks taken off evenly at random (after the end is undone), then grown anew at random."""
    count = len(x["done"])
    back, onward = BackwardPolicy(env), ForwardPolicy(env)
    off = torch.randint(2, most + 2, (count,), generator=generator)
    t = torch.zeros(())
    for i in range(most + 1):
        able = (i < off) & env.backward_mask(x).any(-1)
        taken = back(x, None, t, t, generator=generator).x
        x = env.hold(able, taken, x)
    return simulate(onward, x, action_times(env, x), generator=generator)


def _crossed(env: Any, x: State, y: State, rows: list[int], dice: random.Random) -> State:
    """In the chosen rows, a subtree of x is replaced by one of y where its bond is allowed and the molecule fits."""
    if not rows:
        return x
    book, bonds = env.vocabulary, env.tables["bonds"]
    made = {n: v.clone() for n, v in x.items()}
    for row in rows:
        a, b = _tree(x, row), _tree(y, row)
        inside, other = _edges(a), _edges(b)
        dice.shuffle(inside)
        for parent, site in inside:
            fits = [p[1][s] for p, s in other if bool(bonds[parent[0], site, p[1][s][0]])]
            if not fits:
                continue
            kept = parent[1][site]
            parent[1][site] = dice.choice(fits)
            blocks = _flat(a)
            if (
                len(blocks) <= env.max_fragments
                and sum(int(book.atom_count[k]) for k, _, _, _ in blocks) <= env.max_atoms
            ):
                _write(made, row, blocks, env.max_fragments)
                break
            parent[1][site] = kept
    able = env.must_fill(made) == 0
    out: Any = env.hold(able, made, x)
    return out


Tree = tuple[int, dict[int, Any]]


def _tree(x: State, row: int) -> Tree:
    nodes: list[Tree] = []
    for block, parent, site in zip(*(x[n][row].tolist() for n in ("block", "parent", "site")), strict=True):
        if block < 0:
            break
        node: Tree = (block, {})
        nodes.append(node)
        if parent >= 0:
            nodes[parent][1][site] = node
    return nodes[0]


def _edges(tree: Tree) -> list[tuple[Tree, int]]:
    found = []
    for site, child in tree[1].items():
        found += [(tree, site), *_edges(child)]
    return found


def _flat(
    tree: Tree, parent: int = -1, site: int = -1, depth: int = 0, made: Any = None
) -> list[tuple[int, int, int, int]]:
    made = [] if made is None else made
    place = len(made)
    made.append((tree[0], parent, site, depth))
    for s in sorted(tree[1]):
        _flat(tree[1][s], place, s, depth + 1, made)
    return made


def _write(x: State, row: int, blocks: list[tuple[int, int, int, int]], size: int) -> None:
    empty = [(-1, -1, -1, -1)] * (size - len(blocks))
    table = torch.tensor([*blocks, *empty])
    for column, name in enumerate(("block", "parent", "site", "depth")):
        x[name][row] = table[:, column]


def _rows(x: State, rows: Tensor) -> State:
    return {n: v[rows] for n, v in x.items()}


def _scores(oracle: Oracle, smiles: list[str]) -> Tensor:
    """One number a molecule: the geometric mean of several rewards; minus infinity of what the budget did not reach."""
    value = oracle.ask(smiles)
    return value.clamp_min(1e-12).log().mean(-1).exp().nan_to_num(-torch.inf)


def _until_spent(oracle: Oracle, advance: Advance | None, step: Callable[[], Any], fruitless: int = 50) -> None:
    """Repeat a step until the budget is spent, or until so many in a row found nothing new."""
    idle = 0
    while (oracle.left is None or oracle.left > 0) and idle < fruitless:
        before = len(oracle.met)
        step()
        idle = 0 if len(oracle.met) > before else idle + 1
        if advance is not None:
            advance(oracle.used, oracle.calls or 0)
