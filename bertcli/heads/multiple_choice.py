"""Multiple choice: predicts which of K answers to a text, or continuations of it, is correct.

Shapes: N questions, K choices each (the same number for all questions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bertcli.data.encoding import (
    Encoded,
    EncodedBuilder,
    iter_kept_ids,
    kept_pair_ids,
    special_tokens_template,
)
from bertcli.data.formats import parse_cell
from bertcli.data.sources import locate_rows, origin, row_number
from bertcli.data.table_files import label_text
from bertcli.errors import DataError
from bertcli.heads.base import Head
from bertcli.heads.labels import (
    declared_labels,
    is_missing_label,
    label_key,
    label_name,
    labels_with_gold,
)
from bertcli.recipe.schema import DataSection, Recipe, TrainingSection
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

LETTERS = "ABCDEFGHIJ"


class MultipleChoice(Head):
    """A head that predicts one of K choices per row; each choice is encoded with the text as a sentence pair."""

    model_class = "AutoModelForMultipleChoice"
    pipeline_tag = "multiple-choice"
    default_columns = ("text", "choices")

    @classmethod
    def find_problem(cls, task: Task) -> str | None:
        """Return an error message if the task definition has labels, no choices, or keys of other heads."""
        if task.labels:
            return "found `labels`, but multiple_choice tasks have none; remove them"
        if not task.choice_columns:
            return "the head multiple_choice requires `choice_columns`"
        return super().find_problem(task.model_copy(update={"choice_columns": ()}))

    @classmethod
    def default_metrics(cls, task: Task) -> tuple[str, ...]:
        """Return accuracy."""
        return ("accuracy",)

    @classmethod
    def supported_keys(cls, task: Task) -> frozenset[str]:
        """Return the recipe keys that have an effect."""
        return frozenset(
            {"training.label_smoothing", "training.teacher", "training.token_cutoff", "answers.calibrated"}
        )

    @classmethod
    def default_task(cls, name: str) -> Task:
        """Return a task with a text and a list of choices."""
        text, *choices = cls.default_columns
        return Task(head=name, dataset="unknown", text_columns=(text,), choice_columns=tuple(choices))

    @classmethod
    def from_data(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        """Create the head of a new model.

        Raises:
            DataError: if the choices are invalid, or the answers are invalid or missing.
        """
        head = cls()
        if head.references(task, train) is None:
            raise DataError(f"{origin(task)}: the training rows have no answers in column {task.label_column!r}")
        return head

    @classmethod
    def from_config(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        """Create the head of a trained model."""
        return cls()

    @property
    def answer_kind(self) -> str:
        """The kind of predictions, which must match `Task.answer_kind` and be supported by the metrics."""
        return "multiple_choice"

    def encode(self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Encoded:
        """Encode each question as K pairs of the text and a choice, truncated to the maximum length."""
        choices = row_choices(task, rows)
        num_choices = len(choices[0]) if choices else 1
        texts = rows[task.text_columns[0]][:]
        stems = rows[task.text_columns[1]][:] if len(task.text_columns) > 1 else [""] * len(rows)
        endings = [f"{stem} {choice}".strip() for stem, row in zip(stems, choices, strict=True) for choice in row]
        template, builder = special_tokens_template(tokenizer, pair=True), EncodedBuilder()
        max_tokens = data.max_length - template.num_special_tokens
        second_ids = iter_kept_ids(tokenizer, endings, max_tokens, "keep_head")
        for row, first in enumerate(iter_kept_ids(tokenizer, texts, max_tokens, "keep_head")):
            for ending in endings[row * num_choices : (row + 1) * num_choices]:
                ids = kept_pair_ids(tokenizer, (texts[row], ending), (first, next(second_ids)), max_tokens)
                builder.add(row, *template.build_truncated_pair(*ids, max_tokens))
        return builder.build(tokenizer, self.references(task, rows), num_choices=num_choices)

    def references(self, task: Task, rows: Dataset) -> np.ndarray | None:
        """Return the index of each gold choice [N]; None if the rows are unlabeled.

        Raises:
            DataError: if an answer is not one of the choices.
        """
        if task.label_column not in rows.column_names:
            return None
        declared = declared_labels(rows.features[task.label_column])
        counts = [len(row) for row in row_choices(task, rows)]
        values = rows[task.label_column][:]
        if all(map(is_missing_label, values)):
            return None
        answers = [_choice_index(label_name(declared, value) if declared else value) for value in values]
        bad_rows = [
            row
            for row, (answer, count) in enumerate(zip(answers, counts, strict=True))
            if answer is None or not 0 <= answer < count
        ]
        if bad_rows:
            where, count = locate_rows(task, rows, bad_rows), counts[bad_rows[0]]
            answer = f"has the answer {values[bad_rows[0]]!r:.80}"
            if len(bad_rows) > 1:
                answer = f"have answers that are not choices (the first is {values[bad_rows[0]]!r:.80})"
            raise DataError(f"{where} {answer}, expected the number of a choice (0 to {count - 1}) or its letter")
        return np.asarray(answers, dtype=np.int64)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, training: TrainingSection | None = None) -> torch.Tensor:
        """Return the cross-entropy over the choices, summed over the questions."""
        from torch.nn import functional

        label_smoothing = training.label_smoothing if training else 0.0
        return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)

    def to_predictions(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> np.ndarray:
        """Return the index of the most probable choice of each question. [N]"""
        return logits.argmax(-1)

    def to_probabilities(self, encoded: Encoded, logits: np.ndarray) -> np.ndarray:
        """Convert logits [N, K] to the probabilities of the choices. [N, K]"""
        from scipy.special import softmax

        return softmax(logits.astype(np.float64), axis=-1)

    def to_json(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """Return the index of the predicted choice, its text, and the probability of each choice."""
        return [
            {
                "choice": int(row.argmax()),
                "answer": texts[int(row.argmax())],
                "probabilities": [round(float(value), 6) for value in row],
            }
            for texts, row in zip(row_choices(task, rows), self.to_probabilities(encoded, logits), strict=True)
        ]

    def with_gold(
        self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray, predictions: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Return the predicted choices next to the gold ones, as indices from 0."""
        gold = self.references(task, rows)
        assert gold is not None
        return labels_with_gold(
            [str(index) for index in range(logits.shape[-1])], logits, np.asarray(predictions), gold
        )


