"""What molecules are worth: drug-likeness, ease of making, windows on properties, likeness to a lead, products."""

import difflib
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from manifoldflow.tasks.molecules.chemistry import parsed, rdkit

PROXY = "molecules_seh"
"""The embedded proxy for activity against soluble epoxide hydrolase."""

WIDTH = {"logp": 1.0, "mw": 50.0, "tpsa": 20.0, "atoms": 3.0, "sa_score": 1.0, "qed": 0.1, "sa": 0.1, "seh": 0.1}
WIDTH |= {"similarity": 0.1, "rings": 1.0, "rotatable": 2.0}
"""How far outside its window a property is worth :math:`e^{-1/2}`."""

Values = Callable[[Sequence[Any], Sequence[str]], list[float]]


def qed(mol: Any) -> float:
    """Drug-likeness of Bickerton et al. 2012, 0 to 1."""
    from rdkit.Chem import QED

    return float(QED.qed(mol))


def sa_score(mol: Any) -> float:
    """Difficulty of making a molecule by Ertl and Schuffenhauer 2009, 1 (easy) to 10."""
    return float(_sa().calculateScore(mol))


def sa(mol: Any) -> float:
    """Ease of making it, 0 to 1: (10 - SA score) / 9."""
    return (10.0 - sa_score(mol)) / 9.0


def logp(mol: Any) -> float:
    """Crippen's estimate of the octanol-water partition."""
    from rdkit.Chem import Crippen

    return float(Crippen.MolLogP(mol))  # type: ignore[attr-defined]


def weight(mol: Any) -> float:
    """Mass in g/mol."""
    from rdkit.Chem import Descriptors

    return float(Descriptors.MolWt(mol))  # type: ignore[attr-defined]


def tpsa(mol: Any) -> float:
    """Topological polar surface in square angstrom."""
    from rdkit.Chem import rdMolDescriptors

    return float(rdMolDescriptors.CalcTPSA(mol))


def _rotatable(mol: Any) -> float:
    from rdkit.Chem import rdMolDescriptors

    return float(rdMolDescriptors.CalcNumRotatableBonds(mol))


PROPERTIES: dict[str, Callable[[Any], float]] = {
    "qed": qed, "sa": sa, "sa_score": sa_score, "logp": logp, "mw": weight, "tpsa": tpsa,
    "atoms": lambda m: float(m.GetNumHeavyAtoms()), "rings": lambda m: float(m.GetRingInfo().NumRings()),
    "rotatable": _rotatable,
}  # fmt: skip
UNIT = ("qed", "sa", "seh", "similarity")
"""Those that lie between 0 and 1, and so are rewards without a window."""


@lru_cache(maxsize=1)
def _sa() -> Any:
    rdkit()
    from rdkit.Contrib.SA_Score import sascorer

    return sascorer


class Term(NamedTuple):
    """One factor of a reward.

    Attributes:
        text: as it was written.
        name: of the property, or of a function.
        window: lowest and highest value that are worth 1; None for the value itself.
        power: to which it is raised.
        values: molecules and SMILES -> values.
    """

    text: str
    name: str
    window: tuple[float, float] | None
    power: float
    values: Values

    def worth(self, mols: Sequence[Any], smiles: Sequence[str]) -> list[float]:
        """What molecules are worth, as the function returned it where there is no window: wrong answers are for
        :class:`manifoldflow.gflownet.reward.Reward` to find."""
        made = self.values(mols, smiles)
        if self.window is not None:
            made = [outside(v, self.window, WIDTH.get(self.name, 1.0)) for v in made]
        return made if self.power == 1 else [v**self.power for v in made]


def outside(value: float, window: tuple[float, float], width: float) -> float:
    r"""1 within the window, :math:`e^{-d^2 / 2 w^2}` at a distance d from it."""
    away = max(window[0] - value, value - window[1], 0.0) / width
    return math.exp(-0.5 * away * away) if not math.isnan(value) else math.nan


