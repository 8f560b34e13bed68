"""Every name of TRL's and transformers' inside that this package relies on, in one place.

`GRPOTrainer` is extended by overriding a few of its methods and by reading a few of its attributes. All of them
are listed here and checked at import, so that a TRL release that moves one breaks here, with a clear message,
and nowhere else.
"""

import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import trl
import trl.trainer.utils
from packaging.version import Version
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from trl import GRPOTrainer
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc
from trl.trainer.utils import (
    FusedCausalLMOutput,
    RepeatSampler,
    add_fused_lm_head,
    create_model_from_path,
    get_callable_name,
    get_config_model_id,
    is_async_callable,
    split_pixel_values_by_grid,
    start_event_loop_in_daemon,
)

__all__ = [
    "EnvironmentFactory",
    "FusedCausalLMOutput",
    "JITCheckpointCallback",
    "LoadStateDictConfig",
    "PrefixChange",
    "RepeatSampler",
    "RewardFunc",
    "RolloutFunc",
    "add_fused_lm_head",
    "check",
    "convert_and_load_state_dict_in_model",
    "create_model_from_path",
    "get_callable_name",
    "get_config_model_id",
    "get_model_conversion_mapping",
    "has_float32_forward",
    "is_async_callable",
    "prepare_deepspeed",
    "prepare_fsdp",
    "split_fused_forward",
    "split_pixel_values_by_grid",
    "start_event_loop_in_daemon",
]

SUPPORTED_TRL = ("1.16.0", "1.17.0")  # from, below

