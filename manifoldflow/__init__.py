"""manifoldflow: generative models of states that are not flat vectors."""

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from manifoldflow.version import __version__ as __version__

if TYPE_CHECKING:
    from manifoldflow.public import *  # noqa: F403


_RENAMED = {"Bridge": "BridgeNoise", "Bump": "BumpNoise"}
"""Public names of version 0.1 and what they are called now; the old ones go in the version after this one."""


def __getattr__(name: str) -> Any:
    """A public name, and with the first all others: what needs none, such as the help of the command line, does not wait."""
    if name == "__all__":  # of "from manifoldflow import *"
        return import_module("manifoldflow.public").__all__
    if name in _RENAMED:
        warnings.warn(f"manifoldflow.{name} is now {_RENAMED[name]}", FutureWarning, stacklevel=2)
        return getattr(import_module("manifoldflow.public"), _RENAMED[name])
    if not name.startswith("_"):
        if find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        public = import_module("manifoldflow.public")
        if name in public.__all__:
            globals().update({n: getattr(public, n) for n in public.__all__})
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("manifoldflow.public").__all__})
