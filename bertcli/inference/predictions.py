"""Predictions next to the gold labels, one line per row, as saved in a run's `predictions/` and used in its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bertcli.data.encoding import Encoded
from bertcli.data.table_files import ROW_COLUMN
from bertcli.heads.base import Head
from bertcli.inference.forward import Chunk
from bertcli.tasks.task import Task

MAX_ROWS = 20_000
MAX_CHARACTERS = 4000  # of a text
MAX_WORDS = 1000  # of a row with a tag per word
MIN_CHARACTERS = 40  # kept of each word or choice


class PredictionLines:
    """Predictions next to the gold labels: `Head.with_gold` plus `row` (from 1), `tokens` and `texts`.

    If the rows are part of a file, `row_in_file` is the row's number in that file.

    If there are more than `MAX_ROWS` rows, only every second, third … is kept, unless all are wanted. Long texts are
    truncated.
    """

    def __init__(self, num_rows: int, head: Head, task: Task, *, all_rows: bool = False):
        self._stride = 1 if all_rows else -(-num_rows // MAX_ROWS)
        self._head, self._task = head, task
        self._num_rows = 0  # so far
        self.lines: list[dict[str, Any]] = []

    def add(self, chunk: Chunk, predictions: Sequence[Any]) -> None:
        """Add the lines of the next chunk of rows, given their predictions from `Head.to_predictions`."""
        rows, encoded, logits, _ = chunk
        num_tokens = _num_tokens_of_rows(encoded)
        lines = self._head.with_gold(self._task, rows, encoded, logits, predictions)
        for index in range(-self._num_rows % self._stride, len(rows), self._stride):
            row = rows[index]
            texts = {name: row[name] for name in self._task.columns}
            line: dict[str, Any] = {"row": self._num_rows + index + 1}
            line |= {"row_in_file": row[ROW_COLUMN]} if ROW_COLUMN in row else {}
            line |= {"tokens": num_tokens[index], "texts": texts} | lines[index]
            self.lines.append(_truncated(line))
        self._num_rows += len(rows)


def _num_tokens_of_rows(encoded: Encoded) -> list[int]:
    totals = [0] * (int(encoded.rows[-1]) + 1)
    for row, num_tokens in zip(encoded.rows.tolist(), encoded.num_tokens.tolist(), strict=True):
        totals[row] += num_tokens
    return totals


def _truncated(value: Any, max_characters: int = MAX_CHARACTERS) -> Any:
    """Return the value with long texts and lists truncated, and numbers rounded to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, str):
        return value[:max_characters]
    if isinstance(value, dict):
        return {_truncated(name): _truncated(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_truncated(inner, max(MIN_CHARACTERS, max_characters // len(value))) for inner in value[:MAX_WORDS]]
    return value
