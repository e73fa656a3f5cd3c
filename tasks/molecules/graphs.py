"""Graphs without coordinates: tokens that jump (discrete flow), or points that diffuse (GDSS, Jo et al. 2022), on one network.

Molecules have elements with their charges at the nodes and bond orders at the edges, hydrogens implied; generic graphs have
edges only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.field import edges_of_pairs, pairs_of_edges
from manifoldflow.files import open_npz
from manifoldflow.tasks.common.runs import configured
from manifoldflow.tasks.common.splits import drawn_batches
from manifoldflow.tasks.molecules.graph_model import GraphNetwork

BUILDER = "manifoldflow.tasks.molecules.graphs:build"
"""What checkpoints call :func:`build`."""

ATOMS = (("C", 0), ("N", 0), ("O", 0), ("F", 0), ("N", 1), ("O", -1), ("N", -1), ("C", -1))
"""Elements and formal charges of the node tokens."""

ORDERS = 4
"""Bond orders 0 to 3; aromatic rings are kekulised."""

Method = Literal["jumps", "gdss"]


@dataclass
class GraphConfig:
    """Everything that defines a model of graphs.

    Args:
        kind: "molecules", or "generic" graphs.
        method: "jumps": tokens of nodes and edges that jump from the shares of the data; "gdss": a system of two stochastic
            equations whose network learns both scores.
        width, edge_width, depth: of the network.
        self_condition: share of the training steps in which the network sees its first prediction ("jumps").
        node_law, edge_law: "vp" or "ve", the equations of "gdss".
        degrees: "gdss" on generic graphs: coordinates of a node, one for each degree.
        nodes, edges: shares of the tokens in the training data.
        sizes: how many training graphs have 0, 1, 2, ... nodes.
    """

    kind: Literal["molecules", "generic"] = "molecules"
    method: Method = "jumps"
    width: int = 96
    edge_width: int = 48
    depth: int = 5
    self_condition: float = 0.5
    node_law: Literal["vp", "ve"] = "vp"
    edge_law: Literal["vp", "ve"] = "vp"
    degrees: int = 10
    nodes: tuple[float, ...] = (1.0,) * len(ATOMS)
    edges: tuple[float, ...] = (1.0,) * ORDERS
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("molecules", "generic"):
            raise ValueError(f"kind must be 'molecules' or 'generic', got {self.kind!r}")
        if self.method not in ("jumps", "gdss"):
            raise ValueError(f"method must be 'jumps' or 'gdss', got {self.method!r}")
        for name in ("node_law", "edge_law"):
            if getattr(self, name) not in LAWS:
                raise ValueError(f"{name} must be 'vp' or 've', got {getattr(self, name)!r}")
        self.nodes, self.edges, self.sizes = tuple(self.nodes), tuple(self.edges), tuple(self.sizes)


LAWS = {"vp": mf.VariancePreserving(0.1, 20.0), "ve": mf.VarianceExploding(0.05, 5.0)}
"""The stochastic equations."""


def build(config: GraphConfig | dict[str, Any] | None = None) -> mf.Flow:
    """A model of graphs from its configuration (or the dict that a checkpoint holds)."""
    config = configured(GraphConfig, config, "graph model")
    is_molecule = config.kind == "molecules"
    size: dict[str, Any] = {"width": config.width, "edge_width": config.edge_width, "depth": config.depth}
    if config.method == "jumps":
        kinds = ORDERS if is_molecule else 2
        nodes = len(ATOMS) if is_molecule else 0
        spaces: dict[str, Any] = {"node": mf.Tokens(len(ATOMS))} if is_molecule else {}
        spaces["edge"] = mf.Field(mf.Tokens(kinds), per="edge")
        path = {"edge": mf.UniformJump(source=mf.Categorical(config.edges[:kinds]))}
        if is_molecule:
            path["node"] = mf.UniformJump(source=mf.Categorical(config.nodes))
        flow = mf.Flow(
            spaces,
            GraphNetwork(nodes, kinds, nodes, kinds, **size),
            path=path,
            weights={"edge": 3.0},
            self_condition=config.self_condition,
        )
    else:
        nodes = len(ATOMS) if is_molecule else config.degrees
        flow = mf.Flow(
            {"node": mf.Euclidean(nodes), "edge": mf.Field(mf.Euclidean(1), per="edge")},
            GraphNetwork(nodes, 1, nodes, 1, tokens=False, **size),
            path={"node": mf.Diffusion(law=LAWS[config.node_law]), "edge": mf.Diffusion(law=LAWS[config.edge_law])},
            weights={"node": 1.0 / nodes},
        )
    flow.builder, flow.config = BUILDER, asdict(config)
    return flow


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class GraphSet:
    """Graphs of at most N nodes as tensors.

    Attributes:
        node: int8 tokens ``(n, N)``, or None for generic graphs.
        edge: int8 tokens ``(n, N, N)``, symmetric: bond orders, or 0 and 1.
        sizes: ``(n,)``.
    """

    node: Tensor | None
    edge: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return len(self.sizes)

    def rows(self, chosen: Tensor) -> "GraphSet":
        """Some of the graphs."""
        return GraphSet(None if self.node is None else self.node[chosen], self.edge[chosen], self.sizes[chosen])

    def batch(self, rows: Tensor, config: GraphConfig) -> dict[str, Any]:
        """Some graphs as the flow takes them, padded to the largest; the network does not see how nodes are numbered."""
        n = int(self.sizes[rows].max())
        mask = torch.arange(n) < self.sizes[rows].unsqueeze(-1)
        matrix = self.edge[rows, :n, :n].long()
        edge = edges_of_pairs(matrix)
        if config.method == "jumps":
            x = {"edge": edge}
            if self.node is not None:
                x = {"node": self.node[rows, :n].long(), "edge": edge}
            return {"x": x, "mask": mask}
        hot = torch.nn.functional.one_hot
        if self.node is None:
            node = hot((matrix > 0).sum(-1).clamp_max(config.degrees - 1), config.degrees)
            value = 2.0 * edge - 1
        else:
            node, value = hot(self.node[rows, :n].long(), len(ATOMS)), edge - 1.0
        return {"x": {"node": 2.0 * node - 1, "edge": value.float().unsqueeze(-1)}, "mask": mask}

    def shares(self) -> dict[str, Any]:
        """How often every token and every size occurs."""
        mask = torch.arange(self.edge.shape[1]) < self.sizes.unsqueeze(-1)
        pair = (mask.unsqueeze(1) & mask.unsqueeze(2)).triu(1)
        kinds = ORDERS if self.node is not None else 2
        made: dict[str, Any] = {
            "edges": _shares(torch.bincount(self.edge[pair].long(), minlength=kinds)),
            "sizes": tuple(torch.bincount(self.sizes).tolist()),
        }
        if self.node is not None:
            made["nodes"] = _shares(torch.bincount(self.node[mask].long(), minlength=len(ATOMS)))
        return made


def _shares(count: Tensor) -> tuple[float, ...]:
    return tuple((count / count.sum()).tolist())


def load_graphs(path: str | Path) -> GraphSet:
    """Generic graphs from an NPZ file with ``n_nodes``, ``edge_offset`` and ``edges``.

    Raises:
        FileNotFoundError, ValueError: no such file, or arrays that are missing.
    """
    with open_npz(path) as held:
        if missing := [n for n in ("n_nodes", "edge_offset", "edges") if n not in held.files]:
            raise ValueError(f"{path}: lacks the array {missing[0]!r}; it has {', '.join(held.files)}")
        sizes, offset, edges = (torch.from_numpy(held[n].astype(np.int64)) for n in ("n_nodes", "edge_offset", "edges"))
    of = torch.repeat_interleave(torch.arange(len(sizes)), offset.diff())
    most = int(sizes.max())
    adjacency = torch.zeros(len(sizes), most, most, dtype=torch.int8)
    adjacency[of, edges[:, 0], edges[:, 1]] = 1
    adjacency[of, edges[:, 1], edges[:, 0]] = 1
    return GraphSet(None, adjacency, sizes)


def graphs_of(
    smiles: Sequence[str], most: int = 9, report: Callable[[int], None] | None = None
) -> tuple[GraphSet, list[str]]:
    """Molecules as graphs of their heavy atoms, kekulised, and the SMILES that have none (unreadable, other atoms, too large)."""
    from rdkit import Chem

    from manifoldflow.tasks.molecules.chemistry import parsed

    token = {atom: i for i, atom in enumerate(ATOMS)}
    node, edge = np.zeros((len(smiles), most), np.int8), np.zeros((len(smiles), most, most), np.int8)
    sizes, failed = np.zeros(len(smiles), np.int64), []
    for row, text in enumerate(smiles):
        molecule = parsed(text)
        atoms = [] if molecule is None else [(a.GetSymbol(), a.GetFormalCharge()) for a in molecule.GetAtoms()]
        if molecule is None or not 0 < len(atoms) <= most or any(a not in token for a in atoms):
            failed.append(text)
            continue
        Chem.Kekulize(molecule, clearAromaticFlags=True)
        node[row, : len(atoms)] = [token[a] for a in atoms]
        for bond in molecule.GetBonds():
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            edge[row, i, j] = edge[row, j, i] = int(bond.GetBondTypeAsDouble())
        sizes[row] = len(atoms)
        if report is not None:
            report(row + 1)
    kept = torch.from_numpy(np.flatnonzero(sizes))
    made = GraphSet(torch.from_numpy(node), torch.from_numpy(edge), torch.from_numpy(sizes))
    return made.rows(kept), failed


def graph_batches(
    data: GraphSet, config: GraphConfig, size: int, seed: int
) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Batches of rows drawn with replacement, for :func:`manifoldflow.training.fit`."""
    return drawn_batches(len(data), size, seed, lambda rows, _: data.batch(rows, config))


