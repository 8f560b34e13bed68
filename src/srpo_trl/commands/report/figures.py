"""Every figure of the report as data: its panels, their metrics and units, and how it is read."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Panel:
    """One pair of axes with a line per run.

    Attributes:
        metric: that is drawn.
        title: above the axes.
        unit: of the vertical axis.
        against: what the horizontal axis counts.
        is_share: the values lie between 0 and 1.
        from_zero: the vertical axis starts at 0, so that small changes look small.
        spread: metric whose value is drawn as a band on either side.
        is_optional: left out where no run has it, or it is 0 everywhere.
    """

    metric: str
    title: str
    unit: str
    against: Literal["steps", "time"] = "steps"
    is_share: bool = False
    from_zero: bool = False
    spread: str | None = None
    is_optional: bool = False


@dataclass(frozen=True)
class FigureSpec:
    """A figure.

    Attributes:
        name: of its files.
        title: of its section.
        panels: in reading order.
        reading: how it is read, in plain sentences.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    reading: str


def _share(metric: str, title: str, *, is_optional: bool = False) -> Panel:
    return Panel(metric, title, "share", is_share=True, is_optional=is_optional)


def accuracy_figure(name: str, title: str, metric: str, reading: str) -> FigureSpec:
    """Return a metric against steps and against seconds of training, with its standard error where it has one."""
    error = f"{metric}_stderr"
    panels = (
        Panel(metric, "over steps", metric, spread=error),
        Panel(metric, "over training time", metric, against="time", spread=error),
    )
    return FigureSpec(name, title, panels, reading)


FIGURES = (
    FigureSpec(
        "evaluation",
        "Evaluated completions",
        (
            _share("eval_format_rate", "written as the prompt asks", is_optional=True),
            _share("eval_completions/clipped_ratio", "cut at the limit", is_optional=True),
            _share("eval_completions/repeated_ratio", "repeated within a completion", is_optional=True),
            Panel("eval_completions/mean_length", "mean length", "tokens", from_zero=True, is_optional=True),
        ),
        "How held-out answers are written. A format that breaks, or answers that grow or repeat themselves, can come "
        "before accuracy falls, and training rewards may not show it.",
    ),
    FigureSpec(
        "routes",
        "Routes",
        (
            _share("srpo/route/distilled_frac", "distilled"),
            _share("srpo/route/policy_frac", "trained by GRPO"),
            _share("srpo/route/both_frac", "trained by both branches", is_optional=True),
            _share("srpo/route/skipped_frac", "excluded from the loss", is_optional=True),
            _share("srpo/correct_frac", "correct, at training temperature"),
            _share("srpo/teacher/available_frac", "with something to show, of those that need a teacher"),
            _share("srpo/teacher/earlier_frac", "shown an answer of an earlier step", is_optional=True),
        ),
        "Where each rollout went. With SRPO, failed rollouts that have a correct sibling are distilled and "
        "all others take GRPO's update, so the distilled share falls as the model gets better. A distilled share of "
        "0 from the start means that nothing could be shown to a teacher.",
    ),
    FigureSpec(
        "losses",
        "Losses of the two branches",
        (
            Panel("srpo/loss/policy", "GRPO branch", "nats per token"),
            Panel("srpo/loss/distilled", "distillation branch", "nats per token"),
            Panel("srpo/gradient/policy_norm", "gradient of the GRPO branch", "L2 norm", is_optional=True),
            Panel(
                "srpo/gradient/distilled_norm",
                "gradient of the distillation branch",
                "L2 norm",
                is_optional=True,
            ),
            _share(
                "srpo/gradient/distilled_share",
                "distillation's share of the gradient norms",
                is_optional=True,
            ),
            Panel("grad_norm", "gradient of the whole loss, before clipping", "L2 norm", from_zero=True),
        ),
        "Both branches are divided by the same number of tokens. The value of the GRPO branch says nothing about "
        "progress, since its gradient is that of the advantages; the distillation branch falls as the student "
        "comes to agree with its teacher. Where gradient norms were measured they compare the branches' pull.",
    ),
    FigureSpec(
        "teacher",
        "Teacher and student on distilled tokens",
        (
            Panel("srpo/teacher/entropy", "entropy of the teacher", "nats", from_zero=True),
            Panel("srpo/distillation/student_entropy", "entropy of the student", "nats", from_zero=True),
            Panel("srpo/distillation/divergence", "divergence between the two", "nats", from_zero=True),
            Panel("srpo/teacher/distance", "relative distance of their weights", "ratio", from_zero=True),
        ),
        "A teacher that has been shown something useful is surer than the student: its entropy lies lower. A "
        "divergence near 0 leaves nothing to learn from the teacher; one that rises says that the student runs away "
        "from it.",
    ),
    FigureSpec(
        "weights",
        "Token weights",
        (
            Panel(
                "srpo/weight/raw_mean",
                "exp(-beta H): mean, and one standard deviation on either side",
                "weight before normalization",
                is_share=True,
                spread="srpo/weight/raw_std",
            ),
            _share("srpo/weight/ess_frac", "effective share of the distilled tokens"),
        ),
        "Tokens of which the teacher is sure weigh more. An effective share of 1 means that all tokens count equally; "
        "near 0, a few tokens carry the whole distillation loss and entropy_weight_beta is too large.",
    ),
    FigureSpec(
        "lengths",
        "Lengths",
        (
            Panel("completions/mean_length", "completions, mean", "tokens", from_zero=True),
            Panel("completions/max_length", "completions, longest", "tokens", from_zero=True),
            _share("completions/clipped_ratio", "completions that were cut at the limit"),
            Panel("srpo/teacher/prompt_length", "teacher prompts, mean", "tokens", from_zero=True),
        ),
        "A cut share that rises with the length says that answers no longer fit max_completion_length.",
    ),
    FigureSpec(
        "time",
        "Time by phase",
        (
            Panel("step_time", "whole optimizer step", "seconds", from_zero=True),
            Panel("srpo/seconds/generation", "generation", "seconds per rollout batch", from_zero=True),
            Panel("srpo/seconds/rewards", "rewards", "seconds per rollout batch", from_zero=True),
            Panel(
                "srpo/seconds/teacher",
                "routing and teacher pass",
                "seconds per rollout batch",
                from_zero=True,
            ),
            Panel(
                "srpo/seconds/loss",
                "forward and backward",
                "seconds per optimizer step",
                from_zero=True,
            ),
        ),
        "Read off the clock without waiting for the device, so on a GPU a phase's last kernels may count in the "
        "next phase. The teacher's time falls with the distilled share.",
    ),
    FigureSpec(
        "memory",
        "Peak memory",
        (
            Panel(
                "srpo/memory/peak_gb", "since the start of the process, largest process", "GB", from_zero=True
            ),
        ),
        "On a GPU what torch held in tensors, else the resident memory of the process.",
    ),
)
