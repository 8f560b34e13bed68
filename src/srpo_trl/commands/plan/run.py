"""What is planned: a training run as its memory depends on it, checked before anything is built."""

from dataclasses import dataclass

from transformers import PretrainedConfig
from transformers.training_args import OptimizerNames
from trl import ModelConfig

from srpo_trl.commands.plan.engines import Engine
from srpo_trl.config import SRPOConfig

# Tokens of the teacher's templates, header and turns, beside question and demonstration.
_TEMPLATE_TOKENS = 64


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        training: the trainer's options.
        model_config: dtype, attention, adapter, quantisation.
        model: the model's config.
        engine: see `Engine`.
        prompt_length: of the longest prompt, in tokens; no option bounds it.
        on_gpu: whether it runs on GPUs.
        memory: bytes of one GPU (of the host, for a run on CPUs); None: not known.
    """

    training: SRPOConfig
    model_config: ModelConfig
    model: PretrainedConfig
    engine: Engine
    prompt_length: int
    on_gpu: bool
    memory: int | None

    @property
    def completion_length(self) -> int:
        """Tokens of the longest completion."""
        assert self.training.max_completion_length is not None
        return self.training.max_completion_length

    @property
    def num_generations(self) -> int:
        """Rollouts of one prompt."""
        assert self.training.num_generations is not None
        return self.training.num_generations

    @property
    def rollouts_per_step(self) -> int:
        """Rollouts that one process trains on in an optimizer step."""
        return self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps

    @property
    def rollouts_per_sampling(self) -> int:
        """Rollouts that one process samples at a time."""
        assert self.training.steps_per_generation is not None
        return self.training.per_device_train_batch_size * self.training.steps_per_generation

    @property
    def rollouts_held(self) -> int:
        """Rollouts whose teacher states one process holds: a step prepares all of its own before its first loss."""
        return max(self.rollouts_per_step, self.rollouts_per_sampling)

    @property
    def optimizer(self) -> str:
        """The optimizer's name."""
        return OptimizerNames(self.training.optim).value

    @property
    def has_teacher(self) -> bool:
        """Whether rollouts are distilled."""
        return bool(self.training.method_record.scorers)

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

    @property
    def shares_teacher_prompts(self) -> bool:
        """Whether all failed rollouts of a question are shown the same; feedback differs from one to the next."""
        return not any("feedback" in source for source in self.training.teacher_context)

    @property
    def teacher_prompt_length(self) -> int:
        """Tokens of the longest teacher prompt, as the trainer bounds it.

        A sibling's completion is bounded, too; feedback and reference answers are not.
        """
        longest = getattr(self.model.get_text_config(), "max_position_embeddings", None)
        length = self.training.max_reprompt_length
        if longest:
            length = min(length, longest - self.completion_length)
        if self.training.teacher_context == ["sibling"]:
            length = min(length, self.prompt_length + self.completion_length + _TEMPLATE_TOKENS)
        return max(1, length)
