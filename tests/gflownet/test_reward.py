"""A reward of one's own: what it may do wrong is named or floored, what it costs is counted, what it said is kept."""

import copy
import math
import os
import time

import pytest
import torch

from manifoldflow.gflownet import BudgetSpent, Reward, RewardError, RewardTimeout

WORDS = ["a", "bb", "ccc", "dddd", "eeeee"]


def length(words):
    return [float(len(w)) for w in words]


def wrong(kind):
    """Right but for "ccc"."""

    def reward(words):
        if "ccc" in words:
            if kind == "raises":
                raise KeyError("no such atom")
            if kind == "length":
                return length(words)[:-1]
            if kind == "hangs":
                time.sleep(60)
            if kind == "dies":
                os._exit(3)
            if kind == "text":
                return ["x"] * len(words)
        bad = {"nan": math.nan, "negative": -2.0, "infinite": math.inf}
        return [bad.get(kind, len(w)) if w == "ccc" else len(w) for w in words]

    return reward


KINDS = {
    "nan": "is nan",
    "negative": "is -2.0",
    "infinite": "is inf",
    "raises": "raised KeyError: 'no such atom'",
    "length": r"came with shape \(0,\) for 1 object",
    "text": "is no number",
}


@pytest.mark.parametrize(("kind", "words"), KINDS.items(), ids=KINDS)
def test_a_bad_reward_is_named_or_has_the_floor(kind, words):
    with pytest.raises(RewardError, match=f"the reward of 'ccc' {words}.*floor"):
        Reward(wrong(kind))(WORDS)
    kept = Reward(wrong(kind))
    with pytest.raises(RewardError):
        kept(WORDS)
    assert kept.known == {"a": 1, "bb": 2, "dddd": 4, "eeeee": 5}  # paid for
    kind_of = Reward(wrong(kind), bad="floor", floor=1e-3)
    assert kind_of(WORDS).tolist() == [1, 2, 1e-3, 4, 5]
    assert kind_of.failed == 1


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_a_reward_that_hangs_is_left_and_named(worker):
    given = {"timeout": 1.0, "worker": worker}
    with pytest.raises(RewardTimeout, match=r"the reward of 'ccc' did not come within 1 s.*late='floor'"):
        Reward(wrong("hangs"), **given)(WORDS)
    reward = Reward(wrong("hangs"), late="floor", floor=0.5, **given)
    assert reward(WORDS).tolist() == [1, 2, 0.5, 4, 5]
    assert reward(["ccc", "ffffff"]).tolist() == [0.5, 6]  # the same worker, or a new one, goes on
    assert issubclass(RewardTimeout, RewardError) and RewardTimeout.keeps_run


def test_a_process_that_dies_or_raises_is_named_and_replaced():
    reward = Reward(wrong("dies"), timeout=30, worker="process", bad="floor")
    assert reward(WORDS)[2] == 1e-10 and reward(["gg"])[0] == 2
    with pytest.raises(RewardError, match=r"'ccc' raised nothing: its process died \(exit code 3\)"):
        Reward(wrong("dies"), timeout=30, worker="process")(WORDS)
    with pytest.raises(RewardError, match="'ccc' raised KeyError: 'no such atom'"):
        Reward(wrong("raises"), timeout=30, worker="process")(WORDS)


def test_known_objects_cost_nothing_and_repetitions_while_searching_do():
    given = []

    def reward(words):
        given.extend(words)
        return length(words)

    counted = Reward(reward)
    assert counted(["a", "bb", "a"]).tolist() == [1, 2, 1]
    assert counted(["bb", "ccc"]).tolist() == [2, 3]
    assert given == ["a", "bb", "ccc"] and counted.calls == 3 and counted.asked == 5
    assert counted.top(2) == [("ccc", 3.0), ("bb", 2.0)]
    search = Reward(wrong("raises"), bad="floor")
    search(WORDS)
    assert search.calls == 5 + 2 + 3 + 1 + 2  # all, [a bb], [ccc d e], [ccc], [d e]
    one = Reward(len, single=True)
    assert one(WORDS).tolist() == [1, 2, 3, 4, 5] and one.calls == 5
    assert Reward(length, batch=2)(WORDS).tolist() == [1, 2, 3, 4, 5]
    assert torch.equal(counted.log(["bb"]), torch.tensor([2.0], dtype=torch.float64).log())


