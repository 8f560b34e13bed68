"""What the teacher reads before it re-scores a rollout: prompts of text and of tokens (SRPO, section B.5; SDPO).

System messages and earlier turns stay, the last user turn becomes the re-prompt, and the chat template's
assistant header follows, so that the rollout's own token ids can be appended unchanged. Text that a model or a
grader wrote is encoded without special tokens: a marker such as `<|im_end|>` inside it stays text. Images stay
where they are in the conversation; of the last user turn, the text after its last image becomes the re-prompt.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import uuid4

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl import prepare_multimodal_messages

Messages = list[dict[str, Any]]
Completion = str | Messages

_THINKING_STARTS, _THINKING_ENDS = "<think>", "</think>"
_SPACE = re.compile(r"\s*")

# Model inputs with which some processors tell text from image tokens; a processor gives at most one of them.
TOKEN_TYPE_INPUTS = ("token_type_ids", "mm_token_type_ids")

# Stands for the user's text while the chat template is rendered; no row of a dataset can know it beforehand.
_USER_TURN = f"srpo-user-turn-{uuid4().hex}"


class TeacherInformation(NamedTuple):
    """f_i of one rollout: what the teacher is shown. Empty string: absent."""

    solution: str = ""
    feedback: str = ""

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.solution or self.feedback)


class TeacherPrompt(NamedTuple):
    """A teacher's prompt.

    Attributes:
        ids: token ids, each image's as many as its features.
        num_cut: tokens of the information that were cut to fit.
        information: what is left of it.
        token_types: by model input, the kind of each token: 0 for text. Empty where the model reads none.
    """

    ids: tuple[int, ...]
    num_cut: int = 0
    information: TeacherInformation = TeacherInformation()
    token_types: Mapping[str, tuple[int, ...]] = {}


@dataclass(frozen=True)
class ContextTemplates:
    """The three strings that make the re-prompt; `{name}` fields are filled, other braces are text."""

    reprompt: str
    solution: str
    feedback: str

    def user_turn(self, prompt: str, information: TeacherInformation) -> str:
        """Return the teacher's last user turn."""
        solution, feedback = information
        return fill_template(
            self.reprompt,
            prompt=prompt,
            solution=fill_template(self.solution, successful_previous_attempt=solution) if solution else "",
            feedback=fill_template(self.feedback, feedback_raw=feedback) if feedback else "",
        )


def fill_template(template: str, **values: str) -> str:
    """Return the template with each `{name}` replaced once; braces inside the values are never interpreted."""
    return re.sub(r"\{(\w+)\}", lambda field: values.get(field[1], field[0]), template)


def whole_characters(text: str) -> str:
    """Return the text with U+FFFD for each lone surrogate: half a character, which no tokenizer and no file takes.

    A `\\ud800` in a rollout's JSON becomes one in the feedback of a grader that quotes it.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def remove_thinking(text: str) -> str:
    """Return the text without `<think>` blocks, closed, unopened or unclosed, in time linear in its length."""
    text = _without_closed_thinking(text)
    end = text.find(_THINKING_ENDS)  # the template opened it in the prompt
    if end >= 0:
        text = text[_after_thinking(text, end) :]
    return text.partition(_THINKING_STARTS)[0]  # the rollout was cut inside it


def _without_closed_thinking(text: str) -> str:
    pieces, position = [], 0
    while (start := text.find(_THINKING_STARTS, position)) >= 0:
        end = text.find(_THINKING_ENDS, start)
        if end < 0:
            break
        pieces.append(text[position:start])
        position = _after_thinking(text, end)
    return "".join([*pieces, text[position:]])


def _after_thinking(text: str, end: int) -> int:
    """Return where the text goes on after the end of a block and the white space that follows."""
    match = _SPACE.match(text, end + len(_THINKING_ENDS))
    assert match is not None  # it matches the empty string
    return match.end()


def demonstration_text(completion: Completion, *, keep_thinking: bool = False) -> str:
    """Return a rollout as the text of a demonstration.

    Args:
        completion: a string, or the messages of a rollout; tool calls and tool results become lines of text.
        keep_thinking: keep `<think>` blocks.
    Returns:
        The text, stripped; empty where nothing is left to show.
    """
    text = completion if isinstance(completion, str) else "\n\n".join(filter(None, map(_turn, completion)))
    return (text if keep_thinking else remove_thinking(text)).strip()


def _turn(message: dict[str, Any]) -> str:
    content = message_text(message)
    if message["role"] == "tool":
        return f"Tool result: {content}"
    calls = [call.get("function", call) for call in message.get("tool_calls") or []]
    lines = [
        f"Tool call: {call['name']} {json.dumps(call.get('arguments', {}), ensure_ascii=False)}"
        for call in calls
    ]
    return "\n".join(filter(None, [content, *lines]))


def message_text(message: dict[str, Any]) -> str:
    """Return a message's text; of content in parts, the text parts joined."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def select_information(
    sources: Sequence[str], sibling: str = "", feedback: str = "", reference: str = "", earlier: str = ""
) -> TeacherInformation:
    """Return the first source, in the configured order, that has something to show.

    Args:
        sources: among "sibling", "feedback", "sibling+feedback", "reference", "earlier".
        sibling, feedback, reference, earlier: the texts at hand; empty where there is none.
    """
    candidates = {
        "sibling": TeacherInformation(solution=sibling),
        "feedback": TeacherInformation(feedback=feedback),
        "sibling+feedback": TeacherInformation(sibling, feedback)
        if sibling and feedback
        else TeacherInformation(),
        "reference": TeacherInformation(solution=reference),
        "earlier": TeacherInformation(solution=earlier),
    }
    return next((candidates[source] for source in sources if candidates[source]), TeacherInformation())


