"""The commands of the protein task: what ``manifoldflow train|sample|evaluate|prepare|reflow proteins`` runs."""

import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import manifoldflow as mf
from manifoldflow.checkpoint import read_metadata
from manifoldflow.tasks.proteins.batches import TokenBatches
from manifoldflow.tasks.proteins.data import ProteinDataset, collate, split_by_cluster
from manifoldflow.tasks.proteins.flow import ProteinConfig, build
from manifoldflow.training import TrainConfig, fit

DEFAULT_STEPS = 30


def train(
    data: str,
    out: str = "runs/proteins",
    model: ProteinConfig = ProteinConfig(),  # noqa: B008 - read, never changed
    training: TrainConfig = TrainConfig(),  # noqa: B008
    min_length: int = 50,
    max_length: int = 128,
    crop: bool = False,
    max_tokens: int = 800,
    validation_share: float = 0.05,
    init: str | None = None,
    resume: bool = False,
) -> None:
    """Train a protein backbone flow.

    Args:
        data: data set folder made by `manifoldflow prepare proteins`, or pairs made by `manifoldflow reflow proteins`.
        out: folder for the checkpoint, curves and resume files.
        model: the flow and its network.
        training: the optimiser, the schedule and the devices.
        min_length: leave out shorter chains.
        max_length: longer chains are left out, or cropped with `--crop true`.
        crop: train on random contiguous pieces of longer chains.
        max_tokens: residues in a batch, padding included, over all processes.
        validation_share: share of chains for validation; whole sequence clusters.
        init: checkpoint (file or name) to start from instead of random weights; its model configuration is used.
        resume: continue the run in `out`, or start it if there is none.
    """
    from manifoldflow.tasks.proteins.reflow import PairDataset

    seed = training.seed
    torch.manual_seed(seed)
    flow = build(model) if init is None else mf.load(init).train()
    facts: dict[str, Any] = {
        "command": "manifoldflow " + " ".join(sys.argv[1:]),
        "data": str(Path(data).name),
        "init": init,
    }
    if PairDataset.is_here(data):
        pairs = PairDataset(data)
        held = max(1, round(validation_share * len(pairs)))
        train_set: Any = torch.utils.data.Subset(pairs, range(held, len(pairs)))
        held_out: Any = torch.utils.data.Subset(pairs, range(held))
        lengths, held_lengths, gather = pairs.lengths[held:], pairs.lengths[:held], pairs.collate
    else:
        try:
            names, held_names = split_by_cluster(data, validation_share, seed)
        except ValueError as error:
            raise ValueError(f"--validation-share {validation_share:g}: {error}") from error
        train_set = ProteinDataset(
            data, names=names, min_length=min_length, max_length=max_length, crop=crop, seed=seed
        )
        held_out = ProteinDataset(data, names=held_names, min_length=min_length, max_length=max_length, crop=crop)
        lengths, held_lengths, gather = train_set.lengths, held_out.lengths, collate
    if not lengths or not held_lengths:
        raise ValueError(
            f"{data}: {len(lengths)} chains for training and {len(held_lengths)} for validation, but each needs some"
        )
    facts |= {
        "chains": len(train_set),
        "validation_chains": len(held_out),
        "max_tokens": max_tokens,
        "lengths": [min(lengths), max(lengths)],
    }

    def batches(start: int) -> Iterator[Any]:
        sampler = TokenBatches(lengths, max_tokens, seed=seed)
        epoch, skip = divmod(start, len(sampler))
        while True:
            sampler.set_epoch(epoch)
            if isinstance(train_set, ProteinDataset):
                train_set.set_epoch(epoch)
            order = list(sampler)[skip:]
            yield from DataLoader(
                train_set, batch_sampler=order, collate_fn=gather, pin_memory=torch.cuda.is_available()
            )
            epoch, skip = epoch + 1, 0

    checks = DataLoader(
        held_out, batch_sampler=TokenBatches(held_lengths, max_tokens, shuffle=False), collate_fn=gather
    )
    fit(flow, batches, training, out=out, validation=checks, resume=resume, facts=facts)
    print(
        f"wrote {out}/model.safetensors; try: manifoldflow sample proteins --checkpoint {out}/model.safetensors --out designs/"
    )


