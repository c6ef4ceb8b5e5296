"""What another model of the same task makes of the training rows, for a smaller one to learn from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from bertcli.commands.prepare import Prepared
from bertcli.commands.score import ITEMS_AT_ONCE, check_finite
from bertcli.commands.trained import Trained, open_trained
from bertcli.data.encoding import Encoded
from bertcli.errors import ModelError
from bertcli.heads.labels import check_labels
from bertcli.models import adapt
from bertcli.runs.console import Console
from bertcli.runs.folder import best_seed
from bertcli.training.devices import width_multiple
from bertcli.training.evaluation import compute_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def open_teacher(prepared: Prepared, student: PreTrainedModel) -> Trained:
    """The model that the recipe names as teacher.

    Raises:
        ModelError: it answers another question, has other labels, or fewer layers where each is to be learned from.
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
    there, own = (
        len(adapt.layers_of(one)) if section.teacher_hidden_weight else 0 for one in (_model(teacher), student)
    )
    if there < own:
        raise ModelError(
            f"the teacher {name} has {there} layers and the student {own}: set training.teacher_hidden_weight=0"
        )
    return teacher


def _model(teacher: Trained) -> PreTrainedModel:
    return cast("PreTrainedModel", teacher.model)


def with_teacher(prepared: Prepared, encoded: Encoded, student: PreTrainedModel, console: Console) -> Encoded:
    """The training rows with what the recipe's teacher makes of them, to be compared with what the student does.

    That is its logits, its labels in the order of the student's, and, if they have a weight, its hidden states of first
    tokens: as many layers as the student has, evenly spread, the highest among them.

    Raises:
        ModelError: the teacher answers another question, has other labels, or reads rows in other windows.
    """
    teacher = open_teacher(prepared, student)
    name, head = teacher.name, teacher.head
    read = head.encode(prepared.task, prepared.rows["train"], teacher.tokenizer, teacher.data)
    if not np.array_equal(read.rows, encoded.rows):
        raise ModelError(f"the teacher {name} reads long rows in other windows; set data.max_length alike in both")
    depths = _depths(teacher, student) if prepared.recipe.training.teacher_hidden_weight else []
    with console.display("teacher", len(read)) as display:
        logits, states = _answers(teacher, read, depths, student.config.hidden_size, display.advance)
    if head.labels:
        logits = logits[:, [head.labels.index(label) for label in prepared.head.labels]]
    return replace(encoded, teacher_logits=logits, teacher_states=states)


def _depths(teacher: Trained, student: PreTrainedModel) -> list[int]:
    """The teacher's layer for each of the student's."""
    there, own = len(adapt.layers_of(_model(teacher))), len(adapt.layers_of(student))
    return [layer * there // own for layer in range(1, own + 1)]


def _answers(
    teacher: Trained, encoded: Encoded, depths: list[int], width: int, on_batch: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits [N, C] of all items, and states [N * K, L, width] of the layers at `depths`, if there are any."""
    model = _model(teacher)
    source: int = model.config.hidden_size
    if depths:
        adapt.tell_first_states(model, depths)

    def told(outputs: Any) -> torch.Tensor:
        logits = teacher.head.logits(outputs).float()
        return torch.cat([logits, outputs["first_states"].reshape(len(logits), -1)], 1) if depths else logits

    all_logits, all_states, directions = [], [], None
    for _, part in encoded.parts(ITEMS_AT_ONCE):
        values, _ = compute_logits(
            teacher.accelerator,
            model,
            part,
            told,
            max_tokens=teacher.max_tokens,
            multiple_of=width_multiple(teacher.accelerator),
            on_batch=on_batch,
        )
        check_finite(values)
        num_states = len(depths) * part.num_choices * source
        logits, states = np.split(values, [values.shape[1] - num_states], 1)
        all_logits.append(logits)
        if depths:
            states = states.reshape(-1, len(depths), source)
            directions = directions or main_directions(states, width)
            all_states.append(turned_states(states, *directions))
    return np.concatenate(all_logits), np.concatenate(all_states) if depths else None


def main_directions(states: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each layer, the mean of its states [n, L, H], and the directions in which they vary most [L, H, width].

    To be as wide as a narrower student, what is compared loses as little as it can; a student of the same width is
    compared with the states themselves, a wider one with zeros beyond them.
    """
    _, num_layers, source = states.shape
    if width >= source:
        return np.zeros((num_layers, source)), np.broadcast_to(np.eye(source, width), (num_layers, source, width))
    mean = states.mean(0, dtype=np.float64)
    centred = states - mean
    _, directions = np.linalg.eigh(np.einsum("nlh,nlk->lhk", centred, centred))
    basis = directions[:, :, : -width - 1 : -1]
    largest = np.take_along_axis(basis, np.abs(basis).argmax(1, keepdims=True), 1)
    return mean, basis * np.sign(largest)  # the same on every machine: a direction's sign is chance


def turned_states(states: np.ndarray, mean: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """States [n, L, H] seen along the directions: [n, L, width]."""
    return np.einsum("nlh,lhw->nlw", states - mean, basis, optimize=True).astype(np.float32)
