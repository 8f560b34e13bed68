"""Rollouts of three turns in an environment: what the teacher is shown of them, what is scored, what is reported."""

from importlib.resources import files
from pathlib import Path

import torch
from datasets import Dataset

from harness import config, logged, make_trainer
from srpo_trl import SRPOTrainer
from srpo_trl.data.smoke_model import build_byte_tokenizer
from srpo_trl.data.tiny_model import build_model
from srpo_trl.methods.record import Route
from srpo_trl.runs.log import read_run_log
from tiny_vlm import random_image, tiny_processor, tiny_vision_language_model

QWEN3_TEMPLATE = files("trl").joinpath("chat_templates/qwen3.jinja").read_text()
PROMPT = [
    {"role": "system", "content": "Play by the rules."},
    {"role": "user", "content": "What do we play?"},
    {"role": "assistant", "content": "Hidden numbers."},
    {"role": "user", "content": "Find mine."},
]


class HiddenNumber:
    """An environment with one tool, a reward, and something to say about a rollout that has failed."""

    def reset(self, **kwargs):
        self.guesses, self.feedback = [], None
        return " It is from 1 to 9."

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: The guess.

        Returns:
            Whether it is too low, too high, or found.
        """
        self.guesses.append(number)
        return "found" if number == 7 else "too low" if number < 7 else "too high"

    def get_reward(self):
        if 7 in self.guesses:
            return 1.0
        self.feedback = f"Guessed {self.guesses}, never 7."
        return 0.0


def call(number, thought="hm"):
    arguments = f'{{"number": {number}}}'
    return f'<think>\n{thought}\n</think>\n\n<tool_call>\n{{"name": "guess", "arguments": {arguments}}}\n</tool_call>'


THOUGHTS = ("first thought", "second thought", "last thought")
LAST = f"<think>\n{THOUGHTS[2]}\n</think>\n\n"
RIGHT = (call(5, THOUGHTS[0]), call(7, THOUGHTS[1]), f"{LAST}It is 7.")
WRONG = (call(9), call(1), "I give up.")
RIGHT_TOO = (call(4, THOUGHTS[0]), call(7, THOUGHTS[1]), f"{LAST}7.")
SHORT = (call(3), "No idea.")
ROLLOUTS = (RIGHT, WRONG, RIGHT_TOO, SHORT)


def scripted(trainer, tokenizer):
    """Stand in for sampling: each rollout's first turn, then the one after those that its tokens hold."""

    def single_turn(prompt_ids, *args, **kwargs):
        texts = [rollout[0] for rollout in ROLLOUTS]
        read = [tokenizer.decode(ids) for ids in prompt_ids]
        if "<tool_response>" in read[0]:
            rollouts = [next(r for r in ROLLOUTS if r[0] in text) for text in read]
            texts = [r[sum(turn in text for turn in r)] for r, text in zip(rollouts, read, strict=True)]
        return [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts], None

    trainer._generate_single_turn = single_turn


def trained(tmp_path, **options):
    """Train one step; return the trainer, and by name what `_score` saw and gave, and what it should have given."""
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = QWEN3_TEMPLATE
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 16}
    args = config(
        tmp_path,
        per_device_train_batch_size=len(ROLLOUTS),
        max_completion_length=800,
        log_completions=True,
        log_examples_steps=1,
        **options,
    )
    trainer = SRPOTrainer(
        build_model(tokenizer, 0, **sizes, num_key_value_heads=1, max_position_embeddings=8192),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": PROMPT}]),
        processing_class=tokenizer,
        environment_factory=HiddenNumber,
    )
    scripted(trainer, tokenizer)
    seen, score = {}, trainer._score

    def observed(output, rollouts):
        score(output, rollouts)
        seen.update(output=output, rollouts=rollouts, expected=states(trainer.model, output, rollouts))

    trainer._score = observed
    trainer.train()
    seen["prompts"] = [p and tokenizer.decode(list(p.ids)) for p in seen["rollouts"].teacher_prompts]
    return trainer, seen


def states(model, output, rollouts):
    """The last hidden states before the model's own tokens of each distilled rollout, after its teacher prompt."""
    found = []
    for row, prompt in enumerate(rollouts.teacher_prompts):
        if prompt is not None:
            ids = output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
            with torch.no_grad():
                hidden = model.model(torch.tensor([[*prompt.ids, *ids]])).last_hidden_state[0]
            own = output["tool_mask"][row][: len(ids)].bool()
            found.append(hidden[len(prompt.ids) - 1 : -1][own])
    return found


def test_what_the_teacher_is_shown_of_turns(tmp_path):
    _, seen = trained(tmp_path, teacher_context=["sibling+feedback"])
    assert seen["rollouts"].route_B.tolist() == [Route.POLICY, Route.DISTILLED] * 2
    _, wrong, _, short = seen["prompts"]
    before, turn = wrong.split("<|im_start|>user\n")[1:]  # of the conversation, as the student has read it
    assert "Play by the rules." in wrong.split("<|im_start|>user\n")[0]
    assert before.startswith("What do we play?<|im_end|>\n<|im_start|>assistant\n")
    assert "Hidden numbers.<|im_end|>" in before
    assert turn.startswith("Find mine. It is from 1 to 9.")
    demonstrations = [
        f'Tool call: guess {{"number": {first}}}\n\nTool result: too low\n\n'
        f'Tool call: guess {{"number": 7}}\n\nTool result: found\n\n{last}'
        for first, last in ((5, "It is 7."), (4, "7."))
    ]
    for prompt, guesses in ((wrong, [9, 1]), (short, [3])):
        assert sum(text in prompt for text in demonstrations) == 1
        assert f"Guessed {guesses}, never 7." in prompt
        assert "thought" not in prompt
        assert prompt.endswith("<|im_start|>assistant\n")  # the rollout's own tokens follow, of all turns


