"""Knowledge distillation: a teacher's logits and hidden states on the training rows, computed once and cached.

<cache>/teachers/<key>/logits.npy   float32 [N, C]
<cache>/teachers/<key>/states.npy   float16 [N * K, L, P], memory-mapped

Shapes: N items, K choices of an item, C classes, L recorded layers, H hidden size of the teacher, P of the student.
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
from bertcli.data.encoding import Encoded, special_tokens_template
from bertcli.errors import ModelError
from bertcli.finetuning.frozen_outputs import MAX_CHUNK_ITEMS, create_array, get_or_compute, outputs_key
from bertcli.finetuning.setup import FinetuneSetup
from bertcli.heads.labels import check_labels
from bertcli.inference.forward import check_finite, compute_logits
from bertcli.inference.loaded_model import LoadedModel, load_for_inference
from bertcli.models.cls_states import cls_hidden_states, record_cls_states
from bertcli.models.freezing import encoder_layers
from bertcli.models.from_pretrained import ModelSource
from bertcli.runs.members import best_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS, STATES, FULL_SIZE_STATES = "logits.npy", "states.npy", "full_size_states.npy"


def load_teacher(setup: FinetuneSetup, student: PreTrainedModel) -> LoadedModel:
    """Load the teacher that the recipe names.

    Raises:
        ModelError: if the teacher predicts another kind of answer or has other labels; or its hidden states are to be
            distilled, and it is smaller than the student, or one of the two has no [CLS] at the start of a text.
    """
    section = setup.recipe.training
    name = section.teacher
    assert name is not None
    with torch.random.fork_rng():  # loading draws random numbers, but a resumed run needs an unchanged generator
        teacher = load_for_inference(ModelSource(best_seed(name), setup.mirror), setup.recipe.hardware)
    if teacher.head.answer_kind != setup.head.answer_kind:
        raise ModelError(
            f"the teacher {name} was trained for {teacher.head.answer_kind}, but task {setup.task.name} is "
            f"{setup.head.answer_kind}; use a teacher trained for {setup.head.answer_kind}"
        )
    if teacher.head.labels:
        check_labels(teacher.head.labels, setup.head.labels, name, "Use a teacher with the same labels.")
    if section.teacher_hidden_weight:
        for role, tokenizer in (("teacher", teacher.tokenizer), ("student", setup.tokenizer)):
            if not special_tokens_template(tokenizer, pair=False).prefix:
                raise ModelError(
                    f"the {role}'s texts do not begin with [CLS], whose hidden states are to be distilled; set "
                    "training.teacher_hidden_weight=0"
                )
        num_teacher_layers, teacher_size = _layers_and_hidden_size(_model(teacher))
        num_layers, hidden_size = _layers_and_hidden_size(student)
        if num_teacher_layers < num_layers or teacher_size < hidden_size:
            raise ModelError(
                f"the teacher {name} has {num_teacher_layers} layers of hidden size {teacher_size}, but the student "
                f"has {num_layers} layers of hidden size {hidden_size}: use a larger teacher, or set "
                "training.teacher_hidden_weight=0"
            )
    return teacher


def _model(teacher: LoadedModel) -> PreTrainedModel:
    return cast("PreTrainedModel", teacher.model)


def _layers_and_hidden_size(model: PreTrainedModel) -> tuple[int, int]:
    return len(encoder_layers(model)), model.config.hidden_size


def with_teacher_outputs(
    setup: FinetuneSetup, encoded: Encoded, student: PreTrainedModel, accelerator: Accelerator, console: Console
) -> Encoded:
    """Return the training rows with the outputs of the recipe's teacher, the targets of the distillation losses.

    The outputs are the logits, with labels in the student's order, and, if their loss has a weight, the [CLS] hidden
    states of as many layers as the student has, evenly spaced and including the last. If the student's hidden size is
    smaller, the states are projected onto their principal components.

    Raises:
        ModelError: if `load_teacher` rejects the teacher, or it splits long rows into different windows.
    """
    teacher = load_teacher(setup, student)
    name, head = teacher.name, teacher.head
    teacher_encoded = head.encode(setup.task, setup.rows["train"], teacher.tokenizer, teacher.data)
    if not np.array_equal(teacher_encoded.rows, encoded.rows):
        raise ModelError(
            f"the teacher {name} splits long rows into different windows; set data.max_length to the teacher's"
        )
    depths = _teacher_depths(teacher, student) if setup.recipe.training.teacher_hidden_weight else []
    size = student.config.hidden_size

    def compute(folder: Path | None) -> None:
        with console.display("teacher", len(teacher_encoded)) as display:
            _compute_outputs(teacher, teacher_encoded, depths, size, folder, display.advance)

    precision = teacher.accelerator.mixed_precision
    settings = depths, size if depths else 0, precision
    key = outputs_key(_model(teacher).config, teacher.model.state_dict(), teacher_encoded, *settings)
    folder = get_or_compute(accelerator, "teachers", key, compute, console.warn)
    logits = np.load(folder / LOGITS)
    if head.labels:
        logits = logits[:, [head.labels.index(label) for label in setup.head.labels]]
    states = np.load(folder / STATES, mmap_mode="r") if depths else None
    return replace(encoded, teacher_logits=logits, teacher_states=states)


def _teacher_depths(teacher: LoadedModel, student: PreTrainedModel) -> list[int]:
    """Return the depth of the teacher's layer for each layer of the student; 1 is the first layer."""
    num_teacher_layers, num_layers = len(encoder_layers(_model(teacher))), len(encoder_layers(student))
    return [depth * num_teacher_layers // num_layers for depth in range(1, num_layers + 1)]


def _compute_outputs(
    teacher: LoadedModel,
    encoded: Encoded,
    depths: list[int],
    size: int,
    folder: Path | None,
    on_batch: Callable[[int], None],
) -> None:
    """Compute the logits [N, C] and the hidden states [N * K, L, P] of the layers at `depths`; write them to `folder`.

    Args:
        size: P.
        folder: None on processes that must not write.
    """
    model, all_logits = _model(teacher), []
    if depths:
        record_cls_states(model, depths)

    def logits_and_states(outputs: Any) -> torch.Tensor:
        """Return the logits [B, C], or logits and hidden states [B, C + K * L * H]."""
        logits = teacher.head.logits(outputs).float()
        return torch.cat([logits, cls_hidden_states(outputs).reshape(len(logits), -1)], 1) if depths else logits

    shape = (len(encoded.offsets) - 1, len(depths), model.config.hidden_size)
    projects = size < shape[2]
    path = folder and folder / (FULL_SIZE_STATES if projects else STATES)
    states = create_array(path, np.float16, shape) if path and depths else None
    start = 0
    for _, chunk in encoded.chunks(MAX_CHUNK_ITEMS):
        values, _ = compute_logits(
            teacher.accelerator,
            model,
            chunk,
            logits_and_states,
            max_tokens=teacher.max_tokens,
            on_batch=on_batch,
        )
        check_finite(values)
        num_sequences = len(chunk.offsets) - 1
        num_logits = values.shape[1] - num_sequences // len(chunk) * shape[1] * shape[2]
        all_logits.append(values[:, :num_logits].copy())  # a view would keep the hidden states in memory
        if states is not None:
            states[start : start + num_sequences] = values[:, num_logits:].reshape(num_sequences, *shape[1:])
        start += num_sequences
    if folder is not None:
        np.save(folder / LOGITS, np.concatenate(all_logits))
    if states is not None:
        states.flush()
    if folder is not None and states is not None and projects:
        _write_projected(states, size, folder / STATES)
        (folder / FULL_SIZE_STATES).unlink()


def _write_projected(states: np.ndarray, size: int, path: Path) -> None:
    """Write states [n, L, H], projected onto their principal components, as [n, L, size]."""
    projected = create_array(path, np.float16, (*states.shape[:2], size))
    mean, components = principal_components(states, size)
    for start in range(0, len(states), MAX_CHUNK_ITEMS):
        chunk = states[start : start + MAX_CHUNK_ITEMS]
        projected[start : start + len(chunk)] = np.einsum("nlh,lhp->nlp", chunk - mean, components, optimize=True)
    projected.flush()


def principal_components(states: np.ndarray, num_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [L, H] of states [n, L, H], and the principal components [L, H, num_components], per layer."""
    _, num_layers, size = states.shape
    mean = states.mean(0, dtype=np.float64)
    covariance = np.zeros((num_layers, size, size))  # times n, which does not change the components
    for start in range(0, len(states), MAX_CHUNK_ITEMS):
        centered = states[start : start + MAX_CHUNK_ITEMS] - mean
        covariance += np.einsum("nlh,nlk->lhk", centered, centered, optimize=True)
    _, eigenvectors = np.linalg.eigh(covariance)
    components = eigenvectors[:, :, : -num_components - 1 : -1]
    largest = np.take_along_axis(components, np.abs(components).argmax(1, keepdims=True), 1)
    return mean, components * np.sign(largest)  # the sign of an eigenvector is arbitrary: fix it
