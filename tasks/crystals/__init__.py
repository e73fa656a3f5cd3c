"""Crystals: structure prediction, de novo generation and refinement of a prototype by one flow."""

import os
from importlib import import_module
from typing import Any

os.environ.setdefault("SPGLIB_WARNING", "OFF")  # it prints, in the midst of tables, what its answer tells anyway

VERBS = {
    "prepare": "prepare_command",
    "train": "train_command",
    "sample": "sample_command",
    "evaluate": "evaluate_command",
    "plot": "plot_command",
}
"""Function of each verb -> the module of this package that has it, imported when it is asked for."""

EXAMPLES = {
    "prepare": "manifoldflow prepare crystals --data structures/ --out data/crystals-set",
    "train": "manifoldflow train crystals --data perov_5.csv.gz --method geodesic --out runs/perov",
    "sample": "manifoldflow sample crystals --formula SrTiO3 --z 1 --num 5 --out made/",
    "evaluate": "manifoldflow evaluate crystals --reference structures.csv.gz --rule substitute --num 5",
    "plot": "manifoldflow plot crystals --structures made/ --out made/report.html",
}

BUILDERS = ("manifoldflow.tasks.crystals.flow:build",)
"""What checkpoints of this task may be built by."""

_FROM = {
    "Crystal": "structure",
    "Crystals": "structure",
    "collate": "structure",
    "load_crystals": "reading",
    "read_crystal": "reading",
    "write_crystal": "writing",
}


def __getattr__(name: str) -> Any:
    if name == "COMMANDS":
        return {verb: getattr(import_module(f"{__name__}.{module}"), verb) for verb, module in VERBS.items()}
    module = VERBS.get(name) or _FROM.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
