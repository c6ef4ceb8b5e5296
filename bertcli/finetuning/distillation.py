"""What another model of the same task makes of the training rows, for a smaller one to learn from.

<cache>/teachers/<key>/logits.npy   float32 [N, C]
<cache>/teachers/<key>/states.npy   float16 [N * K, L, width of the student], memory-mapped
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate import Accelerator

from bertcli.console import Console
from bertcli.data.encoding import Encoded
from bertcli.errors import ModelError
from bertcli.finetuning.frozen_outputs import ITEMS_AT_ONCE, computed_once, key_of
from bertcli.finetuning.setup import Prepared
from bertcli.heads.labels import check_labels
from bertcli.inference.forward import check_finite, compute_logits
from bertcli.inference.loaded_model import Trained, open_trained
from bertcli.models.cls_states import first_states, tell_first_states
from bertcli.models.freezing import layers_of
from bertcli.runs.folder import best_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS, STATES, WHOLE = "logits.npy", "states.npy", "whole.npy"


def open_teacher(prepared: Prepared, student: PreTrainedModel) -> Trained:
    """The model that the recipe names as teacher.

    Raises:
        ModelError: it answers another question, has other labels, or is the smaller one where its layers are learned
            from.
    """
    section = prepared.recipe.training
    name = section.teacher
    assert name is not None
    with torch.random.fork_rng():  # whose numbers a resumed run must find as they were
        teacher = open_trained(best_seed(name), prepared.mirror, prepared.recipe.hardware)
    if teacher.head.answer_kind != prepared.head.answer_kind:
        kinds = f"answers {teacher.head.answer_kind}, the task is {prepared.head.answer_kind}"
        raise ModelError(f"the teacher {name} {kinds}")
    if teacher.head.labels:
        check_labels(teacher.head.labels, prepared.head.labels, name, "Name a teacher of the same labels.")
    if section.teacher_hidden_weight:
        there, own = ((len(layers_of(one)), one.config.hidden_size) for one in (_model(teacher), student))
        if there[0] < own[0] or there[1] < own[1]:
            raise ModelError(
                f"the teacher {name} has {there[0]} layers of width {there[1]}, the student {own[0]} of {own[1]}: "
                "name a larger teacher, or set training.teacher_hidden_weight=0"
            )
    return teacher


def _model(teacher: Trained) -> PreTrainedModel:
    return cast("PreTrainedModel", teacher.model)


def with_teacher(
    prepared: Prepared, encoded: Encoded, student: PreTrainedModel, accelerator: Accelerator, console: Console
) -> Encoded:
    """The training rows with what the recipe's teacher makes of them, to be compared with what the student does.

    That is its logits, its labels in the order of the student's, and, if they have a weight, its hidden states of first
    tokens: as many layers as the student has, evenly spread, the highest among them. For a narrower student they are
    turned to the directions in which they vary most, so that what is compared loses as little as it can.

    Raises:
        ModelError: as `open_teacher` does, or the teacher reads rows in other windows.
    """
    teacher = open_teacher(prepared, student)
    name, head = teacher.name, teacher.head
    read = head.encode(prepared.task, prepared.rows["train"], teacher.tokenizer, teacher.data)
    if not np.array_equal(read.rows, encoded.rows):
        raise ModelError(f"the teacher {name} reads long rows in other windows; set data.max_length alike in both")
    depths = _depths(teacher, student) if prepared.recipe.training.teacher_hidden_weight else []
    width = student.config.hidden_size

    def compute(aside: Path | None) -> None:
        with console.display("teacher", len(read)) as display:
            _compute(teacher, read, depths, width, aside, display.advance)

    precision = teacher.accelerator.mixed_precision
    key = key_of(teacher.model.state_dict(), read, depths, width if depths else 0, precision)
    folder = computed_once(accelerator, "teachers", key, compute, console.warn)
    logits = np.load(folder / LOGITS)
    if head.labels:
        logits = logits[:, [head.labels.index(label) for label in prepared.head.labels]]
    states = np.load(folder / STATES, mmap_mode="r") if depths else None
    return replace(encoded, teacher_logits=logits, teacher_states=states)


def _depths(teacher: Trained, student: PreTrainedModel) -> list[int]:
    """The teacher's layer for each of the student's."""
    there, own = len(layers_of(_model(teacher))), len(layers_of(student))
    return [layer * there // own for layer in range(1, own + 1)]


def _compute(
    teacher: Trained,
    encoded: Encoded,
    depths: list[int],
    width: int,
    aside: Path | None,
    on_batch: Callable[[int], None],
) -> None:
    """Write the logits [N, C] of all items, and the states [N * K, L, width] of the layers at `depths`, if any."""
    model, all_logits = _model(teacher), []
    if depths:
        tell_first_states(model, depths)

    def told(outputs: Any) -> torch.Tensor:
        logits = teacher.head.logits(outputs).float()
        return torch.cat([logits, first_states(outputs).reshape(len(logits), -1)], 1) if depths else logits

    shape = (len(encoded.offsets) - 1, len(depths), model.config.hidden_size)
    path = aside and aside / (WHOLE if width < shape[2] else STATES)
    whole = np.lib.format.open_memmap(path, "w+", np.float16, shape) if path and depths else None
    at = 0
    for _, part in encoded.parts(ITEMS_AT_ONCE):
        values, _ = compute_logits(
            teacher.accelerator,
            model,
            part,
            told,
            max_tokens=teacher.max_tokens,
            on_batch=on_batch,
        )
        check_finite(values)
        sequences = len(part.offsets) - 1
        num_states = sequences // len(part) * shape[1] * shape[2]
        all_logits.append(values[:, : values.shape[1] - num_states].copy())  # without what stands beside them
        if whole is not None:
            whole[at : at + sequences] = values[:, values.shape[1] - num_states :].reshape(sequences, *shape[1:])
        at += sequences
    if aside is not None:
        np.save(aside / LOGITS, np.concatenate(all_logits))
    if whole is not None:
        whole.flush()
    if aside is not None and whole is not None and width < shape[2]:
        _narrow(whole, width, aside / STATES)
        (aside / WHOLE).unlink()


def _narrow(whole: np.ndarray, width: int, path: Path) -> None:
    """Write states [n, L, H] as [n, L, width], along their main directions."""
    table = np.lib.format.open_memmap(path, "w+", np.float16, (*whole.shape[:2], width))
    mean, basis = main_directions(whole, width)
    for start in range(0, len(whole), ITEMS_AT_ONCE):
        part = whole[start : start + ITEMS_AT_ONCE]
        table[start : start + len(part)] = np.einsum("nlh,lhw->nlw", part - mean, basis, optimize=True)
    table.flush()


def main_directions(states: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each layer, the mean of its states [n, L, H], and the directions in which they vary most [L, H, width]."""
    _, num_layers, source = states.shape
    mean = states.mean(0, dtype=np.float64)
    products = np.zeros((num_layers, source, source))
    for start in range(0, len(states), ITEMS_AT_ONCE):
        centred = states[start : start + ITEMS_AT_ONCE] - mean
        products += np.einsum("nlh,nlk->lhk", centred, centred, optimize=True)
    _, directions = np.linalg.eigh(products)
    basis = directions[:, :, : -width - 1 : -1]
    largest = np.take_along_axis(basis, np.abs(basis).argmax(1, keepdims=True), 1)
    return mean, basis * np.sign(largest)  # the same on every machine: a direction's sign is chance