def sample(
    out: str = "designs",
    length: int | list[int] = 100,
    num: int = 8,
    steps: int = DEFAULT_STEPS,
    checkpoint: str = "proteins",
    seed: int = 0,
    motif: str | None = None,
    structure: str | None = None,
    format: Literal["pdb", "cif"] = "pdb",
    trajectory: bool = False,
    method: Literal["euler", "midpoint", "heun"] = "euler",
    batch_size: int = 8,
    device: str = "auto",
    relax: bool = True,
    report: bool = False,
) -> None:
    """Generate protein backbones and write one structure file each.

    Args:
        out: folder for the files (made if needed).
        length: residues per backbone, a number or a list such as [80,100]; `num` backbones are made of each.
        num: backbones per length.
        steps: sampling steps; more make more helix and longer shapes (see the table in tasks/proteins/README.md).
        checkpoint: a model file, or the name of an embedded one.
        seed: of the random draws; the same seed gives the same backbones.
        motif: residues of `--structure` to keep, such as `20/A92-99/16/A47-54`: numbers are free residues, the rest of
            the length follows after the last part.
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
    """
    from rich.progress import Progress

    from manifoldflow.tasks.proteins.motif import load_motif
    from manifoldflow.tasks.proteins.relax import relax as relax_frames
    from manifoldflow.tasks.proteins.write import write_cif, write_pdb, write_trajectory

    lengths = [length] if isinstance(length, int) else list(length)
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
    where = _device(device)
    known = load_motif(structure, motif) if motif is not None and structure is not None else None
    if known is not None and known.mask.shape[1] > min(lengths):
        raise ValueError(
            f"the motif {motif!r} spans {known.mask.shape[1]} residues, which does not fit a length of {min(lengths)}"
        )
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise ValueError(f"--out {target}: is a file, expected a folder")
    older = structure_files(target) if target.is_dir() else []
    flow = mf.load(checkpoint, device=where)
    wanted = [n for n in lengths for _ in range(num)]
    check_memory(flow, max(lengths), min(batch_size, len(wanted)), where)
    generator = torch.Generator(where).manual_seed(seed)
    names = [f"sample_{i:03d}" for i in range(len(wanted))]
    made: list[Path] = []
    with Progress() as progress:
        task = progress.add_task("sampling", total=-(-len(wanted) // batch_size) * steps)
        for at in range(0, len(wanted), batch_size):
            part = wanted[at : at + batch_size]
            x, mask = flow.sample(
                lengths=part,
                steps=steps,
                method=method,
                generator=generator,
                known=None if known is None else {k: v.to(where) for k, v in known.x.items()},
                known_mask=None if known is None else known.mask.to(where),
                trajectory=trajectory,
                callback=lambda *_: progress.advance(task),
            )
            final = {k: v[-1] for k, v in x.items()} if trajectory else x
            if relax:
                final = relax_frames(
                    final, mask, fixed=None if known is None else _extended(known.mask.to(where), mask)
                )
            write = write_pdb if format == "pdb" else write_cif
            target.mkdir(parents=True, exist_ok=True)
            made += write(final, mask, target, names=names[at : at + len(part)])
            if trajectory:
                for i, n in enumerate(part):
                    states = {k: v[:, i, :n] for k, v in x.items()}
                    write_trajectory(states, target / f"{names[at + i]}_trajectory.pdb")
    print(f"wrote {len(made)} backbone{'s' * (len(made) > 1)} to {Path(out)}/ ({made[0].name} ... {made[-1].name})")
    if replaced := len(set(older) & set(made)):
        print(f"{replaced} older file{'s' * (replaced > 1)} of the same name{'s' * (replaced > 1)} replaced")
    if others := len(set(older) - set(made)):
        print(
            f"note: {target}/ also holds {others} structure file{'s' * (others > 1)} of an earlier run, "
            "which `evaluate` measures too"
        )
    if report:
        _report(made, Path(out), checkpoint, seed, steps)


def structure_files(folder: Path) -> list[Path]:
    """The structures of a folder in order of their names, trajectories left out."""
    from manifoldflow.tasks.proteins.reading import SUFFIXES, split_suffix

    return sorted(p for p in folder.iterdir() if split_suffix(p)[1] in SUFFIXES and "_trajectory" not in p.name)


def _device(name: str) -> torch.device:
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


def _extended(motif: Tensor, mask: Tensor) -> Tensor:
    """A motif's mask ``(1, n)`` for samples of N >= n residues."""
    return torch.nn.functional.pad(motif, (0, mask.shape[1] - motif.shape[1])).expand_as(mask)


def _report(files: list[Path], out: Path, checkpoint: str, seed: int, steps: int) -> None:
    from manifoldflow.tasks.proteins.report import measure, write_overview, write_report

    coords, mask, index = read_backbones(files)
    measured = measure(coords, mask, residue_index=index, names=[path.stem for path in files])
    info = read_metadata(checkpoint)["training"]
    command = "manifoldflow " + " ".join(sys.argv[1:])
    page = write_report(measured, None, out / "report.html", command=command, checkpoint_info=info)
    picture = write_overview(measured, None, out / "overview.png")
    print(f"wrote {page} and {picture}")


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


def read_backbones(files: list[Path]) -> tuple[Tensor, Tensor, Tensor]:
    """First chain of each file, padded: coords ``(B, N, 4, 3)``, mask ``(B, N)``, residue_index ``(B, N)``."""
    from torch.nn.utils.rnn import pad_sequence

    from manifoldflow.tasks.proteins.geometry import BREAK_OFFSET
    from manifoldflow.tasks.proteins.reading import read_structure

    chains = [read_structure(path)[0] for path in files]
    for path, chain in zip(files, chains, strict=True):
        if len(chain) < 2:
            raise ValueError(f"{path}: the first chain has one residue only; a backbone has at least 2")
    coords = pad_sequence([torch.as_tensor(c.coords) for c in chains], batch_first=True)
    mask = pad_sequence([torch.ones(len(c), dtype=torch.bool) for c in chains], batch_first=True)
    breaks = [torch.as_tensor(c.break_after).long().cumsum(0).roll(1) * BREAK_OFFSET for c in chains]
    for gap in breaks:
        gap[0] = 0
    index = pad_sequence([torch.arange(len(c)) + gap for c, gap in zip(chains, breaks, strict=True)], batch_first=True)
    return coords, mask, index


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


def padded_set(data: str) -> tuple[Tensor, Tensor, Tensor]:
    """All chains of a data set, padded: coords, mask, residue_index."""
    from torch.nn.utils.rnn import pad_sequence

    dataset = ProteinDataset(data)
    items = [dataset[i] for i in range(len(dataset))]
    coords = pad_sequence([item["coords"] for item in items], batch_first=True)
    mask = pad_sequence([torch.ones(len(item["coords"]), dtype=torch.bool) for item in items], batch_first=True)
    return coords, mask, pad_sequence([item["residue_index"] for item in items], batch_first=True)


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


def reflow(
    out: str,
    checkpoint: str = "proteins",
    num: int = 1000,
    min_length: int = 60,
    max_length: int = 128,
    steps: int = DEFAULT_STEPS,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Make (noise, sample) pairs of a trained flow for reflow; then train on them with `train --data PAIRS --init CHECKPOINT`.

    Args:
        out: folder for the pairs.
        checkpoint: the trained flow.
        num: samples to try; those that fail the quality filter are left out.
        min_length: shortest backbone.
        max_length: longest backbone.
        steps: sampling steps.
        batch_size: backbones that are made together.
        seed: of the random draws.
        device: cpu, cuda, or auto.
    """
    from rich.progress import Progress

    from manifoldflow.tasks.proteins.reflow import PairDataset, make_pairs

    for name, value in (("num", num), ("steps", steps), ("batch-size", batch_size)):
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if PairDataset.is_here(out):
        raise FileExistsError(f"{out} already holds pairs; choose another folder, or delete it first")
    if not 2 <= min_length <= max_length:
        raise ValueError(f"lengths must satisfy 2 <= min <= max, got {min_length} and {max_length}")
    where = _device(device)
    flow = mf.load(checkpoint, device=where)
    lengths = torch.randint(min_length, max_length + 1, (num,), generator=torch.Generator().manual_seed(seed)).tolist()
    with Progress() as progress:
        task = progress.add_task("sampling pairs", total=num)
        kept, tried = make_pairs(
            flow,
            out,
            lengths,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            callback=lambda tried, kept: progress.update(task, completed=tried),
        )
    print(
        f"kept {kept} of {tried} pairs in {out}/; "
        f"next: manifoldflow train proteins --data {out} --init {checkpoint} --out runs/reflow"
    )
