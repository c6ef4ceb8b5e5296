"""Token classification: one prediction per word at any length, as in transformers."""

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
from bertcli.heads.labels import label_config_fields
from bertcli.heads.token_classification import TokenClassification, compute_tag_weights, resolve_tags
from bertcli.heads.word_alignment import UNALIGNED, word_offsets
from bertcli.models.from_pretrained import ModelSource
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
def test_each_word_is_aligned_to_exactly_one_token(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    words = [["film", "lovely", "harbour"] * 9, ["a"], ["\u200b", "fine", "\ufeff"], ["superbsoup" * 9, "bad"], []]
    encoded = encode(tokenizer, words, max_length=max_length)
    assert encoded.lengths.max() <= max_length
    assert encoded.alignment is not None
    row_of = np.repeat(encoded.rows, encoded.lengths)
    for row, row_words in enumerate(words):
        aligned = encoded.alignment[(row_of == row) & (encoded.alignment != UNALIGNED)]
        assert aligned.tolist() == list(range(len(row_words))), row


def test_word_in_two_windows_is_predicted_farther_from_the_edge(encoder: Path) -> None:
    encoded = encode(ModelSource(str(encoder)).load_tokenizer(), [["film"] * 40], max_length=14, doc_stride=6)
    assert encoded.alignment is not None
    for item in range(len(encoded) - 1):
        alignment = encoded.alignment[encoded.offsets[item] : encoded.offsets[item + 1]]
        aligned = np.flatnonzero(alignment != UNALIGNED)
        assert aligned[-1] == 9  # three of the six tokens shared with the next window
        assert aligned[0] == (1 if item == 0 else 4)


def test_context_tokens_of_neighboring_rows_are_not_predicted(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    words = [["film"], ["lovely"] * 3, [], ["harbour", "bad"], ["film"] * 20]
    tags = [["O"] * len(row) for row in words]
    without_context = encode(tokenizer, words, tags, max_length=16)
    encoded = encode(tokenizer, words, tags, max_length=16, context_tokens=4)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in np.split(encoded.input_ids, encoded.offsets)]
    assert texts[1:5] == [
        "film lovely lovely lovely harbour",
        "film lovely lovely lovely harbour bad film",
        "lovely lovely harbour bad",
        "lovely lovely harbour bad film film",
    ]
    assert encoded.num_targets.tolist() == without_context.num_targets.tolist()
    assert encoded.lengths.max() <= 16
    assert encode(tokenizer, words, tags, max_length=8, context_tokens=4).lengths.max() <= 8
    aligned_ids = []
    for each in (without_context, encoded):
        assert each.alignment is not None
        aligned_ids.append(each.input_ids[each.alignment != UNALIGNED].tolist())
    assert aligned_ids[0] == aligned_ids[1]


def test_only_the_first_token_of_a_word_is_labeled(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
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


def test_predictions_are_merged_from_the_windows(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    random = np.random.default_rng(0)
    words = [["film"] * 40, ["a", "fine", "day"]]
    tags = [[str(random.choice(TAGS)) for _ in row] for row in words]
    encoded = encode(tokenizer, words, tags, max_length=13, doc_stride=4)
    assert encoded.labels is not None
    logits = np.eye(3, dtype=np.float32)[np.maximum(encoded.labels, 0)]
    rows = Dataset.from_dict({"tokens": words})
    assert TokenClassification(TAGS).to_predictions(task_of(), rows, encoded, logits) == tags


def test_constrained_decoding_predicts_valid_sequences(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    rows = Dataset.from_dict({"tokens": [["film", "bad"], [], ["lovely", "harbour", "film"]]})
    task = task_of()
    head = TokenClassification(TAGS, tag_scheme="IOB2")
    encoded = head.encode(task, rows, tokenizer, DataSection())
    assert encoded.alignment is not None
    logits = np.zeros((len(encoded.alignment), 3))
    logits[encoded.alignment != UNALIGNED] = [[3, 0, 1], [3, 2, 4], [0, 2, 3], [0, 0, 3], [3, 0, 0]]
    assert head.to_predictions(task, rows, encoded, logits) == [["O", "O"], [], ["B-X", "I-X", "O"]]
    unconstrained = TokenClassification(TAGS).to_predictions(task, rows, encoded, logits)
    assert unconstrained == [["O", "I-X"], [], ["I-X", "I-X", "O"]]
    assert head.to_predictions(task, rows.select([]), encode(tokenizer, []), logits[:0]) == []


def test_plain_text_is_split_into_words_and_entities_have_character_offsets(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    text = "Fine films, (U.N.)  don't"
    rows = Dataset.from_dict({"tokens": [text]})
    head = TokenClassification(TAGS)
    encoded = head.encode(task_of(), rows, tokenizer, DataSection())
    logits = np.zeros((len(encoded.input_ids), 3), dtype=np.float32)
    assert encoded.alignment is not None
    logits[encoded.alignment == 0, 1] = logits[encoded.alignment == 1, 2] = logits[encoded.alignment == 4, 1] = 9
    (answer,) = head.to_json(task_of(), rows, encoded, logits)
    assert answer["words"] == ["Fine", "films", ",", "(", "U.N", ".", ")", "don't"]
    assert answer["entities"] == [
        {"label": "X", "start": 0, "end": 10, "text": "Fine films"},
        {"label": "X", "start": 13, "end": 16, "text": "U.N"},
    ]
    for word, (start, end) in zip(answer["words"], word_offsets(text, answer["words"]), strict=True):
        assert text[start:end] == word


def test_loss_is_that_of_transformers_summed_over_words() -> None:
    from transformers import BertConfig, BertForTokenClassification

    head = TokenClassification(TAGS)
    sizes = {"hidden_size": 14, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(vocab_size=30, **sizes, **head.config_fields)).eval()
    labels = torch.randint(0, 3, (13, 7))
    labels[:, ::3] = IGNORED_LABEL
    output = model(input_ids=torch.randint(5, 30, (13, 7)), labels=labels)
    num_words = (labels != IGNORED_LABEL).sum()
    assert torch.allclose(head.loss(head.logits(output), labels) / num_words, output.loss, atol=1e-6)


def test_tags_come_from_the_task_row_then_the_data_set_then_the_rows() -> None:
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-Z"]))})
    declared = Dataset.from_dict({"tokens": [["a"]], "tags": [[1]]}, features=features)
    assert resolve_tags(task_of(), declared) == ("O", "B-Z")
    assert TokenClassification(("B-Z", "O")).references(task_of(), declared) == [["B-Z"]]
    undeclared = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [["B-A", "O"]]})
    assert resolve_tags(task_of(), undeclared) == ("O", "B-A")
    with pytest.raises(DataError, match="the dataset declares"):
        resolve_tags(task_of(labels=TAGS), declared)


@pytest.mark.parametrize(
    ("tags", "message"), [([["O"]], "row 1 has 2 words and 1 tags"), ([["O", "B-Y"]], "row 1 has the label 'B-Y'")]
)
def test_invalid_tags_are_reported_with_their_row(tags: list[list[str]], message: str) -> None:
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "tags": tags})
    with pytest.raises(DataError, match=message):
        TokenClassification(TAGS).references(task_of(), rows)


def test_hidden_tags_are_none_and_undeclared_ids_are_reported() -> None:
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=list(TAGS)))})
    hidden, undeclared = (
        Dataset.from_dict({"tokens": [["a", "b"]], "tags": [tags]}, features=features) for tags in ([-1, -1], [-1, 1])
    )
    assert TokenClassification(TAGS).references(task_of(), hidden) is None
    with pytest.raises(DataError, match="row 1 has the label '-1', expected one of"):
        TokenClassification(TAGS).references(task_of(), undeclared)


