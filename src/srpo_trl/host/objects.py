"""The objects that `HostTrainer` owns, made from the values that a `GRPOTrainer` has once it is made."""

from functools import partial
from pathlib import Path
from typing import Any

from srpo_trl.evaluation.evaluator import Evaluator
from srpo_trl.evaluation.samples import answer_parser
from srpo_trl.host.arguments import refuse_unsupported
from srpo_trl.host.callbacks import changed_options
from srpo_trl.host.checkpoint_parts import (
    BufferedRollouts,
    Counters,
    OwnFile,
    PlainRun,
    StateFile,
    Stateful,
    engine_of,
)
from srpo_trl.host.checkpoints import CheckpointPart, Checkpoints
from srpo_trl.host.datasets import check_rows, max_prompt_length
from srpo_trl.host.manifest import Manifest
from srpo_trl.host.model_card import RunSummary
from srpo_trl.host.prompt_order import PromptOrder
from srpo_trl.host.prompt_rows import PromptRows
from srpo_trl.host.rewards.calls import Rewards
from srpo_trl.host.rewards.columns import RewardColumns
from srpo_trl.host.step_boundary import StepBoundary
from srpo_trl.rewards.correctness import Judge
from srpo_trl.rollout.batch_counter import BatchOptions, RolloutBatchCounter
from srpo_trl.runs.log import GUARDS_FILE, read_run_log
from srpo_trl.seams.trl import get_config_model_id


def checkpoints(trainer: Any) -> Checkpoints:
    """Return the checkpoints of `output_dir`; with plain GRPO each has `GRPOTrainer`'s files."""
    args = trainer.args
    manifest = Manifest(
        writes=args.should_save,
        is_resumable=not args.save_only_model,
        has_own_disk=args.save_on_each_node,
    )
    return Checkpoints(
        str(args.output_dir),
        trainer.accelerator,
        StepBoundary(trainer.callback_handler.callbacks),
        None if args.method_record.is_plain else manifest,
        writes=args.should_save,
        must_write=args.save_strategy != "no",
        limit=args.save_total_limit,
        parts=[PlainRun(args.method_name)] if args.method_record.is_plain else (),
    )


def prompt_order(trainer: Any) -> PromptOrder:
    """Return the order of the training data."""
    args = trainer.args
    return PromptOrder(
        args.steps_per_generation * trainer.num_iterations,
        lambda: trainer.state.epoch or 0.0,
        args.resample_failed_frac,
    )


def rewards(trainer: Any) -> Rewards:
    """Return the reward functions with checked calls."""
    return Rewards(
        trainer.reward_funcs,
        trainer.reward_func_names,
        trainer.args.reward_timeout,
        trainer.reward_weights.tolist(),
        joins_feedback=not trainer.args.method_record.is_plain,
    )


def prompt_rows(trainer: Any, columns: RewardColumns, row: dict[str, Any]) -> PromptRows:
    """Return what fits the rows of a batch to model and reward functions, once the data has been looked at.

    Args:
        trainer: a `GRPOTrainer`.
        columns: that the reward functions need and take.
        row: the first one of the training data; empty where there is none.
    Raises:
        ValueError: rows that cannot be sampled for, as far as they can be seen when the trainer is made.
    """
    has_rollout_func, environments = trainer.rollout_func is not None, trainer.environment_factories
    limit = max_prompt_length(trainer.model.config, trainer.max_completion_length)
    rows = PromptRows(
        lambda prompt: trainer._tokenize_prompts([prompt])[0][0],
        columns.needing_only(row) if has_rollout_func else columns,  # it adds the others itself
        tuple(trainer.args.read_columns),
        reads_images=trainer._is_vlm,
        is_sampled=not has_rollout_func,
        has_environments=environments is not None,
        max_length=None if trainer.args.method_record.is_plain else limit,
    )
    check_rows(
        trainer.train_dataset,
        trainer.eval_dataset,
        row,
        rows,
        processing_class=trainer.processing_class,
        chat_template=trainer.chat_template,
        environments=None if environments is None else list(environments),
    )
    return rows


