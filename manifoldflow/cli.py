"""The command line: ``manifoldflow VERB TASK [options]``.

The tasks are those of :mod:`manifoldflow.registry`. Options, defaults, types,
the YAML form and the help come from the signature and the docstring, so there is one place for each of them.

Exit codes: 0 done, 1 a fault of the program, 2 a mistake in the input or on the command line, 130 interrupted.
Nothing heavy is imported until a task is needed.
"""

import argparse
import difflib
import inspect
import keyword
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, metadata
from typing import TYPE_CHECKING, Any, get_type_hints

from manifoldflow.registry import find_tasks, load_task

if TYPE_CHECKING:
    import jsonargparse

PROG = "manifoldflow"
USAGE = f"usage: {PROG} VERB TASK [options]"
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, RuntimeError, FloatingPointError)

# The parser's messages, reworded for people who did not write the program. A message that matches none stays as it is.
_REWORDED = (
    (r'^Parser key "([^"]+)":', r"--\1:"),
    (r"^the following arguments are required: (\w+)", r"--\1 is missing"),
    (r"Expected a <class '(\w+)'>\. Got value:", r"expected \1, got"),
    (r"Expected a typing\.Literal\[(.+)\]\. Got value:", r"expected one of \1, got"),
    (r"Does not validate .* Subtypes: \[(.+?)\] Errors: .* Given value:", r"expected one of the types \1, got"),
    (r"<class '(\w+)'>", r"\1"),
    (r'in "<unicode string>", ', ""),
)

VERBS = {
    "prepare": "turn raw files into a data set",
    "train": "train a model, or continue a run",
    "sample": "generate from a checkpoint",
    "optimise": "search for the best under a budget of calls",
    "evaluate": "measure samples, or a model, against data",
    "plot": "draw what a model has learned",
    "reflow": "make (noise, sample) pairs that train a faster model",
    "serve": "answer requests over HTTP, with a page for people",
}

ALONE = {"serve"}
"""Verbs that need no task where only one knows them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the words after the program's name; those of the process if absent.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has left; the exit must not try to flush to it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, USER_ERRORS):
            print(f"error: {_one_line(error)}", file=sys.stderr)
            return 2
        hint = "" if debug else f" (a fault in {PROG} or the task; --debug shows where)"
        print(f"error: {type(error).__name__}: {_one_line(error)}{hint}", file=sys.stderr)
        return 1


def build_parser(function: Callable[..., Any], prog: str, example: str = "") -> "jsonargparse.ArgumentParser":
    """A parser whose options are the function's parameters, with ``--config FILE`` and ``--print_config``."""
    import jsonargparse
    from jsonargparse import ActionConfigFile, ArgumentParser

    class Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Defaults and types in the help, examples as written."""

    doc = inspect.getdoc(function) or ""
    head = doc.split("\n\nArgs:")[0].strip()
    parser = ArgumentParser(
        prog=prog,
        description=head,
        epilog=f"example:\n{textwrap.indent(textwrap.dedent(example).strip(), '  ')}" if example else None,
        exit_on_error=False,
        formatter_class=Formatter,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with options; later options override it")
    parser.add_function_arguments(function, as_group=False, fail_untyped=True, sub_configs=True)
    return parser


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_top_help())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from manifoldflow.version import __version__

        print(f"{PROG} {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb.startswith("-"):
        raise ValueError(f"the verb comes first, got {verb!r}; {USAGE}")
    tasks = find_tasks()
    rest = _with_task(verb, rest, tasks)
    if not rest or rest[0] in ("-h", "--help"):
        text = _verb_help(verb, tasks)
        if rest:
            print(text)
            return 0
        raise ValueError(f"which task? {PROG} {verb} TASK, with TASK one of: {_listed(tasks)}")
    name, rest = rest[0], rest[1:]
    if name.startswith("-"):
        raise ValueError(
            f"the task comes before the options, got {name!r}; {USAGE}, with TASK one of: {_listed(tasks)}"
        )
    if name not in tasks:
        raise ValueError(f"unknown task {name!r}{_nearest(name, tasks)}; the tasks are: {_listed(tasks)}")
    task = load_task(tasks[name])
    if verb not in task.COMMANDS:
        known = _listed(task.COMMANDS)
        raise ValueError(f"unknown verb {verb!r}{_nearest(verb, task.COMMANDS)}; the verbs of {name!r} are: {known}")
    return _run(task.COMMANDS[verb], f"{PROG} {verb} {name}", getattr(task, "EXAMPLES", {}).get(verb, ""), rest)


def _with_task(verb: str, rest: list[str], tasks: dict[str, EntryPoint]) -> list[str]:
    """The words after the verb, with the task that may be left out."""
    is_missing = verb in ALONE and (not rest or rest[0].startswith("-"))
    only = _only_task(verb, tasks) if is_missing else None
    return [only, *rest] if only is not None else rest


def _only_task(verb: str, tasks: dict[str, EntryPoint]) -> str | None:
    """The task that alone knows a verb; None if several do, or none."""
    able = []
    for name, entry in tasks.items():
        try:
            able += [name] if verb in load_task(entry).COMMANDS else []
        except (ImportError, TypeError):  # not installed in full; asked for by name it says so
            continue
    return able[0] if len(able) == 1 else None


def _run(function: Callable[..., Any], prog: str, example: str, words: list[str]) -> int:
    parser = build_parser(function, prog, example)
    try:
        parsed = parser.parse_args(_complete_switches([_underscored(word) for word in words], _switches(function)))
    except SystemExit as done:  # --help and --print_config
        return int(done.code or 0)
    except argparse.ArgumentError as error:
        raise ValueError(f"{_parse_message(error, parser)} (options: {prog} --help)") from error
    # instantiate_classes is the name before jsonargparse 4.49
    values = (parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes)(parsed)
    try:
        result = function(**{name: values[name] for name in inspect.signature(function).parameters})
    except ModuleNotFoundError as error:
        raise _with_extra(error, prog.split()[-1]) from error
    return int(getattr(result, "exit_code", 0))


def _with_extra(error: ModuleNotFoundError, task: str) -> ImportError:
    """The same error with the words that install what is missing, if it is a package of the task's extra."""
    missing = (error.name or "").partition(".")[0]
    try:
        extras = metadata(PROG).get_all("Provides-Extra") or []
    except PackageNotFoundError:  # a checkout that was not installed
        extras = [task]
    if missing in ("", PROG) or task not in extras or "pip install" in str(error):
        return error
    return ImportError(f'{error}; {task} need more than the library itself: pip install "{PROG}[{task}]"')


