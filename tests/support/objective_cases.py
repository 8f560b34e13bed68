"""The oracle applied to the rollouts of `harness`."""

import math

import torch

import oracle
from harness import (
    NUM_GENERATIONS,
    ROLLOUTS,
    tiny_tokenizer,
)

TOKENIZER = tiny_tokenizer()


OPTIONS = oracle.Options(num_generations=NUM_GENERATIONS, distillation_topk=5)


def rows():
    return [(prompt, answer) for prompt, answers in ROLLOUTS for answer in answers]


def prompt_ids(text):
    chat = [{"role": "user", "content": text}]
    return TOKENIZER.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


def completion_ids(answer):
    return [*TOKENIZER(answer)["input_ids"], TOKENIZER.eos_token_id]


def reward(answer):
    return math.nan if "=" in answer else float("#" in answer)


def demonstration(prompt, answer, shown):
    """The demonstration that the trainer chose for the group, or for the rollout that is that demonstration."""
    others = [a for a in dict(ROLLOUTS)[prompt] if reward(a) == 1.0 and a != answer]
    if not others:
        return None
    return next((a for a in others if a in shown.get((prompt, answer), ())), None)


def logits_of(model, prompt, completion):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0].double().numpy()
    return logits[len(prompt) - 1 : len(prompt) - 1 + len(completion)]


def build(student, teacher, shown, old=None, sampler=None):
    """The oracle's rollouts of all rows, with logits from plain forward passes."""
    rollouts = []
    for prompt, answer in rows():
        ids = completion_ids(answer)
        shown_answer = demonstration(prompt, answer, shown)
        teacher_logits = None
        if shown_answer is not None:
            text = f"{prompt}\nCorrect solution:\n\n{shown_answer}\n\nCorrectly solve the original question."
            teacher_logits = logits_of(teacher, prompt_ids(text), ids)
        old_logps = None
        if old is not None:
            logps = oracle.log_softmax(logits_of(old, prompt_ids(prompt), ids))
            old_logps = [logps[t, token] for t, token in enumerate(ids)]
        rollouts.append(
            oracle.Rollout(
                student_logits=logits_of(student, prompt_ids(prompt), ids),
                teacher_logits=teacher_logits,
                token_ids=ids,
                mask=[True] * len(ids),
                reward=reward(answer),
                old_logps=old_logps,
            )
        )
    return rollouts


def spy_on_demonstrations(trainer):
    """What each rollout's teacher was shown: the answers that occur in the decoded teacher prompts."""
    shown = {}
    original = trainer._score

    def score(output, rollouts):
        for row, prompt in enumerate(rollouts.teacher_prompts):
            if prompt is not None:
                question, answer = rows()[row]
                text = TOKENIZER.decode(list(prompt.ids))
                shown[question, answer] = [
                    a for a in dict(ROLLOUTS)[question] if f"solution:\n\n{a}\n\nCorrectly" in text
                ]
        return original(output, rollouts)

    trainer._score = score
    return shown