def row_choices(task: Task, rows: Dataset) -> list[list[str]]:
    """Return the choices of each row: the texts of several columns, or the list in a single one.

    Raises:
        DataError: if a row has fewer than two choices, or not as many as the first row.
    """
    columns = task.choice_columns
    if len(columns) > 1:
        return [list(row) for row in zip(*(rows[column][:] for column in columns), strict=True)]
    choices = [_choice_list(cell) for cell in rows[columns[0]][:]]
    for index, row in enumerate(choices):
        if len(row) < 2 or len(row) != len(choices[0]):
            raise DataError(
                f"{locate_rows(task, rows, [index])} has {len(row)} choice{'s' * (len(row) != 1)}, expected "
                f"{'at least two' if index == 0 else f'{len(choices[0])}, as in row {row_number(rows, 0)}'}"
            )
    return choices


def _choice_list(cell: list[str] | str | None) -> list[str]:
    """Return the choices in a cell: a list, or its printed form in CSV files; any other text is a single choice."""
    if isinstance(cell, str):
        parsed = parse_cell(cell)
        is_list = isinstance(parsed, list) and all(isinstance(choice, str) for choice in parsed)
        return parsed if is_list else [cell]
    return list(cell or ())


def _choice_index(value: Any) -> int | None:
    """Return the index of a choice from its number or letter; None if the value is neither."""
    if isinstance(value, bool | list | dict):
        return None
    text = label_key(label_text(value) or "")
    if text.isdecimal():
        return int(text)
    return LETTERS.find(text.upper()) if len(text) == 1 and text.upper() in LETTERS else None
