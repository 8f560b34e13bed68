"""What the teacher of a vision-language model is given beside token ids: each row's own images.

Legend: R rows of one pass, L length of the longest, T completion positions.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from srpo_trl.teacher.context import TeacherPrompt


class VisionRow(NamedTuple):
    """What the student reads of one rollout beside its token ids.

    Attributes:
        images: by model input, the entries of the row's images along the first dimension; none or empty where the
            row has no image.
        completion_types: by model input, (T,) the kind of each completion token, 0 for text; often none.
    """

    images: Mapping[str, Tensor]
    completion_types: Mapping[str, Tensor]


def vision_inputs(
    prompts: Sequence[TeacherPrompt], completion_lengths: Sequence[int], rows: Sequence[VisionRow]
) -> dict[str, Tensor]:
    """Return the inputs of a pass over whole sequences padded on the right, beside token ids and attention mask.

    Args:
        prompts: the teacher's, one a row; they hold the same images in the same order as the student's.
        completion_lengths: in tokens, one a row.
        rows: what the student read.
    Returns:
        Images joined in the order of the rows, and (R, L) token types where the model reads them. Nothing where no
        row has an image: the model then reads text, as TRL lets the student.
    """
    joined = {name: torch.cat([row.images[name] for row in rows]) for name in rows[0].images}
    images = {name: values for name, values in joined.items() if values.numel()}
    if not images:
        return {}
    types = {
        name: pad_sequence(
            [
                torch.cat(
                    [
                        _prompt_types(prompt, name, row.completion_types[name]),
                        row.completion_types[name][:length],
                    ]
                )
                for prompt, length, row in zip(prompts, completion_lengths, rows, strict=True)
            ],
            batch_first=True,
        )
        for name in rows[0].completion_types
    }
    return images | types


def _prompt_types(prompt: TeacherPrompt, name: str, like: Tensor) -> Tensor:
    return like.new_tensor(prompt.token_types.get(name, (0,) * len(prompt.ids)))
