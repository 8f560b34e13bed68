"""What the teacher reads before it re-scores a rollout: prompts of text and of tokens (SRPO, section B.5; SDPO).

System messages and earlier turns stay, the last user turn becomes the re-prompt, and the chat template's
assistant header follows, so that the rollout's own token ids can be appended unchanged. A prompt of text to which the
chat template has already been applied is the conversation that it shows. What the dataset says is encoded as for the
student; of text that a model or a grader wrote a marker such as `<|im_end|>` stays text (`prompt_pieces`). Images stay
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

from srpo_trl.seams.messages import (
    ROW_ERRORS,
    Messages,
    images_of,
    last_user_position,
    message_text,
    text_after_images,
    with_text,
)
from srpo_trl.seams.public import prepare_multimodal_messages
from srpo_trl.teacher.prompt_pieces import Piece, distrusted, encode_pieces, marker_tokens, stripped
from srpo_trl.teacher.rendered_prompts import TurnFormat, last_user_turn, turn_format
from srpo_trl.teacher.templates import ContextTemplates, TeacherInformation

Completion = str | Messages
Tool = Callable[..., Any] | dict[str, Any]

_THINKING_STARTS, _THINKING_ENDS = "<think>", "</think>"
_SPACE = re.compile(r"\s*")

# Model inputs with which some processors tell text from image tokens; a processor gives at most one of them.
TOKEN_TYPE_INPUTS = ("token_type_ids", "mm_token_type_ids")

# Stands for the user's text while the chat template is rendered; no row of a dataset can know it beforehand.
_USER_TURN = f"srpo-user-turn-{uuid4().hex}"


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
    """Return where the text continues after the end of a block and the white space that follows."""
    match = _SPACE.match(text, end + len(_THINKING_ENDS))
    assert match is not None  # it matches the empty string
    return match.end()


def demonstration_text(completion: Completion, *, keep_thinking: bool = False) -> str:
    """Return a rollout as the text of a demonstration.

    Args:
        completion: a string, or the messages of a rollout; tool calls and tool results become lines of text.
        keep_thinking: keep `<think>` blocks, and what a parser of responses took out of them.
    Returns:
        The text, stripped; empty where nothing is left to show.
    """
    messages = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    turns = list(map(_turn, messages))
    if not keep_thinking:  # turn by turn: what one leaves open does not swallow the next
        turns = [remove_thinking(turn).strip() for turn in turns]
    return "\n\n".join(filter(None, turns)).strip()


def _turn(message: dict[str, Any]) -> str:
    content = message_text(message)
    if message["role"] == "tool":
        return f"Tool result: {content}"
    if message.get("reasoning_content"):  # TRL has parsed the response
        content = f"{_THINKING_STARTS}\n{message['reasoning_content']}\n{_THINKING_ENDS}\n\n{content}"
    calls = [call.get("function", call) for call in message.get("tool_calls") or []]
    lines = [
        f"Tool call: {call['name']} {json.dumps(call.get('arguments', {}), ensure_ascii=False)}"
        for call in calls
    ]
    return "\n".join(filter(None, [content, *lines]))


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


class _Place(NamedTuple):
    """Where the re-prompt stands in a prompt.

    Attributes:
        before, after: the text around it.
        prompt: the user's own text, which the re-prompt begins with.
        adds_special: whether the tokenizer's own special tokens belong around the whole.
        images_before, images_after: in the order of the text.
        strips_start, strips_end: whether the chat template takes white space off a user's text.
    """

    before: str
    prompt: str
    after: str
    adds_special: bool
    images_before: Sequence[Any] = ()
    images_after: Sequence[Any] = ()
    strips_start: bool = False
    strips_end: bool = False


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
        tools: list[Tool] | None = None,
    ) -> TeacherPrompt | None:
        """Return the teacher's prompt, cut to `max_length` at the information alone.

        A demonstration loses its start (its result stays), feedback loses its end. The question, the
        instruction and the assistant's header are never cut.

        Args:
            prompt: the student's prompt, text or messages.
            information: what the teacher is shown.
            tools: tool schemas of the student's prompt.
        Returns:
            The prompt, or None where not even one token of the information fits, or where the prompt has no place for
            it (`has_place`).
        """
        place = self._place(prompt, tools)
        if place is None:
            return None
        full = teacher_prompt = self._encode_at(place, information)
        num_to_cut, shown = 0, information
        while len(teacher_prompt.ids) > self.max_length:
            num_to_cut += len(teacher_prompt.ids) - self.max_length
            shortened = self._shorten(information, num_to_cut)
            if shortened is None:
                return None
            teacher_prompt, shown = self._encode_at(place, shortened), shortened
        num_cut = len(full.ids) - len(teacher_prompt.ids)
        return teacher_prompt._replace(num_cut=num_cut, information=shown)

    def encode_whole(
        self, value: Any, prompt: str | Messages, tools: list[Tool] | None = None
    ) -> TeacherPrompt | None:
        """Return a prompt that a dataset column holds as a whole, without anything added.

        Args:
            value: messages, or a text: in a conversation it takes the place of the last user turn's.
            prompt: the student's prompt, text or messages.
            tools: tool schemas of the student's prompt.
        Returns:
            The prompt, or None where there is none, where it is longer than `max_length`, or where the conversation
            has no user turn.
        """
        if not value:
            return None
        value = value if isinstance(value, list) else str(value)  # a number, say
        if isinstance(value, str) and isinstance(prompt, str):
            encoded = self._encode_template(value, (), adds_special=True)
        else:
            messages = _with_last_turn(prompt, value) if isinstance(value, str) else value
            if messages is None:
                return None
            text = self._render(messages, add_generation_prompt=True, tools=tools or None)
            encoded = self._encode_template(text, (), adds_special=False)
        return encoded if len(encoded.ids) <= self.max_length else None

    def has_place(self, prompt: str | Messages, tools: list[Tool] | None = None) -> bool:
        """Return whether a prompt can show anything: its last user turn is there and rendered exactly once."""
        return self._place(prompt, tools) is not None

    def turn_in_text(self, prompt: str) -> tuple[int, int] | None:
        """Return where the last user's text stands in a prompt of text; None where it is no rendered conversation."""
        return None if self._turn_format is None else last_user_turn(prompt, self._turn_format)

    def markers_in(self, text: str) -> list[str]:
        """Return the markers that a text holds, without the tokenizer's token of the beginning."""
        bos_token = self.tokenizer.bos_token
        return sorted({marker for marker in self._markers.values() if marker in text and marker != bos_token})

    def _place(self, prompt: str | Messages, tools: list[Tool] | None) -> _Place | None:
        if isinstance(prompt, str):
            start, end = self.turn_in_text(prompt) or (0, len(prompt))
            return _Place(prompt[:start], prompt[start:end], prompt[end:], adds_special=True)
        try:
            return self._place_in_conversation(prompt, tools)
        except ROW_ERRORS:  # a `rollout_func` may have rendered what this template does not take
            return None

    def _place_in_conversation(self, messages: Messages, tools: list[Tool] | None) -> _Place | None:
        """Render the conversation once around the user's turn; only that turn's text differs afterwards."""
        position = last_user_position(messages)
        if position is None:
            return None
        if self.processor is not None:  # its template wants content in parts, as TRL gives it
            messages = prepare_multimodal_messages(messages)
        rendered = self._render(
            # Blanks around the text show whether the template keeps them.
            [
                *messages[:position],
                with_text(messages[position], f" {_USER_TURN} "),
                *messages[position + 1 :],
            ],
            add_generation_prompt=True,
            tools=tools or None,
        )
        if rendered.count(_USER_TURN) != 1:
            return None
        before, after = rendered.split(_USER_TURN)
        return _Place(
            before.removesuffix(" "),
            text_after_images(messages[position]),
            after.removeprefix(" "),
            self._adds_special_tokens(rendered),
            images_of(messages[: position + 1]),
            images_of(messages[position + 1 :]),
            strips_start=not before.endswith(" "),
            strips_end=not after.startswith(" "),
        )

    def _render(self, messages: Messages, *, add_generation_prompt: bool, tools: Any = None) -> str:
        template_owner: Any = self.processor or self.tokenizer
        rendered: str = template_owner.apply_chat_template(
            messages,
            tools=tools,
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self.chat_template_kwargs,
        )
        return rendered

    def _encode_at(self, place: _Place, information: TeacherInformation) -> TeacherPrompt:
        turn = stripped(
            # A placeholder in the question would stand for an image that the model is not given.
            distrusted(self.templates.pieces(place.prompt, information), self._placeholders),
            at_start=place.strips_start,
            at_end=place.strips_end,
        )
        encode = functools.partial(encode_pieces, self.tokenizer, markers=self._markers)
        if not (place.images_before or place.images_after):
            pieces = [Piece(place.before), *turn, Piece(place.after)]
            return TeacherPrompt(tuple(encode(pieces, adds_special=place.adds_special)))
        before = self._encode_template(place.before, place.images_before, adds_special=place.adds_special)
        after = self._encode_template(place.after, place.images_after, adds_special=False)
        return _joined(before, TeacherPrompt(tuple(encode(turn))), after)

    def _adds_special_tokens(self, rendered: str) -> bool:
        """Return whether the student's prompt starts with special tokens that the template does not write.

        A tokenizer's chat template adds none; a processor's does where the text lacks the first of them.
        """
        bos_token = self.tokenizer.bos_token
        return self.processor is not None and not (bos_token is not None and rendered.startswith(bos_token))

    def _encode_template(self, text: str, images: Sequence[Any], *, adds_special: bool) -> TeacherPrompt:
        if not images:
            return TeacherPrompt(tuple(self.tokenizer(text, add_special_tokens=adds_special)["input_ids"]))
        assert self.processor is not None
        # Only the processor knows how many tokens, and which around them, its architecture makes of an image.
        encoded = self.processor(text=[text], images=[list(images)], add_special_tokens=adds_special)
        ids, *_ = encoded["input_ids"]
        types = {name: tuple(map(int, encoded[name][0])) for name in TOKEN_TYPE_INPUTS if name in encoded}
        return TeacherPrompt(tuple(map(int, ids)), token_types=types)

    @functools.cached_property
    def _turn_format(self) -> TurnFormat | None:
        """How the chat template writes a user's turn; None without a template."""

        def render(messages: Messages, add_generation_prompt: bool) -> str:
            messages = messages if self.processor is None else prepare_multimodal_messages(messages)
            return self._render(messages, add_generation_prompt=add_generation_prompt)

        return turn_format(render, self.tokenizer.bos_token, self.tokenizer.eos_token)

    @functools.cached_property
    def _placeholders(self) -> list[str]:
        """The texts that stand for images and the like; a text model has none."""
        names = ("image_token", "video_token", "audio_token")
        texts = [getattr(self.processor, name, None) for name in names]
        return [text for text in texts if isinstance(text, str) and text]

    @functools.cached_property
    def _markers(self) -> dict[int, str]:
        form = self._turn_format
        return marker_tokens(self.tokenizer, (form.header, *form.closings) if form is not None else ())

    def _encode_untrusted(self, text: str) -> list[int]:
        return encode_pieces(self.tokenizer, [Piece(text, is_trusted=False)], self._markers)

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


def _with_last_turn(messages: Any, text: str) -> Messages | None:
    """Return the conversation with another text in its last user turn; None where it has none."""
    position = last_user_position(messages)
    if position is None:
        return None
    return [*messages[:position], with_text(messages[position], text), *messages[position + 1 :]]


def _joined(*parts: TeacherPrompt) -> TeacherPrompt:
    names = {name for part in parts for name in part.token_types}
    return TeacherPrompt(
        tuple(token for part in parts for token in part.ids),
        token_types={
            name: tuple(kind for part in parts for kind in part.token_types.get(name, [0] * len(part.ids)))
            for name in names
        },
    )
