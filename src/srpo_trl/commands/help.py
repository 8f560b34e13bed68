"""`--help` of commands that take the trainer's options: ours and the most used ones in groups. `--help-all`: all."""

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from functools import partial
from typing import Any, get_args, get_type_hints

OPTIONS_PAGE = "https://srpo-trl.github.io/srpo-trl/options.html"
OTHERS = "Others of srpo-trl"
# Every option of ours, and of TRL's and transformers' those that most runs set.
GROUPS: dict[str, str] = {
    "Data and rewards": "config dataset_name dataset_config benchmark data_dir dataset_train_split "
    "dataset_test_split max_train_rows max_eval_rows reward_funcs reward_model_name_or_path reward_weights "
    "chat_template_kwargs output",
    "Model, precision and LoRA": "model_name_or_path dtype bf16 fp16 use_cpu use_peft lora_r lora_alpha "
    "load_in_4bit attn_implementation liger_layers",
    "Method": "method method_options routing success_reward_threshold correctness_reward resample_failed_frac "
    "advantage_mix_lambda",
    "Distillation": "distillation_alpha distillation_topk distillation_add_tail distillation_estimator "
    "distillation_is_clip distillation_pointwise_clip entropy_weight_beta distilled_frac_hold_steps "
    "distilled_frac_decay_steps distilled_frac_until_accuracy",
    "Teacher": "teacher_model_kind teacher_update_rate teacher_update_interval teacher_context reference_column "
    "earlier_answers_kept max_reprompt_length remove_thinking_from_demonstration reprompt_template "
    "solution_template feedback_template teacher_model teacher_column teacher_tokens_per_pass teacher_states_on_cpu",
    "Rollouts": "num_generations max_completion_length temperature use_vllm vllm_mode "
    "vllm_importance_sampling_mode vllm_importance_sampling_clip_max reward_timeout",
    "Optimization": "max_steps num_train_epochs max_training_time per_device_train_batch_size "
    "gradient_accumulation_steps learning_rate lr_scheduler_type warmup_steps beta epsilon_high scale_rewards "
    "gradient_checkpointing seed max_nonfinite_steps",
    "Evaluation": "eval_strategy eval_steps num_generations_eval eval_temperature eval_top_p eval_tokens_per_batch",
    "Logging and saving": "output_dir logging_steps run_log log_completions log_completions_steps "
    "log_examples_steps gradient_share_steps guard_action report_to save_steps save_total_limit "
    "resume_from_checkpoint push_to_hub hub_model_id",
}
# In place of a text that is too long, or does not say what these commands do.
BRIEF = {
    "method": "A method by its name, which `srpo-trl methods` lists, or your own as 'module:factory'.",
    "model_name_or_path": "Hub id or folder of the model.",
    "max_steps": "Optimizer steps of the run. -1: num_train_epochs decides.",
    "vllm_mode": "'colocate': vLLM shares the training GPUs. 'server': it runs elsewhere (`vllm serve`).",
    "resume_from_checkpoint": "A checkpoint's folder, or 'auto': the newest complete one in output_dir, if any.",
}
PACKAGE, FOREIGN = "srpo_trl", {"trl": "Others of TRL", "transformers": "Others of transformers"}
HELP, HELP_ALL = ("-h", "--help"), "--help-all"
_MOST_CHOICES = 6
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<=\.) +(?=[A-Z`'\"\[])")
_METAVARS = {int: "N", float: "X", bool: "true|false"}


def show_help(
    argv: Sequence[str],
    parser: argparse.ArgumentParser,
    kinds: Sequence[type],
    defaults: Mapping[str, Any],
    hidden: Sequence[str] = (),
) -> None:
    """Print the help that a command line asks for, where it asks for any, and end.

    Args:
        argv: the command line.
        parser: of the command, with all options.
        kinds: dataclasses whose fields they are.
        defaults: of the command, where they are not the dataclasses'.
        hidden: options, and titles of groups of them, that mean nothing to the command.
    Raises:
        SystemExit: with 0, after the help.
    """
    if HELP_ALL not in argv and set(HELP).isdisjoint(argv):
        return
    actions = {action.dest: action for action in reversed(parser._actions) if action.dest != "help"}
    groups, others = _grouped(kinds)
    shown = groups | others
    if HELP_ALL not in argv:
        shown = {
            title: [name for name in names if name not in hidden]
            for title, names in groups.items()
            if title not in hidden
        }
    num_others = len(actions) - sum(name in actions for names in shown.values() for name in names)
    more = f"{HELP_ALL} lists {num_others} more options. " if num_others else ""
    page = argparse.ArgumentParser(
        prog=parser.prog,
        usage=parser.usage,
        add_help=False,
        formatter_class=partial(argparse.HelpFormatter, max_help_position=34),
        epilog=f"{more}Options and reasons: {OPTIONS_PAGE}",
    )
    classes = [base for kind in kinds for base in kind.__mro__]
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    for title, names in shown.items():
        group = page.add_argument_group(title)
        for action in (actions[name] for name in names if name in actions):
            text = action.help or ""
            if HELP_ALL not in argv and _declarer(classes, action.dest) != PACKAGE:
                text = _SENTENCE_END.split(text)[0]
            default = _written(defaults.get(action.dest, action.default))
            text = " ".join([BRIEF.get(action.dest, text), *default])
            group.add_argument(f"--{action.dest}", help=text, **_look(action, hints.get(action.dest)))
    print(page.format_help(), end="")
    raise SystemExit(0)


def _grouped(kinds: Sequence[type]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the names of the options of each group, and those of the others, by the package they are from."""
    groups = {title: names.split() for title, names in GROUPS.items()} | {OTHERS: []}
    grouped = {name for names in groups.values() for name in names}
    others: dict[str, list[str]] = {title: [] for title in FOREIGN.values()}
    for kind in kinds:
        for name in (field.name for field in fields(kind) if field.name not in grouped):
            owner = _declarer(reversed(kind.__mro__), name)  # whoever else gives it a text of its own
            (groups[OTHERS] if owner == PACKAGE else others[FOREIGN[owner]]).append(name)
    return groups, others


def _declarer(classes: Iterable[type], name: str) -> str:
    """Return the package of the first of these classes that declares an option."""
    for base in classes:
        if name in vars(base).get("__annotations__", {}):
            return base.__module__.split(".")[0]
    return PACKAGE  # the command's own


def _look(action: argparse.Action, hint: Any) -> dict[str, Any]:
    """Return what an option's value looks like, and how many there are."""
    choices = "|".join(map(str, action.choices or ()))
    number = next((_METAVARS[kind] for kind in (hint, *get_args(hint)) if kind in _METAVARS), "VALUE")
    is_long = len(list(action.choices or ())) > _MOST_CHOICES
    metavar = action.metavar or ("VALUE" if is_long else choices or number)
    return {"metavar": metavar, "nargs": "+" if action.nargs == "+" else None}


def _written(default: Any) -> Iterator[str]:
    """Yield the default of an option that has one."""
    value = default.value if isinstance(default, Enum) else default
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    if value not in (None, "", {}, argparse.SUPPRESS):
        yield f"(default: {value})".replace("%", "%%")
