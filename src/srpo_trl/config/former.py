"""Options of older files that mean the same today: they are taken under today's name, with a word about it.

`srpo_trl.config.renamed` says what to do about all others.
"""

from collections.abc import Mapping
from typing import Any

from srpo_trl.config.renamed import FORMER, RENAMED, REPLACED

ANY = "any"  # value
NONE = ("none", "null")
SHARE = "warmup_ratio"  # of the run's steps, which warmup_steps takes, too, below 1
SECRETS = ("token", "key", "secret", "password")  # ends of names whose values no log may hold

# Values of removed options, as text in lower case, that ask for nothing else than what happens today.
IDLE: dict[str, Any] = {
    "overwrite_output_dir": ANY,
    "fp16_opt_level": ANY,  # of Apex alone
    "half_precision_backend": ("auto", "cuda_amp"),
    "fp16_backend": ("auto", "amp"),
    **dict.fromkeys(("save_safetensors", "use_mps_device", "vllm_enable_prefix_caching"), ("true",)),
    **dict.fromkeys(
        ("tpu_metrics_debug", "use_legacy_prediction_loop", "use_ipex", "jit_mode_eval"), ("false",)
    ),
    **dict.fromkeys(
        ("adafactor", "group_by_length", "include_inputs_for_metrics", "use_liger_loss"), ("false",)
    ),
    **dict.fromkeys(("split_batches", "include_tokens_per_second", "use_auth_token"), ("false",)),
    **dict.fromkeys(("push_to_hub_revision", "overwrite_hub_revision"), ("false",)),
    **dict.fromkeys(("callbacks", "benchmarks", "sharded_ddp", "mp_parameters"), ("", "[]")),
    "past_index": ("-1",),
    "ray_scope": ("last",),
    "fsdp_min_num_params": ("0",),
    "vllm_dtype": ("auto",),
}


def taken_over(values: Mapping[str, Any], known: set[str]) -> tuple[dict[str, Any], list[str]]:
    """Return what former options among `values` are called and are today, and a line about each.

    Args:
        values: options by name, as a file or, as text, a command line gives them.
        known: the options there are.
    Returns:
        The values with today's names, without those that change nothing; and what to tell. An option that is given
        under both of its names keeps them.
    """
    result, notices = {}, []
    for name, value in values.items():
        new = FORMER.get(name)
        if name in known or not (new or name in RENAMED or name in REPLACED or name in IDLE):
            result[name] = value
        elif _is_idle(name, value):
            notices.append(f"{_shown(name, value)} changes nothing any more: leave it out.")
        elif name == SHARE and new in values and _is_share(value) and float(value) == 0:
            notices.append(f"{name}={value!r} changes nothing beside {new}: leave it out.")
        elif new is None or new in values or (name == SHARE and not _is_share(value)):
            result[name] = value  # refused, with its remedy
        else:
            result[new] = value
            notices.append(f"{name} is called {new} now: taken as {_shown(new, value)}.")
    return result, notices


def _is_idle(name: str, value: Any) -> bool:
    return IDLE.get(name) is ANY or str(value).lower() in (*NONE, *IDLE.get(name, ()))


def _shown(name: str, value: Any) -> str:
    return name if name.endswith(SECRETS) else f"{name}={value!r}"


def _is_share(value: Any) -> bool:
    try:
        return 0 <= float(value) < 1
    except (TypeError, ValueError):
        return False
