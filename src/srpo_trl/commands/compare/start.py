"""Whether runs can be compared: one model, one data set, one evaluation, and no leftovers of other options."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from srpo_trl.commands.train import Training

OPTIONS_FILE = "options.json"

# What the score of an untrained variant depends on; with every option of `SRPOConfig` that speaks of evaluation.
START = (
    *("model_name_or_path", "model_revision", "benchmark", "data_dir", "dataset_name", "dataset_config"),
    *("dataset_train_split", "dataset_test_split", "max_train_rows", "max_eval_rows", "reward_funcs"),
    *("datasets", "streaming", "test_split_size", "dataset_streaming", "reward_model_name_or_path"),
    *("reward_weights", "top_k", "max_completion_length", "chat_template_kwargs"),
)
# What is set for each run, or depends on where and when it is made.
OF_ONE_RUN = (
    *("output_dir", "logging_dir", "run_name", "seed", "resume_from_checkpoint", "max_training_time"),
    *("local_rank", "deepspeed_plugin", "hub_token"),
)


def options_of(training: Training) -> dict[str, Any]:
    """Return every option that a run's result may depend on, but its seed."""
    values: dict[str, Any] = {}
    for part in (training.model_config, training.config, training.script):
        values |= {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {name: value for name, value in values.items() if name not in OF_ONE_RUN}


def start_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a run's options that make its start, its data and its evaluation."""
    evaluation = [name for name in options if name.startswith("eval_") or name.endswith("_eval")]
    return {name: options[name] for name in dict.fromkeys((*START, *evaluation))}


def different_starts(starts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield every option of `start_of` that is not the same in all variants, with its values."""
    for option, values in differing(starts).items():
        given = ", ".join(f"{value!r} in {name}" for name, value in values.items())
        yield f"{option} must be the same in all variants, and is {given}."


def differing(options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the options that are not the same in all variants, each with its value by variant."""
    names = dict.fromkeys(name for values in options.values() for name in values)
    by_option = {name: {variant: values.get(name) for variant, values in options.items()} for name in names}
    return {name: values for name, values in by_option.items() if len({repr(v) for v in values.values()}) > 1}


def options_text(options: Mapping[str, Any]) -> str:
    """Return the options as text that tells two sets of them apart."""
    return json.dumps(options, indent=1, sort_keys=True, default=str) + "\n"


def changed_since_start(folder: Path, options: str) -> Iterator[str]:
    """Yield what differs where an earlier call has begun a run in `folder` with other options."""
    path = folder / OPTIONS_FILE
    if path.is_file():
        then, now = json.loads(path.read_text(encoding="utf-8")), json.loads(options)
        names = ", ".join(name for name in sorted(now) if name in then and then[name] != now[name])
        if names:
            yield f"{folder} was begun with other values of {names}: give another --output_dir, or delete it."
