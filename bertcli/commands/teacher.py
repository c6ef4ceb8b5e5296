"""What another model of the same task answers to the training rows, for a smaller one to learn from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bertcli.commands.prepare import Prepared
from bertcli.commands.score import answer
from bertcli.commands.trained import Trained, open_trained
from bertcli.data.encoding import Encoded
from bertcli.errors import ModelError
from bertcli.heads.labels import check_labels
from bertcli.runs.console import Console
from bertcli.runs.folder import best_seed


def open_teacher(prepared: Prepared) -> Trained:
    """The model that the recipe names as teacher.

    Raises:
        ModelError: it answers another question, or has other labels.
    """
    name = prepared.recipe.training.teacher
    assert name is not None
    with torch.random.fork_rng():  # whose numbers a resumed run must find as they were
        teacher = open_trained(best_seed(name), prepared.mirror, prepared.recipe.hardware)
    if teacher.head.answer_kind != prepared.head.answer_kind:
        kinds = f"answers {teacher.head.answer_kind}, the task is {prepared.head.answer_kind}"
        raise ModelError(f"the teacher {name} {kinds}")
    if teacher.head.labels:
        check_labels(teacher.head.labels, prepared.head.labels, name, "Name a teacher of the same labels.")
    return teacher


def with_teacher(prepared: Prepared, encoded: Encoded, console: Console) -> Encoded:
    """The training rows with the logits of the recipe's teacher, its labels in the order of the student's.

    Raises:
        ModelError: the teacher answers another question, has other labels, or reads rows in other windows.
    """
    teacher = open_teacher(prepared)
    name, head = teacher.name, teacher.head
    rows = prepared.rows["train"]
    read = head.encode(prepared.task, rows, teacher.tokenizer, teacher.data)
    if not np.array_equal(read.rows, encoded.rows):
        raise ModelError(f"the teacher {name} reads long rows in other windows; set data.max_length alike in both")
    given = teacher.accelerator, teacher.model, rows, read, head
    with console.display("teacher", len(read)) as display:
        parts = answer(*given, max_tokens=teacher.max_tokens, on_batch=display.advance)
        logits = np.concatenate([part for _, _, part, _ in parts])
    if head.labels:
        logits = logits[:, [head.labels.index(label) for label in prepared.head.labels]]
    return replace(encoded, teacher_logits=logits)
