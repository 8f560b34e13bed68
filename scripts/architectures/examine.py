"""One architecture under the trainer: does one update equal that of plain forward passes over full logits?

Nothing of the reference below comes from the package: each rollout alone, without padding, through the model as it is
loaded, in plain PyTorch.
"""

import copy
import logging
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from tiny import tiny_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.data.tiny_model import build_tokenizer
from srpo_trl.teacher.probe import ModelProblemError

# Prompts of different lengths, so that there is padding; the completion with a "#" is right.
ROLLOUTS = {
    "1+1": ("2#2", "33;12", "0", "4;4;4;4;4;4;4"),
    "3+3+3+3+3+3+3": ("7", "1;2;3;4", "5#5", "9;9"),
}
NUM_GENERATIONS = 4
TOLERANCE = 1e-3  # of the update's norm; float32

EXACT, REFUSED, TRL_FAILS, NOT_BUILT, WRONG = "exact", "refused", "fails in TRL itself", "not built", "WRONG"


class Finding(NamedTuple):
    """What became of one architecture.

    Attributes:
        model_type: transformers' name.
        class_name: of the model.
        outcome: one of the five above.
        remark: the error's first line, or how far off the update is.
    """

    model_type: str
    class_name: str
    outcome: str
    remark: str


def examine(model_type: str) -> Finding:
    """Return what becomes of the architecture. Slow architectures must be ended from outside."""
    tokenizer = build_tokenizer()
    try:
        model = tiny_model(model_type, tokenizer)
        with torch.no_grad():
            plain_logits(model, prompt_ids(tokenizer, "1+1"))
    except Exception as error:  # whatever keeps an architecture from being built tiny is the finding
        return Finding(model_type, "", NOT_BUILT, first_line(error))
    name = type(model).__name__
    before = copy.deepcopy(model).eval()
    warnings = _Warnings()
    try:
        with warnings:
            found = train(SRPOTrainer, SRPOConfig, model, tokenizer)
    except ModelProblemError as error:
        return Finding(model_type, name, REFUSED, first_line(error, without=name))
    except Exception as error:  # whatever an architecture raises is the finding
        try:
            train(GRPOTrainer, GRPOConfig, copy.deepcopy(before).train(), tokenizer)
        except Exception as trl_error:  # as above
            return Finding(model_type, name, TRL_FAILS, first_line(trl_error))
        outcome = REFUSED if isinstance(error, ValueError) else WRONG
        return Finding(model_type, name, outcome, first_line(error))
    expected = reference_gradient(before, tokenizer)
    relative_error = float((found - expected).norm() / expected.norm())
    if relative_error < TOLERANCE:
        return Finding(model_type, name, EXACT, warnings.remark)
    if not found.isfinite().all():  # no such step is taken; see the page on faults
        trls = train(GRPOTrainer, GRPOConfig, copy.deepcopy(before).train(), tokenizer)
        outcome = WRONG if trls.isfinite().all() else TRL_FAILS
        return Finding(model_type, name, outcome, "the gradient is not finite")
    return Finding(model_type, name, WRONG, f"the gradient is off by {relative_error:.0e}")


class _Warnings(logging.Handler):
    """Collects what the trainer does for a model, from its warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.remark = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.remark += "is given position ids" * ("position_ids" in text) + "teacher rows are padded" * (
            "layout" in text
        )

    def __enter__(self) -> None:
        logging.getLogger("srpo_trl.teacher.prepared_student").addHandler(self)

    def __exit__(self, *_: Any) -> None:
        logging.getLogger("srpo_trl.teacher.prepared_student").removeHandler(self)


def first_line(error: Exception, *, without: str = "") -> str:
    """Return the error's first sentence, without the model's name where it begins with it."""
    text = " ".join(str(error).split())
    text = re.split(r"\. [A-Z]", text)[0][:300]
    return text.removeprefix(f"{without} ") if without else f"{type(error).__name__}: {text}"


def train(trainer_class: Any, config_class: Any, model: PreTrainedModel, tokenizer: Any) -> Any:
    """Return the gradient of the first step over `ROLLOUTS` in all parameters, one vector in float64."""
    kept: list[Tensor] = []
    prompts = [[{"role": "user", "content": prompt}] for prompt in ROLLOUTS]
    options = {"distillation_topk": None} if config_class is SRPOConfig else {"scale_rewards": "none"}
    with tempfile.TemporaryDirectory() as folder:
        args = config_class(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            num_generations=NUM_GENERATIONS,
            per_device_train_batch_size=NUM_GENERATIONS * len(ROLLOUTS),
            max_completion_length=16,
            max_steps=1,
            optim="sgd",
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,  # no clipping
            shuffle_dataset=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **options,
        )
        trainer = trainer_class(
            model=model,
            args=args,
            reward_funcs=has_hash,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            rollout_func=replay(tokenizer),
            callbacks=[KeepGradient(kept)],
        )
        trainer.train()
    return kept[0]


class KeepGradient(TrainerCallback):
    """Keeps the gradient of each step, before the optimizer's.

    Args:
        kept: what gradients are added to.
    """

    def __init__(self, kept: list[Tensor]) -> None:
        self._kept = kept

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the gradient of all parameters as one vector."""
        parameters = list(kwargs["model"].parameters())
        self._kept.append(flat(parameters, [parameter.grad for parameter in parameters]))