# Methods that SRPOTrainer overrides or calls, with the parameters it relies on.
METHODS: dict[str, tuple[str, ...]] = {
    "_prepare_inputs": ("self", "generation_batch"),
    "_generate": ("self", "prompts"),
    "_generate_and_score_completions": ("self", "inputs"),
    "_tokenize_prompts": ("self", "prompts"),
    "_get_per_token_logps_and_entropies": ("self", "model", "input_ids"),
    "get_eval_dataloader": ("self", "eval_dataset"),
    "get_test_dataloader": ("self", "test_dataset"),
    "evaluate": ("self", "eval_dataset", "ignore_keys", "metric_key_prefix"),
    "evaluation_loop": (
        "self",
        "dataloader",
        "description",
        "prediction_loss_only",
        "ignore_keys",
        "metric_key_prefix",
    ),
    "prediction_step": ("self", "model", "inputs", "prediction_loss_only", "ignore_keys"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_log_completion_extra": ("self", "column", "values"),
    "compute_loss": ("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
    "_compute_loss": ("self", "model", "inputs"),
    "_get_train_sampler": ("self", "dataset"),
    "get_batch_samples": ("self", "epoch_iterator", "num_batches", "device"),
    "training_step": ("self", "model", "inputs", "num_items_in_batch"),
    "_get_grad_norm": ("self", "model", "grad_norm"),
    "log": ("self", "logs", "start_time"),
    "train": ("self", "resume_from_checkpoint"),
    "_run_epoch": (
        "self",
        "model",
        "epoch",
        "train_dataloader",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "trial",
        "ignore_keys_for_eval",
        "start_time",
        "resume_from_checkpoint",
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ),
    "_finalize_training": ("self", "trial", "num_train_samples", "start_time"),
    "_save_checkpoint": ("self", "model", "trial"),
    "create_model_card": ("self", "model_name", "dataset_name", "tags"),
    "_get_output_dir": ("self", "trial"),
    "_push_from_checkpoint": ("self", "checkpoint_folder"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "_load_best_model": ("self",),
    "_issue_warnings_after_load": ("self", "load_result"),
    "_maybe_log_save_evaluate": ("self", "tr_loss", "grad_norm", "model", "trial"),
}

# Attributes that GRPOTrainer sets and SRPOTrainer reads or writes; looked for in the source of its methods.
ATTRIBUTES = (
    "_step",
    "_buffered_inputs",
    "_metrics",
    "_pending_extra_logs",
    "mask_truncated_completions",
    "_logs",
    "_tokenizer",
    "_is_vlm",
    "_env_tools",
    "_batch_environments",
    "chat_template",
    "chat_template_kwargs",
    "current_gradient_accumulation_steps",
    "environment_factories",
    "environments",
    "eos_token_ids",
    "generation_config",
    "max_completion_length",
    "num_generations",
    "num_generations_eval",
    "reward_func_names",
    "reward_funcs",
    "reward_weights",
    "temperature",
    "tools",
    "top_p",
    "use_transformers_continuous_batching",
    "use_vllm",
    "vllm_generation",
    "vllm_importance_sampling_correction",
)

# Keys of the batch that GRPOTrainer._generate_and_score_completions returns and _compute_loss reads.
BATCH_KEYS = (
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "completion_mask",
    "num_items_in_batch",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
    "tool_mask",
    "pixel_values",
    "image_grid_thw",
    "image_position_ids",
    "image_sizes",
    "pixel_attention_mask",
    "spatial_shapes",
    "token_type_ids",
    "mm_token_type_ids",
    "num_images",
)

# Variables that the functions of TRL's heads hold from where they were made.
_REPLACED_FORWARD = (
    "original_forward"  # of the forward with a fused LM head: the bound method in whose place it is
)
_CAST_HEAD = "lm_head"  # of the forward of a head in float32: the module itself

# Names that the forward with a fused LM head looks up in its module.
_TAKES_LABELLED = "_use_triton"  # whether only the labelled positions go through the head, by device
_SCORING = "_ChunkedLogProbFunction"  # from hidden states and head to log-probabilities: an autograd function
_SCORING_PARAMETERS = ("ctx", "hidden", "weight", "bias")

# Devices that run tensors of any shape as they come. On others (Neuron, XLA) a new shape is compiled anew.
_EAGER_DEVICES = ("cpu", "cuda", "mps", "xpu")


class FusedForward(NamedTuple):
    """What a forward with TRL's fused LM head is made of.

    Attributes:
        fused: the function; takes the model, and is to be called with `fused_lm_head=True`.
        labelled: the same, in which only the positions with a label go through the head, on every device that runs
            tensors of any shape; TRL's does so with Triton alone. Where there is no label at all, the head takes no
            part in the graph, and the backbone does.
        replaced: the bound forward that TRL calls without this argument.
    """

    fused: Callable[..., Any]
    labelled: Callable[..., Any]
    replaced: Callable[..., Any]


class _ScoringOfAny:
    """Stands for TRL's autograd function where there may be no position to score."""

    @staticmethod
    def apply(hidden_ND: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
        """Score N positions; of none, TRL's backward would make zeros of the head's size."""
        # ZeRO-3 gathers the head once more in the backward, on all ranks or none.
        if not len(hidden_ND) and not hasattr(weight, "ds_id"):
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        return getattr(trl.trainer.utils, _SCORING).apply(hidden_ND, weight, bias, *rest)


def _is_eager(device: torch.device) -> bool:
    return device.type in _EAGER_DEVICES


def split_fused_forward(method: Any) -> FusedForward | None:
    """Return the parts of a forward that `add_fused_lm_head` made, whose functions hold no model; None of another."""
    function = getattr(method, "__func__", None)
    code = getattr(function, "__code__", None)
    if function is None or code is None or code not in _codes_within(add_fused_lm_head):
        return None
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    replaced = cells[_REPLACED_FORWARD].cell_contents
    cells[_REPLACED_FORWARD] = types.CellType(None)

    def with_names(names: dict[str, Any]) -> Callable[..., Any]:
        fused = types.FunctionType(
            code, names, function.__name__, function.__defaults__, tuple(cells.values())
        )
        fused.__kwdefaults__ = function.__kwdefaults__
        return fused

    own = {_TAKES_LABELLED: _is_eager, _SCORING: _ScoringOfAny}
    return FusedForward(
        with_names(function.__globals__), with_names({**function.__globals__, **own}), replaced
    )


def has_float32_forward(head: nn.Module) -> bool:
    """Return whether `cast_lm_head_to_fp32` has replaced the head's forward by a function that holds the module."""
    forward = vars(head).get("forward")
    return forward is not None and getattr(forward, "__code__", None) in _float32_codes()


def _codes_within(function: Any) -> list[types.CodeType]:
    """Return the code of a function's inner functions, at any depth."""
    found, left = [], [inspect.unwrap(function).__code__]
    while left:
        inner = [const for const in left.pop().co_consts if isinstance(const, types.CodeType)]
        found += inner
        left += inner
    return found


def _float32_codes() -> list[types.CodeType]:
    return [code for code in _codes_within(GRPOTrainer.__init__) if code.co_freevars == (_CAST_HEAD,)]


def _problems_of_fused_head() -> list[str]:
    """Return what has moved in the forward with a fused LM head."""
    forwards = [code for code in _codes_within(add_fused_lm_head) if _REPLACED_FORWARD in code.co_freevars]
    if not forwards:
        return [f"add_fused_lm_head keeps no {_REPLACED_FORWARD!r}"]
    problems = [
        f"add_fused_lm_head's forward uses no {name!r}"
        for name in (_TAKES_LABELLED, _SCORING)
        if not any(name in code.co_names for code in forwards)
    ]
    scoring = getattr(trl.trainer.utils, _SCORING, None)
    if not problems and tuple(inspect.signature(scoring.forward).parameters)[:4] != _SCORING_PARAMETERS:  # type: ignore[union-attr]
        problems.append(f"{_SCORING} does not take {_SCORING_PARAMETERS}")
    return problems


# Names of transformers that it renamed in 5.24. TRL 1.16 and PEFT use the old ones, whatever their options are.
_RENAMED = r"`(is_gradient_checkpointing|gradient_checkpointing_(en|dis)able)` is deprecated"
warnings.filterwarnings("ignore", message=_RENAMED, category=FutureWarning)


def check() -> None:
    """Raise ImportError, naming what moved, unless the installed TRL has every seam this package relies on."""
    low, high = map(Version, SUPPORTED_TRL)
    problems = []
    if not low <= Version(trl.__version__) < high:
        problems.append(f"TRL {trl.__version__} is outside the supported range >={low},<{high}")
    for name, parameters in METHODS.items():
        method = getattr(GRPOTrainer, name, None)
        if method is None:
            problems.append(f"GRPOTrainer.{name} is gone")
            continue
        found = tuple(inspect.signature(method).parameters)
        if parameters != ("self",):  # what is called with nothing must take nothing; others may take more
            found = found[: len(parameters)]
        if found != parameters:
            problems.append(f"GRPOTrainer.{name} takes {found}, expected {parameters}")
    source = inspect.getsource(GRPOTrainer)
    problems += [f"GRPOTrainer sets no self.{name}" for name in ATTRIBUTES if f"self.{name}" not in source]
    problems += [f"GRPOTrainer's batch has no {key!r}" for key in BATCH_KEYS if f'"{key}"' not in source]
    if "fused_lm_head=True" not in source:
        problems.append("GRPOTrainer does not call its fused LM head")
    problems += _problems_of_fused_head()
    if not _float32_codes():
        problems.append(f"cast_lm_head_to_fp32 gives the LM head no forward that keeps {_CAST_HEAD!r}")
    if problems:
        raise ImportError(
            "srpo_trl does not fit the installed TRL:\n- "
            + "\n- ".join(problems)
            + f"\nInstall TRL >={low},<{high} with these seams, or a newer srpo-trl."
        )


check()
