"""Teachers that are models of their own, with the student's tokenizer: `teacher_model`."""

from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from srpo_trl.loss.student import add_backbone_calls
from srpo_trl.seams.frozen import load_frozen, prepare_frozen
from srpo_trl.teacher.packing import Layout, row_layout

_PROBE = "The answer is 12,345.67: x² ≠ ½ — naïve 你好 🙂\n\tdef f(x): return x"


class ExternalTeacher(NamedTuple):
    """A model that scores and never trains.

    Attributes:
        model: the transformers model inside wrappers.
        wrapped: as the engine runs it.
        layout: of the rows of a pass.
    """

    model: PreTrainedModel
    wrapped: nn.Module
    layout: Layout


def load_external(
    args: Any, config: Any, student_tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
) -> dict[str, ExternalTeacher]:
    """Return the external teachers by name, once all their tokenizers have been looked at.

    Args:
        args: an `SRPOConfig`: the teachers' paths.
        config: of the student, whose attention they take.
        student_tokenizer: whose ids the teachers must read alike.
        accelerator: the engine.
    Raises:
        ValueError: a teacher has another tokenizer, or none.
    """
    for path in args.teacher_models.values():
        _check_tokenizer(path, student_tokenizer, args.trust_remote_code)
    teachers = {}
    for name, path in args.teacher_models.items():
        model = load_frozen(
            path,
            trust_remote_code=args.trust_remote_code,
            attn_implementation=config._attn_implementation,
        )
        add_backbone_calls(model)
        teachers[name] = ExternalTeacher(model, prepare_frozen(model, accelerator), row_layout(model))
    return teachers


def _check_tokenizer(path: str, student_tokenizer: PreTrainedTokenizerBase, trust: bool) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"teacher_model={path!r} has no tokenizer that can be read, so that its ids cannot be compared with the "
            f"student's: {error}"
        ) from error
    difference = tokenizer_difference(student_tokenizer, tokenizer)
    if difference:
        raise ValueError(
            f"teacher_model={path!r} has another tokenizer than the student: {difference}. A teacher scores the "
            "student's own token ids: give a model of the student's family."
        )


def tokenizer_difference(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> str:
    """Return the first difference in how two tokenizers read text as ids; empty where there is none."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    for token, number in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != number:
            return (
                f"{token!r} is {number} for the student and {theirs.get(token, 'no token')} for the teacher"
            )
    if len(ours) != len(theirs):
        return f"it has {len(theirs) - len(ours)} tokens more"
    of_student, of_teacher = (list(side(_PROBE)["input_ids"]) for side in (student, teacher))
    return "" if of_student == of_teacher else f"{_PROBE[:20]!r}... becomes other ids"