class Objective:
    """A product of rewards, or with commas several products: a front of Pareto.

        Objective("qed*sa"), Objective("seh*qed^0.5*logp[1,4]"), Objective("seh,qed*sa"), Objective("mine.py:score*sa")

    Terms are ``qed``, ``sa``, ``seh`` and ``similarity`` (to the lead), which lie between 0 and 1; ``logp``, ``mw``, ``tpsa``,
    ``atoms``, ``rings``, ``rotatable``, ``sa_score`` with a window ``[low,high]``, outside of which they fall off; and functions
    ``FILE.py:NAME`` or ``package.module:NAME`` of a list of SMILES. ``^`` raises to a power.

    Args:
        expression: as above, or a function of a list of SMILES.
        lead: SMILES that ``similarity`` refers to.

    Raises:
        ValueError: what cannot be read; says what there is.
    """

    def __init__(self, expression: str | Callable[[list[str]], Any], lead: str | None = None) -> None:
        self.lead = lead
        if callable(expression):
            own = expression
            self.text = getattr(own, "__name__", "function")
            self.parts = [(self.text, [Term(self.text, self.text, None, 1.0, lambda _, s: own(list(s)))])]
            return
        self.text = "".join(expression.split())
        if not self.text:
            raise ValueError("the reward is empty; examples: qed*sa, seh*logp[1,4], mine.py:score")
        pieces = _split(self.text, ",")
        self.parts = [(piece, [self._term(word) for word in _split(piece, "*")]) for piece in pieces]

    @property
    def names(self) -> list[str]:
        """What the objectives are called; one unless it is a front."""
        return [name for name, _ in self.parts]

    def __len__(self) -> int:
        return len(self.parts)

    def function(self, index: int = 0) -> Callable[[list[str]], Any]:
        """SMILES -> rewards of one of the objectives."""
        terms = self.parts[index][1]

        def reward(smiles: list[str]) -> Any:
            mols = [parsed(s) for s in smiles]
            if len(terms) == 1:
                return terms[0].worth(mols, smiles)
            columns = [list(term.worth(mols, smiles)) for term in terms]
            for term, column in zip(terms, columns, strict=True):
                if len(column) != len(smiles):
                    raise ValueError(f"{term.text} returned {len(column)} numbers for {len(smiles)} molecules")
            return [math.prod(row) for row in zip(*columns, strict=True)]

        return reward

    def _term(self, text: str) -> Term:
        word, raises, power = text.partition("^")
        found = re.fullmatch(r"([^\[\]]+)(?:\[([^,\]]*),([^,\]]*)\])?", word)
        try:
            raised = float(power) if raises else 1.0
            window = (
                (_bound(found[2], -math.inf), _bound(found[3], math.inf)) if found and found[2] is not None else None
            )
        except ValueError:
            raise ValueError(f"reward {text!r}: a window is [low,high], a power ^2, with numbers") from None
        if not found:
            raise ValueError(f"reward {text!r} cannot be read; examples: qed*sa, seh*logp[1,4], mine.py:score")
        name = found[1]
        if not (raised > 0 and math.isfinite(raised)):
            raise ValueError(f"reward {text!r}: a power is a positive number, got {power}")
        if window is not None and not window[0] <= window[1]:
            raise ValueError(f"reward {text!r}: the window's lower end is above its upper one")
        if ":" in name:
            own = load_function(name)
            return Term(text, name, window, raised, lambda _, smiles: own(list(smiles)))
        if name not in (*PROPERTIES, "seh", "similarity"):
            known = sorted([*PROPERTIES, "seh", "similarity"])
            near = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            if re.search(r"[-+/()]|\d", name):
                hint = " (terms are multiplied, as in qed*sa; commas make a front)"
            raise ValueError(
                f"reward {text!r}: no term is called {name!r}; there are {', '.join(known)}, or a function FILE.py:NAME{hint}"
            )
        if window is None and name not in UNIT:
            raise ValueError(
                f"reward {text!r}: {name} is not between 0 and 1; give a window, such as {name}[{_example(name)}]"
            )
        return Term(text, name, window, raised, self._values(name))

    def _values(self, name: str) -> Values:
        if name == "seh":
            from manifoldflow.checkpoint import load

            proxy = load(PROXY)
            return lambda _, smiles: proxy.score(smiles).tolist()
        if name == "similarity":
            if not self.lead:
                raise ValueError("the term similarity needs a lead: --lead SMILES")
            return similarity_to(self.lead)
        single = PROPERTIES[name]
        return lambda mols, _: [single(m) if m is not None else 0.0 for m in mols]


def similarity_to(lead: str) -> Values:
    """Tanimoto similarity of Morgan fingerprints (radius 2) to a molecule."""
    from manifoldflow.tasks.molecules.proxy import fingerprints, tanimoto

    if parsed(lead) is None:
        raise ValueError(f"the lead {lead!r} is no molecule")
    own = fingerprints([lead])
    return lambda _, smiles: tanimoto(fingerprints(smiles), own)[:, 0].tolist()


def load_function(name: str) -> Callable[[list[str]], Any]:
    """A function of a list of SMILES by ``FILE.py:NAME`` or ``package.module:NAME``.

    Raises:
        ValueError: it is not there.
    """
    where, _, attribute = name.rpartition(":")
    try:
        if where.endswith(".py"):
            path = Path(where)
            if not path.is_file():
                raise ValueError(f"reward {name!r}: there is no file {where}")
            spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # so that another process finds the function
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except (ImportError, SyntaxError) as error:
        raise ValueError(f"reward {name!r}: {where} cannot be imported ({error})") from None
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ValueError(f"reward {name!r}: {where} has no function {attribute!r}")
    return found


def _split(text: str, mark: str) -> list[str]:
    """Pieces between marks that are outside of brackets."""
    pieces = re.split(rf"{re.escape(mark)}(?![^\[]*\])", text)
    if any(not p for p in pieces):
        raise ValueError(f"reward {text!r}: something is missing beside a {mark!r}")
    return pieces


def _bound(text: str, absent: float) -> float:
    return float(text) if text else absent


def _example(name: str) -> str:
    return {"logp": "1,4", "mw": "200,450", "tpsa": "40,100", "sa_score": "1,3"}.get(name, "1,5")
