"""Every option of SRPO, with its default, its reason and its valid range.

`SRPOConfig` adds SRPO's options to `trl.GRPOConfig`. All problems of a configuration are reported in one
`ValueError` at construction, before any model is loaded.
"""

import functools
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, get_type_hints

from trl import GRPOConfig

from srpo_trl.config.defaults import choose_evaluation, resolved_defaults, set_implied
from srpo_trl.config.from_grpo import FromGRPO
from srpo_trl.config.inherited import ANNOTATIONS, INHERITED_RULES, TRL_ERRORS, inherited_problems
from srpo_trl.config.method import make_method, method_arguments
from srpo_trl.config.ranges import (
    DifferentOf,
    Fields,
    OptionMetadata,
    Range,
    above,
    at_least,
    option,
    rule_problems,
    value_problems,
)
from srpo_trl.config.renamed import explains_unknown_options
from srpo_trl.config.rules import DERIVED_RULES, RULES
from srpo_trl.config.teachers import named_models, read_columns
from srpo_trl.methods import DEFAULT, METHODS
from srpo_trl.methods.record import Method
from srpo_trl.methods.routers import ROUTERS

REPROMPT_TEMPLATE = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
SOLUTION_TEMPLATE = "\nCorrect solution:\n\n{successful_previous_attempt}"
FEEDBACK_TEMPLATE = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}"

TEACHER_SOURCES = ("sibling", "feedback", "sibling+feedback", "reference", "earlier")
TEMPERATURES = 1e-4, 1e4  # logits are divided by them in float32
MAX_ENTROPY_WEIGHT_BETA = 50.0  # exp(-beta * H) stays a normal float64 for a million tokens of vocabulary


