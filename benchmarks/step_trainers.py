"""The trainers that `benchmarks.step` compares, each with a stopwatch, and what they are made from."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from benchmarks.common import random_qwen3
from benchmarks.measure import seconds
from benchmarks.step_rollouts import Case, Replay, first_letter, questions
from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.data.smoke_model import build_byte_tokenizer
from srpo_trl.methods import PAPER_DEFAULTS

TRL_GRPO, TRL_SDPO = "TRL GRPO", "TRL SDPO"
# The seconds of an optimizer step, each counted in one part alone.
ROLLOUTS, TEACHER, PASSES, UPDATE, REST = "rollouts", "teacher", "forward, backward", "update", "rest"
PARTS = (ROLLOUTS, TEACHER, PASSES, UPDATE, REST)

_GRPO_FIELDS = GRPOConfig.__dataclass_fields__.keys()


class Stopwatch(TrainerCallback):
    """Seconds of each optimizer step by part, from the end of one step to the end of the next.

    Attributes:
        steps: of each step, seconds by part.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps: list[dict[str, float]] = []
        self._device = device
        self._open = [REST]
        self._last = seconds(device)
        self._now: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's seconds for this part, and for no part around it."""
        self._begin(name)
        try:
            yield
        finally:
            self._end()

    def _begin(self, name: str) -> None:
        self._charge()
        self._open.append(name)

    def _end(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = seconds(self._device)
        self._now[self._open[-1]] += now - self._last
        self._last = now

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin(UPDATE)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Come after the callbacks that update a teacher."""
        self._end()
        self.steps.append({name: self._now[name] for name in PARTS})
        self._now = defaultdict(float)


class _Timed:
    """A trainer whose parts are timed."""

    watch: Stopwatch

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.watch.part(PASSES):
            return super().training_step(*args, **kwargs)  # type: ignore[misc]

    def _prepare_inputs(self, *args: Any) -> Any:
        with self.watch.part(ROLLOUTS):
            return super()._prepare_inputs(*args)  # type: ignore[misc]


class _TimedGRPO(_Timed, GRPOTrainer):
    pass


class _TimedSRPO(_Timed, SRPOTrainer):
    def _score(self, *args: Any) -> None:
        with self.watch.part(TEACHER):
            super()._score(*args)


class _TimedSDPO(_Timed, SDPOTrainer):
    """Replays rollouts, for which TRL's has no function; the teacher's pass is within its loss."""

    replay: Replay

    def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        return prompt_ids, self.replay.completions(len(prompt_ids))

    def _forward_logits(self, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled():
            return super()._forward_logits(*args, **kwargs)
        with self.watch.part(TEACHER):
            return super()._forward_logits(*args, **kwargs)


def common_options(case: Case, device: torch.device, folder: str, num_steps: int) -> dict[str, Any]:
    """Options that every trainer is given; the policy loss is the same, too."""
    return {
        "output_dir": folder,
        "learning_rate": PAPER_DEFAULTS["learning_rate"],
        "scale_rewards": PAPER_DEFAULTS["scale_rewards"],
        "num_generations": case.num_generations,
        "per_device_train_batch_size": case.micro_batch,
        "gradient_accumulation_steps": case.num_rows // case.micro_batch,
        "max_completion_length": case.num_tokens,
        "gradient_checkpointing": True,
        "max_steps": num_steps,
        "logging_steps": 1,
        "bf16": device.type == "cuda",
        "use_cpu": device.type == "cpu",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _trl_grpo(options: dict[str, Any], case: Case, parts: Mapping[str, Any], replay: Replay) -> Any:
    paper = {name: value for name, value in PAPER_DEFAULTS.items() if name in _GRPO_FIELDS}
    return _TimedGRPO(args=GRPOConfig(**(paper | options)), rollout_func=replay, **parts)


def _ours(method: str) -> Callable[..., Any]:
    def make(options: dict[str, Any], case: Case, parts: Mapping[str, Any], replay: Replay) -> Any:
        args = SRPOConfig(
            **(PAPER_DEFAULTS | options), method=method, max_reprompt_length=_longest_reprompt(case)
        )
        return _TimedSRPO(args=args, rollout_func=replay, **parts)

    return make


def _trl_sdpo(options: dict[str, Any], case: Case, parts: Mapping[str, Any], replay: Replay) -> Any:
    """TRL's with the divergence, the teacher and the prompts of this package's; it reads its teacher from a folder."""
    model, folder, ours = parts["model"], options["output_dir"], SRPOConfig(**options)
    model.save_pretrained(folder)
    model.config._name_or_path = folder
    args = SDPOConfig(
        **options,
        max_prompt_length=None,
        max_reprompt_len=_longest_reprompt(case),
        distillation_weight=1.0,
        distillation_mode="topk_logits",
        **{name: getattr(ours, name) for name in _SHARED_WITH_SDPO},
    )
    trainer = _TimedSDPO(args=args, **parts)
    trainer.replay = replay
    return trainer


_SHARED_WITH_SDPO = (
    "distillation_alpha",
    "distillation_topk",
    "distillation_add_tail",
    "distillation_is_clip",
    "teacher_model_kind",
    "teacher_update_rate",
    "reprompt_template",
    "solution_template",
    "feedback_template",
)

CONTENDERS: dict[str, Callable[..., Any]] = {
    TRL_GRPO: _trl_grpo,
    "grpo": _ours("grpo"),
    "srpo": _ours("srpo"),
    TRL_SDPO: _trl_sdpo,
    "sdpo": _ours("sdpo"),
}
PEERS = {"grpo": TRL_GRPO, "srpo": TRL_GRPO, "sdpo": TRL_SDPO}


def _longest_reprompt(case: Case) -> int:
    return case.prompt_tokens + case.num_tokens + 512


def make_model(case: Case, device: torch.device) -> Any:
    """Random weights of the case's shape and vocabulary."""
    longest = 2 * (case.num_tokens + _longest_reprompt(case))
    sizes = {} if case.vocabulary is None else {"vocab_size": case.vocabulary}
    return random_qwen3(
        case.shape, device, longest, pad_token_id=build_byte_tokenizer().pad_token_id, **sizes
    )


def make_trainer(
    contender: str, case: Case, model: Any, device: torch.device, folder: str, num_steps: int
) -> Any:
    """Return a trainer of `CONTENDERS` that has a stopwatch."""
    tokenizer = build_byte_tokenizer()
    parts = {
        "model": model,
        "reward_funcs": first_letter,
        "train_dataset": questions(case),
        "processing_class": tokenizer,
    }
    options = common_options(case, device, folder, num_steps)
    trainer = CONTENDERS[contender](options, case, parts, Replay(case, tokenizer))
    trainer.remove_callback(PrinterCallback)
    trainer.watch = Stopwatch(device)
    trainer.add_callback(trainer.watch)
    return trainer
