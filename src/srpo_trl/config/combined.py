"""What can be wrong with inherited options together, or with what is inside one that is a dictionary or a text.

Each rule names the options that it reads, and is left out where one of them is wrong by itself.
"""

import json
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import SchedulerType, get_scheduler

from srpo_trl.config.option_types import is_of

if TYPE_CHECKING:
    from srpo_trl.config import SRPOConfig

SET_BY_TRL = ("tools", "chat_template", "add_generation_prompt", "tokenize", "return_dict")


def combined_problems(config: "SRPOConfig", wrong: Collection[str]) -> Iterator[str]:
    """Yield every problem that the rules find.

    Args:
        config: its inherited options as given; TRL has derived nothing yet.
        wrong: names of the options that are wrong by themselves.
    """
    for reads, problems in RULES:
        if not set(reads) & set(wrong):
            yield from problems(config)


def _steps(config: "SRPOConfig") -> Iterator[str]:
    if config.max_steps != -1 and config.max_steps < 1:
        yield f"max_steps={config.max_steps!r} must be at least 1, or -1 to train for num_train_epochs."


def _intervals(kind: str) -> Callable[["SRPOConfig"], Iterator[str]]:
    def problems(config: "SRPOConfig") -> Iterator[str]:
        steps, strategy = getattr(config, f"{kind}_steps"), getattr(config, f"{kind}_strategy")
        if strategy == "steps" and steps <= 0:
            yield f"{kind}_steps={steps!r} must be above 0. To switch it off, set {kind}_strategy='no'."

    return problems


def _top_k(config: "SRPOConfig") -> Iterator[str]:
    if config.top_k < (-1 if config.use_vllm else 0):
        yield f"top_k={config.top_k!r} must be at least 0. 0 keeps all tokens."


def _reference_model(config: "SRPOConfig") -> Iterator[str]:
    if config.sync_ref_model and config.beta == 0.0:
        yield "sync_ref_model=True has no reference model to move with beta=0. Give beta above 0, or leave it out."


def _workers(config: "SRPOConfig") -> Iterator[str]:
    for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
        if config.dataloader_num_workers == 0 and getattr(config, name):
            yield f"{name}={getattr(config, name)!r} needs dataloader_num_workers of at least 1."


def _padding(config: "SRPOConfig") -> Iterator[str]:
    multiple = config.pad_to_multiple_of  # from the command line a text, whatever it is
    is_word = isinstance(multiple, str) and multiple.lower() in ("auto", "none", "null")
    if isinstance(multiple, str) and not is_word and not (multiple.isdecimal() and int(multiple)):
        yield f"pad_to_multiple_of={multiple!r} must be a whole number of at least 1, 'auto' or None."


def _optimizer(config: "SRPOConfig") -> Iterator[str]:
    if config.optim_args and not all(pair.count("=") == 1 for pair in config.optim_args.split(",")):
        yield f"optim_args={config.optim_args!r} must be 'name=value,name=value'."


def _chat_template(config: "SRPOConfig") -> Iterator[str]:
    given = _dictionary(config.chat_template_kwargs)
    taken = [name for name in SET_BY_TRL if name in given]
    if taken:
        yield f"chat_template_kwargs has {', '.join(taken)}, which TRL itself passes to the template. Leave them out."


def _generation(config: "SRPOConfig") -> Iterator[str]:
    given = _dictionary(config.generation_kwargs)
    if given.get("num_return_sequences", 1) != 1:
        yield "generation_kwargs has num_return_sequences. Set num_generations, and leave it out."


def _schedule(config: "SRPOConfig") -> Iterator[str]:
    """Make the schedule on trial: it checks its own arguments, but is made after the model is loaded."""
    given = _dictionary(config.lr_scheduler_kwargs)
    name = SchedulerType(config.lr_scheduler_type)
    # A learning rate that is wrong itself is named elsewhere, and hides nothing here.
    given_rate: Any = config.learning_rate
    rate = given_rate if is_of(given_rate, float) and given_rate >= 0 else 1.0
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    try:
        get_scheduler(
            name, optimizer, num_warmup_steps=0, num_training_steps=1, scheduler_specific_kwargs=given
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        yield (
            f"lr_scheduler_type={name.value!r} does not go with lr_scheduler_kwargs={given!r} and "
            f"learning_rate={config.learning_rate!r}: {error}"
        )


def _dictionary(value: dict | str | None) -> dict[str, Any]:
    """Return an option's dictionary; on the command line it is JSON text."""
    return json.loads(value) if isinstance(value, str) else value or {}


RULES: tuple[tuple[tuple[str, ...], Callable[["SRPOConfig"], Iterator[str]]], ...] = (
    (("max_steps",), _steps),
    (("logging_steps", "logging_strategy"), _intervals("logging")),
    (("save_steps", "save_strategy"), _intervals("save")),
    (("top_k", "use_vllm"), _top_k),
    (("sync_ref_model", "beta"), _reference_model),
    (
        ("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_multiprocessing_context"),
        _workers,
    ),
    (("pad_to_multiple_of",), _padding),
    (("optim_args",), _optimizer),
    (("chat_template_kwargs",), _chat_template),
    (("generation_kwargs",), _generation),
    (("lr_scheduler_type", "lr_scheduler_kwargs"), _schedule),
)
