"""Answers beside the right ones, a line a row: what `predictions/` of a run holds and its report is made from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from bertcli.data.encoding import Encoded
from bertcli.heads.base import Head
from bertcli.inference.forward import answer
from bertcli.metrics import exact_match, f1_or_nothing
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset

MOST_ROWS = 20_000
MOST_CHARACTERS = 4000  # of a text
MOST_WORDS = 1000  # of a row that has a tag for each
FEWEST_CHARACTERS = 40  # that are left of a word or choice


def compare(
    accelerator: Accelerator,
    model: torch.nn.Module,
    rows: Dataset,
    encoded: Encoded,
    head: Head,
    task: Task,
    *,
    max_tokens: int,
) -> Iterator[dict[str, Any]]:
    """The model's answers beside the right ones, as `Head.compare` gives them, with `row` (from 1), `tokens`, `texts`.

    Of more than `MOST_ROWS` rows every second, third … is told; long texts are cut.
    """
    stride = -(-len(rows) // MOST_ROWS)
    first = 0
    for some, part, logits, _ in answer(accelerator, model, rows, encoded, head, max_tokens=max_tokens):
        sizes = _tokens_of_rows(part)
        lines = head.compare(task, some, part, logits)
        for at in range(-first % stride, len(some), stride):
            row = some[at]
            told = {"row": first + at + 1, "tokens": sizes[at], "texts": {name: row[name] for name in task.columns}}
            yield _shorter(told | _judged(task, lines[at]))
        first += len(some)


def _tokens_of_rows(encoded: Encoded) -> list[int]:
    sizes = [0] * (int(encoded.rows[-1]) + 1)
    for row, size in zip(encoded.rows.tolist(), encoded.sizes.tolist(), strict=True):
        sizes[row] += size
    return sizes


def _judged(task: Task, line: dict[str, Any]) -> dict[str, Any]:
    """The line, where a question was answered with how right that is."""
    if task.answer_kind != "question_answering":
        return line
    golds = line["gold"] or [""]
    f1 = max(f1_or_nothing(line["predicted"], gold) for gold in golds)
    return line | {"right": any(exact_match(line["predicted"], gold) for gold in golds), "loss": 1 - f1}


def _shorter(value: Any, most: int = MOST_CHARACTERS) -> Any:
    """The value with texts and lists that are not too long, and numbers with six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, str):
        return value[:most]
    if isinstance(value, dict):
        return {_shorter(name): _shorter(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shorter(inner, max(FEWEST_CHARACTERS, most // len(value))) for inner in value[:MOST_WORDS]]
    return value