# ---------------------------------------------------------------- samples


def sample_graphs(
    flow: mf.Flow,
    sizes: Sequence[int],
    *,
    steps: int = 100,
    temperature: float = 1.0,
    corrector: float = 1.0,
    late: float = 3.0,
    langevin: float = 0.02,
    batch: int = 250,
    generator: torch.Generator | None = None,
    callback: Callable[[int], None] | None = None,
) -> GraphSet:
    """Graphs of given numbers of nodes.

    Args:
        flow: from :func:`build`.
        sizes: nodes.
        steps: of the sampler.
        temperature, corrector: of tokens, as in :class:`manifoldflow.Jumps`.
        late: tokens jump at the times 1 - (1 - u)^late of even u: valences come right at the end, where even steps are too long.
        langevin: size of the corrector's step after every step of "gdss"; 0 for none.
        batch: graphs at once.
        generator: of every random draw.
        callback: called with the number of graphs after every batch.
    """
    config, most, nodes, edges = GraphConfig(**(flow.config or {})), max(sizes), [], []
    for at in range(0, len(sizes), batch):
        some = torch.as_tensor(sizes[at : at + batch])
        mask = torch.arange(most) < some.unsqueeze(-1)
        if config.method == "jumps":
            how = mf.Jumps(temperature=temperature, corrector=corrector)
            times = 1 - (1 - mf.linear_grid(steps, dtype=torch.float64)) ** late
            made = flow.sample(mask.shape, mask=mask, times=times, method=how, generator=generator)
            node, edge = made.get("node"), made["edge"]
        else:
            made = _diffused(flow, config, mask, steps, langevin, generator)
            inside = flow.fields["edge"].spread(mask)
            assert inside is not None
            node = made["node"].argmax(-1) * mask if config.kind == "molecules" else None
            value = made["edge"].squeeze(-1)
            edge = (value > 0).long() if node is None else (value + 1).round().long().clamp(0, ORDERS - 1)
            edge = edge * inside
        nodes.append(node)
        edges.append(pairs_of_edges(edge, most))
        if callback is not None:
            callback(at + len(some))
    kinds = None if nodes[0] is None else torch.cat(nodes).to(torch.int8)
    return GraphSet(kinds, torch.cat(edges).to(torch.int8), torch.as_tensor(sizes))