@dataclass(frozen=True)
class TeacherPromptEncoder:
    """Encodes teacher prompts as `GRPOTrainer` encodes the student's: same chat template, same arguments.

    Attributes:
        tokenizer: the student's.
        templates: strings of the re-prompt.
        max_length: longest prompt, in tokens; an image counts with as many as it has.
        chat_template: replaces the tokenizer's own; None keeps it.
        chat_template_kwargs: passed to the template.
        processor: a vision-language model's, with its own chat template; None for a text model.
    """

    tokenizer: PreTrainedTokenizerBase
    templates: ContextTemplates
    max_length: int
    chat_template: str | None
    chat_template_kwargs: dict[str, Any]
    processor: ProcessorMixin | None = None

    def encode(
        self,
        prompt: str | Messages,
        information: TeacherInformation,
        tools: list[Callable | dict] | None = None,
    ) -> TeacherPrompt | None:
        """Return the teacher's prompt, cut to `max_length` at the information alone.

        A demonstration loses its start (its result stays), feedback loses its end. The question, the
        instruction and the assistant's header are never cut.

        Args:
            prompt: the student's prompt, text or messages with at least one user turn.
            information: what the teacher is shown.
            tools: tool schemas of the student's prompt.
        Returns:
            The prompt, or None where not even one token of the information fits.
        Raises:
            ValueError: the messages have no user turn.
        """
        encode = self._text_encoder(prompt) if isinstance(prompt, str) else self._chat_encoder(prompt, tools)
        full = teacher_prompt = encode(information)
        num_to_cut, shown = 0, information
        while len(teacher_prompt.ids) > self.max_length:
            num_to_cut += len(teacher_prompt.ids) - self.max_length
            shortened = self._shorten(information, num_to_cut)
            if shortened is None:
                return None
            teacher_prompt, shown = encode(shortened), shortened
        num_cut = len(full.ids) - len(teacher_prompt.ids)
        return teacher_prompt._replace(num_cut=num_cut, information=shown)

    def _text_encoder(self, prompt: str) -> Callable[[TeacherInformation], TeacherPrompt]:
        def encode(information: TeacherInformation) -> TeacherPrompt:
            text = self.templates.user_turn(prompt, information)
            return TeacherPrompt(tuple(self._encode_untrusted(text, adds_special=True)))

        return encode

    def _chat_encoder(
        self, messages: Messages, tools: list[Callable | dict] | None
    ) -> Callable[[TeacherInformation], TeacherPrompt]:
        """Render the conversation once around the user's turn; only that turn's text differs afterwards."""
        position = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)
        if position is None:
            roles = [message["role"] for message in messages]
            raise ValueError(
                f"A prompt needs a user turn for the teacher's re-prompt; its roles are {roles}."
            )
        if self.processor is not None:  # its template wants content in parts, as TRL gives it
            messages = prepare_multimodal_messages(messages)
        prompt = _text_after_images(messages[position])
        template_owner: Any = self.processor or self.tokenizer
        rendered = template_owner.apply_chat_template(
            [*messages[:position], _with_text(messages[position], _USER_TURN), *messages[position + 1 :]],
            tools=tools or None,
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=False,
            **self.chat_template_kwargs,
        )
        if rendered.count(_USER_TURN) != 1:
            raise ValueError(
                f"The chat template renders the last user turn {rendered.count(_USER_TURN)} times; the teacher's "
                "re-prompt needs it exactly once. Give the tokenizer another chat template."
            )
        text_before, text_after = rendered.split(_USER_TURN)
        before = self._encode_template(
            text_before, _images(messages[: position + 1]), adds_special=self._adds_special_tokens(rendered)
        )
        after = self._encode_template(text_after, _images(messages[position + 1 :]), adds_special=False)

        def encode(information: TeacherInformation) -> TeacherPrompt:
            turn_ids = self._encode_untrusted(self.templates.user_turn(prompt, information))
            return _joined(before, TeacherPrompt(tuple(turn_ids)), after)

        return encode

    def _adds_special_tokens(self, rendered: str) -> bool:
        """Return whether the student's prompt starts with special tokens that the template does not write.

        A tokenizer's chat template adds none; a processor's does where the text lacks the first of them.
        """
        bos_token = self.tokenizer.bos_token
        return self.processor is not None and not (bos_token is not None and rendered.startswith(bos_token))

    def _encode_template(self, text: str, images: list[Any], *, adds_special: bool) -> TeacherPrompt:
        if not images:
            return TeacherPrompt(tuple(self.tokenizer(text, add_special_tokens=adds_special)["input_ids"]))
        assert self.processor is not None
        # Only the processor knows how many tokens, and which around them, its architecture makes of an image.
        encoded = self.processor(text=[text], images=[images], add_special_tokens=adds_special)
        ids, *_ = encoded["input_ids"]
        types = {name: tuple(map(int, encoded[name][0])) for name in TOKEN_TYPE_INPUTS if name in encoded}
        return TeacherPrompt(tuple(map(int, ids)), token_types=types)

    def _encode_untrusted(self, text: str, *, adds_special: bool = False) -> list[int]:
        text = whole_characters(text)
        ids = self._encode_text(text)
        if self._special_ids.isdisjoint(ids):
            return self._encode_text(text, adds_special=True) if adds_special else ids
        # The vocabulary holds a marker as a word of its own: here its characters are encoded one by one.
        markers = "|".join(map(re.escape, sorted(self.tokenizer.all_special_tokens, key=len, reverse=True)))
        parts = re.split(f"({markers})", text)  # every other one is a marker
        pieces = [piece for i, part in enumerate(parts) for piece in (part if i % 2 else [part])]
        distinct = sorted(set(pieces))
        ids_of = dict(zip(distinct, self._encode_texts(distinct), strict=True))
        around = self._encode_text("", adds_special=True) if adds_special else []
        return [*around, *(token for piece in pieces for token in ids_of[piece])]

    def _encode_text(self, text: str, *, adds_special: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=adds_special, split_special_tokens=True)["input_ids"]

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        """The tokens that text must not become; the one for unknown text is text."""
        return frozenset(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}

    def _shorten(self, information: TeacherInformation, num_tokens: int) -> TeacherInformation | None:
        """Return the information without `num_tokens` of its tokens; None if a part would vanish or both are empty."""
        solution_ids = self._encode_untrusted(information.solution)
        feedback_ids = self._encode_untrusted(information.feedback)
        if not (solution_ids or feedback_ids):
            return None
        from_feedback = min(num_tokens, max(len(feedback_ids) - 1, 0)) if solution_ids else num_tokens
        from_solution = num_tokens - from_feedback
        kept_solution = solution_ids[from_solution:]
        kept_feedback = feedback_ids[: max(len(feedback_ids) - from_feedback, 0)]
        if bool(solution_ids) != bool(kept_solution) or bool(feedback_ids) != bool(kept_feedback):
            return None
        return TeacherInformation(self._decode(kept_solution), self._decode(kept_feedback))

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids)).strip("\ufffd")  # a character cut in two


def _joined(*parts: TeacherPrompt) -> TeacherPrompt:
    names = {name for part in parts for name in part.token_types}
    return TeacherPrompt(
        tuple(token for part in parts for token in part.ids),
        token_types={
            name: tuple(kind for part in parts for kind in part.token_types.get(name, [0] * len(part.ids)))
            for name in names
        },
    )


def _num_fixed_parts(content: list[dict[str, Any]]) -> int:
    """Return how many content parts end with the last that is not text; a question may speak of what stands where."""
    return max((i + 1 for i, part in enumerate(content) if part["type"] != "text"), default=0)


def _text_after_images(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return message_text({"content": content[_num_fixed_parts(content) :]})


def _with_text(message: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the message with its text after the last image replaced."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": text}
    kept = content[: _num_fixed_parts(content)]
    return {**message, "content": [*kept, {"type": "text", "text": text}]}


def _images(messages: Messages) -> list[Any]:
    """Return the images of messages in their order, where TRL looks for them too."""
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part["image"] for part in parts if part["type"] == "image"]
