"""Extractive question answering: predicts the span of a passage that answers a question, or no answer.

A long passage is split into overlapping windows, and the prediction is the best span in any window. The null score is
the score of the first token (Devlin et al. 2019, section 4.3).
Shapes: R rows, N windows, T tokens in all windows, P tokens in a passage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bertcli.data.encoding import (
    TOKENIZE_BATCH_SIZE,
    Encoded,
    EncodedBuilder,
    RowWarning,
    special_tokens_template,
    tokenize,
    window_bounds,
)
from bertcli.data.formats import parse_cell
from bertcli.data.sources import column_names, locate_rows, origin
from bertcli.errors import DataError, quoted, shortened
from bertcli.heads.base import Head
from bertcli.heads.span_decoding import NOT_IN_PASSAGE, SpanPrediction, best_spans, select_answer, strip_span
from bertcli.recipe.schema import AnswersSection, DataSection, Recipe, TrainingSection
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

MOVED_ANSWER = "the answer is not at its answer_start (in characters); its nearest occurrence in the passage is used"
REPEATED_ANSWER = "the answer has no answer_start and occurs several times in the passage; its first occurrence is used"
TRUNCATED_QUESTION = "the question is longer than {} tokens (data.max_question_length) and was truncated"


class QuestionAnswering(Head):
    """A head that predicts a span of the passage, or no answer, from two logits per token: start and end."""

    model_class = "AutoModelForQuestionAnswering"
    pipeline_tag = "question-answering"
    per_token = True
    prediction_kind = "span"
    default_columns = ("question", "context")

    def __init__(self, answers: AnswersSection | None = None):
        self.answers = answers or AnswersSection()

    @classmethod
    def find_problem(cls, task: Task) -> str | None:
        """Return an error message if the task definition has labels, keys of other heads, or not two text columns."""
        if task.labels:
            return "found `labels`, but question_answering tasks have none; remove them"
        if len(task.text_columns) != 2:
            return "question_answering needs two `text_columns`: the question and the passage"
        return super().find_problem(task.model_copy(update={"unanswerable": False, "answer_start_column": None}))

    @classmethod
    def default_metrics(cls, task: Task) -> tuple[str, ...]:
        """Return the official SQuAD metrics, or those of SQuAD 2.0 if questions may have no answer."""
        return ("squad_v2",) if task.unanswerable else ("squad",)

    @classmethod
    def from_data(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        """Create the head of a new model.

        Raises:
            DataError: if the answers are missing or invalid (`check_answers`).
        """
        if task.label_column not in train.column_names:
            raise DataError(
                f"{origin(task)}: found columns {quoted(column_names(train))}, expected {task.label_column!r}"
            )
        check_answers(task, train)
        return cls(recipe.answers)

    @classmethod
    def from_config(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        """Create the head of a trained model."""
        return cls(recipe.answers if recipe else None)

    @property
    def answer_kind(self) -> str:
        """The kind of predictions, which must match `Task.answer_kind` and be supported by the metrics."""
        return "question_answering"

    def echo_columns(self, task: Task) -> tuple[str, ...]:
        """Return the question column; passages may be long."""
        return task.text_columns[:1]

    def encode(self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Encoded:
        """Encode questions with windows of their passages; `alignment` [T, 2] holds the character offsets of tokens.

        Labels [N, 2] are the first and last token of the first answer, both 0 if the window does not fully contain it.
        """
        template, builder = special_tokens_template(tokenizer, pair=True), EncodedBuilder()
        max_question_tokens = min(data.max_question_length, (data.max_length - template.num_special_tokens) // 2)
        spans = answer_spans(task, rows)
        answers = [] if spans is None else list(_row_answers(task, rows))
        alignment: list[np.ndarray] = []
        labels: list[tuple[int, int]] = []
        row_warnings: list[RowWarning] = [(row, REPEATED_ANSWER) for row in _rows_with_repeated_answers(task, rows)]
        for row, question, passage, offsets in self._tokenize_rows(task, rows, tokenizer):
            if len(question) > max_question_tokens:
                row_warnings.append((row, TRUNCATED_QUESTION.format(max_question_tokens)))
                question = question[:max_question_tokens]
            if spans is not None and _is_moved(spans[row], answers[row]):
                row_warnings.append((row, MOVED_ANSWER))
            passage_start = len(template.prefix) + len(question) + len(template.separator)
            max_tokens = data.max_length - template.num_special_tokens - len(question)
            for start, end in window_bounds(len(passage), max_tokens, data.doc_stride):
                builder.add(row, *template.build_inputs(question, passage[start:end]))
                passage_end = passage_start + end - start
                window_offsets = np.full((passage_end + len(template.suffix), 2), NOT_IN_PASSAGE, dtype=np.int32)
                window_offsets[passage_start:passage_end] = offsets[start:end]
                alignment.append(window_offsets)
                if spans is not None:
                    labels.append(_token_span(window_offsets, spans[row]))
        return builder.build(
            tokenizer,
            np.asarray(labels, dtype=np.int64).reshape(-1, 2) if spans is not None else None,
            alignment=np.concatenate(alignment) if alignment else np.empty((0, 2), np.int32),
            row_warnings=tuple(row_warnings),
        )

    def _tokenize_rows(
        self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[int, list[int], list[int], np.ndarray]]:
        """Yield each row's index, the token IDs of its question and passage, and the passage's offsets [P, 2]."""
        for start in range(0, len(rows), TOKENIZE_BATCH_SIZE):
            chunk = rows[start : start + TOKENIZE_BATCH_SIZE]
            questions, passages = (chunk[column] for column in task.text_columns)
            question_ids = tokenize(tokenizer, [question.strip() for question in questions])["input_ids"]
            # Many questions share a passage: tokenize each passage once.
            passage_index = {passage: index for index, passage in enumerate(dict.fromkeys(passages))}
            output = tokenize(tokenizer, list(passage_index), return_offsets_mapping=True)
            offsets = [np.asarray(pairs, dtype=np.int32).reshape(-1, 2) for pairs in output["offset_mapping"]]
            for row, (question, passage) in enumerate(zip(question_ids, passages, strict=True), start):
                index = passage_index[passage]
                yield row, question, output["input_ids"][index], offsets[index]

    def references(self, task: Task, rows: Dataset) -> list[list[str]] | None:
        """Return the gold answers of each question (empty: no answer); None if the rows are unlabeled."""
        if task.label_column not in rows.column_names:
            return None
        return [[text for text, _ in answers] for answers in _row_answers(task, rows)]

    def logits(self, outputs: Any) -> torch.Tensor:
        """Return start and end logits [B, S, 2]."""
        import torch

        return torch.stack((outputs.start_logits, outputs.end_logits), dim=-1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, training: TrainingSection | None = None) -> torch.Tensor:
        """Return the cross-entropy, averaged over start and end positions and summed over the windows."""
        from torch.nn import functional

        return functional.cross_entropy(logits, labels, reduction="sum") / 2

    def to_predictions(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """Return the predicted text of each row, its probability and its character offsets in the passage.

        `best_text` is the text of the best span, which `null_odds`, the log odds of no answer, may have ruled out.
        """
        predictions = []
        for prediction in self.decode(task, rows, encoded, logits):
            best = next(candidate for candidate in prediction.candidates if candidate.text == prediction.text)
            predictions.append(
                {
                    "text": prediction.text,
                    "probability": best.probability,
                    "start": best.start,
                    "end": best.end,
                    "best_text": prediction.best_text,
                    "null_odds": prediction.null_odds,
                }
            )
        return predictions

    def to_json(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """Return the predicted answer, its probability and its character offsets in the passage."""
        entries = []
        for prediction in self.to_predictions(task, rows, encoded, logits):
            entry = {
                "answer": prediction["text"],
                "probability": round(prediction["probability"], 6),
                "start": prediction["start"],
                "end": prediction["end"],
            }
            entries.append(entry | ({"null_odds": round(prediction["null_odds"], 4)} if task.unanswerable else {}))
        return entries

    def with_gold(
        self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray, predictions: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Return R predictions next to the gold answers.

        `start` and `gold_start` are character offsets in the passage, None for no answer. `right` is whether the
        prediction exactly matches any gold answer; `loss` is 1 minus the best F1.
        """
        from bertcli.metrics.squad import exact_match, token_f1_v2

        gold, spans = self.references(task, rows), answer_spans(task, rows)
        assert gold is not None
        assert spans is not None
        entries = []
        for prediction, texts, span in zip(predictions, gold, spans, strict=True):
            answer = prediction["text"]
            entries.append(
                {
                    "gold": list(dict.fromkeys(texts)),
                    "gold_start": span and span[0],
                    "predicted": answer,
                    "start": prediction["start"] if answer else None,
                    "end": prediction["end"] if answer else None,
                    "confidence": round(prediction["probability"], 6),
                    "right": any(exact_match(answer, text) for text in texts or [""]),
                    "loss": 1 - max(token_f1_v2(answer, text) for text in texts or [""]),
                }
            )
        return entries

    def decode(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> Iterator[SpanPrediction]:
        """Yield the predictions for R rows from logits [T, 2]."""
        spans = best_spans(encoded, logits, self.answers)
        null_scores = logits[encoded.offsets[:-1]].sum(-1)  # [N], of each window's first token
        row_starts = np.append(np.flatnonzero(np.diff(encoded.rows, prepend=-1)), len(encoded))
        passages = rows[task.text_columns[1]][:]
        for row, passage in enumerate(passages):
            windows = slice(row_starts[row], row_starts[row + 1])
            null_window = row_starts[row] + int(null_scores[windows].argmin())
            yield select_answer(
                passage,
                spans,
                windows,
                logits[encoded.offsets[null_window]],
                self.answers,
                unanswerable=task.unanswerable,
            )


def check_answers(task: Task, rows: Dataset) -> None:
    """Check that rows are suitable for training.

    Raises:
        DataError: if a question lacks an answer although the task is not `unanswerable`, or an answer is not in its
            passage.
    """
    spans = answer_spans(task, rows)
    assert spans is not None
    unanswered = [row for row, span in enumerate(spans) if span is None]
    if unanswered and not task.unanswerable:
        others = f" (one of {len(unanswered)} rows without one)" if len(unanswered) > 1 else ""
        raise DataError(
            f"{_describe_row(task, rows, unanswered[0])} has no answer{others}, but the task requires one "
            "for every question. For data like SQuAD 2.0 set task.unanswerable=true, or use the task squad/v2."
        )


def answer_spans(task: Task, rows: Dataset) -> list[tuple[int, int] | None] | None:
    """Return the character offsets of each row's first answer, end exclusive; None for a row without an answer.

    If an answer is not at `answer_start`, its nearest occurrence is used. Surrounding whitespace is excluded.

    Raises:
        DataError: if an answer is not in its passage.
    """
    if task.label_column not in rows.column_names:
        return None
    spans: list[tuple[int, int] | None] = []
    passages = rows[task.text_columns[1]][:]
    for row, (passage, answers) in enumerate(zip(passages, _row_answers(task, rows), strict=True)):
        if not answers or not answers[0][0].strip():
            spans.append(None)
            continue
        text, start = answers[0]
        if passage[start : start + len(text)] != text:
            occurrences = [offset for offset in range(len(passage)) if passage.startswith(text, offset)]
            if not occurrences:
                name = _describe_row(task, rows, row)
                raise DataError(
                    f"{name} has the answer {text!r:.80}, which is not in its passage; fix the answer, or remove "
                    "the row"
                )
            start = min(occurrences, key=lambda offset: abs(offset - start))
        spans.append(strip_span(passage, start, start + len(text)))
    return spans


def _rows_with_repeated_answers(task: Task, rows: Dataset) -> Iterator[int]:
    """Yield the rows whose answer is a text alone, without its start, that occurs several times in the passage."""
    if task.label_column in rows.column_names:
        passages = rows[task.text_columns[1]][:]
        for row, (passage, value) in enumerate(zip(passages, rows[task.label_column][:], strict=True)):
            answer = parse_cell(value)
            if isinstance(answer, str) and answer.strip() and passage.count(answer) > 1:
                yield row


def _is_moved(span: tuple[int, int] | None, answers: list[tuple[str, int]]) -> bool:
    """Return whether the first answer was found elsewhere than at its start offset; 0 may mean that it has none."""
    if span is None:
        return False
    text, start = answers[0]
    return start != 0 and not start <= span[0] < start + len(text)


def _row_answers(task: Task, rows: Dataset) -> Iterator[list[tuple[str, int]]]:
    """Yield, for each row, the text and start offset (0 if not given) of each of its answers.

    Reads the format of the Hub (a dictionary of lists) and that of SQuAD's JSON (a list of dictionaries).

    Raises:
        DataError: if a row has any other format.
    """
    for row, value in enumerate(rows[task.label_column][:]):
        answers = _parse_answers(value)
        if answers is None or not all(
            isinstance(text, str) and isinstance(start, int | None) for text, start in answers
        ):
            raise DataError(
                f"{_describe_row(task, rows, row)} has {value!r:.80} in column {task.label_column!r}, "
                "expected answers with a `text` and an `answer_start` each"
            )
        yield [(text, start or 0) for text, start in answers]


def _parse_answers(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the text and start of each answer in a cell; None if the format is unknown.

    In CSV, a cell is a printed list or object, or the text of the answer.
    """
    value = parse_cell(value)
    if isinstance(value, str):
        return [(value, None)] if value.strip() else []
    if isinstance(value, dict):
        if value and "text" not in value:
            return None
        texts, starts = (_as_list(value.get(key)) for key in ("text", "answer_start"))
        starts = starts or [None] * len(texts)
        return list(zip(texts, starts, strict=True)) if len(texts) == len(starts) else None
    answers = [] if value is None else value
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        return None
    return [(answer.get("text"), answer.get("answer_start")) for answer in answers]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _describe_row(task: Task, rows: Dataset, row: int) -> str:
    question_id = f" (id {shortened(str(rows[row][task.id_column]))})" if task.id_column in rows.column_names else ""
    return f"{locate_rows(task, rows, [row])}{question_id}"


def _token_span(window_offsets: np.ndarray, span: tuple[int, int] | None) -> tuple[int, int]:
    """Return the first and last token of a character span; (0, 0) if it is None or not fully in the window."""
    (passage_tokens,) = np.nonzero(window_offsets[:, 0] != NOT_IN_PASSAGE)
    if span is None or len(passage_tokens) == 0:
        return 0, 0
    starts, ends = window_offsets[passage_tokens].T
    if span[0] < starts[0] or span[1] > ends[-1]:
        return 0, 0
    first = int(np.searchsorted(ends, span[0], side="right"))
    last = int(np.searchsorted(starts, span[1], side="left")) - 1
    return (int(passage_tokens[first]), int(passage_tokens[last])) if first <= last else (0, 0)
