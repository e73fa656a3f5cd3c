"""Molecules: built action by action, as graphs, and in three dimensions."""

from importlib import import_module
from typing import Any

VERBS = {
    "prepare": "prepare_command",
    "train": "train_command",
    "sample": "sample_command",
    "optimise": "optimise_command",
    "evaluate": "evaluate_command",
    "plot": "plot_command",
}
"""Commands and the modules they lie in; each function has the name of its verb. A module is imported when it is asked for."""

EXAMPLES = {
    "prepare": "manifoldflow prepare molecules --data supplier.sdf --out clean.smi --rules.salts strip",
    "train": "manifoldflow train molecules --model.reward seh*sa --out runs/molecules/seh",
    "sample": "manifoldflow sample molecules --num 100 --out molecules.csv",
    "optimise": "manifoldflow optimise molecules --reward qed*sa --calls 2000",
    "evaluate": "manifoldflow evaluate molecules --samples molecules.csv",
    "plot": "manifoldflow plot molecules --samples molecules.csv --out molecules.html",
}

BUILDERS: tuple[str, ...] = (
    "manifoldflow.tasks.molecules.design:build",
    "manifoldflow.tasks.molecules.graphs:build",
    "manifoldflow.tasks.molecules.proxy:build",
    "manifoldflow.tasks.molecules.three_d:build",
)
"""What checkpoints of this task may be built by."""

SAMPLERS: dict[str, str] = {
    "manifoldflow.tasks.molecules.design:build": "manifoldflow.tasks.molecules.sample_command:sample_fragments",
    "manifoldflow.tasks.molecules.graphs:build": "manifoldflow.tasks.molecules.graph_command:sample_molecular_graphs",
    "manifoldflow.tasks.molecules.three_d:build": "manifoldflow.tasks.molecules.three_d_command:sample_three_d",
}
"""How ``sample`` draws from a checkpoint, by its builder: ``module:function(model, path, num, out, seed, steps)`` ."""

_LAZY = {
    "AtomEnv": "atom_env",
    "FragmentConfig": "design",
    "FragmentEnv": "fragment_env",
    "GraphPolicy": "policies",
    "Objective": "rewards",
    "Oracle": "oracle",
    "Rules": "reading",
    "Vocabulary": "fragments",
    "build": "design",
    "learn": "search",
    "load_fragments": "fragments",
    "read_molecules": "reading",
    "write_molecules": "writing",
}

__all__ = ["BUILDERS", "COMMANDS", "EXAMPLES", "SAMPLERS", "VERBS", *_LAZY, *VERBS]


def __getattr__(name: str) -> Any:
    if name == "COMMANDS":
        return {verb: getattr(import_module(f"{__name__}.{module}"), verb) for verb, module in VERBS.items()}
    if name in VERBS or name in _LAZY:
        module = VERBS.get(name) or _LAZY[name]
        return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
