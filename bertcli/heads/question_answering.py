"""A question and a passage in; start and end of the answer in the passage out, or that there is none.

A long passage is read in overlapping windows. The answer is the best span of all windows; the score of `no answer`
is that of the first token (Devlin et al. 2019, section 4.3).
Shapes: R rows, N windows, T tokens of all windows, P tokens of a passage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from bertcli.data.encoding import TEXTS_AT_ONCE, Encoded, Note, Sequences, frame_of, tokenize, windows
from bertcli.errors import DataError
from bertcli.heads.base import Head
from bertcli.heads.span_decoding import NOT_IN_PASSAGE, SpanAnswer, best_spans, read_answer
from bertcli.recipe.schema import AnswersSection, DataSection, Recipe
from bertcli.tasks.task import Task

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

CUT_QUESTION = "the question is longer than {} tokens (data.max_question_length) and was cut"


class QuestionAnswering(Head):
    """How an encoder is asked a question, and how its answer is read."""

    model_class = "AutoModelForQuestionAnswering"
    per_token = True
    usual_columns = ("question", "context")

    def __init__(self, answers: AnswersSection | None = None):
        self.answers = answers or AnswersSection()

    @classmethod
    def learned_from(cls, task: Task, train: Dataset, recipe: Recipe) -> Self:
        """The head for a task.

        Raises:
            DataError: a training question has no answer and the task does not say that this may be.
        """
        if task.label_column not in train.column_names:
            raise DataError(f"{task.name}: found columns {train.column_names}, expected {task.label_column!r}")
        check_answers(task, train)
        return cls(recipe.answers)

    @classmethod
    def saved_with(cls, task: Task, config: PretrainedConfig, recipe: Recipe | None) -> Self:
        """The head of a trained model."""
        return cls(recipe.answers if recipe else None)

    @property
    def answer_kind(self) -> str:
        """What metrics and tasks have to fit."""
        return "question_answering"

    def echoed(self, task: Task) -> tuple[str, ...]:
        """The question; its passage may be long."""
        return task.text_columns[:1]

    def encode(self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Encoded:
        """Questions with windows of their passages; `places` [T, 2] holds each token's characters in the passage.

        Labels [N, 2] are the first and last token of the first answer, both 0 where a window does not hold it whole.
        """
        frame, made = frame_of(tokenizer, pair=True), Sequences()
        longest_question = min(data.max_question_length, (data.max_length - frame.num_special) // 2)
        spans = answer_spans(task, rows)
        places: list[np.ndarray] = []
        labels: list[tuple[int, int]] = []
        notes: list[Note] = []
        for row, question, passage, offsets in self._tokenized(task, rows, tokenizer):
            if len(question) > longest_question:
                notes.append((row, CUT_QUESTION.format(longest_question)))
                question = question[:longest_question]
            before = len(frame.before) + len(question) + len(frame.between)
            room = data.max_length - frame.num_special - len(question)
            for start, end in windows(len(passage), room, data.doc_stride):
                made.add(row, *frame.join(question, passage[start:end]))
                place = np.full((before + end - start + len(frame.after), 2), NOT_IN_PASSAGE, dtype=np.int32)
                place[before : before + end - start] = offsets[start:end]
                places.append(place)
                if spans is not None:
                    labels.append(_tokens_of_span(place, spans[row]))
        return made.encoded(
            tokenizer,
            np.asarray(labels, dtype=np.int64).reshape(-1, 2) if spans is not None else None,
            places=np.concatenate(places) if places else np.empty((0, 2), np.int32),
            notes=tuple(notes),
        )

    def _tokenized(
        self, task: Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[int, list[int], list[int], np.ndarray]]:
        """Each row's number, question and passage as token ids, and the characters [P, 2] of the passage's tokens."""
        for first in range(0, len(rows), TEXTS_AT_ONCE):
            part = rows[first : first + TEXTS_AT_ONCE]
            questions, passages = (part[column] for column in task.text_columns)
            asked = tokenize(tokenizer, [question.strip() for question in questions])["input_ids"]
            distinct = {passage: at for at, passage in enumerate(dict.fromkeys(passages))}  # many ask of the same one
            output = tokenize(tokenizer, list(distinct), return_offsets_mapping=True)
            offsets = [np.asarray(one, dtype=np.int32).reshape(-1, 2) for one in output["offset_mapping"]]
            for at, (question, passage) in enumerate(zip(asked, passages, strict=True)):
                place = distinct[passage]
                yield first + at, question, output["input_ids"][place], offsets[place]

    def references(self, task: Task, rows: Dataset) -> list[list[str]] | None:
        """The right answers of each question (none: it has no answer); None if they are not given."""
        if task.label_column not in rows.column_names:
            return None
        return [[text for text, _ in answers] for answers in _answers(task, rows)]

    def logits(self, outputs: Any) -> torch.Tensor:
        """Scores [B, S, 2] of each token to be the first and the last of the answer."""
        import torch

        return torch.stack((outputs.start_logits, outputs.end_logits), dim=-1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
        """The mean of the cross-entropies of start and end, summed over the windows."""
        from torch.nn import functional

        return functional.cross_entropy(logits, labels, reduction="sum") / 2

    def decide(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """For metrics: the answer's text, the best span's, and the null odds of each row."""
        read = self.read(task, rows, encoded, logits)
        return [{"text": one.text, "best_text": one.best_text, "null_odds": one.null_odds} for one in read]

    def decode(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """For people: the answer, its probability and its characters in the passage."""
        answers = []
        for one in self.read(task, rows, encoded, logits):
            best = next(found for found in one.candidates if found.text == one.text)
            answer = {
                "answer": one.text,
                "probability": round(best.probability, 6),
                "start": best.start,
                "end": best.end,
            }
            answers.append(answer | ({"null_odds": round(one.null_odds, 4)} if task.unanswerable else {}))
        return answers

    def compare(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> list[dict[str, Any]]:
        """R answers beside the right ones; `start` and `gold_start` are characters of the passage, None: no answer."""
        texts, spans = self.references(task, rows), answer_spans(task, rows)
        assert texts is not None
        assert spans is not None
        lines = []
        for found, golds, span in zip(self.decode(task, rows, encoded, logits), texts, spans, strict=True):
            place = {name: found[name] if found["answer"] else None for name in ("start", "end")}
            line = {"gold": list(dict.fromkeys(golds)), "gold_start": span and span[0], "predicted": found["answer"]}
            lines.append(line | place | {"confidence": found["probability"]})
        return lines

    def read(self, task: Task, rows: Dataset, encoded: Encoded, logits: np.ndarray) -> Iterator[SpanAnswer]:
        """The answers of R rows from logits [T, 2]."""
        found = best_spans(encoded, logits, self.answers)
        null_scores = logits[encoded.offsets[:-1]].sum(-1)  # [N], of each window's first token
        firsts = np.append(np.flatnonzero(np.diff(encoded.rows, prepend=-1)), len(encoded))
        passages = rows[task.text_columns[1]][:]
        for row, passage in enumerate(passages):
            of_row = slice(firsts[row], firsts[row + 1])
            null = firsts[row] + int(null_scores[of_row].argmin())
            yield read_answer(
                passage,
                found,
                of_row,
                logits[encoded.offsets[null]],
                self.answers,
                unanswerable=task.unanswerable,
            )


def check_answers(task: Task, rows: Dataset) -> None:
    """Refuse rows that cannot be learned from.

    Raises:
        DataError: a question without an answer where the task says each has one, or an answer that is not in its
            passage.
    """
    spans = answer_spans(task, rows)
    assert spans is not None
    without = [row for row, span in enumerate(spans) if span is None]
    if without and not task.unanswerable:
        raise DataError(
            f"{task.name}: {_row_name(task, rows, without[0])} has no answer"
            f"{f' (nor have {len(without) - 1} more)' if len(without) > 1 else ''}, but the task says that every "
            "question has one. For data such as SQuAD 2.0 set task.unanswerable=true, or use the task squad/v2."
        )


def answer_spans(task: Task, rows: Dataset) -> list[tuple[int, int] | None] | None:
    """First character of each row's first answer and the one after its last; None for a row without an answer.

    An answer that does not stand where `answer_start` says is looked for around there.

    Raises:
        DataError: an answer is not in its passage.
    """
    if task.label_column not in rows.column_names:
        return None
    spans: list[tuple[int, int] | None] = []
    for row, (passage, answers) in enumerate(zip(rows[task.text_columns[1]][:], _answers(task, rows), strict=True)):
        if not answers or not answers[0][0].strip():
            spans.append(None)
            continue
        text, start = answers[0]
        if passage[start : start + len(text)] != text:
            places = [at for at in range(len(passage)) if passage.startswith(text, at)]
            if not places:
                name = _row_name(task, rows, row)
                raise DataError(f"{task.name}: {name} has the answer {text!r}, which is not in its passage")
            start = min(places, key=lambda at: abs(at - start))
        spans.append((start, start + len(text)))
    return spans


def _answers(task: Task, rows: Dataset) -> Iterator[list[tuple[str, int]]]:
    """Text and first character (0 if it is not given) of each answer of each row, in the hub's form or SQuAD's own.

    Raises:
        DataError: a row holds something else.
    """
    for row, value in enumerate(rows[task.label_column][:]):
        marked = _marked(value)
        if marked is None or not all(isinstance(text, str) and isinstance(at, int | None) for text, at in marked):
            raise DataError(
                f"{task.name}: {_row_name(task, rows, row)} has {value!r:.200} in column {task.label_column!r}, "
                "expected answers with a `text` and an `answer_start` each"
            )
        yield [(text, at or 0) for text, at in marked]


def _marked(value: Any) -> list[tuple[Any, Any]] | None:
    """What a cell of answers holds as text and start of each; None if it is no such cell."""
    if isinstance(value, dict):
        texts, starts = (_listed(value.get(key)) for key in ("text", "answer_start"))
        starts = starts or [None] * len(texts)
        return list(zip(texts, starts, strict=True)) if len(texts) == len(starts) else None
    if value is None or isinstance(value, list):
        return [(answer.get("text"), answer.get("answer_start")) for answer in value or () if isinstance(answer, dict)]
    return None


def _listed(part: Any) -> list[Any]:
    return part if isinstance(part, list) else [] if part is None else [part]


def _row_name(task: Task, rows: Dataset, row: int) -> str:
    return f"row {row + 1}" + (f" (id {rows[row][task.id_column]})" if task.id_column in rows.column_names else "")


def _tokens_of_span(place: np.ndarray, span: tuple[int, int] | None) -> tuple[int, int]:
    """First and last token of the characters `span`, if the window holds them whole; else the first token twice."""
    (inside,) = np.nonzero(place[:, 0] != NOT_IN_PASSAGE)
    if span is None or len(inside) == 0:
        return 0, 0
    starts, ends = place[inside].T
    if span[0] < starts[0] or span[1] > ends[-1]:
        return 0, 0
    first = int(np.searchsorted(ends, span[0], side="right"))
    last = int(np.searchsorted(starts, span[1], side="left")) - 1
    return (int(inside[first]), int(inside[last])) if first <= last else (0, 0)
