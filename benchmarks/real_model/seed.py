"""All methods with one seed, in turns, in this process: `python -m benchmarks.real_model.seed PARENT PLAN`.

A run's folder has a checkpoint after every piece of steps. Started again, all methods go on from the newest piece that
each of them has, so a process that is killed loses one piece. It ends with the process that started it, PARENT.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback

from benchmarks.children import end_with
from benchmarks.real_model.headroom import NUM_GENERATIONS
from benchmarks.real_model.sampling import TEMPLATE_OPTIONS, completion_tokens
from benchmarks.real_model.task import LEVELS, Question, dataset, held_out_questions, make_questions, reward
from benchmarks.real_model.weights import load_tokenizer
from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.commands.quickstart.quiet import quiet_libraries, quiet_logs
from srpo_trl.commands.quickstart.train import SAMPLED_ONCE, SCORE
from srpo_trl.commands.quickstart.turns import Job, take_turns
from srpo_trl.host.callbacks import TrainingClock
from srpo_trl.host.manifest import checkpoints_in, flaw_of
from srpo_trl.methods import METHODS, PAPER_DEFAULTS, TABLE_1

LORA_RANK = 16


class Plan(NamedTuple):
    """What is trained.

    Attributes:
        folder: of the study; the start is in it.
        level: of the questions, by name.
        seed: of sampling and of the questions.
        max_steps: of a whole run.
        until: the step at which this process ends, if it has time.
        piece: steps from one evaluation and checkpoint to the next.
        prompts: questions of a step.
        eval_questions: of an evaluation, one completion each.
        learning_rate: constant, the same for all methods.
        layers: that have adapters, counted from the last one; 0: all.
        device: "cuda" or "cpu".
        deadline: in seconds since 1970, after which no piece is begun that would not be done before.
    """

    folder: str
    level: str
    seed: int
    max_steps: int
    until: int
    piece: int
    prompts: int
    eval_questions: int
    learning_rate: float
    layers: int
    device: str
    deadline: float

    def run_folder(self, method: str) -> Path:
        """Return the folder of a run."""
        return run_folder(Path(self.folder), self.seed, method)


def run_folder(folder: Path, seed: int, method: str) -> Path:
    """Return the folder of a run in the study's folder."""
    return folder / f"seed-{seed}" / method


def common_step(folders: list[Path]) -> int:
    """Return the newest step of which every run has a whole checkpoint; 0 where there is none."""
    steps = [
        {step for step, path in checkpoints_in(folder) if not flaw_of(path, reads_contents=False)}
        for folder in folders
    ]
    return max(set.intersection(*steps), default=0)


def train(plan: Plan) -> None:
    """Train each method to the plan's step, or as far as there is time for."""
    done = common_step([plan.run_folder(method) for method in TABLE_1])
    if done >= plan.until or time.time() >= plan.deadline:
        return
    tokenizer = load_tokenizer(str(Path(plan.folder) / "start"))
    level = next(level for level in LEVELS if level.name == plan.level)
    held_out = held_out_questions(level)
    questions = make_questions(level, plan.max_steps * plan.prompts, seed=1000 + plan.seed, without=held_out)
    pace = Pace(plan.piece, plan.until, plan.deadline)

    def job(method: str) -> Job:
        def run(pass_on: Callable[[], None]) -> None:
            trainer = make_trainer(plan, method, tokenizer, questions, held_out[: plan.eval_questions])
            trainer.args.eval_on_start = not done
            trainer.add_callback(Turn(pace, pass_on, f"seed {plan.seed}, {METHODS[method].title}"))
            checkpoint = plan.run_folder(method) / f"checkpoint-{done}"
            trainer.train(resume_from_checkpoint=str(checkpoint) if done else None)

        return run

    take_turns([job(method) for method in TABLE_1])


def make_trainer(
    plan: Plan, method: str, tokenizer: Any, questions: list[Question], held_out: list[Question]
) -> SRPOTrainer:
    """Return the trainer of a run: adapters on the start, whose weights are bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(Path(plan.folder) / "start", dtype=torch.bfloat16)
    trainer = SRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=make_config(plan, method, completion_tokens(tokenizer, questions + held_out)),
        train_dataset=dataset(questions),
        eval_dataset=dataset(held_out),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=LORA_RANK,
            lora_alpha=2 * LORA_RANK,
            target_modules=adapted(model, plan.layers),
        ),
    )
    trainer.remove_callback(PrinterCallback)
    if plan.device == "cpu":
        TrainingClock.of(trainer).now = time.process_time  # which other processes do not stretch
    return trainer


def adapted(model: Any, num_layers: int) -> list[str]:
    """Return the names of the linear modules in the model's last layers; 0: in all of them."""
    first = model.config.num_hidden_layers - num_layers if num_layers else 0
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    numbers = {name: re.search(r"\.layers\.(\d+)\.", name) for name in linear}
    return [name for name, number in numbers.items() if number and int(number[1]) >= first]


def make_config(plan: Plan, method: str, max_completion_length: int) -> SRPOConfig:
    """Return the configuration: methods differ in their name alone."""
    on_gpu = plan.device == "cuda"
    return SRPOConfig(
        **(PAPER_DEFAULTS | SAMPLED_ONCE | {"learning_rate": plan.learning_rate}),
        method=method,
        output_dir=str(plan.run_folder(method)),
        seed=plan.seed,
        max_steps=plan.max_steps,
        lr_scheduler_type="constant",
        per_device_train_batch_size=plan.prompts * NUM_GENERATIONS,
        per_device_eval_batch_size=64,
        num_generations=NUM_GENERATIONS,
        max_completion_length=max_completion_length,
        chat_template_kwargs=TEMPLATE_OPTIONS,
        bf16=True,
        use_cpu=not on_gpu,
        gradient_checkpointing=False,
        eval_strategy="steps",
        eval_steps=plan.piece,
        logging_steps=1,
        save_steps=plan.piece,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
    )


class Pace:
    """Says at the end of each piece whether another is begun; the run that comes there first decides for all."""

    def __init__(self, piece: int, until: int, deadline: float) -> None:
        self._piece, self._until, self._deadline = piece, until, deadline
        self._began = time.time()
        self._goes_on: dict[int, bool] = {}

    def goes_on(self, step: int) -> bool:
        """Whether a run that has done this many steps takes another one."""
        if step % self._piece and step < self._until:
            return True
        if step not in self._goes_on:
            now = time.time()
            took, self._began = now - self._began, now
            self._goes_on[step] = step < self._until and now + 1.1 * took < self._deadline
        return self._goes_on[step]


class Turn(TrainerCallback):
    """Ends a run's turn after each step, and the run where the pace says so; says how far it has come."""

    def __init__(self, pace: Pace, pass_on: Callable[[], None], name: str) -> None:
        self._pace, self._pass_on, self._name = pace, pass_on, name

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the other runs take their steps."""
        if not self._pace.goes_on(state.global_step):
            control.should_training_stop = control.should_evaluate = control.should_save = True
        self._pass_on()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the accuracy."""
        print(f"{self._name}, step {state.global_step}: right {kwargs['metrics'][SCORE]:.3f}", flush=True)


def main() -> None:
    parent, text = sys.argv[1:]
    end_with(int(parent), lambda: os._exit(1))
    with quiet_logs(), quiet_libraries():
        train(Plan(**json.loads(text)))


if __name__ == "__main__":
    main()
