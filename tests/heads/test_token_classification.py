"""Every word has a tag, whatever its length, and the tags are transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertConfig, PreTrainedTokenizerBase

from bertcli.data.encoding import IGNORED_LABEL, Encoded
from bertcli.errors import DataError
from bertcli.heads.labels import label_fields
from bertcli.heads.token_classification import TokenClassification, resolve_tags, tag_weights
from bertcli.heads.word_alignment import NO_WORD, spans_of
from bertcli.models.from_pretrained import load_tokenizer
from bertcli.recipe.schema import DataSection
from bertcli.tasks.task import Task

TAGS = ("O", "B-X", "I-X")


def task_of(**rest: Any) -> Task:
    head = {"head": "token_classification", "dataset": "x", "text_columns": ("tokens",), "label_column": "tags"}
    return Task.model_validate(head | rest)


def encode(tokenizer: PreTrainedTokenizerBase, words: list[list[str]], tags: Any = None, **data: Any) -> Encoded:
    rows = Dataset.from_dict({"tokens": words} | ({"tags": tags} if tags else {}))
    return TokenClassification(TAGS).encode(task_of(), rows, tokenizer, DataSection(**data))


@pytest.mark.parametrize("max_length", [9, 16, 64])
def test_each_word_is_answered_by_exactly_one_token(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    words = [["film", "lovely", "harbour"] * 9, ["a"], ["\u200b", "fine", "\ufeff"], ["superbsoup" * 9, "bad"], []]
    encoded = encode(tokenizer, words, max_length=max_length)
    assert encoded.lengths.max() <= max_length
    assert encoded.places is not None
    row_of = np.repeat(encoded.rows, encoded.lengths)
    for row, some in enumerate(words):
        answering = encoded.places[(row_of == row) & (encoded.places != NO_WORD)]
        assert answering.tolist() == list(range(len(some))), row


def test_a_word_is_answered_where_it_stands_farther_from_the_edge(encoder: Path) -> None:
    encoded = encode(load_tokenizer(str(encoder), None), [["film"] * 40], max_length=14, doc_stride=6)
    assert encoded.places is not None
    for item in range(len(encoded) - 1):
        places = encoded.places[encoded.offsets[item] : encoded.offsets[item + 1]]
        answering = np.flatnonzero(places != NO_WORD)
        assert answering[-1] == 9  # of the six tokens it shares with the next window it answers for three
        assert answering[0] == (1 if item == 0 else 4)


def test_neighbours_are_read_along_and_answer_for_nothing(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    words = [["film"], ["lovely"] * 3, [], ["harbour", "bad"], ["film"] * 20]
    tags = [["O"] * len(row) for row in words]
    alone = encode(tokenizer, words, tags, max_length=16)
    encoded = encode(tokenizer, words, tags, max_length=16, context_tokens=4)
    texts = [tokenizer.decode(some, skip_special_tokens=True) for some in np.split(encoded.input_ids, encoded.offsets)]
    assert texts[1:5] == [
        "film lovely lovely lovely harbour",
        "film lovely lovely lovely harbour bad film",
        "lovely lovely harbour bad",
        "lovely lovely harbour bad film film",
    ]
    assert encoded.num_targets.tolist() == alone.num_targets.tolist()
    assert encoded.lengths.max() <= 16
    assert encode(tokenizer, words, tags, max_length=8, context_tokens=4).lengths.max() <= 8
    for some in (alone, encoded):
        assert some.places is not None
        assert some.input_ids[some.places != NO_WORD].tolist() == alone.input_ids[alone.places != NO_WORD].tolist()


def test_the_first_token_of_a_word_is_labelled_and_no_other(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    words, tags = [["the", "unaffable", "film"]], [["O", "B-X", "I-X"]]
    encoded = encode(tokenizer, words, tags, max_length=64)
    output = tokenizer(words, is_split_into_words=True)
    seen: set[int | None] = {None}
    expected = []
    for word in output.word_ids(0):
        expected.append(IGNORED_LABEL if word in seen else TAGS.index(tags[0][word]))
        seen.add(word)
    assert encoded.input_ids.tolist() == output["input_ids"][0]
    assert encoded.labels is not None
    assert encoded.labels.tolist() == expected
    assert encoded.num_targets.tolist() == [3]


def test_answers_are_put_together_from_the_windows(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    random = np.random.default_rng(0)
    words = [["film"] * 40, ["a", "fine", "day"]]
    tags = [[str(random.choice(TAGS)) for _ in row] for row in words]
    encoded = encode(tokenizer, words, tags, max_length=13, doc_stride=4)
    assert encoded.labels is not None
    logits = np.eye(3, dtype=np.float32)[np.maximum(encoded.labels, 0)]
    rows = Dataset.from_dict({"tokens": words})
    assert TokenClassification(TAGS).decide(task_of(), rows, encoded, logits) == tags


def test_no_entity_goes_on_that_never_began(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    rows = Dataset.from_dict({"tokens": [["film", "bad"], [], ["lovely", "harbour", "film"]]})
    task = task_of()
    head = TokenClassification(TAGS, tag_scheme="IOB2")
    encoded = head.encode(task, rows, tokenizer, DataSection())
    assert encoded.places is not None
    logits = np.zeros((len(encoded.places), 3))
    logits[encoded.places != NO_WORD] = [[3, 0, 1], [3, 2, 4], [0, 2, 3], [0, 0, 3], [3, 0, 0]]
    assert head.decide(task, rows, encoded, logits) == [["O", "O"], [], ["B-X", "I-X", "O"]]
    single = TokenClassification(TAGS).decide(task, rows, encoded, logits)
    assert single == [["O", "I-X"], [], ["I-X", "I-X", "O"]]
    assert head.decide(task, rows.select([]), encode(tokenizer, []), logits[:0]) == []


def test_a_plain_text_is_cut_into_words_and_entities_have_their_characters(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    text = "Fine films, (U.N.)  don't"
    rows = Dataset.from_dict({"tokens": [text]})
    head = TokenClassification(TAGS)
    encoded = head.encode(task_of(), rows, tokenizer, DataSection())
    logits = np.zeros((len(encoded.input_ids), 3), dtype=np.float32)
    assert encoded.places is not None
    logits[encoded.places == 0, 1] = logits[encoded.places == 1, 2] = logits[encoded.places == 4, 1] = 9
    (answer,) = head.decode(task_of(), rows, encoded, logits)
    assert answer["words"] == ["Fine", "films", ",", "(", "U.N", ".", ")", "don't"]
    assert answer["entities"] == [
        {"label": "X", "start": 0, "end": 10, "text": "Fine films"},
        {"label": "X", "start": 13, "end": 16, "text": "U.N"},
    ]
    for word, (start, end) in zip(answer["words"], spans_of(text, answer["words"]), strict=True):
        assert text[start:end] == word


def test_the_loss_is_transformers_loss_summed_over_words() -> None:
    from transformers import BertConfig, BertForTokenClassification

    head = TokenClassification(TAGS)
    sizes = {"hidden_size": 14, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(vocab_size=30, **sizes, **head.config_fields)).eval()
    labels = torch.randint(0, 3, (13, 7))
    labels[:, ::3] = IGNORED_LABEL
    output = model(input_ids=torch.randint(5, 30, (13, 7)), labels=labels)
    words = (labels != IGNORED_LABEL).sum()
    assert torch.allclose(head.loss(head.logits(output), labels) / words, output.loss, atol=1e-6)


def test_tags_come_from_the_row_then_the_data_set_then_the_rows() -> None:
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-Z"]))})
    declared = Dataset.from_dict({"tokens": [["a"]], "tags": [[1]]}, features=features)
    assert resolve_tags(task_of(), declared) == ("O", "B-Z")
    assert TokenClassification(("B-Z", "O")).references(task_of(), declared) == [["B-Z"]]
    found = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [["B-A", "O"]]})
    assert resolve_tags(task_of(), found) == ("O", "B-A")
    with pytest.raises(DataError, match="the data set declares"):
        resolve_tags(task_of(labels=TAGS), declared)


@pytest.mark.parametrize(
    ("tags", "words"), [([["O"]], "row 1 has 2 words and 1 tags"), ([["O", "B-Y"]], "row 1 has the label 'B-Y'")]
)
def test_rows_whose_tags_do_not_fit_are_named(tags: list[list[str]], words: str) -> None:
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "tags": tags})
    with pytest.raises(DataError, match=words):
        TokenClassification(TAGS).references(task_of(), rows)


def test_hidden_tags_are_no_tags_and_numbers_without_a_name_are_told() -> None:
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=list(TAGS)))})
    hidden, odd = (
        Dataset.from_dict({"tokens": [["a", "b"]], "tags": [tags]}, features=features) for tags in ([-1, -1], [-1, 1])
    )
    assert TokenClassification(TAGS).references(task_of(), hidden) is None
    with pytest.raises(DataError, match="row 1 has the label '-1', expected one of"):
        TokenClassification(TAGS).references(task_of(), odd)


@pytest.mark.parametrize(
    ("labels", "tags", "entities"),
    [
        (("O", "U-X", "B-X", "L-X"), [1, 1, 2, 3, 0], [(0, 4), (5, 8), (9, 16)]),
        (("NOUN", "VERB"), [0, 0, 1, 0, 1], []),
    ],
)
def test_entities_are_read_in_each_scheme(
    labels: tuple[str, ...], tags: list[int], entities: list[tuple[int, int]], encoder: Path
) -> None:
    tokenizer, task = load_tokenizer(str(encoder), None), task_of()
    rows = Dataset.from_dict({"tokens": [["film", "bad", "one", "two", "lovely"]]})
    head = TokenClassification(labels)
    encoded = head.encode(task, rows, tokenizer, DataSection())
    assert encoded.places is not None
    logits = np.zeros((len(encoded.places), len(labels)))
    logits[encoded.places != NO_WORD, tags] = 1
    (answer,) = head.decode(task, rows, encoded, logits)
    assert [(found["start"], found["end"]) for found in answer["entities"]] == entities


@pytest.mark.parametrize(("given", "read"), [("IOBES", "IOBES"), ("BIO", None), (None, None)])
def test_a_models_scheme_is_read_if_it_is_one(given: str | None, read: str | None) -> None:
    config = BertConfig(**label_fields(TAGS), **({"tag_scheme": given} if given else {}))
    assert TokenClassification.saved_with(task_of(), config, None).tag_scheme == read


def test_words_with_a_capital_letter_have_the_other_segment(encoder: Path) -> None:
    tokenizer = load_tokenizer(str(encoder), None)
    rows = Dataset.from_dict({"tokens": [["Film", "bad", "superbSoup"], [], ["lovely"], ["ONE", "harbour"]]})
    head = TokenClassification(TAGS, marks_capitals=True)
    plain = TokenClassification(TAGS).encode(task_of(), rows, tokenizer, DataSection(context_tokens=8))
    encoded = head.encode(task_of(), rows, tokenizer, DataSection(context_tokens=8))
    assert encoded.input_ids.tolist() == plain.input_ids.tolist()
    assert encoded.token_type_ids is not None
    words = [["Film", "bad", "superbSoup"], ["lovely"], ["ONE", "harbour"]]  # all in one, with their neighbours
    marks = [
        int(word != word.lower())
        for row in words
        for word in row
        for _ in tokenizer(word, add_special_tokens=False)["input_ids"]
    ]
    whole = encoded.token_type_ids[: encoded.lengths[0]].tolist()
    assert whole[0] == whole[-1] == 0
    assert whole[1:-1] == marks[: len(whole) - 2]
    assert sum(whole) > 1


@pytest.mark.parametrize("facts", [{"tag_scheme": "IOB2"}, {"marks_capitals": True}, {}])
def test_how_a_head_asks_and_answers_is_saved_with_it(facts: dict[str, Any]) -> None:
    head = TokenClassification(TAGS, **facts)
    config = BertConfig.from_dict(BertConfig(**head.config_fields).to_dict())
    assert TokenClassification.saved_with(task_of(), config, None).facts == head.with_labels(TAGS).facts == facts


def test_rare_tags_weigh_more() -> None:
    weights = tag_weights("auto", task_of(), TAGS, [["O"] * 8 + ["B-X"] * 4])
    assert weights == pytest.approx([12 / 24, 12 / 12, 12 / 3])
