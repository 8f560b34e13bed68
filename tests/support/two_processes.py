"""Run by `torchrun` from test_processes.py: trains the scenarios and writes what each process ended with."""

import sys
from pathlib import Path

import pandas as pd
import torch

from harness import (
    chat_dataset,
    contains_answer,
    flat_parameters,
    logged,
    make_trainer,
    replay,
    tiny_tokenizer,
)
from srpo_trl.runs.log import read_run_log

# Three groups of four over two processes: the middle one lies on both.
STRADDLING = (
    ("1+1", ["2#2", "33;12", "0", "4;4;4;4;4;4;4"]),
    ("2+2", ["4;4 wrong", "9", "4#4", "8;8"]),  # the right one on the second process, failed ones on both
    ("3+3", ["7", "1;2;3;4", "=", "9 wrong"]),
)
# Everything that is distilled lies on the first process.
ONE_SIDED = (
    ("1+1", ["2#2", "33;12", "0", "4;4;4;4;4;4;4"]),
    ("2+2", ["4", "9", "4;4", "8;8"]),
    ("3+3", ["7", "1;2;3;4", "6;6", "9 wrong"]),
)
NOTHING_SCORED = tuple((prompt, ["=", "1=", "2=", "3="]) for prompt, _ in ONE_SIDED)

SCENARIOS = {
    "straddling": (STRADDLING, {}),
    "straddling mix": (STRADDLING, {"method": "advantage_mix", "entropy_weight_beta": 1.0}),
    "one sided": (ONE_SIDED, {}),
    "nothing scored": (NOTHING_SCORED, {}),
    "two steps": (STRADDLING, {"max_steps": 2, "learning_rate": 0.1}),
}
SPLITS = {"whole": 6, "small": 1}  # micro-batch of each of two processes; six rollouts a process


def make(folder, rollouts, num_processes, micro_batch, **options):
    per_device = micro_batch * 2 // num_processes
    return make_trainer(
        folder,
        train_dataset=chat_dataset(rollouts),
        rollout_func=replay(tiny_tokenizer(), rollouts),
        reward_funcs=contains_answer,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=6 // micro_batch,
        ddp_find_unused_parameters=False,
        **options,
    )


def results(folder, num_processes):
    found = {}
    for name, (rollouts, options) in SCENARIOS.items():
        for split, micro_batch in SPLITS.items():
            trainer = make(folder, rollouts, num_processes, micro_batch, **options)
            assert trainer.accelerator.num_processes == num_processes
            before = flat_parameters(trainer.model)
            trainer.train()
            teacher = torch.cat(
                [v.double().reshape(-1) for v in trainer.teacher.weights.state_dict().values()]
            )
            found[f"{name}/{split}"] = {
                "update": flat_parameters(trainer.model) - before,
                "teacher": teacher,
                "routes": [
                    logged(trainer, f"srpo/route/{route}_frac")
                    for route in ("policy", "distilled", "skipped")
                ],
                "loss": logged(trainer, "loss"),
            }
    return found


def rollout_logs(folder, num_processes):
    """Columns of the completions table, and the examples, of one step in small micro-batches; main process's files."""
    options = {"log_completions": True, "log_examples_steps": 1}
    trainer = make(folder, STRADDLING, num_processes, 1, **options)
    trainer.train()
    trainer.accelerator.wait_for_everyone()
    table = pd.read_parquet(folder / "completions" / "completions_00001.parquet")
    examples = read_run_log(folder / "examples.jsonl").records
    return {
        "columns": {
            name: [None if pd.isna(value) else value for value in table[name].tolist()]
            for name in ("route", "rollout", "divergence", "teacher_entropy")
        },
        "examples": {record["rollout"]: "".join(record["tokens"]) for record in examples},
        "peak_gb": logged(trainer, "srpo/memory/peak_gb")[0],
        "num_logs": len(read_run_log(folder / "log.jsonl").records),
    }


def resumed(folder):
    """A run that stops inside a rollout batch and goes on, beside one that does not stop."""
    options = {
        "max_steps": 4,
        "learning_rate": 0.1,
        "save_strategy": "steps",
        "save_steps": 1,
        "num_iterations": 3,
    }
    whole = make(folder / "whole", STRADDLING, 2, 6, **options)
    whole.train()
    make(folder / "parts", STRADDLING, 2, 6, **options).train()
    second = make(folder / "parts", STRADDLING, 2, 6, **options)
    second.train(resume_from_checkpoint=str(folder / "parts" / "checkpoint-2"))
    return {"whole": flat_parameters(whole.model), "resumed": flat_parameters(second.model)}


def resumed_in_a_later_epoch(folder):
    """Two rollout batches an epoch, shuffled, and a resume in the middle of the second epoch."""
    more = tuple((f"{prompt}+1", answers) for prompt, answers in ONE_SIDED)
    options = {"max_steps": 6, "learning_rate": 0.1, "save_strategy": "steps", "save_steps": 3}
    runs = []
    for name, checkpoint in (("whole", None), ("parts", str(folder / "whole" / "checkpoint-3"))):
        runs.append(make(folder / name, STRADDLING + more, 2, 6, shuffle_dataset=True, **options))
        runs[-1].train(resume_from_checkpoint=checkpoint)
    return {"whole": flat_parameters(runs[0].model), "resumed": flat_parameters(runs[1].model)}


def evaluated_first(folder):
    """A run whose model was evaluated before, beside one whose model was not; with mixed precision and without."""
    found = {}
    for name, options in {"float32": {}, "bfloat16": {"bf16": True}}.items():
        runs = []
        for is_evaluated in (False, True):
            options |= {"eval_dataset": chat_dataset(STRADDLING[:2]), "num_generations_eval": 2}
            place = folder / f"{name}-{is_evaluated}"
            runs.append(make(place, STRADDLING, 2, 6, max_steps=2, learning_rate=0.1, **options))
            if is_evaluated:
                runs[-1].evaluate()
            runs[-1].train()
        alone, evaluated = (flat_parameters(run.model) for run in runs)
        found[name] = {
            "alone": alone,
            "evaluated": evaluated,
            "wrapped": type(runs[-1].model_wrapped).__name__,
        }
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    output = Path(sys.argv[1])
    found = {"scenarios": results(output / "runs", 2), "resume": resumed(output / "resume")}
    found["logs"] = rollout_logs(output / "logs", 2)
    found["evaluated"] = evaluated_first(output / "evaluated")
    found["epochs"] = resumed_in_a_later_epoch(output / "epochs")
    torch.save(found, output / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
