"""Questions: labels point at answers, spans are what the original script's loops find, nothing odd fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bertcli.data.encoding import Encoded
from bertcli.errors import DataError
from bertcli.heads.question_answering import QuestionAnswering, answer_spans, check_answers
from bertcli.heads.span_decoding import NO_SPAN_ODDS, NOT_IN_PASSAGE, best_spans
from bertcli.models.from_pretrained import load_tokenizer
from bertcli.recipe.schema import AnswersSection, DataSection
from bertcli.tasks.task import Task

PASSAGE = "The film was fine.  A lovely day in the harbour, and the soup was awful — bad trains left at ten o'clock."


def task_of(**rest: Any) -> Task:
    return Task.model_validate(
        {
            "head": "question_answering",
            "dataset": "x",
            "text_columns": ("question", "context"),
            "label_column": "answers",
            **rest,
        }
    )


def rows_of(*answers: str, passage: str = PASSAGE, question: str = "what was it ?") -> Dataset:
    starts = [passage.index(answer) for answer in answers]
    marked = [{"text": [answer], "answer_start": [start]} for answer, start in zip(answers, starts, strict=True)]
    return Dataset.from_dict(
        {"question": [question] * len(answers), "context": [passage] * len(answers), "answers": marked}
    )


@pytest.mark.parametrize("max_length", [40, 64, 200])
def test_labels_point_at_the_answer_in_every_window_that_holds_it(
    tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    answers = ["The film", "lovely", "soup was awful", "ten o'clock"]
    rows = rows_of(*answers)
    data = DataSection(max_length=max_length)
    encoded = QuestionAnswering().encode(task_of(), rows, tokenizer, data)
    assert encoded.places is not None
    assert encoded.labels is not None
    found: dict[int, int] = {}
    for item, (row, (first, last)) in enumerate(zip(encoded.rows.tolist(), encoded.labels.tolist(), strict=True)):
        places = encoded.places[encoded.offsets[item] : encoded.offsets[item + 1]]
        inside = places[places[:, 0] != NOT_IN_PASSAGE]
        start = PASSAGE.index(answers[row])
        holds = inside[0, 0] <= start and inside[-1, 1] >= start + len(answers[row])
        assert (first > 0) == holds
        if holds:
            assert PASSAGE[places[first, 0] : places[last, 1]].strip() == answers[row]
            found[row] = found.get(row, 0) + 1
    assert set(found) == {0, 1, 2, 3}


def naive_spans(places: np.ndarray, scores: np.ndarray, answers: AnswersSection) -> list[tuple[float, int, int]]:
    """The double loop of the original `run_squad.py` over one window."""
    starts = sorted(range(len(scores)), key=lambda at: -scores[at, 0])
    ends = sorted(range(len(scores)), key=lambda at: -scores[at, 1])
    inside = {at for at in range(len(scores)) if places[at, 0] != NOT_IN_PASSAGE}
    starts = [at for at in starts if at in inside][: answers.n_best_size]
    ends = [at for at in ends if at in inside][: answers.n_best_size]
    found = [
        (float(scores[start, 0] + scores[end, 1]), int(places[start, 0]), int(places[end, 1]))
        for start in starts
        for end in ends
        if start <= end < start + answers.max_answer_length
    ]
    return sorted(found, reverse=True)[: answers.n_best_size]


@pytest.mark.parametrize(("n_best_size", "max_answer_length"), [(20, 30), (3, 4), (1, 1), (50, 2)])
def test_spans_are_those_of_the_plain_double_loop(encoder: Path, n_best_size: int, max_answer_length: int) -> None:
    answers = AnswersSection(n_best_size=n_best_size, max_answer_length=max_answer_length)
    rows = rows_of("lovely", "soup", "bad trains")
    encoded = QuestionAnswering().encode(
        task_of(), rows, load_tokenizer(str(encoder), None), DataSection(max_length=50)
    )
    assert encoded.places is not None
    logits = np.random.default_rng(1).normal(size=(len(encoded.input_ids), 2)).astype(np.float32)
    found = best_spans(encoded, logits, answers)
    for item in range(len(encoded)):
        tokens = slice(encoded.offsets[item], encoded.offsets[item + 1])
        expected = naive_spans(encoded.places[tokens], logits[tokens], answers)
        kept = np.isfinite(found.scores[item])
        assert found.scores[item][kept].tolist() == pytest.approx([score for score, _, _ in expected], abs=1e-6)
        assert found.places[item][kept].tolist() == [[start, end] for _, start, end in expected]


def encoded_with_scores(
    encoder: Path, rows: Dataset, task: Task, wanted: dict[int, tuple[int, int, float]], null: float
) -> tuple[Encoded, np.ndarray]:
    """Scores that point at the characters `wanted` of each row, and at `no answer` with `null`."""
    encoded = QuestionAnswering().encode(task, rows, load_tokenizer(str(encoder), None), DataSection(max_length=200))
    assert encoded.places is not None
    logits = np.full((len(encoded.input_ids), 2), -9.0, dtype=np.float32)
    logits[encoded.offsets[:-1]] = null
    for item, row in enumerate(encoded.rows.tolist()):
        first, last, value = wanted[row]
        tokens = np.arange(encoded.offsets[item], encoded.offsets[item + 1])
        logits[tokens[encoded.places[tokens, 0] == first], 0] = value
        logits[tokens[encoded.places[tokens, 1] == last], 1] = value
    return encoded, logits


@pytest.mark.parametrize(("null", "threshold", "text"), [(1.0, 0.0, "fine"), (3.0, 0.0, ""), (3.0, 2.5, "fine")])
def test_no_answer_wins_by_more_than_the_threshold(encoder: Path, null: float, threshold: float, text: str) -> None:
    task, rows = task_of(unanswerable=True), rows_of("fine")
    encoded, logits = encoded_with_scores(encoder, rows, task, {0: (13, 17, 2.0)}, null)
    head = QuestionAnswering(AnswersSection(null_score_diff_threshold=threshold))
    (answer,) = head.decide(task, rows, encoded, logits)
    assert (answer["text"], answer["best_text"]) == (text, "fine")
    assert answer["null_odds"] == pytest.approx(2 * null - 4.0)
    (read,) = head.read(task, rows, encoded, logits)
    assert sum(one.probability for one in read.candidates) == pytest.approx(1.0)
    assert {"", "fine"} <= {one.text for one in read.candidates}


def test_a_task_whose_questions_all_have_answers_never_says_none(encoder: Path) -> None:
    task, rows = task_of(), rows_of("fine")
    encoded, logits = encoded_with_scores(encoder, rows, task, {0: (13, 17, 2.0)}, null=99.0)
    (answer,) = QuestionAnswering().decode(task, rows, encoded, logits)
    assert (answer["answer"], answer["start"], answer["end"]) == ("fine", 13, 17)


def test_odd_rows_neither_fail_nor_get_lost(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    rows = Dataset.from_dict(
        {
            "question": ["", "word " * 500, "what ?", "what ?"],
            "context": ["", "the film was fine", " \n ", "the soup " * 3000],
            "answers": [{"text": [], "answer_start": []}] * 4,
        }
    )
    task, head = task_of(unanswerable=True), QuestionAnswering()
    encoded = head.encode(task, rows, tokenizer, DataSection(max_length=48))
    assert sorted(set(encoded.rows.tolist())) == [0, 1, 2, 3]
    assert encoded.lengths.max() <= 48
    assert [row for row, _ in encoded.notes] == [1]
    logits = np.zeros((len(encoded.input_ids), 2), dtype=np.float32)
    answers = head.decide(task, rows, encoded, logits)
    assert [answers[0]["text"], answers[2]["text"]] == ["", ""]
    assert answers[0]["null_odds"] == NO_SPAN_ODDS
    assert len(head.decode(task, rows, encoded, logits)) == 4


def test_questions_without_an_answer_are_refused_where_all_should_have_one() -> None:
    marked = [{"text": ["c"], "answer_start": [0]}, {"text": [], "answer_start": []}]
    columns = {"id": ["a", "b"], "question": ["q"] * 2, "context": ["c"] * 2, "answers": marked}
    rows = Dataset.from_dict(columns)
    with pytest.raises(DataError, match=r"row 2 \(id b\) has no answer.*unanswerable=true"):
        check_answers(task_of(id_column="id"), rows)
    check_answers(task_of(id_column="id", unanswerable=True), rows)


def test_an_answer_beside_its_place_is_found_and_one_that_is_not_there_is_named() -> None:
    def rows(text: str, start: int) -> Dataset:
        marked = [{"text": [text], "answer_start": [start]}]
        return Dataset.from_dict({"question": ["q"], "context": ["a dog and a dog"], "answers": marked})

    assert answer_spans(task_of(), rows("dog", 11)) == [(12, 15)]
    assert answer_spans(task_of(), rows("dog", 3)) == [(2, 5)]
    with pytest.raises(DataError, match="row 1 has the answer 'cat', which is not in its passage"):
        answer_spans(task_of(), rows("cat", 3))


@pytest.mark.parametrize(
    "marked",
    [
        [{"text": "dog", "answer_start": None}],
        [{"text": "dog"}],
        {"text": ["dog"], "answer_start": []},
        {"text": "dog"},
    ],
)
def test_an_answer_without_a_place_is_looked_for(marked: Any) -> None:
    rows = Dataset.from_dict({"question": ["q"], "context": ["a dog and a dog"], "answers": [marked]})
    assert answer_spans(task_of(), rows) == [(2, 5)]


@pytest.mark.parametrize(
    "marked",
    [[{"text": None, "answer_start": 0}], {"text": ["a", "dog"], "answer_start": [0]}, "dog", {"text": [7]}],
)
def test_answers_of_another_form_are_named(marked: Any) -> None:
    rows = Dataset.from_dict({"question": ["q"], "context": ["a dog and a dog"], "answers": [marked]})
    with pytest.raises(DataError, match=r"row 1 has .* in column 'answers', expected answers with a `text`"):
        answer_spans(task_of(), rows)


def test_the_loss_is_transformers_loss_summed_over_windows() -> None:
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    sizes = {"hidden_size": 14, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    model = BertForQuestionAnswering(BertConfig(vocab_size=30, **sizes)).eval()
    labels = torch.randint(0, 7, (13, 2))
    ids = torch.randint(5, 30, (13, 7))
    output = model(input_ids=ids, start_positions=labels[:, 0], end_positions=labels[:, 1])
    head = QuestionAnswering()
    assert torch.allclose(head.loss(head.logits(output), labels) / 13, output.loss, atol=1e-6)
