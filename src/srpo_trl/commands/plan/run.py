"""What is planned: a training run as its memory depends on it, checked before anything is built."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PretrainedConfig
from trl import ModelConfig

from srpo_trl.commands.plan.engines import Engine
from srpo_trl.config import SRPOConfig
from srpo_trl.methods.record import OWN_CONTEXT, TEACHER_CONTEXT, Scorer

# Tokens of the teacher's templates, header and turns, beside question and demonstration.
_TEMPLATE_TOKENS = 64


@dataclass(frozen=True)
class RunSpec:
    """A training run.

    Attributes:
        training: the trainer's options.
        model_config: dtype, attention, adapter, quantization.
        model: the model's config.
        engine: see `Engine`.
        prompt_length: of the longest prompt, in tokens; no option bounds it.
        on_gpu: whether it runs on GPUs.
        memory: bytes of one GPU (of the machine, for a run on CPUs); None: not known.
        teachers: configs of the external teachers by name.
    """

    training: SRPOConfig
    model_config: ModelConfig
    model: PretrainedConfig
    engine: Engine
    prompt_length: int
    on_gpu: bool
    memory: int | None
    teachers: Mapping[str, PretrainedConfig] = field(default_factory=dict)

    @property
    def mixed_dtype(self) -> torch.dtype | None:
        """The dtype of mixed-precision training; None: no mixed precision."""
        return torch.bfloat16 if self.training.bf16 else torch.float16 if self.training.fp16 else None

    @property
    def completion_length(self) -> int:
        """Tokens of the longest completion."""
        return self.training.max_completion_length or 0

    @property
    def rollouts_per_step(self) -> int:
        """Rollouts that one process trains on in an optimizer step."""
        return self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps

    @property
    def rollouts_per_sampling(self) -> int:
        """Rollouts that one process samples at a time."""
        return self.training.per_device_train_batch_size * (self.training.steps_per_generation or 1)

    @property
    def rollouts_held(self) -> int:
        """Most rollouts whose teacher states one process holds.

        A step prepares all of its own before its first loss; the last rollout batch among them is held as a whole.
        """
        step, sampling = self.rollouts_per_step, self.rollouts_per_sampling
        return step + sampling - math.gcd(step, sampling)

    @property
    def steps_straddle(self) -> bool:
        """Whether an optimizer step can end one rollout batch in the middle of the next."""
        return self.rollouts_held > max(self.rollouts_per_step, self.rollouts_per_sampling)

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """The passes over each rollout batch; what came with stored rollouts needs none."""
        return tuple(s for s in self.training.method_record.scorers if s.weights != "cached")

    @property
    def teacher_kind(self) -> str | None:
        """Whose weights the self-teacher has; None: there is none."""
        is_used = any(scorer.weights == "teacher" for scorer in self.scorers)
        return self.training.teacher_model_kind if is_used else None

    @property
    def holds_initial(self) -> bool:
        """Whether the values before training lie there beside the self-teacher's."""
        return self.teacher_kind != "base" and any(scorer.weights == "initial" for scorer in self.scorers)

    def of_teacher(self, name: str) -> "RunSpec":
        """Return the run with an external teacher for its model: whole on each process that does not shard."""
        loaded: dict[str, Any] = {
            "dtype": "auto",
            "use_peft": False,
            "load_in_4bit": False,
            "load_in_8bit": False,
        }
        return dataclasses.replace(
            self,
            model=self.teachers[name],
            model_config=dataclasses.replace(self.model_config, **loaded),
            engine=self.engine if self.engine.shards_parameters else Engine(),
        )

    @property
    def has_reference(self) -> bool:
        """Whether TRL loads the initial model once more, for its KL penalty."""
        return self.training.beta != 0 and not self.model_config.use_peft

    @property
    def vllm_bytes(self) -> int:
        """What vLLM takes of the training GPU for itself."""
        training = self.training
        is_here = training.use_vllm and training.vllm_mode == "colocate"
        return int(training.vllm_gpu_memory_utilization * (self.memory or 0)) if is_here else 0

    def rollouts_per_teacher_prompt(self, scorer: Scorer) -> int:
        """Rollouts of a question that a scorer reads the same prompt for; feedback differs from one to the next."""
        differs = any("feedback" in source for source in self.training.teacher_context)
        is_shown = scorer.context == TEACHER_CONTEXT
        return 1 if is_shown and differs else self.training.num_generations or 1

    def teacher_prompt_length(self, scorer: Scorer) -> int:
        """Tokens of the longest prompt that a scorer reads: the student's own, or as the trainer bounds it.

        A sibling's completion is bounded, too; feedback, reference answers and columns are not.
        """
        if scorer.context == OWN_CONTEXT:
            return self.prompt_length
        longest = getattr(self.model.get_text_config(), "max_position_embeddings", None)
        length = self.training.max_reprompt_length
        if longest:
            length = min(length, longest - self.completion_length)
        if scorer.context == TEACHER_CONTEXT and self.training.teacher_context == ["sibling"]:
            length = min(length, self.prompt_length + self.completion_length + _TEMPLATE_TOKENS)
        return max(1, length)

    @property
    def longest_teacher_prompt(self) -> int | None:
        """Tokens of the longest prompt that any scorer reads and the student does not; None: there is none."""
        lengths = [self.teacher_prompt_length(s) for s in self.scorers if s.context != OWN_CONTEXT]
        return max(lengths, default=None)
