"""Question answering: token labels, spans as decoded by the loops of `run_squad.py`, and unusual rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bertcli.data.encoding import Encoded
from bertcli.data.sources import load_split
from bertcli.errors import DataError
from bertcli.heads.question_answering import QuestionAnswering, answer_spans, check_answers
from bertcli.heads.span_decoding import NO_SPAN_ODDS, NOT_IN_PASSAGE, best_spans
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.tokenizer_training import train_tokenizer
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
    cells = [{"text": [answer], "answer_start": [start]} for answer, start in zip(answers, starts, strict=True)]
    return Dataset.from_dict(
        {"question": [question] * len(answers), "context": [passage] * len(answers), "answers": cells}
    )


@pytest.mark.parametrize("max_length", [40, 64, 200])
def test_labels_are_the_tokens_of_the_answer_in_every_window_that_contains_it(
    tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    answers = ["The film", "lovely", "soup was awful", "ten o'clock"]
    rows = rows_of(*answers)
    data = DataSection(max_length=max_length)
    encoded = QuestionAnswering().encode(task_of(), rows, tokenizer, data)
    assert encoded.alignment is not None
    assert encoded.labels is not None
    answered_rows: set[int] = set()
    for item, (row, (first, last)) in enumerate(zip(encoded.rows.tolist(), encoded.labels.tolist(), strict=True)):
        offsets = encoded.alignment[encoded.offsets[item] : encoded.offsets[item + 1]]
        in_passage = offsets[offsets[:, 0] != NOT_IN_PASSAGE]
        start = PASSAGE.index(answers[row])
        contains_answer = in_passage[0, 0] <= start and in_passage[-1, 1] >= start + len(answers[row])
        assert (first > 0) == contains_answer
        if contains_answer:
            assert PASSAGE[offsets[first, 0] : offsets[last, 1]].strip() == answers[row]
            answered_rows.add(row)
    assert answered_rows == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
@pytest.mark.parametrize("margin", ["", " ", "\n "])
def test_answers_begin_with_their_first_letter_where_tokens_hold_the_space_before(kind: Any, margin: str) -> None:
    passage = "Noon  film was\u00a0lovely \u3000 day\n\nin the harbour , bad \u2028trains"
    tokenizer = train_tokenizer(lambda: [passage, "what was it ?"], 300, kind)
    task, head, golds = task_of(), QuestionAnswering(), ["Noon", "film", "lovely \u3000 day", "harbour", "trains"]
    cells = []
    for gold in golds:
        start, end = passage.index(gold), passage.index(gold) + len(gold)
        start -= len(margin) if passage[:start].endswith(margin) else 0
        end += len(margin) if passage[end:].startswith(margin) else 0
        cells.append({"text": [passage[start:end]], "answer_start": [start]})
    columns = {"question": ["what was it ?"] * len(golds), "context": [passage] * len(golds), "answers": cells}
    rows = Dataset.from_dict(columns)
    encoded = head.encode(task, rows, tokenizer, DataSection(max_length=128))
    assert encoded.labels is not None
    logits = np.zeros((len(encoded.input_ids), 2), dtype=np.float32)
    for item, (first, last) in enumerate(encoded.labels.tolist()):
        logits[encoded.offsets[item] + first, 0] = logits[encoded.offsets[item] + last, 1] = 9.0
    answers = head.to_json(task, rows, encoded, logits)
    assert [answer["answer"] for answer in answers] == golds
    assert [answer["start"] for answer in answers] == [passage.index(gold) for gold in golds]
    assert [answer["end"] for answer in answers] == [passage.index(gold) + len(gold) for gold in golds]
    entries = head.with_gold(task, rows, encoded, logits, head.to_predictions(task, rows, encoded, logits))
    assert [entry["gold_start"] for entry in entries] == [passage.index(gold) for gold in golds]


def test_tokens_of_white_space_are_no_answers() -> None:
    tokenizer = train_tokenizer(lambda: ["a film", "what"], 260, "bpe")
    rows = Dataset.from_dict({"question": ["what"], "context": ["a \n\n\n film"]})
    encoded = QuestionAnswering().encode(task_of(), rows, tokenizer, DataSection(max_length=64))
    assert encoded.alignment is not None
    logits = np.zeros((len(encoded.input_ids), 2), dtype=np.float32)
    logits[[index for index, (start, end) in enumerate(encoded.alignment) if start in range(2, 5) and end < 6]] = 9.0
    prediction = next(QuestionAnswering().decode(task_of(unanswerable=True), rows, encoded, logits))
    assert prediction.best_text == prediction.best_text.strip() != ""
    assert all(candidate.text == candidate.text.strip() for candidate in prediction.candidates)


@pytest.mark.parametrize(("start", "is_moved"), [(4, False), (0, False), (5, True), (-1, True), (99, True)])
def test_answer_that_is_not_at_its_start_offset_is_reported(
    tokenizer: PreTrainedTokenizerBase, start: int, is_moved: bool
) -> None:
    rows = Dataset.from_dict(
        {"question": ["what"], "context": ["the film was"], "answers": [{"text": ["film"], "answer_start": [start]}]}
    )
    encoded = QuestionAnswering().encode(task_of(), rows, tokenizer, DataSection(max_length=64))
    assert [row for row, message in encoded.row_warnings if "not at its answer_start" in message] == [0] * is_moved


def naive_spans(offsets: np.ndarray, logits: np.ndarray, answers: AnswersSection) -> list[tuple[float, int, int]]:
    """The double loop of the original `run_squad.py` over one window."""
    in_passage = [token for token in range(len(logits)) if offsets[token, 0] != NOT_IN_PASSAGE]
    starts = sorted(in_passage, key=lambda token: -logits[token, 0])[: answers.n_best_size]
    ends = sorted(in_passage, key=lambda token: -logits[token, 1])[: answers.n_best_size]
    spans = [
        (float(logits[start, 0] + logits[end, 1]), int(offsets[start, 0]), int(offsets[end, 1]))
        for start in starts
        for end in ends
        if start <= end < start + answers.max_answer_length
    ]
    return sorted(spans, reverse=True)[: answers.n_best_size]


@pytest.mark.parametrize(("n_best_size", "max_answer_length"), [(20, 30), (3, 4), (1, 1), (50, 2)])
def test_best_spans_are_those_of_the_double_loop(encoder: Path, n_best_size: int, max_answer_length: int) -> None:
    answers = AnswersSection(n_best_size=n_best_size, max_answer_length=max_answer_length)
    rows = rows_of("lovely", "soup", "bad trains")
    encoded = QuestionAnswering().encode(
        task_of(), rows, ModelSource(str(encoder)).load_tokenizer(), DataSection(max_length=50)
    )
    assert encoded.alignment is not None
    logits = np.random.default_rng(1).normal(size=(len(encoded.input_ids), 2)).astype(np.float32)
    spans = best_spans(encoded, logits, answers)
    for item in range(len(encoded)):
        tokens = slice(encoded.offsets[item], encoded.offsets[item + 1])
        expected = naive_spans(encoded.alignment[tokens], logits[tokens], answers)
        is_valid = np.isfinite(spans.scores[item])
        assert spans.scores[item][is_valid].tolist() == pytest.approx([score for score, _, _ in expected], abs=1e-6)
        assert spans.char_offsets[item][is_valid].tolist() == [[start, end] for _, start, end in expected]


def encode_with_logits(
    encoder: Path, rows: Dataset, task: Task, spans: dict[int, tuple[int, int, float]], null_logit: float
) -> tuple[Encoded, np.ndarray]:
    """Encode rows with logits that are highest at the start and end offsets in `spans`; `null_logit` for no answer."""
    encoded = QuestionAnswering().encode(
        task, rows, ModelSource(str(encoder)).load_tokenizer(), DataSection(max_length=200)
    )
    assert encoded.alignment is not None
    logits = np.full((len(encoded.input_ids), 2), -9.0, dtype=np.float32)
    logits[encoded.offsets[:-1]] = null_logit
    for item, row in enumerate(encoded.rows.tolist()):
        start, end, logit = spans[row]
        tokens = np.arange(encoded.offsets[item], encoded.offsets[item + 1])
        logits[tokens[encoded.alignment[tokens, 0] == start], 0] = logit
        logits[tokens[encoded.alignment[tokens, 1] == end], 1] = logit
    return encoded, logits


@pytest.mark.parametrize(("null_logit", "threshold", "text"), [(1.0, 0.0, "fine"), (3.0, 0.0, ""), (3.0, 2.5, "fine")])
def test_no_answer_is_predicted_above_the_threshold(
    encoder: Path, null_logit: float, threshold: float, text: str
) -> None:
    task, rows = task_of(unanswerable=True), rows_of("fine")
    encoded, logits = encode_with_logits(encoder, rows, task, {0: (13, 17, 2.0)}, null_logit)
    head = QuestionAnswering(AnswersSection(null_score_diff_threshold=threshold))
    (answer,) = head.to_predictions(task, rows, encoded, logits)
    assert (answer["text"], answer["best_text"]) == (text, "fine")
    assert answer["null_odds"] == pytest.approx(2 * null_logit - 4.0)
    (prediction,) = head.decode(task, rows, encoded, logits)
    assert sum(candidate.probability for candidate in prediction.candidates) == pytest.approx(1.0)
    assert {"", "fine"} <= {candidate.text for candidate in prediction.candidates}


def test_answerable_task_never_predicts_no_answer(encoder: Path) -> None:
    task, rows = task_of(), rows_of("fine")
    encoded, logits = encode_with_logits(encoder, rows, task, {0: (13, 17, 2.0)}, null_logit=99.0)
    (answer,) = QuestionAnswering().to_json(task, rows, encoded, logits)
    assert (answer["answer"], answer["start"], answer["end"]) == ("fine", 13, 17)


def test_unusual_rows_are_encoded_and_predicted(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
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
    assert [row for row, _ in encoded.row_warnings] == [1]
    logits = np.zeros((len(encoded.input_ids), 2), dtype=np.float32)
    answers = head.to_predictions(task, rows, encoded, logits)
    assert [answers[0]["text"], answers[2]["text"]] == ["", ""]
    assert answers[0]["null_odds"] == NO_SPAN_ODDS
    assert len(head.to_json(task, rows, encoded, logits)) == 4


def test_unanswered_question_of_an_answerable_task_is_rejected() -> None:
    cells = [{"text": ["c"], "answer_start": [0]}, {"text": [], "answer_start": []}]
    columns = {"id": ["a", "b"], "question": ["q"] * 2, "context": ["c"] * 2, "answers": cells}
    rows = Dataset.from_dict(columns)
    with pytest.raises(DataError, match=r"row 2 \(id b\) has no answer.*unanswerable=true"):
        check_answers(task_of(id_column="id"), rows)
    check_answers(task_of(id_column="id", unanswerable=True), rows)


def test_answer_start_is_corrected_and_a_missing_answer_is_reported() -> None:
    def rows(text: str, start: int) -> Dataset:
        cells = [{"text": [text], "answer_start": [start]}]
        return Dataset.from_dict({"question": ["q"], "context": ["a dog and a dog"], "answers": cells})

    assert answer_spans(task_of(), rows("dog", 11)) == [(12, 15)]
    assert answer_spans(task_of(), rows("dog", 3)) == [(2, 5)]
    with pytest.raises(DataError, match="row 1 has the answer 'cat', which is not in its passage"):
        answer_spans(task_of(), rows("cat", 3))


@pytest.mark.parametrize(
    "cell",
    [
        [{"text": "dog", "answer_start": None}],
        [{"text": "dog"}],
        {"text": ["dog"], "answer_start": []},
        {"text": "dog"},
    ],
)
def test_answer_without_start_is_found_in_the_passage(cell: Any) -> None:
    rows = Dataset.from_dict({"question": ["q"], "context": ["a dog and a dog"], "answers": [cell]})
    assert answer_spans(task_of(), rows) == [(2, 5)]


@pytest.mark.parametrize(
    "cell",
    [
        [{"text": None, "answer_start": 0}],
        {"text": ["a", "dog"], "answer_start": [0]},
        {"text": [7]},
        ["dog"],
        [["dog"]],
        [None],
        {"answer": ["dog"], "answer_start": [2]},
    ],
)
def test_answers_in_another_format_are_reported(cell: Any) -> None:
    rows = Dataset.from_dict({"question": ["q"], "context": ["a dog and a dog"], "answers": [cell]})
    with pytest.raises(DataError, match=r"row 1 has .* in column 'answers', expected answers with a `text`"):
        answer_spans(task_of(), rows)


@pytest.mark.parametrize(
    ("cell", "span", "warns"),
    [
        ("fox", (11, 14), False),
        ("dog", (2, 5), True),
        ("", None, False),
        ("{'text': ['dog'], 'answer_start': [18]}", (18, 21), False),  # printed in CSV
    ],
)
def test_answer_as_a_text_is_found_in_the_passage(
    cell: str, span: tuple[int, int] | None, warns: bool, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = Dataset.from_dict({"question": ["q"], "context": ["a dog or a fox or dog"], "answers": [cell]})
    assert answer_spans(task_of(), rows) == [span]
    warnings = QuestionAnswering().encode(task_of(), rows, tokenizer, DataSection()).row_warnings
    assert [message.partition(";")[0] for _, message in warnings] == (
        ["the answer has no answer_start and occurs several times in the passage"] if warns else []
    )


def test_answers_as_a_list_of_texts_are_refused_with_file_and_row_even_if_unanswerable(tmp_path: Path) -> None:
    cells: list[list[str]] = [[], ["dog"]]
    lines = [json.dumps({"question": "q", "context": "a dog and a dog", "answers": cell}) for cell in cells]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    task = task_of(dataset=None, files={"test": str(tmp_path / "q.jsonl")}, unanswerable=True)
    with pytest.raises(DataError, match=r"q\.jsonl: row 2 has \['dog'\] in column 'answers', expected answers with a"):
        check_answers(task, load_split(task, "test"))


@pytest.mark.parametrize("cell", [None, [], {}, {"text": [], "answer_start": []}, {"text": None, "answer_start": None}])
def test_question_without_an_answer_may_have_an_empty_cell_of_any_format(cell: Any) -> None:
    rows = Dataset.from_dict({"question": ["q"], "context": ["a dog and a dog"], "answers": [cell]})
    assert answer_spans(task_of(), rows) == [None]


def test_loss_is_that_of_transformers_summed_over_windows() -> None:
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    sizes = {"hidden_size": 14, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    model = BertForQuestionAnswering(BertConfig(vocab_size=30, **sizes)).eval()
    labels = torch.randint(0, 7, (13, 2))
    ids = torch.randint(5, 30, (13, 7))
    output = model(input_ids=ids, start_positions=labels[:, 0], end_positions=labels[:, 1])
    head = QuestionAnswering()
    assert torch.allclose(head.loss(head.logits(output), labels) / 13, output.loss, atol=1e-6)


def test_message_about_an_answer_names_the_file_and_the_row_and_truncates_the_id(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"id": "L" * 200, "question": "q", "context": "c", "answers": {"text": ["d"], "answer_start": [0]}})
    )
    files = {"train": str(tmp_path / "q.jsonl"), "validation": "v.jsonl"}
    task = task_of(dataset=None, files=files, id_column="id")
    with pytest.raises(DataError, match=r"q\.jsonl: row 1 \(id L+…\) has the answer 'd', which is not") as error:
        answer_spans(task, load_split(task, "train"))
    assert str(error.value).count("L") < 80
