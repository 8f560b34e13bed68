"""Every option of SRPO, with its default, its reason and its valid range.

`SRPOConfig` adds SRPO's options to `trl.GRPOConfig`. All problems of a configuration are reported in one
`ValueError` at construction, before any model is loaded.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

ROUTINGS = ("srpo", "grpo", "sdpo", "sdpo_failed", "sdpo_correct", "advantage_mix")
TEACHER_SOURCES = ("sibling", "feedback", "sibling+feedback", "reference")
JOINT_DENOMINATOR_LOSSES = ("dapo", "cispo", "vespo")
MAX_ENTROPY_WEIGHT_BETA = (
    50.0  # exp(-beta * H) stays a normal float64 for every vocabulary up to a million tokens
)

REPROMPT_TEMPLATE = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
SOLUTION_TEMPLATE = "\nCorrect solution:\n\n{successful_previous_attempt}"
FEEDBACK_TEMPLATE = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}"


@dataclass
class SRPOConfig(GRPOConfig):
    """Configuration of `SRPOTrainer`: `trl.GRPOConfig` plus routing, self-distillation and the teacher.

    Defaults of the method are the paper's (SRPO, arXiv:2604.02288, table 3). Inherited options whose default differs
    from TRL's: `epsilon_high` 0.28, `scale_rewards` `"none"`, `learning_rate` 5e-6, and, where vLLM samples,
    `vllm_importance_sampling_mode` `"token_truncate"` with `vllm_importance_sampling_clip_max` 2.

    Raises:
        ValueError: one message with every problem found, what is required, and what to do.
    """

    # Inherited options whose defaults SRPO changes
    learning_rate: float = field(
        default=5e-6, metadata={"help": "Initial learning rate of AdamW (SRPO, table 3)."}
    )
    epsilon_high: float | None = field(
        default=0.28, metadata={"help": "Upper clip of the policy ratio (DAPO; SRPO, section 3.3)."}
    )
    scale_rewards: str = field(
        default="none",
        metadata={
            "help": "'none' (Dr. GRPO, as in the paper), 'group' or 'batch': what advantages are divided by."
        },
    )
    vllm_importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={"help": "How vLLM's importance ratio is bounded; the paper truncates it token by token."},
    )
    vllm_importance_sampling_clip_max: float | None = field(
        default=2.0, metadata={"help": "Upper bound of vLLM's importance ratio (the paper's 2)."}
    )

    # Routing
    routing: Literal["srpo", "grpo", "sdpo", "sdpo_failed", "sdpo_correct", "advantage_mix"] = field(
        default="srpo",
        metadata={
            "help": "Which rollouts take which branch. 'srpo': correct ones GRPO, failed ones with teacher "
            "information self-distillation, other failed ones GRPO. 'grpo': GRPOTrainer itself. 'sdpo': every "
            "rollout with teacher information is distilled, the rest get no loss. 'sdpo_failed' and "
            "'sdpo_correct': only those. 'advantage_mix': both branches per token, no routing."
        },
    )
    advantage_mix_lambda: float = field(
        default=0.9, metadata={"help": "Weight of the GRPO branch in routing='advantage_mix', in [0, 1]."}
    )
    success_reward_threshold: float = field(
        default=0.5, metadata={"help": "A rollout is correct when its reward >= this threshold."}
    )
    correctness_reward: str | None = field(
        default=None,
        metadata={
            "help": "Name of the one reward function whose unweighted score is compared with the threshold. "
            "None: the weighted sum of all reward functions."
        },
    )

    # Distillation
    distillation_alpha: float = field(
        default=0.5,
        metadata={
            "help": "0: forward KL(teacher || student), 1: reverse KL, between: generalised Jensen-Shannon."
        },
    )
    distillation_topk: int | None = field(
        default=100,
        metadata={"help": "Support: the student's top K tokens. None: the full vocabulary."},
    )
    distillation_add_tail: bool = field(
        default=True,
        metadata={"help": "One more bucket with the mass outside the top K. False: renormalise the top K."},
    )
    distillation_mode: Literal["logits", "sampled_token"] = field(
        default="logits",
        metadata={
            "help": "'logits': a divergence over the support. 'sampled_token': the reverse KL's estimate on the "
            "sampled token alone (needs distillation_alpha=1)."
        },
    )
    distillation_is_clip: float | None = field(
        default=2.0,
        metadata={"help": "Cap of the distillation branch's importance ratio pi_theta / pi_old. None: off."},
    )
    entropy_weight_beta: float = field(
        default=1.0,
        metadata={"help": "Sharpness of the weights exp(-beta * teacher entropy). 0: all weights are 1."},
    )

    # Teacher
    teacher_model_kind: Literal["ema", "base", "live"] = field(
        default="ema",
        metadata={
            "help": "Whose weights the teacher has. 'ema': a moving average of the student. 'base': the "
            "student's initial weights. 'live': the student itself."
        },
    )
    teacher_update_rate: float = field(
        default=0.05,
        metadata={"help": "teacher <- (1 - rate) * teacher + rate * student, once per rollout batch."},
    )
    teacher_context: list[str] = field(
        default_factory=lambda: ["sibling"],
        metadata={
            "help": "What the teacher is shown, first available one first, among 'sibling' (a correct rollout "
            "of the same group), 'feedback' (given by a reward function with log_extra('feedback', texts)), "
            "'sibling+feedback' (both, where both exist) and 'reference' (see reference_column)."
        },
    )
    reference_column: str | None = field(
        default=None, metadata={"help": "Dataset column with a reference answer, for the source 'reference'."}
    )
    reprompt_template: str = field(
        default=REPROMPT_TEMPLATE,
        metadata={
            "help": "The teacher's last user turn. Fields: the original prompt, the solution and the feedback."
        },
    )
    solution_template: str = field(
        default=SOLUTION_TEMPLATE, metadata={"help": "How a correct solution is shown to the teacher."}
    )
    feedback_template: str = field(
        default=FEEDBACK_TEMPLATE, metadata={"help": "How feedback is shown to the teacher."}
    )
    max_reprompt_length: int = field(
        default=10240,
        metadata={
            "help": "Longest teacher prompt, in tokens. Longer ones lose the start of the demonstration and "
            "the end of the feedback, never the question, the instruction or the assistant's header."
        },
    )
    remove_thinking_from_demonstration: bool = field(
        default=True, metadata={"help": "Drop <think> blocks from demonstrations."}
    )

    # Speed and memory
    teacher_tokens_per_pass: int = field(
        default=16384,
        metadata={
            "help": "Most tokens that one teacher pass holds, padding counted. Longer rollouts go alone. Only "
            "memory and speed depend on it."
        },
    )
    teacher_states_on_host: bool = field(
        default=False,
        metadata={
            "help": "Keep the teacher's hidden states (2 bytes x hidden size per distilled token in bfloat16) in "
            "the host's memory until their micro-batch is trained on."
        },
    )
    liger_layers: bool = field(
        default=False,
        metadata={
            "help": "Run the model's normalisation, rotary embedding and MLP with Liger's kernels, for student and "
            "teacher alike (Linux, GPU, architectures that Liger patches)."
        },
    )

    # Observation
    gradient_share_steps: int | None = field(
        default=None,
        metadata={
            "help": "Every so many optimizer steps, measure each branch's gradient norm. It costs two more "
            "backward passes on those steps. None: never."
        },
    )

    def __post_init__(self) -> None:
        """Validate SRPO's options and TRL's together."""
        problems = list(_problems(self))
        try:
            super().__post_init__()
        except ValueError as error:  # TRL stops at its first problem; report it beside ours
            problems.append(str(error))
        else:
            problems += _schedule_problems(self)
        if problems:
            raise ValueError(
                f"SRPOConfig has {len(problems)} problem(s):\n" + "\n".join(f"- {p}" for p in problems)
            )


def _problems(config: SRPOConfig) -> Iterator[str]:
    """Yield every problem of SRPO's own options: what was given, what is required, what to do."""
    yield from _routing_problems(config)
    yield from _distillation_problems(config)
    yield from _teacher_problems(config)
    yield from _template_problems(config)
    if config.routing != "grpo":
        yield from _inherited_problems(config)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> Iterator[str]:
    if value not in allowed:
        yield f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}."


