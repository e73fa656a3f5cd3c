"""``manifoldflow optimise molecules``: the best molecules for a reward, under a budget of calls."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from manifoldflow.files import write_json
from manifoldflow.tasks.common.runs import command_line, run_folder
from manifoldflow.tasks.common.tables import plural, share, show
from manifoldflow.tasks.molecules.design import FragmentConfig
from manifoldflow.tasks.molecules.metrics import calls_to, hypervolume, modes, pareto_front, set_scores, top_mean
from manifoldflow.tasks.molecules.oracle import Answers, Oracle
from manifoldflow.tasks.molecules.results import write_results
from manifoldflow.tasks.molecules.rewards import Objective
from manifoldflow.tasks.molecules.search import TRAINING, Method, learn, search
from manifoldflow.tasks.molecules.train_command import begun
from manifoldflow.training import TrainConfig

MODEL = FragmentConfig()


def optimise(
    reward: str = "qed*sa",
    calls: int = 2000,
    out: str | None = None,
    method: Method = "gflownet",
    start: str | None = None,
    lead: str | None = None,
    forbidden: str | None = None,
    vocabulary: str | None = None,
    environment: Literal["fragments", "atoms"] | None = None,
    timeout: float | None = None,
    bad: Literal["raise", "floor"] = "raise",
    seed: int = 0,
    batch_size: int = 32,
    threshold: float | None = None,
    model: FragmentConfig = MODEL,
    training: TrainConfig = TRAINING,
    resume: bool = False,
) -> None:
    """Search for molecules of high reward with a budget of calls, and write them with a picture and a page.

    Every molecule is asked for once; each answer is written down at once (calls.jsonl), and a run that was stopped goes on with
    --resume without asking again. The reward may be a function of your own, of a list of SMILES: --reward mine.py:score

    Args:
        reward: product of qed, sa, seh, similarity, logp[1,4], mw[200,450], tpsa[40,100] and FILE.py:NAME; commas make a front.
        calls: molecules whose reward may be asked for.
        out: folder to write to; `runs/molecules/REWARD_METHOD` by default.
        method: gflownet (learns), genetic, local or random: the same molecules, the same budget.
        start: SMILES of a scaffold (its `*` are where it grows) or of a lead (grows at atoms with hydrogen).
        lead: SMILES that the term similarity refers to.
        forbidden: SMARTS that no molecule may hold, with spaces between them.
        vocabulary: of fragments: own, a JSON, or a list of SMILES with `*`.
        environment: build from fragments, or from atoms and bonds (--model.atoms, --model.max_atoms, --model.max_rings).
        timeout: seconds that the reward may take for a batch.
        bad: a reward that fails, is NaN, or late ends the search (nothing is lost), or counts as the least.
        seed: of everything random.
        batch_size: trajectories of a step.
        threshold: reward above which unlike molecules are counted as modes; nine tenths of the best hundred's mean by default.
        model: other settings of the generator.
        training: of its optimiser.
        resume: continue the search in `out`, or start it if there is none.
    """
    if batch_size < 2:
        raise ValueError(f"--batch_size must be at least 2, got {batch_size}")
    given: dict[str, Any] = {
        "start": start,
        "lead": lead,
        "forbidden": forbidden,
        "vocabulary": vocabulary,
        "environment": environment,
    }
    config = replace(model, reward=reward, **{k: v for k, v in given.items() if v is not None})
    objective = Objective(reward, config.lead)
    folder = Path(out) if out else run_folder("molecules", f"{Path(reward).name}_{method}")
    started = begun(folder, resume)
    oracle = Oracle(objective, calls, folder, timeout=timeout, bad=bad)
    if oracle.used:
        print(f"{folder}: {plural(oracle.used, 'call')} of an earlier run are known and cost nothing")
    begin = time.monotonic()
    facts: dict[str, Any] = {"command": command_line(), "reward": reward, "calls": calls}
    try:
        if method == "gflownet":
            settings = replace(training, seed=seed)
            learn(config, oracle, settings, out=folder, batch_size=batch_size, resume=started, facts=facts)
        else:
            with _progress() as bar:
                task = bar.add_task(f"{method} search", total=calls)

                def advance(used: int, total: int) -> None:
                    bar.update(task, completed=used)

                search(method, config, oracle, seed=seed, advance=advance)
    finally:
        found = oracle.answers()
        if found.smiles:  # also of a search that was interrupted, or whose reward failed
            _finish(folder, found, oracle, objective, config, method, threshold, seed, time.monotonic() - begin)
    if not found.smiles:
        raise RuntimeError(f"{plural(oracle.used, 'call')} were made, and no molecule got a reward")


def _finish(
    folder: Path,
    found: Answers,
    oracle: Oracle,
    objective: Objective,
    config: FragmentConfig,
    method: str,
    threshold: float | None,
    seed: int,
    seconds: float,
) -> None:
    order = found.reward.argsort(descending=True, stable=True)
    smiles = [found.smiles[i] for i in order.tolist()]
    best = smiles[:100]
    top = top_mean(found.reward)
    level = threshold if threshold is not None else 0.9 * top
    scores = set_scores(best)
    summary: dict[str, Any] = {
        "calls": oracle.used,
        "molecules": len(smiles),
        "failed": oracle.failed,
        "best": float(found.reward.max()),
        "top_100": top,
        "calls_to_90_percent": calls_to(found.reward),
        "modes": len(modes(smiles[:3000], found.reward[order][:3000], level)),
        "mode_threshold": level,
        "minutes": seconds / 60,
    }
    rows = [
        ["calls (each molecule once)", f"{oracle.used:,}"],
        ["best reward", summary["best"]],
        ["mean of the best 100", top],
        [f"unlike molecules (Tanimoto < 0.7) above {level:.3f}", summary["modes"]],
        ["of the best 100: SA score at most 4", share(scores.easy, scores.count)],
        ["of the best 100: PAINS or BRENK alert", share(scores.alerts, scores.count)],
    ]
    if len(objective) > 1:
        rows.append(["molecules on the front of Pareto", int(pareto_front(found.values).sum())])
        if len(objective) == 2:
            rows.append(["area below the front", hypervolume(found.values)])
    if oracle.failed:
        rows.append(["molecules whose reward failed, counted as the least", oracle.failed])
    write_json(folder / "summary.json", summary)
    facts = {
        "reward": objective.text,
        "method": method,
        "calls": f"{oracle.used:,}",
        "settings": json.dumps(
            {
                k: v
                for k, v in vars(config).items()
                if k in ("environment", "exponent", "loss", "start", "forbidden", "vocabulary")
            }
        ),
        **{str(k): v if isinstance(v, str) else f"{v:.4g}" for k, v in rows[1:]},
    }
    files = write_results(
        folder / "molecules.csv",
        folder,
        smiles,
        found.values[order],
        objective.names,
        title=f"Molecules for {objective.text}",
        facts=facts,
        asked=found.reward,
        seed=seed,
    )
    show(["", objective.text], rows)
    print(f"wrote {plural(len(smiles), 'molecule')} to {files[0]}; picture: {files[1]}; page: {files[2]}")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
    )
