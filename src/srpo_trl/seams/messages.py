"""The messages of a conversation: their text, their images, and the user's last turn.

A row can bring anything: keys that a table fills with None, content without text, parts without a type.
"""

from typing import Any

from jinja2 import TemplateError

# What a chat template or a tokenizer raises for a row that it does not take.
ROW_ERRORS = (TemplateError, ValueError, TypeError, LookupError, AttributeError)

Messages = list[dict[str, Any]]


def last_user_position(messages: Messages) -> int | None:
    """Return the index of the last user turn; None where there is none."""
    return max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=None)


def message_text(message: dict[str, Any]) -> str:
    """Return a message's text; of content in parts, the text parts joined; empty where it has none."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if part.get("type") == "text")


def text_after_images(message: dict[str, Any]) -> str:
    """Return a message's text behind its last part that is not text; a question may speak of what stands where."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return message_text({"content": content[_num_fixed_parts(content) :]})


def with_text(message: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the message with `text_after_images` replaced."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return {**message, "content": text}
    return {**message, "content": [*content[: _num_fixed_parts(content)], {"type": "text", "text": text}]}


def images_of(messages: Messages) -> list[Any]:
    """Return the images of messages in their order, where TRL looks for them too."""
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part["image"] for part in parts if part.get("type") == "image"]


def has_image(prompt: Any) -> bool:
    """Return whether a prompt, of whatever form, has a message with a part that is an image."""
    messages = (
        [message for message in prompt if isinstance(message, dict)] if isinstance(prompt, list) else []
    )
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, dict) and part.get("type") == "image" for part in parts)


def _num_fixed_parts(content: list[dict[str, Any]]) -> int:
    """Return how many content parts end with the last that is not text."""
    return max((i + 1 for i, part in enumerate(content) if part.get("type") != "text"), default=0)


def whole_characters(text: str) -> str:
    """Return the text with U+FFFD for each lone surrogate: half a character, which no tokenizer and no file takes.

    A `\\ud800` in a rollout's JSON becomes one in the feedback of a grader that quotes it.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
