"""Two processes compute what one does: groups on both, one without a distilled token, none with a scored one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness import relative_error
from two_processes import SCENARIOS, SPLITS, STRADDLING, results, rollout_logs

HERE = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = filter(None, [str(HERE), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [*command, str(HERE / "two_processes.py"), str(folder)],
        env=environment,
        capture_output=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return results(tmp_path_factory.mktemp("alone"), num_processes=1)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "nothing scored"])
def test_two_processes_make_the_update_of_one(ranks, alone, scenario, split):
    expected = alone[f"{scenario}/whole"]
    for rank in ranks:
        found = rank["scenarios"][f"{scenario}/{split}"]
        assert relative_error(found["update"], expected["update"]) < 1e-5
        assert relative_error(found["teacher"], expected["teacher"]) < 1e-6
        assert found["routes"] == expected["routes"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4, abs=1e-5)


def test_the_scenarios_are_what_they_say(alone):
    def routes(scenario):
        return [fractions[0] * 12 for fractions in alone[f"{scenario}/whole"]["routes"]]

    assert routes("straddling") == pytest.approx([5, 6, 1])
    assert routes("one sided") == pytest.approx([9, 3, 0])
    assert routes("nothing scored") == pytest.approx([0, 0, 12])


@pytest.mark.parametrize("split", SPLITS)
def test_a_step_without_a_scored_token_changes_nothing(ranks, alone, split):
    for found in (*(rank["scenarios"] for rank in ranks), alone):
        assert not found[f"nothing scored/{split}"]["update"].any()


@pytest.mark.parametrize("where", ["resume", "epochs"])
def test_resume_on_two_processes(ranks, where):
    """Inside a rollout batch, and in the middle of a later epoch."""
    for rank in ranks:
        assert torch.equal(rank[where]["resumed"], rank[where]["whole"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_evaluation_before_training_leaves_the_processes_one_model(ranks, precision):
    """transformers marks the evaluated model as prepared, and Accelerate then wraps it in no DDP."""
    for found in (rank["evaluated"][precision] for rank in ranks):
        assert found["wrapped"] == "DistributedDataParallel"
        assert torch.equal(found["evaluated"], found["alone"])
        assert torch.equal(found["evaluated"], ranks[0]["evaluated"][precision]["evaluated"])


def test_logs_of_single_rollouts_are_those_of_one_process(ranks, tmp_path):
    alone = rollout_logs(tmp_path, 1)
    for rank in ranks:
        for name, values in alone["columns"].items():
            found = rank["logs"]["columns"][name]
            if name in ("route", "rollout"):
                assert found == values, name
            else:  # None where a rollout was not distilled
                assert [value is None for value in found] == [value is None for value in values], name
                assert [v for v in found if v is not None] == pytest.approx(
                    [v for v in values if v is not None], rel=1e-4
                ), name
        texts = [text for _, answers in STRADDLING for text in answers]
        examples = rank["logs"]["examples"]
        assert all(text == f"{texts[rollout]}<|end|>" for rollout, text in examples.items())
        assert 0 < len(examples) <= 4
        assert all(rollout < 6 for rollout in examples)  # the main process's rows
        assert rank["logs"]["num_logs"] == alone["num_logs"]
    assert ranks[0]["logs"]["peak_gb"] == ranks[1]["logs"]["peak_gb"] > 0.05
