"""The command line, driven through a task that another package could have registered."""

import os
import subprocess
import sys
import types
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest

from manifoldflow import __version__, cli, registry

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Optimiser:
    """How to step.

    Args:
        rate: step length.
        warm: begin slowly.
    """

    rate: float = 0.1
    warm: bool = False
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate must be positive,\n  got {self.rate}")


@dataclass
class Finished:
    exit_code: int


@dataclass
class Recorder:
    """What the fake task was called with, and what it shall do."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    raises: BaseException | None = None
    returns: object = None


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A registered task `toy` with the verbs train, brew and serve."""
    record = Recorder()

    def train(
        data: str,
        steps: int = 10,
        kind: Literal["fast", "exact"] = "fast",
        length: int | list[int] = 5,
        batch_size: int = 4,
        resume: bool = False,
        optimiser: Optimiser = Optimiser(),  # noqa: B008 - read, never changed
    ) -> object:
        """Train the toy.

        Args:
            data: folder with the wooden blocks.
            steps: how often to move one.
            kind: how careful to be.
            length: of a row.
            batch_size: blocks at once.
            resume: go on where it stopped.
            optimiser: how to step.
        """
        record.calls.append(dict(locals(), record=None))
        if record.raises is not None:
            raise record.raises
        return record.returns

    def brew(cups: int = 1) -> None:
        """Make coffee."""

    def serve(port: int = 80) -> None:
        """Carry the coffee."""
        record.calls.append({"port": port})

    module = types.ModuleType("toy_task")
    module.COMMANDS = {"train": train, "brew": brew, "serve": serve}  # type: ignore[attr-defined]
    module.EXAMPLES = {"train": "manifoldflow train toy --data blocks/"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_task", module)
    entries = [
        EntryPoint("toy", "toy_task", registry.GROUP),
        EntryPoint("broken", "task_with_no_such_package", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.GROUP else [])
    return record


Captured = pytest.CaptureFixture[str]


def fails(capsys: Captured, *words: str, code: int = 2) -> str:
    """The one line of a run that must fail."""
    assert cli.main(list(words)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("error: "), err
    return err.strip()


def test_top_help_names_verbs_tasks_and_examples(toy: Recorder, capsys: Captured) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(
        word in text for word in ("VERB TASK", "train", "sample", "evaluate", "prepare", "toy", "--debug", "examples:")
    )


def test_no_word_at_all_prints_the_help_and_is_an_error(toy: Recorder, capsys: Captured) -> None:
    assert cli.main([]) == 2
    assert "VERB TASK" in capsys.readouterr().out


def test_verb_help_lists_its_tasks_and_says_which_cannot_be_loaded(toy: Recorder, capsys: Captured) -> None:
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith("  ")}
    assert rows["toy"] == "Train the toy."
    assert rows["broken"].startswith("not available: task 'broken'")
    assert "manifoldflow train toy --data blocks/" in text


def test_command_help_shows_docstrings_defaults_types_and_the_example(toy: Recorder, capsys: Captured) -> None:
    assert cli.main(["train", "toy", "--help"]) == 0
    text = capsys.readouterr().out
    for piece in (
        "Train the toy.",
        "folder with the wooden blocks.",
        "default: 10",
        "--optimiser.rate",
        "step length.",
    ):
        assert piece in text
    assert text.rstrip().endswith("manifoldflow train toy --data blocks/")
    assert not toy.calls


def test_a_server_needs_no_task_where_one_has_it_but_other_verbs_do(
    toy: Recorder, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {entry.name: entry for entry in registry.entry_points(group=registry.GROUP)}
    monkeypatch.setattr(cli, "find_tasks", lambda: entries)  # without the tasks beside the package
    assert cli.main(["serve"]) == 0 and cli.main(["serve", "--port", "9"]) == 0 and cli.main(["serve", "toy"]) == 0
    assert [call["port"] for call in toy.calls] == [80, 9, 80]
    assert "which task" in fails(capsys, "brew")


def test_version_is_that_of_the_package(capsys: Captured) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"manifoldflow {__version__}\n"


def test_options_reach_the_function_with_their_types(toy: Recorder) -> None:
    words = "train toy --data d --steps 3 --length [4,5] --batch-size 2 --resume --optimiser.rate=0.5 --optimiser.warm"
    assert cli.main(words.split()) == 0
    (call,) = toy.calls
    assert (call["data"], call["steps"], call["length"], call["batch_size"], call["resume"]) == (
        "d",
        3,
        [4, 5],
        2,
        True,
    )
    assert call["optimiser"] == Optimiser(rate=0.5, warm=True)
    assert call["kind"] == "fast"


def test_switch_takes_an_explicit_value_too(toy: Recorder) -> None:
    assert cli.main("train toy --data d --resume false --optimiser.warm true".split()) == 0
    assert toy.calls[0]["resume"] is False
    assert toy.calls[0]["optimiser"].warm is True


def test_printed_config_runs_again_and_later_options_override_it(
    toy: Recorder, tmp_path: Path, capsys: Captured
) -> None:
    assert cli.main("train toy --data d --steps 7 --optimiser.rate 0.3 --print_config".split()) == 0
    assert not toy.calls
    config = tmp_path / "train.yaml"
    config.write_text(capsys.readouterr().out)
    assert cli.main(["train", "toy", "--config", str(config), "--steps", "8"]) == 0
    (call,) = toy.calls
    assert (call["data"], call["steps"], call["optimiser"]) == ("d", 8, Optimiser(rate=0.3))


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ("trian toy", ["'trian'", "did you mean 'train'", "brew, serve, train"]),
        ("train toi", ["'toi'", "did you mean 'toy'", "broken, ", "toy"]),
        ("fly --help", ["'fly'", "brew", "train"]),
        ("train", ["which task", "toy"]),
        ("train --steps 3", ["task comes before", "toy"]),
        ("--steps 3", ["verb comes first"]),
        ("train toy", ["--data is missing", "manifoldflow train toy --help"]),
        ("train toy --data d --stepz 3", ["--stepz", "did you mean '--steps'"]),
        ("train toy --data d --steps many", ["--steps", "expected int", "many"]),
        ("train toy --data d --kind wild", ["--kind", "'fast', 'exact'", "wild"]),
        ("train toy --data d --length wide", ["--length", "int", "wide"]),
        ("train toy --data d more", ["more"]),
        ("train toy --data d --optimiser.rate 0", ["rate must be positive, got 0"]),
        ("train toy --config /no/such.yaml", ["/no/such.yaml"]),
        ("train broken", ["'broken'", "task_with_no_such_package"]),
    ],
)
def test_mistake_on_the_command_line_is_one_line_that_helps(
    toy: Recorder, capsys: Captured, words: str, pieces: list[str]
) -> None:
    line = fails(capsys, *words.split())
    assert all(piece in line for piece in pieces), line
    assert not toy.calls


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("data: d\nspeed: 3\n", "'speed'"),
        ("data: d\noptimiser:\n  speed: 3\n", "'speed'"),
        ("steps: [3\n", "pars"),
        ("x", "x"),
    ],
)
def test_bad_config_file_is_one_line_that_names_the_key(
    toy: Recorder, capsys: Captured, tmp_path: Path, text: str, piece: str
) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(text)
    assert piece in fails(capsys, "train", "toy", "--config", str(config))
    assert not toy.calls


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("length is 0;\n   give at least 2"), 2, "error: length is 0; give at least 2"),
        (FileNotFoundError(2, "No such file or directory", "a/b.pdb"), 2, "error: a/b.pdb: No such file or directory"),
        (RuntimeError("out of memory"), 2, "error: out of memory"),
        (ImportError("needs biotite"), 2, "error: needs biotite"),
        (TypeError(), 2, "error: TypeError"),
        (KeyError("frames"), 1, "error: KeyError: 'frames' (a fault in manifoldflow or the task; --debug shows where)"),
    ],
)
def test_error_of_a_command_is_one_line_and_an_exit_code(
    toy: Recorder, capsys: Captured, error: Exception, code: int, line: str
) -> None:
    toy.raises = error
    assert fails(capsys, "train", "toy", "--data", "d", code=code) == line


