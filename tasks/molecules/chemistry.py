"""RDKit without its log on the screen: why a molecule is none, in one sentence, and what may be mended in one that is."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ELEMENTS = ("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Se", "Br", "I")
"""Elements of organic molecules: what a generator here is asked to know."""


def rdkit() -> Any:
    """``rdkit.Chem``, with the log of RDKit silenced.

    Raises:
        ImportError: it is not installed; says how.
    """
    try:
        from rdkit import Chem, RDLogger
    except ImportError as error:
        raise ImportError('molecules need RDKit: pip install "manifoldflow[molecules]"') from error
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    return Chem


@contextmanager
def heard() -> Iterator[list[str]]:
    """Within, what RDKit logs is put into the list instead of the screen."""
    from rdkit import RDLogger, rdBase

    lines: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, ear = logging.getLogger("rdkit"), Ear()
    propagates, handlers = logger.propagate, logger.handlers[:]
    logger.propagate, logger.handlers = False, [ear]
    rdBase.LogToPythonLogger()
    RDLogger.EnableLog("rdApp.error")  # type: ignore[attr-defined]
    try:
        yield lines
    finally:
        RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
        rdBase.LogToCppStreams()
        logger.propagate, logger.handlers = propagates, handlers


def parse_smiles(smiles: str) -> tuple[Any | None, str]:
    """The molecule of a SMILES, or None and why it is none.

    Hydrogens are implicit, but for those that say more (``[2H]``, ``[H+]``).
    """
    chem = rdkit()
    with heard() as lines:
        rough = chem.MolFromSmiles(smiles, sanitize=False)
    if rough is None:
        if re.search(r"\[\d*[DT][\]H@+:-]", smiles):
            return None, "D and T are no elements; deuterium is written [2H], tritium [3H]"
        strange = [s for s in re.findall(r"\[\d*([A-Z][a-z]?)", smiles) if not is_element(s)]
        if strange:
            return None, f"{strange[0]} is no element"
        return None, f"not a SMILES ({_told(lines) or 'it cannot be parsed'})"
    made, why = sanitized(rough)
    with heard():  # of hydrogens that are a molecule of their own, which stay
        return (made, why) if made is None else (chem.RemoveHs(made), "")


def sanitized(rough: Any) -> tuple[Any | None, str]:
    """A molecule with its valences, rings and aromaticity checked, or None and what is wrong.

    Numbers of a reaction's atoms (``[CH3:1]``) are taken off, since they name no part of the molecule; those of attachment points
    stay. Bonds of no certain order, as queries have them, make no molecule.
    """
    chem = rdkit()
    for bond in rough.GetBonds():
        if bond.HasQuery() or str(bond.GetBondType()) in ("UNSPECIFIED", "ZERO", "OTHER"):
            ends = f"{bond.GetBeginAtomIdx() + 1} and {bond.GetEndAtomIdx() + 1}"
            return None, f"the bond between atoms {ends} has no certain order: a query, not a molecule"
    for atom in rough.GetAtoms():
        if atom.GetAtomicNum() and atom.HasProp("molAtomMapNumber"):
            atom.ClearProp("molAtomMapNumber")
    try:
        chem.SanitizeMol(rough)
    except (ValueError, RuntimeError) as error:  # RDKit's own classes derive from these
        problems = [p.Message() for p in chem.DetectChemistryProblems(rough)]
        return None, _worded(problems[0] if problems else str(error))
    chem.AssignStereochemistry(rough, cleanIt=True, force=True)
    return rough, ""


def _worded(problem: str) -> str:
    text = " ".join(problem.split())
    if "kekulize" in text:
        atoms = " ".join(str(int(n) + 1) for n in re.findall(r"\d+", text.partition("Unkekulized atoms:")[2]))
        where = f" (atoms {atoms})" if atoms else ""
        return f"cannot be kekulized{where}: an aromatic ring lacks a hydrogen, such as [nH], or is not aromatic"
    if found := re.search(r"Explicit valence for atom # (\d+) (\w+)[, ]+(?:(\d+), )?is greater than permitted", text):
        bonds = f" has {found[3]} bonds," if found[3] else ""
        return f"atom {int(found[1]) + 1} ({found[2]}){bonds} more than it can have"
    return text or "it cannot be made sense of"


def told(lines: list[str]) -> str:
    """What RDKit's log says of a molblock, without times, source files and warnings."""
    texts = [re.sub(r"\[\d\d:\d\d:\d\d\]\s*", "", line).strip() for line in "\n".join(lines).splitlines()]
    texts = [text for text in texts if text and not text.startswith(("Warning", "WARNING"))]
    text = " ".join(" ".join(texts).replace("*", " ").split())
    if found := re.search(r"Element '([^']*)' not found", text):
        return f"{found[1]} is no element"
    return re.split(r" (?:Violation occurred|Failed Expression)", text)[0].strip()[:120]