def judge(trainer: Any) -> Judge:
    """Return what decides which rollouts are correct."""
    args = trainer.args
    return Judge(
        trainer.reward_weights,
        trainer.reward_func_names,
        args.correctness_reward,
        args.success_reward_threshold,
    )


def evaluator(trainer: Any, judge: Judge) -> Evaluator:
    """Return what samples and scores in evaluation."""
    args, process = trainer.args, trainer.accelerator.process_index
    named = zip(trainer.reward_func_names, trainer.reward_funcs, strict=True)
    deciding = [function for name, function in named if name == args.correctness_reward]
    return Evaluator(
        parser=answer_parser([*deciding, *trainer.reward_funcs]),
        judge=judge,
        reward_names=trainer.reward_func_names,
        end_tokens={*trainer.eos_token_ids, trainer._tokenizer.pad_token_id},
        num_samples=trainer.num_generations_eval,
        temperature=args.eval_temperature,
        top_p=args.eval_top_p,
        tokens_per_batch=args.eval_tokens_per_batch,
        max_completion_length=trainer.max_completion_length,
        seed=args.seed + process,
        rank=process,
        num_processes=trainer.accelerator.num_processes,
    )


def run_summary(trainer: Any) -> RunSummary:
    """Return what the model card says of the run so far."""
    args, state, rows = trainer.args, trainer.state, trainer.train_dataset
    guards = Path(args.output_dir) / GUARDS_FILE
    findings = read_run_log(guards).records if guards.is_file() else []
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return RunSummary(
        method=args.method_name,
        model=get_config_model_id(trainer.model.config) or type(trainer.student).__name__,
        prompts=len(rows) if hasattr(rows, "__len__") else None,
        rollouts=f"{per_step} rollouts a step, {trainer.num_generations} of a prompt",
        rewards=trainer.reward_func_names,
        options=changed_options(args),
        history=state.log_history,
        sampling=_sampling(trainer) if args.samples_evaluation else None,
        best=(state.best_global_step, args.metric_for_best_model) if state.best_global_step else None,
        findings=None if args.guard_action == "off" else findings,
    )


def _sampling(trainer: Any) -> str:
    args = trainer.args
    drawn = f"temperature {args.eval_temperature:g}, top-p {args.eval_top_p:g}"
    return f"{trainer.num_generations_eval} samples of each at {drawn}"


def check_supported(trainer: Any) -> None:
    """Raise ValueError where the teacher cannot be built, rather than train with another one."""
    refuse_unsupported(
        trainer.model,
        trainer.accelerator,
        max_completion_length=trainer.args.max_completion_length,
        gradient_share_steps=trainer.args.gradient_share_steps,
        reads_images=trainer._is_vlm,
        columns=trainer.args.method_record.columns,
    )


def checkpoint_parts(
    trainer: Any,
    counter: RolloutBatchCounter,
    options: BatchOptions,
    teacher: Any,
    solved_prompts: Any,
    **states: Stateful,
) -> list[CheckpointPart]:
    """Return what a run adds to its checkpoints, in the order in which it is loaded.

    Args:
        trainer: a `GRPOTrainer`.
        counter: of its rollout batches, in the options that they are counted in.
        options: these.
        teacher: saves and loads its weights, and knows the head of the buffered rollouts.
        solved_prompts: saves and loads itself; None: there are none.
        states: small ones, by name.
    """
    counters = Counters(
        counter,
        options,
        lambda: trainer._step,
        partial(setattr, trainer, "_step"),
        engine=engine_of(trainer.accelerator),
        saves_rollouts=not trainer.args.save_only_model,
        tell=trainer.tell,
    )
    buffered = lambda: trainer._buffered_inputs, partial(setattr, trainer, "_buffered_inputs")
    parts: list[CheckpointPart] = [
        OwnFile(teacher.save, teacher.load),
        StateFile(counters, **states, **teacher.states()),
        BufferedRollouts(counters, *buffered, teacher.past_heads, teacher.restore_heads),
    ]
    if solved_prompts is not None:
        parts.append(OwnFile(solved_prompts.save, solved_prompts.load))
    return parts