@explains_unknown_options
@dataclass
class SRPOConfig(FromGRPO, GRPOConfig):
    """Configuration of `SRPOTrainer`: `trl.GRPOConfig` plus the method, self-distillation and the teacher.

    Defaults of the method are the paper's (SRPO, arXiv:2604.02288, table 3). Inherited options whose default differs
    from TRL's: `num_generations_eval` 16, `epsilon_high` 0.28, `scale_rewards` `"none"`, `learning_rate` 5e-6, and,
    where vLLM samples, `vllm_importance_sampling_mode` `"token_truncate"` with `vllm_importance_sampling_clip_max` 2.
    With `method="grpo"` they are TRL's, and the extras of `srpo_trl.methods` are off unless given.

    `dataclasses.replace` makes what these options and the replaced ones would have made in the first place: what
    follows from other options is derived anew.

    Attributes:
        defaulted: names of the options that were None and got the default of the method.
        derived: values as they were given and as they are now, of the options that differ.

    Raises:
        TypeError: a keyword that is no option, with what became of it.
        ValueError: one message with every problem found, what is required, and what to do.
    """

    # Inherited options whose defaults SRPO changes
    learning_rate: float | None = option(  # type: ignore[assignment]
        None, "Initial learning rate of AdamW. None: 5e-6 (SRPO, table 3); TRL's with 'grpo'."
    )
    epsilon_high: float | None = option(
        None, "Upper clip of the policy ratio. None: 0.28 (DAPO; SRPO, section 3.3); TRL's with 'grpo'."
    )
    scale_rewards: str | None = option(  # type: ignore[assignment]
        None,
        "'none' (Dr. GRPO), 'group' or 'batch': what advantages are divided by. None: 'none', as in the paper; TRL's "
        "with 'grpo'.",
    )
    vllm_importance_sampling_mode: str | None = option(  # type: ignore[assignment]
        None,
        "How vLLM's importance ratio is bounded. None: 'token_truncate', the paper's; TRL's with 'grpo'.",
    )
    vllm_importance_sampling_clip_max: float | None = option(
        None, "Upper bound of vLLM's importance ratio. None: the paper's 2; TRL's with 'grpo'."
    )
    num_generations_eval: int | None = option(
        None, "Samples of each question in an evaluation. None: the paper's 16; TRL's with 'grpo'."
    )

    # Method
    method: str = field(
        default=DEFAULT,
        metadata={
            "help": " ".join(f"'{name}': {entry.help}" for name, entry in METHODS.items())
            + " Or your own, as 'module:factory'."
        },
    )
    method_options: dict[str, Any] | str | None = field(
        default_factory=dict,
        metadata={"help": "Keyword arguments of the method's factory; JSON on the command line."},
    )
    routing: str | None = field(
        default=None,
        metadata={
            "help": f"Router that replaces the method's own: {', '.join(map(repr, ROUTERS))}. None: its own."
        },
    )
    advantage_mix_lambda: float = option(
        0.9, "Weight of the policy loss in the advantage mix, in [0, 1].", Range(0.0, 1.0)
    )
    success_reward_threshold: float = option(0.5, "A rollout is correct when its reward >= this threshold.")
    correctness_reward: str | None = option(
        None,
        "Name of the one reward function whose unweighted score is compared with the threshold. "
        "None: the weighted sum of all reward functions.",
    )

    resample_failed_frac: float = option(
        0.0,
        "Largest fraction of a rollout batch's prompts that may be resampled because their whole group "
        "failed. They replace prompts at the end of the epoch. 0: none.",
        Range(0.0, 1.0),
    )

    # Distillation
    distillation_alpha: float = option(
        0.5,
        "0: forward KL(teacher || student), 1: reverse KL, between: generalized Jensen-Shannon.",
        Range(0.0, 1.0),
    )
    distillation_topk: int | None = option(
        100, "Support: the student's top K tokens. None: the full vocabulary.", at_least(1)
    )
    distillation_add_tail: bool = option(
        True, "One more bucket with the mass outside the top K. False: renormalize the top K."
    )
    distillation_estimator: Literal["exact", "sampled"] = option(
        "exact",
        "'exact': a divergence over the support. 'sampled': the reverse KL's estimate on the "
        "sampled token alone (needs distillation_alpha=1).",
    )
    distillation_is_clip: float | None = option(
        2.0, "Cap of the distillation branch's importance ratio pi_theta / pi_old. None: off.", above(0.0)
    )
    distillation_pointwise_clip: float | None = option(
        None, "Cap of what each entry of the support adds to a token's divergence. None: off.", above(0.0)
    )
    entropy_weight_beta: float | None = option(
        None,
        "Sharpness of the weights exp(-beta * teacher entropy). 0: all weights are 1. None: as the method says, SRPO "
        "1.",
        Range(0.0, MAX_ENTROPY_WEIGHT_BETA),
    )
    distilled_frac_hold_steps: int = option(
        0, "Optimizer steps before the share of distilled rollouts starts to fall.", at_least(0)
    )
    distilled_frac_decay_steps: int | None = option(
        None,
        "Optimizer steps over which the share of rollouts that may be distilled then falls from 1 to 0, "
        "linearly. None: it stays 1.",
        at_least(1),
    )
    distilled_frac_until_accuracy: float | None = option(
        None,
        "Stop distilling once the running mean of srpo/correct_frac has reached this. None: never stop.",
        above(0.0, 1.0),
    )

    # Teacher
    teacher_model_kind: Literal["ema", "base", "live"] = option(
        "ema",
        "Whose weights the teacher has. 'ema': a moving average of the student. 'base': the "
        "student's initial weights. 'live': the student itself.",
    )
    teacher_model: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Teacher that is a model of its own, with the student's tokenizer, for methods that have one: a "
            "folder or hub id, or several by name, as a mapping (JSON on the command line)."
        },
    )
    teacher_column: str | None = option(
        None, "Dataset column that names each row's teacher, where teacher_model has several."
    )
    teacher_update_rate: float = option(
        0.05, "teacher <- (1 - rate) * teacher + rate * student, once per rollout batch.", above(0.0, 1.0)
    )
    teacher_update_interval: int = option(1, "The teacher moves every so many rollout batches.", at_least(1))
    teacher_context: list[str] = field(
        default_factory=lambda: ["sibling"],
        metadata=OptionMetadata(
            range=DifferentOf(TEACHER_SOURCES),
            help="What the teacher is shown: the first available of 'sibling' (a correct rollout "
            "of the same group), 'feedback' (given by a reward function with log_extra('feedback', texts)), "
            "'sibling+feedback' (both, where both exist), 'reference' (see reference_column) and 'earlier' (a "
            "correct answer to the same prompt from an earlier step).",
        ),
    )
    earlier_answers_kept: int = option(
        4096, "Prompts whose newest correct answer is kept for the source 'earlier'.", at_least(1)
    )
    reference_column: str | None = option(
        None, "Dataset column with a reference answer, for the source 'reference'."
    )
    reprompt_template: str = option(
        REPROMPT_TEMPLATE,
        "The teacher's last user turn. Fields: the original prompt, the solution and the feedback.",
        Fields(("prompt", "solution", "feedback")),
    )
    solution_template: str = option(
        SOLUTION_TEMPLATE,
        "How a correct solution is shown to the teacher.",
        Fields(("successful_previous_attempt",)),
    )
    feedback_template: str = option(
        FEEDBACK_TEMPLATE, "How feedback is shown to the teacher.", Fields(("feedback_raw",))
    )
    max_reprompt_length: int = option(
        10240,
        "Longest teacher prompt, in tokens. Longer ones lose the start of the demonstration and "
        "the end of the feedback, never the question, the instruction or the assistant's header.",
        at_least(1),
    )
    remove_thinking_from_demonstration: bool = option(True, "Drop <think> blocks from demonstrations.")

    # Speed and memory
    teacher_tokens_per_pass: int = option(
        16384,
        "Most tokens that one teacher pass holds, padding counted. Longer rollouts go alone. Only "
        "memory and speed depend on it.",
        at_least(1),
    )
    teacher_states_on_cpu: bool = option(
        False,
        "Keep the teacher's hidden states (2 bytes x hidden size per distilled token in bfloat16) in "
        "CPU memory until their micro-batch is trained on.",
    )
    liger_layers: bool = option(
        False,
        "Run the model's normalization, rotary embedding and MLP with Liger's kernels, for student and "
        "teacher (Linux, GPU, architectures that Liger patches).",
    )

    # Evaluation
    eval_temperature: float | None = option(
        None,
        "Sampling temperature of evaluation; training samples at `temperature`. None: 0.6; with 'grpo' "
        "evaluation is GRPOTrainer's unless this, eval_top_p or eval_tokens_per_batch is given.",
        Range(*TEMPERATURES),
    )
    eval_top_p: float | None = option(
        None, "Nucleus of evaluation's sampling; training's is `top_p`. None: 0.95.", above(0.0, 1.0)
    )
    eval_tokens_per_batch: int | None = option(
        None,
        "Most tokens that one evaluation batch of a process holds, each sample counted as its batch's "
        "longest prompt plus max_completion_length. vLLM and continuous batching schedule by themselves: there "
        "everything is one batch. None: 65536.",
        at_least(1),
    )

    # Faults
    max_nonfinite_steps: int | None = option(
        None,
        "Stop the run, with a report, after so many consecutive optimizer steps with a non-finite loss or "
        "gradient. Each of them is skipped. None: 3; with 'grpo' such steps are taken, as in GRPOTrainer.",
        at_least(1),
    )
    reward_timeout: float | None = option(
        None,
        "Seconds that a reward function may take for a batch, in a process of its own; after them its "
        "rollouts have no score. None: no limit.",
        above(0.0, 1e9),
    )

    # Observation
    run_log: bool | None = option(
        None,
        "Log the run's seconds and peak memory, write all logs to log.jsonl in output_dir, for `srpo-trl report`, and "
        "print one line of each. None: yes; with 'grpo' no, and transformers prints all metrics.",
    )
    gradient_share_steps: int | None = option(
        None,
        "Every so many optimizer steps, measure each branch's gradient norm. It costs two more "
        "backward passes on those steps. None: never.",
        at_least(1),
    )
    log_completions_steps: int | None = option(
        None,
        "TRL's table of completions with the first log and every so many optimizer steps after it; switches "
        "log_completions on. None: with every log, where log_completions is on.",
        at_least(1),
    )
    log_examples_steps: int | None = option(
        None,
        "At the first optimizer step and every so many after it, write up to 4 distilled rollouts, token "
        "by token, to examples.jsonl in output_dir, for the examples of `srpo-trl report`. None: never.",
        at_least(1),
    )
    guard_action: (
        Literal["off", "warn", "lower_distillation", "freeze_teacher", "reset_teacher", "stop"] | None
    ) = option(
        None,
        "What the guards (srpo_trl.runs.guards) do when a run goes wrong in a known way: 'warn'; besides, "
        "where it is a remedy, 'lower_distillation' (halve the share of distilled rollouts), 'freeze_teacher', "
        "'reset_teacher' (give it the student's weights) or 'stop'. None: 'warn'; with 'grpo' 'off'.",
    )

    derived: InitVar[Mapping[str, tuple[Any, Any]]] = MappingProxyType({})

    def __post_init__(self, derived: Mapping[str, tuple[Any, Any]]) -> None:
        """Validate SRPO's options and TRL's together."""
        for name, (given, made) in derived.items():
            if getattr(self, name) == made:
                setattr(self, name, given)
        before = self._options()
        self._resolve()
        after = self._options()
        vars(self)["derived"] = {n: (v, after[n]) for n, v in before.items() if v != after[n]}

    def _resolve(self) -> None:
        """Check every option, and give those that follow from others their values."""
        defaults = resolved_defaults(self.method, self._options())
        self.defaulted = frozenset(defaults)
        for name, value in defaults.items():
            setattr(self, name, value)
        choose_evaluation(self)
        set_implied(self)
        problems = []
        try:
            self.method_record  # noqa: B018
            self.method_options = method_arguments(self.method_options)
        except ValueError as error:
            problems += str(error).splitlines()
            self.method_record = METHODS[DEFAULT].factory(0.0)
        annotations, declared = get_type_hints(type(self)), {option.name: option for option in fields(self)}
        of_method = ("method", "method_options", "routing", "teacher_model")  # looked at with the method
        others = {*GRPOConfig.__dataclass_fields__, *of_method}
        own = {name: annotations[name] for name in declared if name not in others}
        ranges = {n: declared[n].metadata["range"] for n in own if "range" in declared[n].metadata}
        values = vars(self) | {"is_routed": not self.method_record.is_plain}
        wrong = value_problems(values, own, ranges)
        wrong_inherited = inherited_problems(values)
        inherited = [*wrong_inherited.values(), *rule_problems(INHERITED_RULES, values, wrong_inherited)]
        # The method is made of own options.
        unusable = {*wrong, *wrong_inherited, *["method_record"] * bool(wrong or problems)}
        problems += [*wrong.values(), *inherited, *rule_problems(RULES, values, unusable)]
        if not inherited:  # TRL computes with these options
            try:
                super().__post_init__()
            except TRL_ERRORS as error:  # TRL stops at its first; report it beside ours
                names_one = any(name in str(error) for name in ANNOTATIONS)
                odd = [] if names_one else value_problems(values, ANNOTATIONS, {}).values()
                problems += odd or [str(error) if names_one else f"GRPOConfig: {error}"]
            else:
                problems += rule_problems(DERIVED_RULES, vars(self), wrong)
        if problems:
            raise ValueError(
                f"SRPOConfig has {len(problems)} problem(s):\n" + "\n".join(f"- {p}" for p in problems)
            )
        for name in ("temperature", "eval_temperature", "repetition_penalty"):
            if getattr(self, name) is not None:  # transformers would refuse a whole number
                setattr(self, name, float(getattr(self, name)))

    def _options(self) -> dict[str, Any]:
        return {option.name: getattr(self, option.name) for option in fields(self) if option.init}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the method, whose functions cannot be pickled; it is made again from the options."""
        return {name: value for name, value in self.__dict__.items() if name != "method_record"}

    @functools.cached_property
    def method_record(self) -> Method:
        """What the trainer executes."""
        inherited = GRPOConfig.__dataclass_fields__
        own = {name: value for name, value in self._options().items() if name not in inherited}
        return make_method(self.method, self.method_options, self.routing, own)

    @property
    def teacher_models(self) -> dict[str, str]:
        """Paths of the external teachers, by name."""
        return named_models(self.teacher_model)

    @property
    def read_columns(self) -> dict[str, str]:
        """Dataset columns that are read beside the prompt, each with what reads it."""
        return read_columns(self.method, self.method_record, self.reference_column, self.teacher_column)

    @property
    def method_name(self) -> str:
        """The method with its options and router, where these are given, as a checkpoint records it."""
        given = {"method_options": self.method_options, "routing": self.routing}
        return ", ".join([self.method, *(f"{name}={value}" for name, value in given.items() if value)])

    @property
    def samples_evaluation(self) -> bool:
        """Whether evaluation draws samples and scores them; else it is GRPOTrainer's."""
        return self.eval_temperature is not None
