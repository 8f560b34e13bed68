"""Teachers that are models of their own, with the student's tokenizer: `teacher_model`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from srpo_trl.loss.student import add_backbone_calls
from srpo_trl.seams.frozen import load_frozen, prepare_frozen
from srpo_trl.teacher.packing import Layout, row_layout

_SAMPLES, _SAMPLE_BYTES = 16, 4096  # of each file of weights, that tell models apart
_PROBE = "The answer is 12,345.67: x² ≠ ½ — naïve 你好 🙂\n\tdef f(x): return x"


class ExternalTeacher(NamedTuple):
    """A model that scores and never trains.

    Attributes:
        model: the transformers model inside wrappers.
        wrapped: as the engine runs it.
        layout: of the rows of a pass.
        identity: from `identity_of`.
    """

    model: PreTrainedModel
    wrapped: nn.Module
    layout: Layout
    identity: str


class TeacherIdentities:
    """Which external teachers a run has: a checkpoint of others is refused, since it holds their scores.

    Args:
        teachers: by name.
    """

    def __init__(self, teachers: Mapping[str, ExternalTeacher]) -> None:
        self._identities = {name: teacher.identity for name, teacher in teachers.items()}

    def state(self) -> dict[str, str]:
        """Return what a checkpoint must hold."""
        return self._identities

    def restore(self, state: dict[str, str]) -> None:
        """Raise ValueError where the checkpoint's teachers are not these."""
        changed = [name for name, own in self._identities.items() if state.get(name) != own]
        if changed or len(state) != len(self._identities):
            names = ", ".join(map(repr, changed or state))
            raise ValueError(
                f"teacher_model has other models than the run was started with: {names}. Give those, or start a new "
                "run from the checkpoint's model by passing it as `model`."
            )


def identity_of(path: str, commit: str | None) -> str:
    """Return what tells a model from others: its commit on the hub, or sizes and samples of a folder's weights."""
    digest = hashlib.sha256()
    files = sorted(file for file in Path(path).glob("*") if file.suffix in (".safetensors", ".bin"))
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as opened:
            for sample in range(_SAMPLES):
                opened.seek(max(size - _SAMPLE_BYTES, 0) * sample // (_SAMPLES - 1))
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest() if files else commit or path


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
        is_distilled = any(scorer.weights == "external" for scorer in args.method_record.distilling)
        least = config.get_text_config().vocab_size if is_distilled else len(student_tokenizer)
        _check_config(path, config, args.trust_remote_code, least, is_exact=is_distilled)
    teachers = {}
    for name, path in args.teacher_models.items():
        model = load_frozen(
            path,
            trust_remote_code=args.trust_remote_code,
            attn_implementation=config._attn_implementation,
        )
        add_backbone_calls(model)
        identity = identity_of(path, getattr(model.config, "_commit_hash", None))
        prepared = prepare_frozen(model, accelerator)
        teachers[name] = ExternalTeacher(model, prepared, row_layout(model), identity)
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


def _check_config(path: str, student: Any, trust: bool, vocabulary: int, *, is_exact: bool) -> None:
    """Raise ValueError where a model cannot score what the student samples."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise ValueError(f"teacher_model={path!r} is no model that can be read: {error}") from error
    found = config.get_text_config().vocab_size
    if found < vocabulary or (is_exact and found != vocabulary):
        raise ValueError(
            f"teacher_model={path!r} has a vocabulary of {found}; {vocabulary}{'' if is_exact else ' at the least'} is "
            "required, as the student has. Resize the embeddings of one of them."
        )
    if hasattr(student, "vision_config") and not hasattr(config, "vision_config"):
        raise ValueError(
            f"teacher_model={path!r} reads no images, but the student does. Give a vision-language model."
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
