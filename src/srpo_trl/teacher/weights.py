"""Whose weights the teacher has: an exponential moving average of the student, its initial weights, or itself.

The teacher is no second module. It is one tensor per trainable parameter, swapped with the student's values for the
length of a teacher pass. Parameters that never trained (the base model under LoRA, say) are shared by
construction, so the same few lines serve full fine-tuning, LoRA and QLoRA, a copied module can never keep running
the student's weights, and each process holds and updates just its part of the parameters (FSDP2, ZeRO-3).

Layers may be frozen and unfrozen while training. Until a parameter is trainable for the first time, its value is the
initial one, of both student and teacher; from then on the teacher has a value of its own, also while it is frozen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from srpo_trl.loss.float64 import float64_device, to_float64
from srpo_trl.seams.parameters import (
    full_tensor,
    local_shard,
    named_trainable,
    parameters_by_name,
    shard_of_full,
    whole_shape,
)

TEACHER_FILE = "srpo_teacher.safetensors"


class TeacherDistance(NamedTuple):
    """Squared L2 norms over this process's parts of all parameters that the teacher has values of, in float64."""

    squared_distance: Tensor
    squared_student_norm: Tensor


class TeacherWeights:
    """The teacher's values of every parameter of the student that is, or has been, trainable.

    Values are laid out like the parameters. Where an engine shards these, make the teacher after the sharding.

    Args:
        model: the student with its initial weights; PEFT's wrapper included, a parallel engine's not.
        kind: "ema", "base" (frozen initial weights) or "live" (the student itself; nothing is stored).
        update_rate: EMA rate in (0, 1]; SDPO and SRPO use 0.05.
        update_interval: the average moves at every so many updates, at least 1; with rate 1 it is set to the student
            (TRACE, arXiv:2605.10194: every 10).
        release_gathered: frees gathered copies of sharded parameters; called before parameters are looked up,
            because sharding replaces them and a gathered copy hides them.
        device: that whole values of sharded parameters are gathered on.
        file: that `save` writes.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: str,
        update_rate: float,
        update_interval: int = 1,
        *,
        release_gathered: Callable[[], None] = lambda: None,
        device: torch.device | None = None,
        file: str = TEACHER_FILE,
    ) -> None:
        self.kind = kind
        self._file = file
        self.update_rate = update_rate
        self.update_interval = update_interval
        self.num_updates = 0
        self.is_frozen = False  # an average that moves no more
        self._resets_to_student = False
        self._model = model
        self._release_gathered = release_gathered
        self._device = device or torch.device("cpu")
        # By name, because sharding replaces the parameters themselves. The live teacher has names without values.
        self._held: dict[str, None] = {}
        self._values: dict[str, Tensor] = {}
        self.hold_trainable()

    def hold_trainable(self) -> bool:
        """Take up the parameters that have become trainable, with the values they have now; return whether any has.

        Call it before an optimizer step can have moved them. A collective: all ranks must call it.
        """
        new = [name for name, _ in named_trainable(self._model) if name not in self._held]
        if new:
            self._held |= dict.fromkeys(new)
            parameters = self._parameters()
            self._values |= {name: self._initial(parameters[name]) for name in new if self.kind != "live"}
        return bool(new)

    def _initial(self, parameter: Tensor) -> Tensor:
        return local_shard(parameter).to(self._store_dtype(parameter), copy=True)

    def _store_dtype(self, parameter: Tensor) -> torch.dtype:
        # A bfloat16 average at rate 0.05 does not move for updates of RL's size: average in float32.
        return torch.promote_types(parameter.dtype, torch.float32) if self.kind == "ema" else parameter.dtype

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Return the student's parameters that are held, frozen at present or not."""
        self._release_gathered()
        parameters = parameters_by_name(self._model)
        gone = [name for name in self._values if name not in parameters]
        if gone:
            raise ValueError(
                f"{len(gone)} parameters that were trained are gone from the model, {gone[:3]} first, and the teacher "
                "cannot follow. While training, parameters may be frozen, unfrozen and added, not renamed or "
                "removed: give the model its adapters before the trainer is made, and merge or delete them afterwards."
            )
        return {name: parameters[name] for name in self._held if name in parameters}

    def _parts(self) -> dict[str, Tensor]:
        """Return this process's parts of the student's parameters, each beside its value on one device.

        Some engines move the model after the teacher was made.
        """
        parts = {name: local_shard(parameter) for name, parameter in self._parameters().items()}
        for name, value in self._values.items():
            if value.shape != parts[name].shape:
                raise ValueError(
                    f"{name} had the shape {tuple(value.shape)} when the teacher took it up and has "
                    f"{tuple(parts[name].shape)} now. Resize the model before the trainer is made."
                )
            self._values[name] = value.to(parts[name].device)
        return parts

    @torch.no_grad()
    def update(self, num_updates: int = 1) -> TeacherDistance | None:
        """Move the average: `teacher <- (1 - rate) * teacher + rate * student`, in float32 (SDPO, section 3).

        Args:
            num_updates: so many times toward the same student, which is once at the rate `1 - (1 - rate)^n`, n the
                number of them at which an interval ends.
        Returns:
            The distance to the student afterwards; None for the live teacher, which has none.
        """
        num_intervals = self.num_updates // self.update_interval
        self.num_updates += num_updates
        if self.kind == "live":
            return None
        num_moves = self.num_updates // self.update_interval - num_intervals
        rate = self.update_rate if num_moves == 1 else 1.0 - (1.0 - self.update_rate) ** num_moves
        parts = self._parts()
        device = next((value.device for value in self._values.values()), self._device)
        distance, norm = torch.zeros(2, dtype=torch.float64, device=float64_device(device)).unbind()
        for name, value in self._values.items():
            student = parts[name].to(value.dtype)
            if self._resets_to_student:
                value.copy_(student)
            elif self.kind == "ema" and not self.is_frozen:
                value.lerp_(student, rate)
            distance += _sum_of_squares(value - student)
            norm += _sum_of_squares(student)
        self._resets_to_student = False
        return TeacherDistance(distance, norm)

    def freeze(self) -> None:
        """Let the average stay as it is."""
        self.is_frozen = True

    def reset_to_student(self) -> None:
        """Reset the teacher to the student at its next update; buffered rollouts were scored by its present values."""
        self._resets_to_student = True

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Run the block with the teacher's values in the student's parameters; restore them exactly afterwards.

        Values of the parameter's own dtype are swapped in place, which needs memory for one parameter; a
        float32 average of a bfloat16 parameter stays, and the student's value is set aside.
        """
        parts = self._parts()
        set_aside = {n: parts[n].clone() for n, v in self._values.items() if v.dtype != parts[n].dtype}
        self._swap(parts, set_aside)
        try:
            yield
        finally:
            self._swap(self._parts(), set_aside, back=True)

    @torch.no_grad()
    def _swap(self, parts: dict[str, Tensor], set_aside: dict[str, Tensor], *, back: bool = False) -> None:
        for name, value in self._values.items():
            part = parts[name]
            if name in set_aside:
                part.copy_(set_aside[name] if back else value)
            else:
                held = part.clone()
                part.copy_(value)
                value.copy_(held)

    def value_of(self, parameter: Tensor) -> Tensor:
        """Return the teacher's whole value of one of the student's parameters, in its dtype, detached.

        Parameters that never trained, and all of the live teacher's, are the student's own. A collective: all
        ranks must call it.
        """
        part = local_shard(parameter)
        for name, own in self._parameters().items():
            if own is parameter and name in self._values:
                part = self._values[name].to(parameter.dtype)
        return full_tensor(parameter, part, self._device)

    def holds(self, parameter: Tensor) -> bool:
        """Return whether a parameter is, or has been, trainable. Where parameters are sharded, give the sharded one."""
        return any(own is parameter for own in self._parameters().values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return this process's parts of the values by parameter name; empty for the live teacher."""
        return dict(self._values)

    def save(self, folder: Path, *, writes: bool = True) -> None:
        """Write the whole values and the number of updates to its file in an existing folder.

        A collective: all ranks must call it, since values are gathered one by one; those with `writes` write the file.
        """
        parameters = self._parameters()
        values = {}
        for name, value in self._values.items():
            whole = full_tensor(parameters[name], value, self._device)
            if writes:
                values[name] = whole.contiguous().cpu()
        if writes:
            metadata = {
                "kind": self.kind,
                "num_updates": str(self.num_updates),
                "update_rate": str(self.update_rate),
                "is_frozen": str(int(self.is_frozen)),
                "resets_to_student": str(int(self._resets_to_student)),
            }
            save_file(values, folder / self._file, metadata=metadata)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            FileNotFoundError: the folder holds no teacher.
            ValueError: the file is of another kind of teacher or of other parameters.
        """
        path = folder / self._file
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the checkpoint holds no teacher, so it was not written by SRPOTrainer with "
                f"a method other than 'grpo'. Resume from a checkpoint that holds one, or start a new run from "
                "this one by passing it as `model`."
            )
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != self.kind:
                raise ValueError(
                    f"{path} holds a teacher of kind {metadata.get('kind')!r}, but teacher_model_kind="
                    f"{self.kind!r}. Resume with the kind that the run was started with."
                )
            self._load_values(path, file)
        self.num_updates = int(metadata["num_updates"])
        self.is_frozen, self._resets_to_student = (
            metadata.get(name) == "1" for name in ("is_frozen", "resets_to_student")
        )

    def _load_values(self, path: Path, file: Any) -> None:
        """Take a file's values one by one; what it does not name had never trained, and is the student's own."""
        names = set(file.keys())
        self._release_gathered()
        parameters = parameters_by_name(self._model)
        differing = sorted(
            name
            for name in names
            if name not in parameters
            or list(whole_shape(parameters[name])) != file.get_slice(name).get_shape()
        )
        if differing:
            raise ValueError(
                f"{path} and the model differ in {len(differing)} trained parameters, {differing[:3]} first. "
                "Resume with the same model and adapter."
            )
        self._held |= dict.fromkeys(sorted(names))
        for name in self._held if self.kind != "live" else ():
            value = self._initial(parameters[name])
            if name in names:
                value.copy_(shard_of_full(parameters[name], file.get_tensor(name)))
            self._values[name] = value


_PIECE = 1024  # numbers that are summed up in their own format, float32 at the least


def _sum_of_squares(tensor: Tensor) -> Tensor:
    """Return the sum of squares, () float64: of pieces first, as one sum in float64 throughout is slow on a CPU."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    flat = tensor.reshape(-1)
    whole = flat.numel() // _PIECE * _PIECE
    pieces = (flat[:whole].view(-1, _PIECE), flat[whole:].unsqueeze(0))
    norms = torch.cat([torch.linalg.vector_norm(piece, dim=-1, dtype=dtype) for piece in pieces])
    return to_float64(norms).square().sum()
