"""The simulated passes of runs, each made once: plans of one run with other micro-batches or options share them."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from srpo_trl.commands.plan.run import Run
from srpo_trl.commands.plan.shape import ModelShape, build_without_memory, shape_of, uses_flash_attention
from srpo_trl.commands.plan.simulation import Precision, Sampling, Simulation, TeacherPass, TrainingPass
from srpo_trl.teacher.packing import TeacherRow

Result = TypeVar("Result")


class Passes:
    """Shapes and passes by everything that they depend on."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def _once(self, key: Any, make: Callable[[], Result]) -> Result:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _model(self, run: Run) -> tuple[Any, ModelShape, Simulation]:
        """Return a key of the model and its number formats, its shape, and the simulation of it."""
        engine, training, model_config = run.engine, run.training, run.model_config
        mixed = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
        precision = Precision(
            autocast=None if engine.is_zero else mixed,
            weights=mixed if engine.is_zero or engine.kind == "fsdp2" else None,
        )
        key = (str(run.model.to_dict()), str(model_config), precision, engine.kind == "zero3")

        def make() -> tuple[ModelShape, Simulation]:
            model = build_without_memory(
                run.model,
                model_config,
                adapters_in_base_dtype=engine.kind == "zero3",
                trust_remote_code=training.trust_remote_code,
            )
            shape = shape_of(model, model_config)  # before the model's parameters are replaced
            with_mask = not uses_flash_attention(model_config.attn_implementation)
            return shape, Simulation(model, precision, with_mask=with_mask)

        return key, *self._once(key, make)

    def shape(self, run: Run) -> ModelShape:
        """Return the shape of the run's model."""
        return self._model(run)[1]

    def sampling(self, run: Run) -> Sampling | None:
        """Return what sampling holds; None where vLLM samples."""
        if run.training.use_vllm:
            return None
        key, _, simulation = self._model(run)
        sizes = (run.rollouts_per_sampling, run.prompt_length, run.completion_length)
        return self._once((key, "sampling", sizes), lambda: simulation.sampling(*sizes))

    def teacher_pass(self, run: Run) -> TeacherPass | None:
        """Return what the teacher's largest pass holds, were all rollouts distilled; None where none is.

        Each rollout has the longest prompt and the longest completion.
        """
        if not run.has_teacher:
            return None
        key, _, simulation = self._model(run)
        of_prompt = run.num_generations if run.shares_teacher_prompts else 1
        sizes = (run.rollouts_per_sampling, of_prompt, run.teacher_prompt_length, run.completion_length)
        max_tokens = run.training.teacher_tokens_per_pass

        def make() -> TeacherPass:
            num_rows, of_prompt, prompt_length, completion_length = sizes
            rest, completion = (0,) * (prompt_length - 1), (0,) * completion_length
            rows = [TeacherRow((i // of_prompt, *rest), completion) for i in range(num_rows)]
            return simulation.teacher_pass(rows, max_tokens)

        return self._once((key, "teacher pass", sizes, max_tokens), make)

    def training(self, run: Run, micro_batch: int, *, keep_gradients: bool) -> TrainingPass:
        """Return what a micro-batch's backbone pass holds."""
        key, _, simulation = self._model(run)
        length = run.prompt_length + run.completion_length
        checkpointing = bool(run.training.gradient_checkpointing)
        return self._once(
            (key, "training", micro_batch, length, checkpointing, keep_gradients),
            lambda: simulation.training_pass(
                micro_batch, length, checkpointing=checkpointing, keep_gradients=keep_gradients
            ),
        )