def test_every_turn_of_the_model_is_scored_and_no_tool_token(tmp_path):
    trainer, seen = trained(tmp_path, teacher_context=["feedback"])
    output = seen["output"]
    hidden = [states for states in output["srpo_teacher_hidden"] if len(states)]
    assert len(hidden) == len(seen["expected"]) == 2
    for got, expected in zip(hidden, seen["expected"], strict=True):
        assert got.shape == expected.shape
        assert torch.allclose(got.float(), expected, atol=1e-4)
    # What the report shows: every token of the rollout, numbers at the model's own.
    wrong, short = read_run_log(Path(trainer.args.output_dir) / "examples.jsonl").records
    for example, turns in ((wrong, WRONG), (short, SHORT)):
        scored = [value is not None for value in example["divergence"]]
        own = "".join(text for text, is_own in zip(example["tokens"], scored, strict=True) if is_own)
        assert own == "".join(f"{turn}<|im_end|>" for turn in turns)
        assert "".join(example["tokens"]).count("<tool_response>") == len(turns) - 1
    assert wrong["feedback"] == "Guessed [9, 1], never 7."
    assert logged(trainer, "srpo/distillation/divergence")[0] > 0


def test_thinking_of_all_turns_is_kept_where_it_is_asked_for(tmp_path):
    _, seen = trained(tmp_path, remove_thinking_from_demonstration=False)
    shown = [prompt for prompt in seen["prompts"] if prompt]
    assert all(f"<think>\n{thought}\n</think>" in prompt for thought in THOUGHTS for prompt in shown)
    assert len(shown) == 2


# ---------------------------------------------------------------- tools that return images


VISION_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- for part in message['content'] -%}"
    "{{- '<image>' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}"
    "{%- for call in message.tool_calls or [] -%}"
    '{{- \'<call>{"name": "\' + call.function.name + \'", "arguments": \' -}}'
    "{{- (call.function.arguments | tojson) + '}</call>' -}}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
CALLS = {"open": "<call>", "close_pattern": "</call>", "repeats": True, "content": "json"}
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {**CALLS, "transform": {"type": "function", "function": "{content}"}},
        "content": {"close_pattern": r"<\|im_end\|>", "content": "text"},
    },
}
LOOK = '<call>{"name": "look", "arguments": {"number": %d}}</call>'


class Gallery:
    """An environment whose tool shows a picture."""

    def reset(self, **columns):
        self.feedback = None

    def look(self, number: int) -> list:
        """Look at a picture.

        Args:
            number: Which one.

        Returns:
            The picture.
        """
        self.seen = number
        return [{"type": "image", "image": random_image(number)}, {"type": "text", "text": "a picture"}]

    def get_reward(self):
        self.feedback = f"You saw {self.seen}."
        return float(self.seen == 1)


def test_pictures_that_a_tool_shows_reach_the_teacher(tmp_path):
    processor = tiny_processor()
    processor.chat_template, processor.tokenizer.response_template = VISION_TEMPLATE, RESPONSE
    processor.tokenizer.chat_template = VISION_TEMPLATE
    trainer = make_trainer(
        tmp_path,
        model=tiny_vision_language_model(),
        processing_class=processor,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "Look."}]}]),
        reward_funcs=None,
        rollout_func=None,
        environment_factory=Gallery,
        teacher_context=["feedback"],
        per_device_train_batch_size=4,
        max_completion_length=300,
    )

    def single_turn(prompt_ids, *args, **kwargs):
        is_first = "</call>" not in processor.tokenizer.decode(prompt_ids[0])
        texts = [LOOK % number for number in (1, 2, 3, 4)] if is_first else ["Seen."] * len(prompt_ids)
        eos = processor.tokenizer.eos_token_id
        return [[*processor.tokenizer(text)["input_ids"], eos] for text in texts], None

    trainer._generate_single_turn = single_turn
    expected, score = [], trainer._score

    def observed(output, rollouts):
        score(output, rollouts)
        for row, prompt in enumerate(rollouts.teacher_prompts):
            if prompt is None:
                continue
            ids = output["completion_ids"][row][output["completion_mask"][row].bool()].tolist()
            pixels = processor.image_processor(images=[random_image(row + 1)], return_tensors="pt")
            with torch.no_grad():
                states = trainer.model.model(torch.tensor([[*prompt.ids, *ids]]), **pixels).last_hidden_state
            own = output["tool_mask"][row][: len(ids)].bool()
            expected.append((output["srpo_teacher_hidden"][row], states[0, len(prompt.ids) - 1 : -1][own]))

    trainer._score = observed
    trainer.train()
    assert len(expected) == 3
    for got, states in expected:
        assert torch.allclose(got.float(), states, atol=1e-3)
