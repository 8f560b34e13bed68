"""What the teacher reads before it re-scores a rollout: prompts of text and of tokens (SRPO, section B.5; SDPO).

System messages and earlier turns stay, the last user turn becomes the re-prompt, and the chat template's
assistant header follows, so that the rollout's own token ids can be appended unchanged. Text that a model or a
grader wrote is encoded without special tokens: a marker such as `<|im_end|>` inside it stays text.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]
Completion = str | Messages

_CLOSED_THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_UNOPENED_THINKING = re.compile(r"\A.*?</think>\s*", re.DOTALL)  # the template opened it in the prompt
_UNCLOSED_THINKING = re.compile(r"<think>.*\Z", re.DOTALL)  # the rollout was cut inside it

_USER_TURN = "srpo-user-turn-7f3a9c"  # stands for the user's text while the chat template is rendered


class TeacherInformation(NamedTuple):
    """f_i of one rollout: what the teacher is shown. Empty string: absent."""

    solution: str = ""
    feedback: str = ""

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.solution or self.feedback)


class TeacherPrompt(NamedTuple):
    """Token ids of a teacher's prompt, how many tokens of the information were cut to fit, and what is left of it."""

    ids: tuple[int, ...]
    num_cut: int
    information: TeacherInformation = TeacherInformation()


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


def remove_thinking(text: str) -> str:
    """Return the text without `<think>` blocks, closed, unopened or unclosed."""
    text = _CLOSED_THINKING.sub("", text)
    text = _UNOPENED_THINKING.sub("", text)
    return _UNCLOSED_THINKING.sub("", text)


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
        max_length: longest prompt, in tokens.
        chat_template: replaces the tokenizer's own; None keeps it.
        chat_template_kwargs: passed to the template.
    """

    tokenizer: PreTrainedTokenizerBase
    templates: ContextTemplates
    max_length: int
    chat_template: str | None
    chat_template_kwargs: dict[str, Any]

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
        full_ids = ids = encode(information)
        num_to_cut, shown = 0, information
        while len(ids) > self.max_length:
            num_to_cut += len(ids) - self.max_length
            shortened = self._shorten(information, num_to_cut)
            if shortened is None:
                return None
            ids, shown = encode(shortened), shortened
        return TeacherPrompt(tuple(ids), len(full_ids) - len(ids), shown)

    def _text_encoder(self, prompt: str) -> Callable[[TeacherInformation], list[int]]:
        def encode(information: TeacherInformation) -> list[int]:
            text = self.templates.user_turn(prompt, information)
            return self.tokenizer(text, split_special_tokens=True)["input_ids"]

        return encode

    def _chat_encoder(
        self, messages: Messages, tools: list[Callable | dict] | None
    ) -> Callable[[TeacherInformation], list[int]]:
        """Render the conversation once around the user's turn; only that turn's text differs afterwards."""
        position = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)
        if position is None:
            roles = [message["role"] for message in messages]
            raise ValueError(
                f"A prompt needs a user turn for the teacher's re-prompt; its roles are {roles}."
            )
        prompt = message_text(messages[position])
        rendered: Any = self.tokenizer.apply_chat_template(
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
        before, after = (self._encode_template(part) for part in rendered.split(_USER_TURN))

        def encode(information: TeacherInformation) -> list[int]:
            return before + self._encode_untrusted(self.templates.user_turn(prompt, information)) + after

        return encode

    def _encode_template(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _encode_untrusted(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _shorten(self, information: TeacherInformation, num_tokens: int) -> TeacherInformation | None:
        """Return the information without `num_tokens` of its tokens, or None where a part would vanish."""
        solution_ids = self._encode_untrusted(information.solution)
        feedback_ids = self._encode_untrusted(information.feedback)
        from_feedback = min(num_tokens, max(len(feedback_ids) - 1, 0)) if solution_ids else num_tokens
        from_solution = num_tokens - from_feedback
        kept_solution = solution_ids[from_solution:]
        kept_feedback = feedback_ids[: max(len(feedback_ids) - from_feedback, 0)]
        if bool(solution_ids) != bool(kept_solution) or bool(feedback_ids) != bool(kept_feedback):
            return None
        return TeacherInformation(self._decode(kept_solution), self._decode(kept_feedback))

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids)).strip("\ufffd")  # a character cut in two


def _with_text(message: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the message with its text replaced and its other content parts kept."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": text}
    others = [part for part in content if part["type"] != "text"]
    return {**message, "content": [*others, {"type": "text", "text": text}]}
