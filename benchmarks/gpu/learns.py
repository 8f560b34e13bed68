"""h: a short run on real weights, trained by this package on arithmetic: accuracy before and after."""

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from benchmarks.gpu import arithmetic
from benchmarks.gpu.arithmetic import LEVELS, Level, Question
from benchmarks.gpu.sections import Part, Row, Setting
from benchmarks.measure import free_memory
from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.host.callbacks import TrainingClock

METHODS = ("srpo", "grpo")
SHARE_OF_TIME = 0.3  # of the section's seconds, that each method trains
TOO_HARD = 0.3  # accuracy
BATCH_SIZE = 128
NOTE = (
    "Sampled accuracy at temperature 1 on questions that nothing is trained on, one completion each, with its standard "
    "error. The level is the one whose accuracy before training is nearest to a half. A short run: it shows that "
    "learning goes the right way, and compares no methods."
)


def parts(setting: Setting) -> list[Part]:
    """Accuracy over the levels, then one run for each method, from the same weights."""
    methods = METHODS[:1] if setting.tiny else METHODS
    return [
        Part("before", "Accuracy before training", partial(accuracies, setting), NOTE),
        *(Part(method, "Learning", partial(learning, method, setting), NOTE) for method in methods),
    ]


def accuracies(setting: Setting) -> list[Row]:
    """One row a level that was asked."""
    count = _num_questions(setting)
    return [
        {"model": _name(setting), "level": level.name, "accuracy": _with_error(share, count)}
        for level, share in _before(setting).items()
    ]


def learning(method: str, setting: Setting) -> Iterator[Row]:
    """Accuracy before, a run within its time, accuracy after."""
    assert setting.model is not None
    device = torch.device(setting.device)
    found = _before(setting)
    level = min(found, key=lambda level: abs(found[level] - 0.5))
    model, tokenizer = _load(setting.model, device)
    questions = arithmetic.make_questions(level, _num_questions(setting), held_out=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SRPOTrainer(
            model=model,
            reward_funcs=arithmetic.reward,
            args=_config(method, folder, setting),
            train_dataset=arithmetic.dataset(arithmetic.make_questions(level, 2000, held_out=False)),
            processing_class=tokenizer,
            callbacks=[TrainingClock(limit=SHARE_OF_TIME * setting.seconds)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    seconds = time.monotonic() - start
    after = accuracy(model.eval(), tokenizer, questions, _num_tokens(setting))
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    del trainer, model
    free_memory(device)
    yield {
        "method": method,
        "level": level.name,
        "before": _with_error(found[level], len(questions)),
        "after": _with_error(after, len(questions)),
        "steps": len(rewards),
        "seconds": seconds,
        "reward, first steps": _mean(rewards[:3]),
        "reward, last steps": _mean(rewards[-3:]),
    }


@cache
def _before(setting: Setting) -> dict[Level, float]:
    """Return the accuracy at each level, up to the first that is too hard."""
    assert setting.model is not None
    model, tokenizer = _load(setting.model, torch.device(setting.device))
    found = {}
    for level in LEVELS[:1] if setting.tiny else LEVELS:
        questions = arithmetic.make_questions(level, _num_questions(setting), held_out=True)
        found[level] = accuracy(model, tokenizer, questions, _num_tokens(setting))
        if found[level] < TOO_HARD:
            break  # and the next ones are harder
    return found


def _load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """Float32 weights, which steps of a small learning rate still move; products are rounded by autocast."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    return model, tokenizer


def _name(setting: Setting) -> str:
    return setting.model.name if setting.model else ""


def _num_questions(setting: Setting) -> int:
    return 4 if setting.tiny else 256


def _num_tokens(setting: Setting) -> int:
    return 8 if setting.tiny else 160


def _config(method: str, folder: str, setting: Setting) -> SRPOConfig:
    on_gpu = setting.device == "cuda"
    sizes = {
        "num_generations": 8,
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 4,
        "max_steps": 200,
    }
    tiny = {
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
    }
    return SRPOConfig(
        **(tiny if setting.tiny else sizes),
        output_dir=folder,
        method=method,
        max_completion_length=_num_tokens(setting),
        chat_template_kwargs={"enable_thinking": False},
        learning_rate=5e-6,
        lr_scheduler_type="constant",
        gradient_checkpointing=on_gpu,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, questions: Sequence[Question], num_tokens: int) -> float:
    """Return the share of questions that one sampled completion answers rightly."""
    right = 0
    torch.manual_seed(0)
    for start in range(0, len(questions), BATCH_SIZE):
        asked = questions[start : start + BATCH_SIZE]
        texts = [
            tokenizer.apply_chat_template(
                arithmetic.chat(q), add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
            for q in asked
        ]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            output = model.generate(**batch, **sampling, max_new_tokens=num_tokens)
        answers = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(arithmetic.is_right(text, q.answer) for text, q in zip(answers, asked, strict=True))
    return right / len(questions)


def _with_error(share: float, count: int) -> str:
    return f"{share:.3f} ± {math.sqrt(share * (1 - share) / count):.3f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