@pytest.mark.parametrize(
    ("labels", "tags", "entities"),
    [
        (("O", "U-X", "B-X", "L-X"), [1, 1, 2, 3, 0], [(0, 4), (5, 8), (9, 16)]),
        (("NOUN", "VERB"), [0, 0, 1, 0, 1], []),
    ],
)
def test_entities_are_decoded_in_each_scheme(
    labels: tuple[str, ...], tags: list[int], entities: list[tuple[int, int]], encoder: Path
) -> None:
    tokenizer, task = ModelSource(str(encoder)).load_tokenizer(), task_of()
    rows = Dataset.from_dict({"tokens": [["film", "bad", "one", "two", "lovely"]]})
    head = TokenClassification(labels)
    encoded = head.encode(task, rows, tokenizer, DataSection())
    assert encoded.alignment is not None
    logits = np.zeros((len(encoded.alignment), len(labels)))
    logits[encoded.alignment != UNALIGNED, tags] = 1
    (answer,) = head.to_json(task, rows, encoded, logits)
    assert [(entity["start"], entity["end"]) for entity in answer["entities"]] == entities


@pytest.mark.parametrize(("scheme", "expected"), [("IOBES", "IOBES"), ("BIO", None), (None, None)])
def test_tag_scheme_of_a_config_is_used_if_it_is_supported(scheme: str | None, expected: str | None) -> None:
    config = BertConfig(**label_config_fields(TAGS), **({"tag_scheme": scheme} if scheme else {}))
    assert TokenClassification.from_config(task_of(), config, None).tag_scheme == expected


def test_casing_feature_sets_token_type_1_for_words_with_capitals(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    rows = Dataset.from_dict({"tokens": [["Film", "bad", "superbSoup"], [], ["lovely"], ["ONE", "harbour"]]})
    head = TokenClassification(TAGS, casing_feature=True)
    plain = TokenClassification(TAGS).encode(task_of(), rows, tokenizer, DataSection(context_tokens=8))
    encoded = head.encode(task_of(), rows, tokenizer, DataSection(context_tokens=8))
    assert encoded.input_ids.tolist() == plain.input_ids.tolist()
    assert encoded.token_type_ids is not None
    words = [["Film", "bad", "superbSoup"], ["lovely"], ["ONE", "harbour"]]  # all rows are in one window, as context
    expected = [
        int(word != word.lower())
        for row in words
        for word in row
        for _ in tokenizer(word, add_special_tokens=False)["input_ids"]
    ]
    token_type_ids = encoded.token_type_ids[: encoded.lengths[0]].tolist()
    assert token_type_ids[0] == token_type_ids[-1] == 0
    assert token_type_ids[1:-1] == expected[: len(token_type_ids) - 2]
    assert sum(token_type_ids) > 1


@pytest.mark.parametrize("extras", [{"tag_scheme": "IOB2"}, {"casing_feature": True}, {}])
def test_config_extras_are_saved_and_loaded(extras: dict[str, Any]) -> None:
    head = TokenClassification(TAGS, **extras)
    config = BertConfig.from_dict(BertConfig(**head.config_fields).to_dict())
    assert (
        TokenClassification.from_config(task_of(), config, None).config_extras
        == head.with_labels(TAGS).config_extras
        == extras
    )


def test_auto_tag_weights_are_balanced() -> None:
    weights = compute_tag_weights("auto", task_of(), TAGS, [["O"] * 8 + ["B-X"] * 4])
    assert weights == pytest.approx([12 / 24, 12 / 12, 12 / 3])
