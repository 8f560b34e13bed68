"""Names that have changed since the table of rows was written: the only file of this check that a renaming edits."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple


class Option(NamedTuple):
    """What an option became: its name, and its values where they changed, too."""

    name: str
    values: Mapping[Any, Any] = {}


OPTIONS: Mapping[str, Option] = {
    "routing": Option("method"),
    "distillation_mode": Option("distillation_estimator", {"logits": "exact", "sampled_token": "sampled"}),
    "distillation_hold_steps": Option("distilled_frac_hold_steps"),
    "distillation_decay_steps": Option("distilled_frac_decay_steps"),
    "distillation_until_accuracy": Option("distilled_frac_until_accuracy"),
    "redraw_failed_frac": Option("resample_failed_frac"),
    "teacher_states_on_host": Option("teacher_states_on_cpu"),
}

# Metrics, fields of state files and names of files; also the first parts of several, such as "srpo/route".
KEYS: Mapping[str, str] = {
    "srpo/route/grpo_frac": "srpo/route/policy_frac",
    "srpo/route/sdpo_frac": "srpo/route/distilled_frac",
    "srpo/route/mix_frac": "srpo/route/both_frac",
    "srpo/route/skip_frac": "srpo/route/skipped_frac",
    "srpo/loss/grpo": "srpo/loss/policy",
    "srpo/loss/sdpo": "srpo/loss/distilled",
    "srpo/loss/sdpo_share": "srpo/loss/distilled_share",
    "srpo/gradient/grpo_norm": "srpo/gradient/policy_norm",
    "srpo/gradient/sdpo_norm": "srpo/gradient/distilled_norm",
    "srpo/gradient/sdpo_share": "srpo/gradient/distilled_share",
    "distillation_share": "distilled_fraction",  # in srpo_state.json, as the next
    "again": "resampled",
    "srpo/seconds/elapsed": "training_seconds",
}

# The head that buffered rollouts were scored with stands below its scorer's name.
_HEAD = re.compile(r"(srpo_rollouts_rank\d+\.pt/1)(?=(/\d+)?$)")

ROUTES: Mapping[str, str] = {"grpo": "policy", "sdpo": "distilled", "mix": "both", "skip": "skipped"}

_OF_OPTIONS = ("fields/", "options/", "counted_in/")  # parts of a key below which an option's name stands


def options_for(known: Collection[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under the names that a config has: the new one where it lacks the old."""
    translated = {}
    for name, value in options.items():
        new = OPTIONS.get(name)
        if new is None or new.name not in known:
            translated[name] = value
        else:
            translated[new.name] = new.values.get(value, value) if isinstance(value, str) else value
    if (
        "routing" in options and "method" in translated
    ):  # a routing left the weights as they were; a method sets them
        translated.setdefault("entropy_weight_beta", 1.0)
    return translated


def new_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded values with every old name replaced by the new one."""
    renamed = {}
    for key, value in values.items():
        option_key, new_value = _new_option(key, value)
        names = ROUTES if "route" in key else KEYS  # the routes of a table, or a metric in one
        is_name = isinstance(new_value, str) and new_value in names
        renamed[new_key(option_key)] = names[new_value] if is_name else new_value
    return renamed


def new_key(key: str) -> str:
    """Return a key under the new names; itself where no part of it has changed."""
    for old, new in KEYS.items():
        key = re.sub(f"(?<![^/]){re.escape(old)}(?![^/])", lambda _, new=new: new, key)
    return _HEAD.sub(r"\1/teacher", key)


def _new_option(key: str, value: Any) -> tuple[str, Any]:
    for part in _OF_OPTIONS:
        before, found, rest = key.rpartition(part)
        name, separator, deeper = rest.partition("/")
        if found and name in OPTIONS:
            new = OPTIONS[name]
            if isinstance(value, str):
                value = new.values.get(value, value)
            return f"{before}{part}{new.name}{separator}{deeper}", value
    return key, value
