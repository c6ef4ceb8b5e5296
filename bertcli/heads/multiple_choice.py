"""A text and K continuations or answers in, the likeliest of them out.

Shapes: N questions, K choices each (the same number for all questions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bertcli.data.encoding import Encoded, Sequences, frame_of, token_ids
from bertcli.errors import DataError
from bertcli.heads.base import Head
from bertcli.heads.labels import compare_labels, declared_names, is_hidden, name_of
from bertcli.recipe.schema import DataSection, Recipe
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

LETTERS = "ABCDEFGHIJ"


class MultipleChoice(Head):
    """How an encoder is asked which choice fits, and how its answer is read."""

    model_class = "AutoModelForMultipleChoice"
    usual_columns = ("text", "choices")

    @classmethod
    def learned_from(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        """The head for a task.

        Raises:
            DataError: the rows hold no choices or no answers.
        """
        head = cls()
        if head.references(task, train) is None:
            raise DataError(f"{task.name}: the training rows have no answers in column {task.label_column!r}")
        return head

    @classmethod
    def saved_with(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        """The head of a trained model."""
        return cls()

    @property
    def answer_kind(self) -> str:
        """What metrics and tasks have to fit."""
        return "multiple_choice"

    def encode(self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Encoded:
        """Each question as K pairs of the text and a choice, cut as pairs are."""
        choices = choices_of(task, rows)
        num_choices = len(choices[0]) if choices else 1
        texts = rows[task.text_columns[0]][:]
        stems = rows[task.text_columns[1]][:] if len(task.text_columns) > 1 else [""] * len(rows)
        endings = [f"{stem} {choice}".strip() for stem, row in zip(stems, choices, strict=True) for choice in row]
        frame, made = frame_of(tokenizer, pair=True), Sequences()
        room = data.max_length - frame.num_special
        seconds = token_ids(tokenizer, endings)
        for row, first in enumerate(token_ids(tokenizer, texts)):
            for _ in range(num_choices):
                made.add(row, *frame.fit(first, next(seconds), room))
        return made.encoded(tokenizer, self.references(task, rows), num_choices=num_choices)

    def references(self, task: Task, rows: Dataset) -> np.ndarray | None:
        """The number of each right choice [N], from 0; None if they are hidden.

        Raises:
            DataError: an answer that is none of the choices.
        """
        if task.label_column not in rows.column_names:
            return None
        names = declared_names(rows.features[task.label_column])
        counts = [len(row) for row in choices_of(task, rows)]
        values = rows[task.label_column][:]
        if all(map(is_hidden, values)):
            return None
        answers = [_number_of(name_of(names, value) if names else value) for value in values]
        for row, (answer, count) in enumerate(zip(answers, counts, strict=True)):
            if answer is None or not 0 <= answer < count:
                raise DataError(
                    f"{task.name}: row {row + 1} has the answer {values[row]!r}, expected the number of a choice "
                    f"(0 to {count - 1}) or its letter"
                )
        return np.asarray(answers, dtype=np.int64)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """Cross-entropy over the choices, summed over the questions."""
        from torch.nn import functional

        return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)

    def decide(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> np.ndarray:
        """The number of the likeliest choice of each question. [N]"""
        return logits.argmax(-1)

    def decode(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """For people: the number of the choice, its text, and the probability of each."""
        from scipy.special import softmax

        return [
            {
                "choice": int(row.argmax()),
                "answer": texts[int(row.argmax())],
                "probabilities": [round(float(value), 6) for value in softmax(row)],
            }
            for texts, row in zip(choices_of(task, rows), logits, strict=True)
        ]

    def compare(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """R choices beside the right ones, called by their numbers from 0."""
        right = self.references(task, rows)
        assert right is not None
        return compare_labels([str(number) for number in range(logits.shape[-1])], logits, logits.argmax(-1), right)


def choices_of(task: Task, rows: Dataset) -> list[list[str]]:
    """The choices of each row: the texts of several columns, or the list in one.

    Raises:
        DataError: rows with different numbers of choices, or fewer than two.
    """
    columns = task.choice_columns
    if len(columns) > 1:
        return [list(row) for row in zip(*(rows[column][:] for column in columns), strict=True)]
    choices = [list(row or ()) for row in rows[columns[0]][:]]
    for number, row in enumerate(choices):
        if len(row) < 2 or len(row) != len(choices[0]):
            raise DataError(
                f"{task.name}: row {number + 1} has {len(row)} choices, expected "
                f"{'two or more' if number == 0 else f'{len(choices[0])}, as row 1 has'}"
            )
    return choices


def _number_of(value: Any) -> int | None:
    if isinstance(value, str):
        word = value.strip()
        if word.isdigit():
            return int(word)
        return LETTERS.find(word.upper()) if len(word) == 1 and word.upper() in LETTERS else None
    return value if isinstance(value, int) else None
