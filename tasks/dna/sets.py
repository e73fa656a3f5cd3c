"""Sets of sequences by name: those of the shared data, the embedded one, and files."""

from pathlib import Path
from typing import Any

from manifoldflow.tasks.common.files import find_shared
from manifoldflow.tasks.dna.alphabet import Unknown
from manifoldflow.tasks.dna.planted import load_planted
from manifoldflow.tasks.dna.reading import read_sequences
from manifoldflow.tasks.dna.sequences import SequenceSet

SHARED = {
    "ctcf_pu1": "chipseq_ctcf_pu1_100.csv.gz",
    "promoters": "promoters_251.csv.gz",
    "tata_promoters": "tata_promoters_300.csv.gz",
    "ecoli": "ecoli_promoters_81.csv.gz",
    "enhancers": "enhancers_200.csv.gz",
}
"""Sets of the shared data folder by name."""


def load_set(
    name: str,
    *,
    unknown: Unknown = "drop",
    species: str | None = None,
    column: str | None = None,
    label_column: str | None = None,
    data_folder: str | Path | None = None,
) -> SequenceSet:
    """A shared set by name, the embedded one, or a file.

    Args:
        name: one of :data:`SHARED`, "planted" (generated, part of this package), or the path of a FASTA, CSV or TSV file.
        unknown: as for :func:`manifoldflow.tasks.dna.alphabet.encode`.
        species: keep only these rows, where the set has a column ``species``.
        column, label_column: where the sequences and the classes are, see :func:`manifoldflow.tasks.dna.reading.read_sequences`.
        data_folder: folder with ``dna/``; see :func:`manifoldflow.tasks.common.files.find_shared`.
    """
    options: dict[str, Any] = {"species": species, "column": column, "label_column": label_column}
    if name == "planted":
        if asked := [f"{option}={value!r}" for option, value in options.items() if value is not None]:
            raise ValueError(f"the set 'planted' has no columns; leave {', '.join(asked)} out")
        return load_planted()
    options["unknown"] = unknown
    if name in SHARED:
        return read_sequences(find_shared(f"dna/{SHARED[name]}", data_folder), **options)
    if not Path(name).exists():
        raise FileNotFoundError(f"no set and no file {name!r}; the sets are {', '.join(SHARED)}, planted")
    return read_sequences(name, **options)