@torch.no_grad()
def _diffused(
    flow: mf.Flow, config: GraphConfig, mask: Tensor, steps: int, langevin: float, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """The reverse equations of nodes and edges, with a corrector."""
    method = {"node": mf.SDE(LAWS[config.node_law].reverse), "edge": mf.SDE(LAWS[config.edge_law].reverse)}
    kernel: Any = mf.PredictorCorrector(flow, method, renewed=langevin) if langevin > 0 else flow.kernel(method)
    start = flow.draw_source(tuple(mask.shape), mask=mask, generator=generator)
    made: dict[str, Tensor] = mf.simulate(kernel, start, mf.linear_grid(steps), mask=mask, generator=generator)
    return made


def draw_sizes(sizes: Sequence[int], count: int, generator: torch.Generator | None = None) -> list[int]:
    """Numbers of nodes, as often as in the training data."""
    return torch.multinomial(
        torch.tensor(sizes, dtype=torch.float), count, replacement=True, generator=generator
    ).tolist()


def smiles_of(graphs: GraphSet) -> list[str | None]:
    """Canonical SMILES of molecules as they are, without any correction; None where RDKit finds a valence that is not allowed."""
    from rdkit import Chem

    from manifoldflow.tasks.molecules.chemistry import sanitized

    if graphs.node is None:
        raise ValueError("generic graphs have no atoms, so they have no SMILES")
    orders = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
    made: list[str | None] = []
    for node, edge, size in zip(graphs.node.tolist(), graphs.edge.tolist(), graphs.sizes.tolist(), strict=True):
        rough = Chem.RWMol()
        for token in node[:size]:
            atom = Chem.Atom(ATOMS[token][0])
            atom.SetFormalCharge(ATOMS[token][1])
            rough.AddAtom(atom)
        for i in range(size):
            for j in range(i):
                if edge[i][j]:
                    rough.AddBond(i, j, orders[edge[i][j] - 1])
        good, _ = sanitized(rough.GetMol())
        made.append(None if good is None else Chem.MolToSmiles(good))
    return made


def random_molecules(like: GraphSet, count: int, generator: torch.Generator | None = None) -> GraphSet:
    """Molecules that respect valences and nothing else: what needs no learning.

    Atoms as often as in the data; every atom is bonded to an earlier one with a free valence, then further bonds fall where
    both ends have one, until there are about as many as in a graph of the data. All molecules at once.
    """
    assert like.node is not None
    free_of = torch.tensor([4, 3, 2, 1, 4, 1, 2, 3])
    rows = torch.randint(len(like), (count,), generator=generator)
    sizes, most = like.sizes[rows], like.edge.shape[1]
    inside = torch.arange(most) < sizes.unsqueeze(-1)
    weight = torch.bincount(
        like.node[torch.arange(most) < like.sizes.unsqueeze(-1)].long(), minlength=len(ATOMS)
    ).float()
    node = torch.multinomial(weight, count * most, replacement=True, generator=generator).reshape(count, most)
    node = node.gather(1, free_of[node].argsort(1, descending=True)) * inside  # atoms of one bond come last
    free, edge, at = free_of[node] * inside, torch.zeros(count, most, most, dtype=torch.long), torch.arange(count)

    def bond(i: Tensor, j: Tensor, ok: Tensor) -> None:
        ok = ok.long()
        edge[at, i, j] += ok
        edge[at, j, i] += ok
        free[at, i] -= ok
        free[at, j] -= ok

    for new in range(1, most):
        chance = (free[:, :new] > 0).float()
        found = chance.sum(1) > 0
        earlier = torch.multinomial(chance + 1e-9, 1, generator=generator).squeeze(1)
        j = torch.full_like(earlier, new)
        bond(earlier, j, found & inside[:, new] & (free[at, j] > 0))
    extra = (like.edge[rows].sum((1, 2)) // 2 - (sizes - 1)).clamp_min(0)
    for turn in range(int(extra.max()) if count else 0):
        both = ((free > 0).unsqueeze(1) & (free > 0).unsqueeze(2) & (edge < 3)).triu(1).flatten(1).float()
        place = torch.multinomial(both + 1e-9, 1, generator=generator).squeeze(1)
        i, j = place // most, place % most
        bond(i, j, (both.gather(1, place.unsqueeze(1)).squeeze(1) > 0) & (turn < extra))
    return GraphSet(node.to(torch.int8), edge.to(torch.int8), sizes)


class GraphScores(NamedTuple):
    """Counts of ``total`` molecules: allowed by RDKit as they are, those in one piece, different ones among these, and new
    ones."""

    total: int
    valid: int
    whole: int
    unique: int
    novel: int | None


def measure(graphs: GraphSet, reference: set[str] | None = None) -> tuple[GraphScores, list[str]]:
    """The counts, and the SMILES of the molecules in one piece.

    Args:
        graphs: molecules.
        reference: canonical SMILES of the training data.
    """
    made = smiles_of(graphs)
    valid = [s for s in made if s is not None]
    whole = [s for s in valid if "." not in s]
    different = set(whole)
    novel = None if reference is None else len(different - reference)
    return GraphScores(len(made), len(valid), len(whole), len(different), novel), whole
