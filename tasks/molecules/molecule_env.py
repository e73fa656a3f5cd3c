"""What environments of molecules have in common: names of states, rewards of names, patterns that are forbidden."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from manifoldflow.gflownet import Env
from manifoldflow.tasks.molecules.chemistry import canonical, parsed
from manifoldflow.tasks.molecules.fragments import smarts

Score = Callable[[list[str]], Any]
"""SMILES -> rewards, such as :class:`manifoldflow.gflownet.reward.Reward`."""


class MoleculeEnv(Env):
    r"""An environment whose objects are molecules: subclasses build them, this names and rewards them.

    Args:
        reward: SMILES -> rewards that are not negative; 1 for every molecule if absent. Several make a front of Pareto: the
            reward of a condition (weights w of them, in sum 1) is their weighted geometric mean.
        exponent: :math:`\beta`; objects are made in proportion to :math:`R^\beta`.
        forbidden: SMARTS patterns; a molecule that holds one has the smallest reward, and is never asked for.
        smallest: least reward of all.
        partial: SMILES -> rewards of unfinished molecules for forward-looking losses; the reward itself if absent.
    """

    def __init__(
        self,
        reward: Score | Sequence[Score] | None = None,
        *,
        exponent: float = 1.0,
        forbidden: Sequence[str] = (),
        smallest: float = 1e-4,
        partial: Score | Sequence[Score] | None = None,
    ) -> None:
        if not (exponent >= 0 and smallest > 0):
            raise ValueError(f"exponent must be at least 0 and smallest positive, got {exponent} and {smallest}")
        smarts(forbidden)  # raises for those that are none
        self.reward, self.exponent, self.partial = reward, exponent, partial
        self.forbidden, self.smallest = tuple(forbidden), smallest
        self._names: dict[bytes, str] = {}

    def size(self, x: Any) -> Tensor:
        """Number of parts, ``(B,)``; 0 of the empty state."""
        raise NotImplementedError

    def rows(self, x: Any) -> Tensor:
        """Whole numbers that say what the molecule is, ``(B, any)``."""
        raise NotImplementedError

    def to_mols(self, x: Any) -> list[Any]:
        """RDKit molecules, one a state, unfinished ones too (hydrogen is where nothing is yet); None of the empty state."""
        raise NotImplementedError

    def to_smiles(self, x: Any) -> list[str]:
        """Canonical SMILES, one a state; empty of the empty state. States seen before are remembered."""
        table = self.rows(x).to(torch.int16).cpu().numpy()
        keys = [row.tobytes() for row in table]
        if len(self._names) > 200_000:
            self._names.clear()
        fresh = [i for i, k in enumerate(keys) if k not in self._names]
        if fresh:
            index = torch.tensor(fresh, device=x["done"].device)
            for i, mol in zip(fresh, self.to_mols({n: v[index] for n, v in x.items()}), strict=True):
                self._names[keys[i]] = canonical(mol) if mol is not None else ""
        return [self._names[k] for k in keys]

    def rewards(self, smiles: list[str], score: Score | None) -> Tensor:
        """Rewards of molecules, float64 ``(n,)``, at least ``smallest``; what is forbidden is not asked for."""
        value = torch.full((len(smiles),), self.smallest, dtype=torch.float64)
        good = [i for i, s in enumerate(smiles) if s and not self.is_forbidden(s)]
        if good:
            answer = torch.ones(len(good)) if score is None else score([smiles[i] for i in good])
            answer = torch.as_tensor(answer, dtype=torch.float64)
            if answer.shape != (len(good),):
                raise ValueError(f"the reward returned {tuple(answer.shape)} numbers for {len(good)} molecules")
            value[torch.tensor(good)] = answer.clamp_min(self.smallest)
        return value

    def is_forbidden(self, smiles: str) -> bool:
        """Whether a molecule holds a forbidden pattern."""
        if not self.forbidden:
            return False
        mol = parsed(smiles)
        return mol is None or any(mol.HasSubstructMatch(q) for q in smarts(self.forbidden))

    def log_reward(self, x: Any, cond: Tensor | None = None) -> Tensor:
        """Of the reward to the power ``exponent``, ``(B,)``; with several rewards of that weighed by ``cond`` ``(B, M)``."""
        return self._log(x, self.reward, cond)

    def log_partial_reward(self, x: Any, cond: Tensor | None = None) -> Tensor:
        """Of the molecule that a state is with hydrogen where nothing is yet; 0 at the empty state."""
        value = self._log(x, self.reward if self.partial is None else self.partial, cond)
        return torch.where(self.size(x) > 0, value, 0.0)

    def _log(self, x: Any, score: Score | Sequence[Score] | None, cond: Tensor | None) -> Tensor:
        smiles, device = self.to_smiles(x), x["done"].device
        if score is None or callable(score):
            return (self.exponent * self.rewards(smiles, score).log()).to(device)
        every = torch.stack([self.rewards(smiles, one) for one in score], -1).log().to(device)  # (B, M)
        even = torch.full_like(every, 1 / every.shape[1])
        return self.exponent * (every * (even if cond is None else cond.to(every))).sum(-1)
