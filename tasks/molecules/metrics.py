"""What generated molecules are worth as a set: different ones, new ones, modes, alarms, and the distance to real ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from manifoldflow.tasks.molecules.chemistry import canonical, parsed, rdkit
from manifoldflow.tasks.molecules.proxy import fingerprints, tanimoto


@dataclass(frozen=True)
class SetScores:
    """Of a set of SMILES; shares are counted of all that were given.

    Attributes:
        count, valid, unique: numbers; of different molecules among the valid ones.
        novel: different ones that are not among the reference; None without one.
        diversity: mean of 1 - Tanimoto similarity over pairs of different ones (of at most 1,000).
        scaffolds: number of different Murcko scaffolds.
        easy: with an SA score of at most 4.
        alerts: that a PAINS or BRENK pattern matches.
        sa, qed: mean SA score and drug-likeness of the valid ones.
    """

    count: int
    valid: int
    unique: int
    novel: int | None
    diversity: float
    scaffolds: int
    easy: int
    alerts: int
    sa: float
    qed: float


def set_scores(smiles: Sequence[str], reference: Sequence[str] | None = None) -> SetScores:
    """Scores of a set; ``reference`` are canonical SMILES of known molecules."""
    from rdkit.Chem.Scaffolds import MurckoScaffold

    from manifoldflow.tasks.molecules.rewards import qed, sa_score

    mols = [m for m in map(parsed, smiles) if m is not None]
    names = [canonical(m) for m in mols]
    different = list(dict.fromkeys(names))
    hard = [sa_score(m) for m in mols]
    known = set(reference) if reference is not None else None
    return SetScores(
        len(smiles),
        len(mols),
        len(different),
        None if known is None else sum(n not in known for n in different),
        diversity(different[:1000]),
        len({MurckoScaffold.MurckoScaffoldSmiles(mol=m) for m in mols}),
        sum(s <= 4 for s in hard),
        sum(map(has_alert, mols)),
        sum(hard) / max(len(hard), 1),
        sum(map(qed, mols)) / max(len(mols), 1),
    )


def diversity(smiles: Sequence[str]) -> float:
    """Mean of 1 - Tanimoto similarity over all pairs."""
    if len(smiles) < 2:
        return 0.0
    prints = fingerprints(smiles)
    like = tanimoto(prints, prints)
    return float(1 - (like.sum() - like.diagonal().sum()) / (len(smiles) * (len(smiles) - 1)))


def modes(smiles: Sequence[str], reward: Tensor, threshold: float, similarity: float = 0.7) -> list[int]:
    """Numbers of molecules above a threshold that are unlike each other, the best first: each is less than ``similarity``
    (Tanimoto) like all before it."""
    order = [i for i in reward.argsort(descending=True, stable=True).tolist() if float(reward[i]) >= threshold]
    if not order:
        return []
    prints = fingerprints([smiles[i] for i in order])
    kept: list[int] = []
    for row in range(len(order)):
        if not kept or float(tanimoto(prints[row : row + 1], prints[kept]).max()) < similarity:
            kept.append(row)
    return [order[row] for row in kept]


def top_mean(reward: Tensor, count: int = 100) -> float:
    """Mean of the best."""
    return float(reward.topk(min(count, len(reward))).values.mean()) if len(reward) else 0.0


def calls_to(reward: Tensor, share: float = 0.9, count: int = 100, final: float | None = None) -> int:
    """After how many molecules, in the order in which they were asked for, the mean of the best ``count`` reached that share of
    what it is at the end (or of ``final``); one more than there are if it never did."""
    goal = share * (top_mean(reward, count) if final is None else final)
    if len(reward) < count or top_mean(reward, count) < goal:
        return len(reward) + 1
    low, high = count, len(reward)
    while low < high:  # the mean of the best so far only rises
        middle = (low + high) // 2
        low, high = (low, middle) if top_mean(reward[:middle], count) >= goal else (middle + 1, high)
    return low


@lru_cache(maxsize=1)
def _catalogue() -> Any:
    rdkit()
    from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams

    wanted = FilterCatalogParams()
    for name in ("PAINS", "BRENK"):
        wanted.AddCatalog(getattr(FilterCatalogParams.FilterCatalogs, name))
    return FilterCatalog(wanted)


def has_alert(mol: Any) -> bool:
    """Whether a PAINS or BRENK pattern matches."""
    return bool(_catalogue().HasMatch(mol))


def chemnet_distance(smiles: Sequence[str], reference: Sequence[str]) -> float:
    """Frechet ChemNet distance of two sets of SMILES (Preuer et al. 2018); depends on their sizes, so compare at equal ones.

    Raises:
        ImportError: fcd_torch is not installed.
    """
    try:
        from fcd_torch import FCD
    except ImportError as error:
        raise ImportError('the ChemNet distance needs fcd_torch: pip install "manifoldflow[molecules]"') from error
    return float(FCD(device="cpu", n_jobs=1, batch_size=256)(list(smiles), list(reference)))


def pareto_front(values: Tensor) -> Tensor:
    """Which rows ``(n, M)`` no other row dominates (as good in all and better in one), bool ``(n,)``."""
    kept = torch.ones(len(values), dtype=torch.bool)
    for i in range(len(values)):
        as_good = (values >= values[i]).all(-1)
        better = (values > values[i]).any(-1)
        kept[i] = not bool((as_good & better).any())
    return kept


def hypervolume(values: Tensor) -> float:
    """Volume between the origin and a front of two objectives that are not negative."""
    if values.shape[1] != 2:
        raise ValueError(f"the hypervolume is for two objectives, got {values.shape[1]}")
    front = values[pareto_front(values)].double()
    front = front[front[:, 0].argsort(descending=True)]
    height = torch.cat([front.new_zeros(1), front[:, 1]]).cummax(0).values
    return float((front[:, 0] * height.diff()).sum())


def bootstrap_spearman(a: Tensor, b: Tensor, draws: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's rank correlation with its 95 % bootstrap interval."""
    from scipy.stats import spearmanr

    generator = torch.Generator().manual_seed(seed)
    whole = float(spearmanr(a, b)[0])
    many = []
    for _ in range(draws):
        rows = torch.randint(len(a), (len(a),), generator=generator)
        many.append(float(spearmanr(a[rows], b[rows])[0]))
    low, high = torch.tensor(many).quantile(torch.tensor([0.025, 0.975])).tolist()
    return whole, low, high
