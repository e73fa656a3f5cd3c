"""The reward of a run as an oracle with a budget: every molecule is asked for once, every call is counted and written down."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from manifoldflow.files import write_json
from manifoldflow.gflownet.reward import BudgetSpent, Reward
from manifoldflow.tasks.molecules.rewards import Objective

RECORD = "calls.jsonl"


class Answers(NamedTuple):
    """What was asked for so far, in that order.

    Attributes:
        smiles: canonical.
        values: rewards, ``(n, M)``, a column for every objective.
    """

    smiles: list[str]
    values: Tensor

    @property
    def reward(self) -> Tensor:
        """The one reward, or the geometric mean of several, ``(n,)``."""
        return self.values.clamp_min(1e-12).log().mean(-1).exp() if self.values.shape[1] > 1 else self.values[:, 0]


class Oracle:
    """Rewards of an objective, counted by the molecule.

    Args:
        objective: what is asked for.
        calls: molecules that may be asked for in all; None for no end.
        folder: where every answer is written down at once, and where a run that was stopped finds them again; None for nowhere.
        timeout: seconds that a batch may take; None for ever.
        bad: what a reward that raises, is NaN, negative, of the wrong length or late means: ``"raise"``, or ``"floor"``.
        batch: molecules that the function gets at once.
        functions: instead of those of the objective.

    Attributes:
        met: molecules that were asked for since the program began, known before or not: how a search that is repeated up to
            where it was stopped knows that it moves.

    Raises:
        ValueError: the folder holds answers of another objective.
    """

    def __init__(
        self,
        objective: Objective,
        calls: int | None = None,
        folder: str | Path | None = None,
        *,
        timeout: float | None = None,
        bad: Literal["raise", "floor"] = "raise",
        batch: int = 64,
        functions: Sequence[Callable[[list[str]], Any]] | None = None,
    ) -> None:
        if calls is not None and calls < 1:
            raise ValueError(f"calls must be at least 1, got {calls}")
        self.objective, self.calls = objective, calls
        self.met: set[str] = set()
        folder = None if folder is None else Path(folder)
        if folder is not None:
            said, now = folder / "objective.json", {"reward": objective.text, "lead": objective.lead}
            if said.exists():
                before = json.loads(said.read_text(encoding="utf-8"))
                if before != now:
                    raise ValueError(
                        f"{folder} holds answers for the reward {before['reward']}, not {objective.text}; take another --out"
                    )
            write_json(said, now)
        made = functions or [objective.function(i) for i in range(len(objective))]
        self.parts = [
            Reward(
                function,
                batch=batch,
                bad=bad,
                late=bad,
                timeout=timeout,
                budget=calls,
                record=None if folder is None else folder / (RECORD if i == 0 else f"calls_{i + 1}.jsonl"),
            )
            for i, function in enumerate(made)
        ]

    @property
    def used(self) -> int:
        """Molecules asked for, failures that had to be asked for again included."""
        return max(part.calls for part in self.parts)

    @property
    def left(self) -> int | None:
        """Molecules that may still be asked for; None for no end."""
        return None if self.calls is None else max(self.calls - self.used, 0)

    @property
    def failed(self) -> int:
        """Molecules that got the floor because something went wrong."""
        return sum(part.failed for part in self.parts)

    @property
    def rewards(self) -> Any:
        """For an environment: the reward, or a list of several."""
        return self.parts[0] if len(self.parts) == 1 else self.parts

    def knows(self, smiles: str) -> bool:
        """Whether an answer costs nothing."""
        return all(smiles in part.known for part in self.parts)

    def ask(self, smiles: Sequence[str]) -> Tensor:
        """Rewards ``(n, M)`` of as many as the budget allows: NaN of the rest."""
        value = torch.full((len(smiles), len(self.parts)), torch.nan, dtype=torch.float64)
        left = self.left
        can: list[int] = []
        new: set[str] = set()
        for i, text in enumerate(smiles):
            if not self.knows(text) and text not in new:
                if left is not None and len(new) >= left:
                    continue
                new.add(text)
            can.append(i)
        self.met.update(smiles[i] for i in can)
        if can:
            try:
                value[torch.tensor(can)] = torch.stack([part([smiles[i] for i in can]) for part in self.parts], -1)
            except BudgetSpent:  # failures were asked for again, and cost what was left
                for i in can:
                    if self.knows(smiles[i]):
                        value[i] = torch.tensor([part.known[smiles[i]] for part in self.parts], dtype=torch.float64)
        return value

    def answers(self) -> Answers:
        """All that is known, in the order in which it was asked for."""
        names: list[Any] = [s for s in self.parts[0].known if self.knows(str(s))]
        table = [[part.known[s] for part in self.parts] for s in names]
        return Answers([str(s) for s in names], torch.tensor(table, dtype=torch.float64).reshape(-1, len(self.parts)))
