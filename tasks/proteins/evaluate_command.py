"""What ``manifoldflow evaluate proteins`` runs."""

import csv
import json
import os
from pathlib import Path

from torch import Tensor

from manifoldflow.tasks.proteins.backbones import padded_set, read_backbones, structure_files


def evaluate(
    designs: str,
    data: str | None = None,
    out: str | None = None,
    novelty: bool = False,
    designability: bool = False,
) -> None:
    """Measure backbones: geometry, clashes, secondary structure, size, diversity, novelty.

    Args:
        designs: folder of PDB or mmCIF files (the first chain of each is measured), or one file.
        data: data set folder to compare with; without it the embedded statistics of the training set are used.
        out: write the table per chain to this CSV file and the summary beside it as JSON.
        novelty: TM-score to the closest chain of `data` (minutes).
        designability: self-consistency with ProteinMPNN and ESMFold, where they are installed.
    """
    from rich.console import Console
    from rich.table import Table

    from manifoldflow.tasks.proteins import metrics
    from manifoldflow.tasks.proteins.reading import SUFFIXES
    from manifoldflow.tasks.proteins.similarity import ca_traces, mean_pairwise_tm
    from manifoldflow.tasks.proteins.similarity import novelty as novelty_of

    folder = Path(designs)
    if not folder.exists():
        raise FileNotFoundError(
            f"{folder}: no such file or folder; make designs with `manifoldflow sample proteins --out {folder}`"
        )
    files = [folder] if folder.is_file() else structure_files(folder)
    if not files:
        raise ValueError(f"{folder}: holds no structure files ({', '.join(SUFFIXES)})")
    if novelty and data is None:
        raise ValueError("--novelty needs --data, the data set to compare with")
    coords, mask, index = read_backbones(files)
    reference = None
    if data is not None:
        set_coords, set_mask, set_index = padded_set(data)
        reference = metrics.Reference.build(set_coords, set_mask, set_index, traces=novelty)
    rows = metrics.per_chain(coords, mask, index, reference)
    summary = metrics.summarize(coords, mask, index, reference)
    traces = ca_traces(coords, mask)
    if len(traces) > 1:
        summary["pairwise_tm"] = mean_pairwise_tm(traces)
    if novelty and reference is not None:
        scores, _ = novelty_of(traces, reference.traces)
        rows["novelty_tm"], summary["novelty_tm"] = scores, float(scores.mean())
    if designability:
        from manifoldflow.tasks.proteins.designability import ESMFold, ProteinMPNN
        from manifoldflow.tasks.proteins.designability import designability as judge

        result = judge(coords, mask, ProteinMPNN(), ESMFold())
        summary |= {k: float(v) for k, v in result.summary().items()}
    table = Table("metric", "samples", *(["data"] if data else []))
    base = metrics.summarize(set_coords, set_mask, set_index, reference) if data is not None else {}
    for key, value in summary.items():
        table.add_row(key, f"{value:.4g}", *([f"{base[key]:.4g}" if key in base else ""] if data else []))
    Console().print(table)
    if out is not None:
        _write_table(Path(out), files, rows, summary)


def _write_table(path: Path, files: list[Path], rows: dict[str, Tensor], summary: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *rows])
        columns = [value.tolist() for value in rows.values()]
        for i, name in enumerate(files):
            writer.writerow([name.name, *(column[i] for column in columns)])
    os.replace(fresh, path)
    path.with_suffix(".json").write_text(json.dumps(summary, indent=1))
    print(f"wrote {path} and {path.with_suffix('.json')}")