def _in_range(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> Iterator[str]:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (open_low and value == low):  # type: ignore[operator]
        yield f"{name}={value!r} must be a number in {'(' if open_low else '['}{low:g}, {high:g}]."


def _positive_int(name: str, value: object) -> Iterator[str]:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        yield f"{name}={value!r} must be a whole number of at least 1."


def _routing_problems(config: SRPOConfig) -> Iterator[str]:
    yield from _one_of("routing", config.routing, ROUTINGS)
    yield from _in_range("advantage_mix_lambda", config.advantage_mix_lambda, 0.0, 1.0)
    yield from _in_range("success_reward_threshold", config.success_reward_threshold, -1e30, 1e30)
    if config.correctness_reward is not None and not isinstance(config.correctness_reward, str):
        yield (
            f"correctness_reward={config.correctness_reward!r} must be the name of a reward function or None."
        )


def _distillation_problems(config: SRPOConfig) -> Iterator[str]:
    yield from _in_range("distillation_alpha", config.distillation_alpha, 0.0, 1.0)
    if config.distillation_topk is not None:
        yield from _positive_int("distillation_topk", config.distillation_topk)
    if not isinstance(config.distillation_add_tail, bool):
        yield f"distillation_add_tail={config.distillation_add_tail!r} must be true or false."
    yield from _one_of("distillation_mode", config.distillation_mode, ("logits", "sampled_token"))
    if config.distillation_mode == "sampled_token" and config.distillation_alpha != 1.0:
        yield (
            f"distillation_mode='sampled_token' estimates the reverse KL, but distillation_alpha="
            f"{config.distillation_alpha!r}. Set distillation_alpha=1.0, or distillation_mode='logits'."
        )
    if config.distillation_is_clip is not None:
        yield from _in_range("distillation_is_clip", config.distillation_is_clip, 0.0, 1e30, open_low=True)
    yield from _in_range("entropy_weight_beta", config.entropy_weight_beta, 0.0, MAX_ENTROPY_WEIGHT_BETA)
    if config.gradient_share_steps is not None:
        yield from _positive_int("gradient_share_steps", config.gradient_share_steps)


def _teacher_problems(config: SRPOConfig) -> Iterator[str]:
    yield from _one_of("teacher_model_kind", config.teacher_model_kind, ("ema", "base", "live"))
    yield from _in_range("teacher_update_rate", config.teacher_update_rate, 0.0, 1.0, open_low=True)
    yield from _positive_int("max_reprompt_length", config.max_reprompt_length)
    yield from _positive_int("teacher_tokens_per_pass", config.teacher_tokens_per_pass)
    for name in ("teacher_states_on_host", "liger_layers", "remove_thinking_from_demonstration"):
        if not isinstance(getattr(config, name), bool):
            yield f"{name}={getattr(config, name)!r} must be true or false."
    sources = config.teacher_context
    if not isinstance(sources, list) or not sources or len(set(map(str, sources))) != len(sources):
        yield f"teacher_context={sources!r} must be a list of one or more different sources."
        return
    for source in sources:
        yield from _one_of("teacher_context entry", source, TEACHER_SOURCES)
    if ("reference" in sources) != (config.reference_column is not None):
        yield (
            f"teacher_context={sources!r} and reference_column={config.reference_column!r} do not fit: give "
            "both 'reference' in teacher_context and the column's name, or neither."
        )


def _template_problems(config: SRPOConfig) -> Iterator[str]:
    required = {
        "reprompt_template": {"prompt", "solution", "feedback"},
        "solution_template": {"successful_previous_attempt"},
        "feedback_template": {"feedback_raw"},
    }
    for name, fields in required.items():
        template = getattr(config, name)
        if not isinstance(template, str):
            yield f"{name}={template!r} must be a string."
            continue
        missing = sorted(f for f in fields if template.count(f"{{{f}}}") != 1)
        if missing:
            yield f"{name} must contain each of {', '.join(f'{{{f}}}' for f in missing)} exactly once."
        unknown = sorted(set(re.findall(r"\{(\w+)\}", template)) - fields)
        if unknown:
            yield f"{name} has unknown fields {', '.join(f'{{{f}}}' for f in unknown)}."


def _inherited_problems(config: SRPOConfig) -> Iterator[str]:
    if config.loss_type not in JOINT_DENOMINATOR_LOSSES:
        yield (
            f"loss_type={config.loss_type!r} has no joint token denominator over an optimizer step, which "
            f"routing={config.routing!r} needs. Use one of {', '.join(map(repr, JOINT_DENOMINATOR_LOSSES))}, or "
            "routing='grpo'."
        )
    yield from _in_range("temperature", config.temperature, 0.0, 1e30, open_low=True)
    if config.loss_type == "cispo" and (config.epsilon_high or 0.0) < 1.0:
        yield (
            f"epsilon_high={config.epsilon_high!r} caps CISPO's ratio itself, which is 1 on-policy. Give one of at "
            "least 1 (5 is usual), or another loss_type."
        )


def _schedule_problems(config: SRPOConfig) -> Iterator[str]:
    """Yield problems of values that TRL has derived from others by now."""
    assert config.steps_per_generation is not None
    steps, accumulation = (
        config.steps_per_generation * config.num_iterations,
        config.gradient_accumulation_steps,
    )
    is_aligned = steps % accumulation == 0 or accumulation % steps == 0
    if config.teacher_model_kind == "live" and config.routing != "grpo" and not is_aligned:
        yield (
            f"teacher_model_kind='live' with steps_per_generation * num_iterations = {steps} and "
            f"gradient_accumulation_steps={accumulation}: an optimizer step would hold rollouts of two live teachers. "
            "Let one of the two numbers divide the other, or take another teacher."
        )
