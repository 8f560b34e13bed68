"""What our own options and calls make the libraries warn of: nothing that is deprecated."""

import json
import re
import subprocess
import sys
import warnings

import pytest

from srpo_trl import SRPOConfig

DEPRECATED = re.compile(r"\w*(?:Deprecation|Future)Warning: .*")


def test_a_run_with_an_adapter_shows_no_deprecation(tmp_path):
    rows = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        **{"model_name_or_path": "tiny-random-qwen3", "dtype": "float32", "use_peft": True, "lora_r": 2},
        **{"dataset_name": "rows.jsonl", "reward_funcs": "srpo_trl.rewards.math_reward"},
        **{"teacher_context": "reference", "reference_column": "answer", "dataset_test_split": "train"},
        **{"per_device_train_batch_size": 4, "num_generations": 2, "num_generations_eval": 2},
        **{"max_completion_length": 8, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1},
        **{"use_cpu": True, "bf16": False, "report_to": "none", "output_dir": "run", "logging_steps": 1},
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-W", "default", "-m", "srpo_trl.cli", "train", *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert DEPRECATED.findall(run.stderr) == []
    assert "distilled 1" in run.stdout  # the teacher's pass was made


@pytest.mark.parametrize("given", [{}, {"gradient_checkpointing": False}], ids=["default", "given"])
def test_the_config_gives_transformers_the_name_that_it_asks_for(given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = SRPOConfig("x", use_cpu=True, bf16=False, **given)
    is_on = given.get("gradient_checkpointing", True)
    assert config.gradient_checkpointing is is_on
    assert getattr(config, "activation_checkpointing", is_on) is is_on