def _underscored(word: str) -> str:
    """``--batch-size`` is ``--batch_size``; ``--from``, which no parameter can be called, is ``--from_``."""
    name, equals, value = word.partition("=")
    if not name.startswith("--"):
        return word
    option = name[2:].replace("-", "_")
    return f"--{option}{'_' * keyword.iskeyword(option)}{equals}{value}"


def _words_of_types(found: re.Match[str]) -> str:
    """The names or types that an option takes, without those of Python."""
    names = re.findall(r"Literal\[(.+?)\]", found[1])
    if names:
        return f"expected one of {', '.join(names)}, got"
    types = [name for name in found[1].split(", ") if name != "NoneType"]
    return f"expected {'one of the types ' * (len(types) > 1)}{', '.join(types)}, got"


def _parse_message(error: argparse.ArgumentError, parser: "jsonargparse.ArgumentParser") -> str:
    """What the parser found wrong, with the option's name as the user writes it and the nearest one that exists."""
    text = _one_line(error)
    for pattern, replacement in _REWORDED:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"expected one of the types (.+?), got", _words_of_types, text)
    options = [option for option in parser._option_string_actions if option.startswith("--")]
    unknown = re.search(r"--[\w.]+", text.partition("unrecognized arguments:")[2])
    return text + _nearest(unknown[0], options) if unknown else text


def _switches(function: Callable[..., Any], prefix: str = "--") -> set[str]:
    """The options of type bool, those inside dataclass parameters included."""
    hints = get_type_hints(function)
    names = [field.name for field in fields(function)] if is_dataclass(function) else list(hints)
    found: set[str] = set()
    for name in names:
        hint = hints.get(name)
        if hint is bool and name != "return":
            found.add(prefix + name)
        elif isinstance(hint, type) and is_dataclass(hint):
            found |= _switches(hint, f"{prefix}{name}.")
    return found


def _complete_switches(words: list[str], switches: set[str]) -> list[str]:
    """``--resume`` alone means ``--resume true``."""
    ends = [*words, "--"][1:]
    pairs = zip(words, ends, strict=True)
    return [f"{word}=true" if word in switches and end.startswith("--") else word for word, end in pairs]


def _top_help() -> str:
    tasks = find_tasks()
    width = max(map(len, VERBS))
    lines = [USAGE, "", "Generative models of states that are not flat vectors.", "", "verbs:"]
    lines += [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    lines += ["", f"tasks: {_listed(tasks)}", "", "options:"]
    lines += [
        "  --help     this text; after VERB the tasks that know it, after VERB TASK all options with their defaults"
    ]
    lines += ["  --debug    show the traceback of an error", "  --version  print the version", "", "examples:"]
    task = "proteins" if "proteins" in tasks else next(iter(tasks), "TASK")
    lines += [
        f"  {PROG} sample {task}",
        f"  {PROG} sample {task} --help",
        f"  {PROG} train {task} --print_config > train.yaml",
    ]
    return "\n".join([*lines, f"  {PROG} train {task} --config train.yaml"])


def _verb_help(verb: str, tasks: dict[str, EntryPoint]) -> str:
    rows, examples, verbs = [], [], set(VERBS)
    for name, entry in tasks.items():
        try:
            task = load_task(entry)
        except (ImportError, TypeError) as error:
            rows.append((name, f"not available: {_one_line(error)}"))
            continue
        verbs |= set(task.COMMANDS)
        if verb in task.COMMANDS:
            rows.append((name, (inspect.getdoc(task.COMMANDS[verb]) or "").split("\n")[0]))
            examples += [f"  {text}" for text in [getattr(task, "EXAMPLES", {}).get(verb)] if text]
    if verb not in verbs:
        raise ValueError(f"unknown verb {verb!r}{_nearest(verb, verbs)}; the verbs are: {_listed(verbs)}")
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"usage: {PROG} {verb} TASK [options]", "", (VERBS.get(verb) or verb).capitalize() + ".", "", "tasks:"]
    lines += [f"  {name:<{width}}  {text}" for name, text in rows] or ["  none knows this verb"]
    lines += ["", f"All options of one: {PROG} {verb} TASK --help"]
    return "\n".join(lines + (["", "examples:", *examples] if examples else []))


def _one_line(error: BaseException) -> str:
    """The message without line breaks; for system errors the path first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none is installed"


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


if __name__ == "__main__":
    sys.exit(main())
