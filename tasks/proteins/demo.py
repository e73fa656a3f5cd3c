"""``make demo``: protein backbones from the embedded checkpoint, as PDB files, a table, a report and a picture."""

import argparse
import csv
import io
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

import manifoldflow as mf
from manifoldflow.tasks.common.tables import share, span
from manifoldflow.tasks.proteins.geometry import atoms_from_frames
from manifoldflow.tasks.proteins.reference import Reference, write_text
from manifoldflow.tasks.proteins.relax import relax
from manifoldflow.tasks.proteins.report import Measured, checkpoint_facts, measure, write_overview, write_report
from manifoldflow.tasks.proteins.sampling import DEFAULT_STEPS, Sampling, sample_frames
from manifoldflow.tasks.proteins.write import write_pdb

SHORTEST, LONGEST = 60, 120  # residues
BATCH = 8


def run(
    out: str | Path,
    *,
    num: int = 8,
    steps: int = DEFAULT_STEPS,
    seed: int = 0,
    threads: int | None = None,
    checkpoint: str = "proteins",
    flow: mf.Flow | None = None,
    reference: Reference | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Sample backbones of 60 to 120 residues and write everything about them.

    Args:
        out: folder for ``sample_000.pdb`` ..., ``metrics.csv``, ``report.html`` and ``overview.png``.
        num: number of backbones, evenly spread over the lengths.
        steps: sampling steps.
        seed: of the random draws.
        threads: of the processor; default: torch's choice.
        checkpoint: name or file of the model.
        flow: a flow in place of the checkpoint.
        reference: statistics in place of the training set's.
        console: where to print.

    Returns:
        The files: report, picture, table, then the backbones.
    """
    for name, value in (("num", num), ("steps", steps)) + ((("threads", threads),) if threads is not None else ()):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if threads is not None:
        torch.set_num_threads(threads)
    console = console or Console()
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    info: dict[str, Any] = {"checkpoint": checkpoint if flow is None else "given in memory"}
    if flow is None:
        flow = mf.load(checkpoint)
        info |= checkpoint_facts(checkpoint)
    parameters = sum(p.numel() for p in flow.parameters())
    device = next(flow.parameters()).device
    info |= {"parameters": f"{parameters:,}", "sampling steps": steps, "seed": seed}
    info |= {"device": f"{device.type}, {torch.get_num_threads()} threads", "torch": torch.__version__}
    lengths = spread_lengths(num)
    start = time.perf_counter()
    frames, mask = _sample(flow, lengths, steps, torch.Generator(device).manual_seed(seed), console)
    sampled = time.perf_counter()
    coords = atoms_from_frames(frames, mask)
    m = measure(coords, mask, reference=reference)
    timings = {"sampling": sampled - start, "metrics": time.perf_counter() - sampled}
    pdb = write_pdb(coords, mask, out, names=m.names)
    table = write_text(out / "metrics.csv", _csv(m))
    options = f"--num {num} --steps {steps} --seed {seed} --out {shlex.quote(str(out))}"
    command = f"python -m manifoldflow.tasks.proteins.demo {options}"
    picture = write_overview(m, None, out / "overview.png")
    page = write_report(m, None, out / "report.html", command=command, checkpoint_info=info, timings=timings)
    _summary(console, m, timings, time.perf_counter() - start, page, picture, table, pdb)
    return [page, picture, table, *pdb]


def spread_lengths(num: int) -> list[int]:
    """``num`` lengths from 60 to 120 residues, evenly spaced."""
    return [SHORTEST + round(i * (LONGEST - SHORTEST) / max(num - 1, 1)) for i in range(num)]


def _sample(
    flow: mf.Flow, lengths: Sequence[int], steps: int, generator: torch.Generator, console: Console
) -> tuple[dict[str, Tensor], Tensor]:
    """Frames (as matrices) and mask of all lengths, in batches of neighbours in length."""
    from manifoldflow.manifolds.rotation import quaternion_to_matrix

    settings = Sampling.of(steps)
    batches = [list(lengths[i : i + BATCH]) for i in range(0, len(lengths), BATCH)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    parts: list[tuple[dict[str, Tensor], Tensor]] = []
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(f"Sampling {len(lengths)} backbones", total=settings.calls * len(batches))
        for batch in batches:
            x, mask = sample_frames(
                flow, batch, settings, generator=generator, callback=lambda step, state: progress.advance(task)
            )
            rots = quaternion_to_matrix(x["rots"]) if x["rots"].shape[-1] == 4 else x["rots"]
            x = relax({"trans": x["trans"], "rots": rots}, mask)
            parts.append(({"trans": x["trans"].cpu(), "rots": x["rots"].cpu()}, mask.cpu()))
    longest = max(lengths)
    total = sum(len(mask) for _, mask in parts)
    trans, rots = torch.zeros(total, longest, 3), torch.eye(3).repeat(total, longest, 1, 1)
    whole = torch.zeros(total, longest, dtype=torch.bool)
    row = 0
    for x, mask in parts:
        place = slice(row, row + len(mask)), slice(0, mask.shape[1])
        trans[place], rots[place], whole[place] = x["trans"].float(), x["rots"].float(), mask
        row += len(mask)
    return {"trans": trans, "rots": rots}, whole


def _csv(m: Measured) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *m.table])
    for i, name in enumerate(m.names):
        writer.writerow([name, *(f"{column[i]:.6g}" for column in m.table.values())])
    return text.getvalue()


def _summary(
    console: Console,
    m: Measured,
    timings: dict[str, float],
    total: float,
    page: Path,
    picture: Path,
    table: Path,
    pdb: list[Path],
) -> None:
    known = (m.reference or {}).get("per_chain", {})
    view = Table(title="Samples beside the training set", title_justify="left", title_style="bold")
    view.add_column("mean of chains ± 95 %")
    view.add_column("samples", justify="right")
    view.add_column("training set", justify="right")
    rows = [
        ("CA-CA within 3.8 +- 0.15 A", "ca_ca_within"),
        ("C-N within 1.33 +- 0.15 A", "c_n_within"),
        ("favoured torsions", "rama_favoured"),
        ("helix", "helix"),
        ("strand", "strand"),
    ]
    for label, name in rows:
        theirs = f"{100 * known[name]['mean']:.1f} %" if name in known else "-"
        column = 100 * m.table[name]
        error = 1.96 * column.std(ddof=1) / len(column) ** 0.5 if len(column) > 1 else float("nan")
        view.add_row(label, f"{column.mean():.1f} ± {error:.1f} %", theirs)
    clash = known.get("has_atom_clash")
    view.add_row(
        "atoms clash below 2.2 A",
        share(float(m.table["has_atom_clash"].sum()), len(m.names)),
        f"{100 * clash['mean']:.1f} %" if clash else "-",
    )
    ratio = known.get("rg_ratio")
    view.add_row(
        "radius of gyration / fit", f"{m.table['rg_ratio'].mean():.2f}", f"{ratio['mean']:.2f}" if ratio else "-"
    )
    if "pairwise_tm" in m.overall:
        real = (m.reference or {}).get("pairwise_tm", {})
        view.add_row(
            "mean pairwise TM-score", f"{m.overall['pairwise_tm']:.2f}", f"{real['mean']:.2f}" if real else "-"
        )
    console.print(view)
    files = span([pdb[0], *(p.name for p in pdb[1:])])
    speed = f"{len(m.names)} backbones in {timings['sampling']:.1f} s, everything in {total:.1f} s"
    console.print(
        f"{speed}\n[bold]Open[/bold]   {page}\nPicture {picture}\nTable   {table}\nBackbones {files}",
        soft_wrap=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit status 2 and one line where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m manifoldflow.tasks.proteins.demo", description="Generate protein backbones and a report."
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder to write (default: build/demo)")
    parser.add_argument("--num", type=int, default=8, help="number of backbones (default: 8)")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help=f"sampling steps (default: {DEFAULT_STEPS})")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws (default: 0)")
    parser.add_argument("--threads", type=int, default=None, help="processor threads (default: torch's choice)")
    parser.add_argument(
        "--checkpoint", default="proteins", help="name or file of the model (default: the embedded one)"
    )
    given = parser.parse_args(arguments)
    try:
        run(
            given.out,
            num=given.num,
            steps=given.steps,
            seed=given.seed,
            threads=given.threads,
            checkpoint=given.checkpoint,
        )
    except (OSError, ValueError) as error:
        if os.environ.get("MANIFOLDFLOW_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