def flat(parameters: list[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Return one vector in float64; 0 where a parameter has no gradient."""
    pairs = zip(parameters, gradients, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).double().reshape(-1) for p, g in pairs])


def has_hash(completions: list, **kwargs: Any) -> list[float]:
    """Return 1 where the completion holds a "#"."""
    return [float("#" in completion[-1]["content"]) for completion in completions]


def prompt_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the prompt's token ids."""
    chat = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


def completion_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the completion's token ids, its end included."""
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


def replay(tokenizer: PreTrainedTokenizerFast) -> Callable[[list, Any], dict[str, Any]]:
    """Return a `rollout_func` that gives each prompt its completions."""

    def rollout(prompts: list, trainer: Any) -> dict[str, Any]:
        texts = [prompt[-1]["content"] for prompt in prompts]
        answers = [ROLLOUTS[text][row % NUM_GENERATIONS] for row, text in enumerate(texts)]
        return {
            "prompt_ids": [prompt_ids(tokenizer, text) for text in texts],
            "completion_ids": [completion_ids(tokenizer, answer) for answer in answers],
            "logprobs": None,
        }

    return rollout


# ------------------------------------------------------------------ the reference


def plain_logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Return (L, V) logits of one sequence alone."""
    ids_1L = torch.tensor([ids])
    return model(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L), use_cache=False).logits[0]


def completion_logps(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """Return (T, V) log-probabilities over the vocabulary that predict the completion's tokens."""
    logits_LV = plain_logits(model, prompt + completion)
    return logits_LV[len(prompt) - 1 : -1].double().log_softmax(-1)


def reference_gradient(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return the gradient of the first step's loss in all parameters, one vector in float64.

    SRPO, section 3.3, with the paper's options and the whole vocabulary. On-policy, the right rollout of a group has
    the policy gradient with advantage 1 - 1/4, the others the Jensen-Shannon divergence to the teacher that is shown
    the right one.
    """
    losses, weights, divergences, num_tokens = [], [], [], 0
    for question, answers in ROLLOUTS.items():
        right = next(answer for answer in answers if "#" in answer)
        shown = f"{question}\nCorrect solution:\n\n{right}\n\nCorrectly solve the original question."
        for answer in answers:
            completion = completion_ids(tokenizer, answer)
            num_tokens += len(completion)
            student_TV = completion_logps(model, prompt_ids(tokenizer, question), completion)
            if answer == right:
                logps_T = student_TV.gather(1, torch.tensor(completion).unsqueeze(1))
                losses.append(-(1 - 1 / NUM_GENERATIONS) * (logps_T - logps_T.detach()).exp().sum())
                continue
            with torch.no_grad():
                teacher_TV = completion_logps(model, prompt_ids(tokenizer, shown), completion)
            mixture_TV = ((student_TV.exp() + teacher_TV.exp()) / 2).log()
            divergence_T = sum(
                0.5 * (logps_TV.exp() * (logps_TV - mixture_TV)).sum(1)
                for logps_TV in (student_TV, teacher_TV)
            )
            divergences.append(divergence_T)
            weights.append((teacher_TV.exp() * teacher_TV).sum(1).exp())  # exp(-entropy)
    weight_N = torch.cat(weights)
    distillation = (weight_N / weight_N.mean() * torch.cat(divergences)).sum()
    loss = (sum(losses) + distillation) / num_tokens
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = dict(zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True))
    return flat(parameters, [gradients.get(parameter) for parameter in parameters])
