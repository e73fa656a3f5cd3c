"""What programs call residues and backbone atoms: the wwPDB's names are the dictionary's, the others are listed here.

Structures reach us from the PDB, from molecular dynamics (Amber, CHARMM, GROMACS, NAMD, GROMOS, OPLS, Desmond), from
modelling (Rosetta, MODELLER, FoldX, CNS, CYANA, Schrodinger) and from design programs. They agree on coordinates and on
little else: a histidine alone has twenty names.
"""

import functools

from manifoldflow.tasks.proteins.structure import AMINO_ACIDS, THREE_LETTER

UNKNOWN = len(AMINO_ACIDS) - 1

RESIDUES: dict[str, dict[str, str]] = {
    "Amber": {
        "HID HIE HIP H1D H2D H1E H2E": "H",
        "CYX CYM": "C",
        "ASH AS4": "D",
        "GLH GL4": "E",
        "LYN": "K",
        "TYM": "Y",
        "S1P": "S",
        "T1P": "T",
        "Y1P": "Y",
    },
    "CHARMM, NAMD": {"HSD HSE HSP": "H", "ASPP": "D", "GLUP": "E", "LSN": "K", "CYSD": "C", "SP1 SP2": "S"},
    "GROMACS, GROMOS, OPLS": {
        "HISA HISB HISD HISE HISH HISP HIS1 HIS2": "H",
        "ARGN": "R",
        "LYSH": "K",
        "ASPH": "D",
        "GLUH": "E",
        "CYSH CYS1 CYS2": "C",
    },
    "Schrodinger, Desmond": {"ARN AR0": "R", "CYT": "C", "TYO": "Y"},
    "Rosetta": {"CYD CYZ CYV": "C", "HIS_": "H"},
    "Tinker, AMOEBA": {"LYD": "K", "TYD": "Y"},
    "FoldX": {"H1S H2S": "H"},
    "CYANA, CNS": {
        "HIS+ HIST": "H",
        "ARG+": "R",
        "LYS+": "K",
        "ASP-": "D",
        "GLU-": "E",
        "CYSS CYS-": "C",
        "TYR-": "Y",
        "cPRO CPR": "P",
    },
    "older PDB files": {"CYH CSH": "C"},
}
"""Letter by residue name, by program, beyond the 20 names that all share and the PDB's component dictionary."""

_LETTERS = {
    name.upper(): letter for table in RESIDUES.values() for names, letter in table.items() for name in names.split()
}
# Where the PDB's own files and the dictionary differ, or the dictionary's letter is not one of the twenty.
_PARENTS = {"PCA": "GLU", "SEC": "CYS", "PYL": "LYS"}

ATOMS: dict[str, tuple[int, int]] = {
    **{name: (i, 0) for i, name in enumerate(("N", "CA", "C", "O"))},
    # The two oxygens of a C terminus. The first plays O where there is no O; the second tells a free carboxyl group.
    **dict.fromkeys(("OT1", "OC1", "O1", "O'", "OT"), (3, 1)),
    **dict.fromkeys(("OXT", "OT2", "OC2", "O2", "O''", "OX", "OTX"), (4, 0)),
}
"""Column (N, CA, C, O, second oxygen) and rank of a spelling (0 before 1) by atom name."""

WATERS = frozenset("HOH WAT H2O DOD D2O SOL TIP TIP3 TIP4 TIP5 TP3 TP4 TP5 T3P T4P T5P SPC SPCE OPC OPC3 HHO".split())
"""Names of water, which no reader looks into: in simulations their numbers wrap, turn to hex, or to stars."""


@functools.cache
def is_amino_acid(name: str) -> bool:
    """Whether the name is an amino acid's, by the dictionary or by the conventions of other programs."""
    name = name.upper()
    return name in THREE_LETTER or _told(name) is not None or _is_linking(name)


@functools.cache
def residue_type(name: str, hetero: bool = False) -> int:
    """Index in ``AMINO_ACIDS`` of a residue name: modified residues by their parent, unknown ones and D-amino acids 20 (X).

    Args:
        name: as written, up to four letters and more.
        hetero: of a HETATM record. There the PDB's dictionary comes first: its HSE is homoserine, its GLH a glutamine.
    """
    name = name.upper()
    if name in THREE_LETTER:
        return THREE_LETTER.index(name)
    told = _told(name)
    if told is not None and not (hetero and _is_linking(name)):
        return AMINO_ACIDS.index(told)
    from biotite.structure import info

    name = _PARENTS.get(name, name)
    if name in THREE_LETTER:
        return THREE_LETTER.index(name)
    if (info.link_type(name) or "").upper() not in _LINKS:
        return UNKNOWN
    column = info.get_from_ccd("chem_comp", name, "mon_nstd_parent_comp_id")
    parent = "" if column is None else str(column.as_item())
    if parent in THREE_LETTER:
        return THREE_LETTER.index(parent)
    letter = info.one_letter_code(name) or "X"
    return AMINO_ACIDS.index(letter) if len(letter) == 1 and letter in AMINO_ACIDS else UNKNOWN


_LINKS = ("L-PEPTIDE LINKING", "PEPTIDE LINKING", "L-PEPTIDE COOH CARBOXY TERMINUS")


def _told(name: str) -> str | None:
    """The letter by the conventions, None if they do not say. Amber marks termini by a first letter: NALA, CHIE."""
    name = name.upper()
    if len(name) == 4 and name[0] in "NC" and name not in _LETTERS:
        inner = name[1:]
        return AMINO_ACIDS[THREE_LETTER.index(inner)] if inner in THREE_LETTER else _LETTERS.get(inner)
    return _LETTERS.get(name)


def _is_linking(name: str) -> bool:
    from biotite.structure import info

    return "PEPTIDE LINKING" in (info.link_type(name) or "").upper()
