"""Rollouts that were made before: a `rollout_func` that gives them, and a teacher's log-probabilities beside them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import repeat
from typing import Any

import torch
from transformers import PreTrainedModel

from srpo_trl.rollout.graded import LOGPS_COLUMN
from srpo_trl.rollout.solved_prompts import prompt_key
from srpo_trl.teacher.context import TeacherPrompt
from srpo_trl.teacher.packing import row_layout
from srpo_trl.teacher.scoring import rescore_rollouts
from srpo_trl.teacher.weights import TeacherWeights

Stored = Mapping[str, Any]
RolloutFunc = Callable[[list[Any], Any], dict[str, Any]]


def offline_rollouts(rows: Iterable[Stored], otherwise: RolloutFunc | None = None) -> RolloutFunc:
    """Return a `rollout_func` that gives stored rollouts in the place of sampled ones.

    Several rollouts of one prompt are its group's, in turn, others in each optimizer step where there are more of them.

    Args:
        rows: each with "prompt" as the training data has it, "prompt_ids" and "completion_ids", lists of token ids; for
            scorers with weights="cached" also "teacher_logps", a log-probability for each token of the completion.
        otherwise: a `rollout_func` that samples for the prompts of which nothing is stored, called with these alone on
            each process that has some; None: every prompt has stored rollouts.
    Raises:
        ValueError: a row lacks one of them; when called: a prompt has no stored rollout, and there is no `otherwise`.
    """
    stored: dict[str, list[Stored]] = defaultdict(list)
    for number, row in enumerate(rows):
        lacking = [name for name in ("prompt", "prompt_ids", "completion_ids") if not row.get(name)]
        if lacking:
            raise ValueError(f"Stored rollout {number} has no {', '.join(lacking)}.")
        stored[prompt_key(row["prompt"])].append(row)

    def rollouts(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        first, chosen = trainer.accelerator.process_index * len(prompts), []
        for number, prompt in enumerate(prompts, start=first):
            known = stored.get(prompt_key(prompt))
            turn = number % trainer.num_generations + trainer.state.global_step * trainer.num_generations
            chosen.append(None if known is None else known[turn % len(known)])
        missing = [prompt for prompt, row in zip(prompts, chosen, strict=True) if row is None]
        if missing and otherwise is None:
            raise ValueError(f"No rollout is stored for the prompt {missing[0]!r:.200}.")
        return _merged(chosen, otherwise(missing, trainer) if missing and otherwise is not None else {})

    return rollouts


def _merged(chosen: Sequence[Stored | None], sampled: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored rollouts with the sampled ones in the places that are None, as a `rollout_func` does."""
    further = [name for name in sampled if name != "logprobs"]
    names = dict.fromkeys(["prompt_ids", "completion_ids", LOGPS_COLUMN, *further])
    left = {name: iter(sampled.get(name) or repeat(None)) for name in names}
    made = {name: [next(left[name]) if row is None else row.get(name) for row in chosen] for name in names}
    if "env_mask" in made:  # of a stored rollout all tokens are the model's
        pairs: Any = zip(made["env_mask"], made["completion_ids"], strict=True)
        made["env_mask"] = [[1] * len(ids) if mask is None else mask for mask, ids in pairs]
    return made | {"logprobs": None}


@torch.no_grad()
def with_teacher_logps(
    rows: Sequence[Stored],
    teacher: PreTrainedModel,
    *,
    temperature: float = 1.0,
    tokens_per_pass: int = 16384,
) -> list[dict[str, Any]]:
    """Return the rows with "teacher_logps": of each token of the completion, after the row's own prompt.

    Args:
        rows: each with "prompt_ids" and "completion_ids".
        teacher: with the student's tokenizer.
        temperature: that logits are divided by; training must sample at the same.
        tokens_per_pass: most tokens that one pass holds.
    """
    completions = [tuple(row["completion_ids"]) for row in rows]
    lengths = [len(ids) for ids in completions]
    scored_BT = torch.arange(max(lengths, default=0)) < torch.tensor(lengths).unsqueeze(1)
    scores = rescore_rollouts(
        teacher,
        TeacherWeights(teacher, "live", 1.0),
        nullcontext(),
        [TeacherPrompt(tuple(row["prompt_ids"])) for row in rows],
        completions,
        scored_BT.to(teacher.device),
        student=teacher,
        layout=row_layout(teacher),
        max_tokens=tokens_per_pass,
        temperature=temperature,
        with_logps=True,
    )
    assert scores.logps_N is not None
    parts = scores.logps_N.cpu().split(lengths)
    return [{**row, LOGPS_COLUMN: part.tolist()} for row, part in zip(rows, parts, strict=True)]
