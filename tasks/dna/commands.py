"""The commands of the sequence task: what ``manifoldflow train|sample|evaluate dna`` runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import Progress

from manifoldflow.files import write_json
from manifoldflow.guidance import ClassifierFree
from manifoldflow.tasks.common.runs import command_line, run_folder
from manifoldflow.tasks.common.tables import plural, show
from manifoldflow.tasks.dna.evaluation import LEAST_APART, NOTES, P_VALUE, Strands, compare_sets, table_rows
from manifoldflow.tasks.dna.fitting import fit_flow
from manifoldflow.tasks.dna.flow import (
    DEFAULT_CHECKPOINT,
    DnaConfig,
    class_name,
    class_number,
    load_flow,
    sample_tokens,
    sampler,
)
from manifoldflow.tasks.dna.markov import ORDER
from manifoldflow.tasks.dna.motifs import find_motif, read_motifs
from manifoldflow.tasks.dna.reading import read_sequences, write_fasta
from manifoldflow.tasks.dna.rules import held_out
from manifoldflow.tasks.dna.serving.commands import serve
from manifoldflow.tasks.dna.sets import load_set
from manifoldflow.tasks.dna.splits import split
from manifoldflow.training import TrainConfig

TRAINING = TrainConfig(
    max_steps=20_000, schedule="cosine", warmup_steps=200, learning_rate=2e-3, validate_every=1000, checkpoint_every=500
)
"""About two hours on one core for 100 letters; a GPU needs minutes."""

MODEL = DnaConfig()


def train(
    data: str,
    out: str | None = None,
    species: str | None = None,
    label_column: str | None = None,
    unknown: Literal["error", "drop", "random"] = "drop",
    both_strands: bool = False,
    conditional: bool = True,
    split_seed: int = 0,
    data_folder: str | None = None,
    model: DnaConfig = MODEL,
    training: TrainConfig = TRAINING,
    batch_size: int = 128,
    resume: bool = False,
) -> None:
    """Train a sequence flow on a FASTA, CSV or TSV file, or on a shared set.

    Args:
        data: a file, a shared set by name (ctcf_pu1, promoters, tata_promoters, ecoli, enhancers), or planted, which is
            generated and part of this package.
        out: folder of the run; `runs/dna/NAME` by default.
        species: keep only these rows, where a table has a column `species`.
        label_column: where the classes are: a column of a table (such as TAG), a key in the headers of FASTA (gene for
            `gene=G0`), word2 for their second words, or none for no classes.
        unknown: what to do with sequences that hold codes for several letters, such as N.
        both_strands: show every other sequence as its reverse complement: for peaks, not for promoters.
        conditional: learn the classes, where there are any.
        split_seed: of the split into 80 % for training, 10 % for validation, 10 % for testing.
        data_folder: where the shared sets lie.
        model: the flow and its network; length and classes are those of the data.
        training: the optimiser, the schedule and the devices; the weights with the least validation loss are kept.
        batch_size: sequences in a batch.
        resume: continue the run in `out`, or start it if there is none.
    """
    if batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {batch_size}")
    loaded = load_set(data, unknown=unknown, species=species, label_column=label_column, data_folder=data_folder)
    parts = split(loaded, split_seed)
    if min(map(len, parts)) < 1:
        raise ValueError(f"{data}: {len(loaded)} sequences are too few to split")
    classes = ",".join(loaded.classes) if conditional else ""
    shortest = 0 if bool(loaded.mask.all()) else int(loaded.mask.sum(-1).min())
    config = replace(model, length=loaded.tokens.shape[1], classes=classes, shortest=shortest)
    folder = Path(out) if out else run_folder("dna", f"{Path(data).name.split('.')[0]}_{config.representation}")
    source = {
        "data": data,
        "unknown": unknown,
        "species": species,
        "split_seed": split_seed,
        "label_column": label_column,
    }
    facts = {"command": command_line(), "source": source, "rows": [len(p) for p in parts]}
    print(
        f"{len(loaded)} sequences of up to {config.length} letters"
        + (f", classes {', '.join(loaded.classes)}" if classes else "")
        + (f"; {loaded.dropped} left out for codes of several letters" if loaded.dropped else "")
    )
    if loaded.note:
        print(loaded.note)
    flow = fit_flow(
        loaded.rows(parts.train),
        loaded.rows(parts.val),
        config,
        training,
        folder,
        batch_size=batch_size,
        both_strands=both_strands,
        resume=resume,
        facts=facts,
    )
    scores = held_out(flow, loaded.rows(parts.train), loaded.rows(parts.test), both_strands=both_strands)
    if scores is not None:
        verdict = "" if scores[0] < scores[1] else "; the chain is better: train longer"
        print(
            f"test sequences: an NLL of at most {scores[0]:.3f} nats per letter; a Markov chain of order {ORDER} has "
            f"{scores[1]:.3f}{verdict}"
        )
    print(f"wrote {folder / 'model.safetensors'}; try: manifoldflow sample dna --checkpoint {folder} --num 100")


def sample(
    checkpoint: str = DEFAULT_CHECKPOINT,
    num: int = 100,
    out: str = "designs.fasta",
    label: str | None = None,
    guidance: float = 1.0,
    steps: int = 100,
    length: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> None:
    """Draw sequences from a flow and write them as FASTA.

    Args:
        checkpoint: a model file, a run folder, or the name of an embedded model (dna_ctcf_pu1, dna_promoters).
        num: number of sequences.
        out: FASTA file to write.
        label: class to draw; unconditional if absent.
        guidance: weight of classifier-free guidance: 1 is the conditional model, more makes the class stronger.
        steps: sampling steps.
        length: of the sequences, at most that of the training; that by default.
        temperature: of the predicted letters (tokens only); below 1 likelier and less diverse.
        seed: of the random draws; the same seed gives the same sequences.
    """
    if num < 1 or steps < 1:
        raise ValueError(f"--num and --steps must be at least 1, got {num} and {steps}")
    flow, config = load_flow(checkpoint)
    label = class_name(config, label)
    cond = class_number(config, label, num)
    size = length or config.length
    if not 1 <= size <= config.length:
        raise ValueError(f"--length must lie between 1 and {config.length}, got {size}")
    if guidance != 1 and cond is None:
        raise ValueError("--guidance strengthens a class: give --label too")
    steered = ClassifierFree(flow, guidance) if guidance != 1 else flow
    method, generator = sampler(config, temperature), torch.Generator().manual_seed(seed)
    with Progress(transient=True) as progress:
        bar = progress.add_task(f"sampling {num} sequences", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        tokens = sample_tokens(
            steered, num, size, steps, cond=cond, method=method, generator=generator, progress=advance
        )
    kind = f" label={label}" if label else ""
    names = [f"{config.representation}_{i:05d}{kind}" for i in range(num)]
    print(f"wrote {plural(num, 'sequence')} of {size} letters to {write_fasta(out, tokens, names=names)}")


def evaluate(
    samples: str,
    data: str,
    motifs: str | None = None,
    motif: str | None = None,
    species: str | None = None,
    label_column: str | None = None,
    split_seed: int = 0,
    p_value: float = P_VALUE,
    strands: Strands = "both",
    classifier_steps: int = 1000,
    out: str | None = None,
    data_folder: str | None = None,
) -> None:
    """Compare sequences with real ones: words, GC, motifs, novelty, and the verdict of an independent classifier.

    Args:
        samples: FASTA or table of sequences, with classes or without.
        data: the set that the flow was trained on; its test part is the mark, its training part what novelty is measured
            from.
        motifs: JASPAR, MEME or TRANSFAC file.
        motif: names of motifs to count, with commas, such as MA0139.1,MA0080.4.
        species: as in training.
        label_column: as in training, of the data.
        split_seed: as in training.
        p_value: a site counts from the score on that random letters reach with this probability at a place.
        strands: where sites count: on both, or on the one as given (promoters have a direction).
        classifier_steps: of the training of the independent classifiers: one of classes, one of samples against data.
        out: also write the numbers to this JSON file.
        data_folder: where the shared sets lie.
    """
    made = read_sequences(samples, unknown="drop")
    real = load_set(data, unknown="drop", species=species, label_column=label_column, data_folder=data_folder)
    chosen = []
    if motif is not None:
        if motifs is None:
            raise ValueError("--motif names motifs of a file: give --motifs too")
        known = read_motifs(motifs)
        chosen = [find_motif(known, name.strip()) for name in motif.split(",")]
    found = compare_sets(
        made,
        real,
        split(real, split_seed),
        chosen,
        classifier_steps=classifier_steps,
        p_value=p_value,
        strands=strands,
        apart=len(made) >= LEAST_APART,
    )
    where = "either strand" if strands == "both" else "the strand as given"
    about = f"sites: random letters reach their score with probability {p_value:g} a place; on {where}"
    notes = [f"real: {len(split(real, split_seed).test)} test sequences", *([about] if chosen else []), *NOTES]
    show(("measure", "samples", "real"), table_rows(found), notes=notes)
    if out is not None:
        write_json(Path(out), found)


def plot(
    samples: str,
    data: str,
    motifs: str,
    motif: str,
    out: str = "profile.png",
    origin: int = 0,
    p_value: float = P_VALUE,
    strands: Strands = "both",
    species: str | None = None,
    label_column: str | None = None,
    split_seed: int = 0,
    data_folder: str | None = None,
) -> None:
    """Draw where the sites of a motif lie in samples and in real test sequences, class by class.

    Args:
        samples: FASTA or table of sequences, with classes or without.
        data: the set that the flow was trained on; its test part is drawn.
        motifs: JASPAR, MEME or TRANSFAC file.
        motif: name of the motif, such as MA0108.2 for TATA boxes.
        out: picture to write.
        origin: place that the axis calls 0; 200 in `promoters`, the start of transcription.
        p_value: a site counts from the score on that random letters reach with this probability at a place.
        strands: where sites count: on both, or on the one as given (promoters have a direction).
        species: as in training.
        label_column: as in training, of the data.
        split_seed: as in training.
        data_folder: where the shared sets lie.
    """
    from manifoldflow.tasks.dna.plots import plot_profiles

    made = read_sequences(samples, unknown="drop")
    real = load_set(data, unknown="drop", species=species, label_column=label_column, data_folder=data_folder)
    test = real.rows(split(real, split_seed).test)
    options: dict[str, Any] = {"origin": origin, "p_value": p_value, "strands": strands}
    print(f"wrote {plot_profiles(made, test, find_motif(read_motifs(motifs), motif), out, **options)}")


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "plot": plot,
    "serve": serve,
}