def test_a_budget_ends_before_the_call_that_breaks_it():
    reward = Reward(length, budget=3)
    reward(["a", "bb"])
    with pytest.raises(BudgetSpent, match=r"budget of 3 reward calls has 1 left, and 2 more.*'ccc'"):
        reward(["ccc", "dddd"])
    assert reward.calls == 2 and reward.left == 1
    assert reward(["a"]).tolist() == [1]


def test_a_record_is_continued_also_where_it_was_cut_off(tmp_path):
    path = tmp_path / "calls.jsonl"
    first = Reward(wrong("nan"), bad="floor", record=path, key=lambda w: (w, len(w)))
    values = first(WORDS)
    with path.open("a") as file:
        file.write('{"key": ["ffff')
    again = Reward(lambda words: 1 / 0, record=path, budget=9, key=lambda w: (w, len(w)))
    assert torch.equal(again(WORDS), values)
    assert again.calls == first.calls == 5 and again.failed == 1
    again.function = length
    again(["ffffff"])
    assert Reward(length, record=path).known == again.known
    path.write_text("name,score\na,1\n")
    with pytest.raises(ValueError, match="line 1: not an answer of a reward"):
        Reward(length, record=path)


def test_a_record_that_lost_its_last_end_of_line_is_continued_on_the_next(tmp_path):
    path = tmp_path / "calls.jsonl"
    Reward(length, record=path)(WORDS)
    path.write_bytes(path.read_bytes()[:-1])
    assert Reward(length, record=path, budget=6)(["ffffff"]).tolist() == [6]
    with path.open("ab") as file:
        file.write(bytes(40))  # what a file system leaves of a line after the power went
    again = Reward(length, record=path)
    assert len(again.known) == 6 and again.calls == 6
    again(["ggggggg"])
    assert len(Reward(length, record=path).known) == 7
    notes = tmp_path / "notes.txt"
    notes.write_text("do not touch")
    with pytest.raises(ValueError, match="line 1: not an answer of a reward"):
        Reward(length, record=notes)
    assert notes.read_text() == "do not touch"


def test_a_function_that_always_fails_is_left_at_its_second_object():
    asked = []

    def broken(words):
        asked.append(len(words))
        raise RuntimeError("no licence")

    words = [f"w{i}" for i in range(64)]
    with pytest.raises(RewardError, match="'w0' raised RuntimeError: no licence"):
        Reward(broken)(words)
    assert sum(asked) == 64 + 32 + 16 + 8 + 4 + 2 + 1 + 1
    reward = Reward(broken, budget=70)
    with pytest.raises(
        RewardError, match=r"64 objects, the first 'w0', raised RuntimeError: no licence.*70 calls ended"
    ):
        reward(words)
    with pytest.raises(RewardError, match="2 objects, the first 'w0'") as caught:
        reward(words[:4])
    assert not isinstance(caught.value, BudgetSpent) and reward.calls <= 70


def test_a_function_that_seeds_or_draws_leaves_the_random_numbers_of_the_program():
    import random

    import numpy as np

    def numbers():
        return torch.rand(1).item(), np.random.rand(), random.random()

    drawn = []

    def reward(words):
        drawn.append(numbers())
        if len(drawn) == 3:
            torch.manual_seed(0), np.random.seed(0), random.seed(0)
        return length(words)

    for seed in (7, 7, 8):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        made = Reward(reward)
        drawn.clear()
        between = [(made([f"{'x' * n}"]), numbers())[1] for n in range(1, 5)]
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        assert between == [numbers() for _ in range(4)]
        assert len({*drawn[:3], *between}) == 7  # its own, and others at every call


def test_a_function_that_ends_the_program_or_times_out_itself_is_named():
    def leaves(words):
        raise SystemExit(1)

    def network(words):
        raise TimeoutError("no answer from the host")

    with pytest.raises(RewardError, match="'a' raised SystemExit: 1"):
        Reward(leaves)(["a"])
    for options in ({}, {"timeout": 30}, {"timeout": 30, "worker": "process"}):
        with pytest.raises(RewardError, match="'a' raised TimeoutError: no answer from the host"):
            Reward(network, **options)(["a"])


def test_copies_share_memory_and_budget_and_options_are_checked():
    reward = Reward(length)
    assert copy.deepcopy({"r": reward})["r"] is reward
    for options in ({"bad": "ignore"}, {"floor": 0.0}, {"timeout": -1}, {"worker": "cloud"}, {"budget": 0}):
        with pytest.raises(ValueError, match=f"Reward: {next(iter(options))} must be"):
            Reward(length, **options)
    with pytest.raises(ValueError, match="keys of strings"):
        Reward(lambda many: [1.0] * len(many), record=os.devnull)([frozenset()])
