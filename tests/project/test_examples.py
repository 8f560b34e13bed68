"""The examples run as they are, and compute what they say."""

import importlib.util
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_memory_penalty_is_the_formulas():
    """Tasks are alike by the share of first digit, second digit and sum that they have in common."""
    play = example("self_play")
    tasks, memory = ["1+2", "2+1", "9+9"], ["1+2", "1+5", "3+0"]

    def similarity(one, other):
        (a, b), (c, d) = (map(int, task.split("+")) for task in (one, other))
        return ((a == c) + (b == d) + (a + b == c + d)) / 3

    for task, penalty in zip(tasks, play.memory_penalties(tasks, memory), strict=True):
        values = [similarity(task, other) for other in memory]
        most, mean = max(max(values) - 0.5, 0), max(sum(values) / 3 - 0.25, 0)
        assert penalty == pytest.approx(0.5 * most + 0.5 * mean, abs=1e-6)
    assert play.memory_penalties(tasks, memory)[0] > 0.25
    assert play.memory_penalties(tasks, []) == [0.0] * 3


def test_two_trainers_take_turns(capsys):
    play = example("self_play")
    rounds = play.main(["--rounds", "2", "--steps", "2"])
    first, second = rounds
    assert min(first.valid, second.valid) > 0.5  # taught to write tasks
    assert first.penalty == 0.0 < second.penalty  # nothing was remembered, then something
    assert min(first.trained_on, second.trained_on) > 0
    assert len(re.findall(r"^ +[12] ", capsys.readouterr().out, re.MULTILINE)) == 2


def test_what_the_players_are_rewarded_for(monkeypatch):
    play = example("self_play")
    game = object.__new__(play.Game)
    game.memory = ["1+2"]
    monkeypatch.setattr(game, "pass_rates", lambda tasks: [0.25] * len(tasks), raising=False)
    texts = [[{"role": "assistant", "content": text}] for text in ("1+2", "12", "9+9")]
    assert game.uncertainty_reward(completions=texts) == [0.5, -1.0, 0.5]
    repeated, none, other = game.memory_reward(completions=texts)
    assert repeated < other <= none == 0.0
    prompts = [[{"role": "user", "content": "1+2"}]] * 2
    answers = [[{"role": "assistant", "content": text}] for text in ("03", "3")]
    assert game.answer_reward(prompts=prompts, completions=answers) == [1.0, 0.0]


def test_the_teacher_reads_the_error_that_the_tool_has_raised(capsys):
    door = example("environment")
    result = door.main(["--steps", "2", "--lessons", "60"])
    assert len(result.opened) == 2
    failed = result.examples[0]
    called = [record for record in result.examples if "'error': '" in "".join(record["tokens"])]
    assert called  # taught to call the tool
    for record in called:
        assert f"{{'error': '{record['feedback']}'}}" in "".join(record["tokens"])
        number = record["tokens"].index(door.CALL_OPENS) + 2  # of two digits, the second one
        assert record["divergence"][number] is not None
        assert record["divergence"][record["tokens"].index("<|tool|>")] is None
    assert failed["feedback"] in capsys.readouterr().out


def test_what_a_door_says():
    door = example("environment").Door()
    door.reset("5+7", prompt=[])
    with pytest.raises(ValueError, match="Dialed 3, needed 12"):
        door.dial(3)
    assert (door.get_reward(), door.feedback) == (0.0, "Dialed 3, needed 12.")
    door.reset("5+7", prompt=[])
    assert (door.dial(12), door.get_reward(), door.feedback) == ("Correct", 1.0, None)
    door.reset("5+7", prompt=[])
    assert (door.get_reward(), door.feedback) == (0.0, "Nothing was dialed.")