def test_debug_shows_the_traceback_and_the_same_last_line(toy: Recorder, capsys: Captured) -> None:
    toy.raises = ValueError("wrong")
    assert cli.main(["train", "toy", "--data", "d", "--debug"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("\nerror: wrong\n")


def test_a_package_that_is_missing_comes_with_what_to_install() -> None:
    for name, task, hint in (
        ("spglib.core", "crystals", 'pip install "manifoldflow[crystals]"'),
        ("manifoldflow.nowhere", "crystals", ""),
        ("spglib", "toy", ""),
    ):
        told = str(cli._with_extra(ModuleNotFoundError(f"No module named {name!r}", name=name), task))
        assert told.startswith(f"No module named {name!r}") and ("pip install" in told) == bool(hint) and hint in told


def test_interrupt_is_one_line_and_exit_code_130(toy: Recorder, capsys: Captured) -> None:
    toy.raises = KeyboardInterrupt()
    assert cli.main(["train", "toy", "--data", "d"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (Finished(0), 0), (Finished(3), 3), ({"loss": 1.0}, 0)])
def test_result_with_an_exit_code_sets_that_of_the_program(toy: Recorder, returned: object, code: int) -> None:
    toy.returns = returned
    assert cli.main(["train", "toy", "--data", "d"]) == code


def test_task_beside_the_package_is_found_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    assert cli.find_tasks()["proteins"].value == "manifoldflow.tasks.proteins"


def test_metadata_of_the_time_before_the_tasks_were_renamed_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that was installed once and updated since keeps the metadata of that day."""
    old = [EntryPoint("dna", "tasks.dna", registry.GROUP), EntryPoint("mine", "tasks.mine", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: old)
    found = registry.find_tasks()
    assert found["dna"].value == "manifoldflow.tasks.dna" and found["mine"].value == "tasks.mine"


def test_every_command_of_every_bundled_task_has_a_parser_and_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    for name, entry in cli.find_tasks().items():
        task = cli.load_task(entry)
        assert set(getattr(task, "EXAMPLES", {})) <= set(task.COMMANDS)
        for verb, function in task.COMMANDS.items():
            text = cli.build_parser(function, f"manifoldflow {verb} {name}").format_help()
            assert (function.__doc__ or "").strip().split("\n")[0] in text


def test_top_help_does_not_wait_for_torch() -> None:
    code = "import sys, manifoldflow.cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_program_that_is_read_only_in_part_leaves_no_traceback() -> None:
    code = "import sys, manifoldflow.cli as c; c._top_help = lambda: 'x\\n' * 10**6; sys.exit(c.main(['--help']))"
    line = f'"{sys.executable}" -c "{code}" | head -1'
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == "x\n" and "Traceback" not in done.stderr