def _told(lines: list[str]) -> str:
    text = " ".join(" ".join(lines).split())
    text = re.sub(r"\[\d\d:\d\d:\d\d\]\s*", "", text)
    text = re.sub(r"SMILES Parse Error: ", "", text)
    return text.partition(" for input:")[0].partition(" Failed parsing SMILES")[0].strip()[:160]


def is_element(symbol: str) -> bool:
    """Whether the periodic table knows it."""
    try:
        return rdkit().GetPeriodicTable().GetAtomicNumber(symbol) > 0
    except RuntimeError:
        return False


def canonical(mol: Any, *, isotopes: bool = True) -> str:
    """The canonical SMILES of a molecule, aromatic rings in lower case."""
    return rdkit().MolToSmiles(mol, isomericSmiles=True) if isotopes else rdkit().MolToSmiles(_without_isotopes(mol))


def parsed(smiles: str) -> Any | None:
    """The molecule of a SMILES that is expected to be one, or None."""
    return rdkit().MolFromSmiles(smiles)


def kept_fragment(mol: Any) -> Any:
    """The largest part of a molecule of several: most heavy atoms, then most carbon, then the first SMILES."""
    chem = rdkit()
    parts = chem.GetMolFrags(mol, asMols=True, sanitizeFrags=True)
    if len(parts) < 2:
        return mol
    return max(parts, key=lambda m: (m.GetNumHeavyAtoms(), sum(a.GetSymbol() == "C" for a in m.GetAtoms()),
                                     [-ord(c) for c in chem.MolToSmiles(m)]))  # fmt: skip


def neutralised(mol: Any) -> Any:
    """Charges that a proton can settle are settled; those of nitro groups, N-oxides and quaternary nitrogen stay.

    A negative atom takes a proton, a positive one gives one up, unless an atom of the opposite charge is bonded to it.
    """
    chem = rdkit()
    mol = chem.RWMol(mol)
    for atom in mol.GetAtoms():
        charge = atom.GetFormalCharge()
        if not charge or any(n.GetFormalCharge() * charge < 0 for n in atom.GetNeighbors()):
            continue
        hydrogens = atom.GetTotalNumHs()
        change = -charge if charge < 0 else -min(charge, hydrogens)
        if not change:
            continue
        if charge < 0 and atom.GetSymbol() not in ("O", "S", "N", "Se"):  # carbanions, borates: no acid of the bench
            continue
        atom.SetFormalCharge(charge + change)
        atom.SetNumExplicitHs(hydrogens + change)
        atom.SetNoImplicit(True)
    made = mol.GetMol()
    chem.SanitizeMol(made)
    again = chem.MolFromSmiles(chem.MolToSmiles(made)) if made.GetNumConformers() == 0 else None
    return again if again is not None else made


def _without_isotopes(mol: Any) -> Any:
    chem = rdkit()
    mol = chem.RWMol(mol)
    for atom in mol.GetAtoms():
        atom.SetIsotope(0)
    made = mol.GetMol()
    return made if made.GetNumConformers() else chem.RemoveHs(made)


def without_isotopes(mol: Any) -> Any:
    """The same molecule of the natural mixture of isotopes."""
    return _without_isotopes(mol)
