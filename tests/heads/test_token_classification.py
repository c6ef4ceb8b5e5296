"""Token classification: one prediction per word at any length, as in transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertConfig, PreTrainedTokenizerBase

from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.data.encoding import IGNORED_LABEL, Encoded
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.errors import DataError, RecipeError
from bertcli.experiments.grid import finetune_grid
from bertcli.experiments.suite import finetune_suite
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import set_up
from bertcli.heads.labels import label_config_fields
from bertcli.heads.token_classification import TokenClassification, compute_tag_weights, resolve_tags
from bertcli.heads.word_alignment import UNALIGNED, word_offsets
from bertcli.metrics.scores import check_metrics
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.expansion import Grid
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import DataSection
from bertcli.recipe.suite import load_finetuning, load_suite
from bertcli.reports.analysis import NO_ENTITY, entity_pairs
from bertcli.reports.pages import read_run
from bertcli.runs.folder import RunOptions
from bertcli.runs.members import chosen_run
from bertcli.tasks.task import Task

from ..conftest import QUIET, score_predictions

TAGS = ("O", "B-X", "I-X")


def task_of(**rest: Any) -> Task:
    head = {"head": "token_classification", "dataset": "x", "text_columns": ("tokens",), "label_column": "tags"}
    return Task.model_validate(head | rest)


def encode(tokenizer: PreTrainedTokenizerBase, words: list[list[str]], tags: Any = None, **data: Any) -> Encoded:
    rows = Dataset.from_dict({"tokens": words} | ({"tags": tags} if tags else {}))
    return TokenClassification(TAGS).encode(task_of(), rows, tokenizer, DataSection(**data))


def test_entities_begin_with_their_first_letter_though_their_words_have_spaces(encoder: Path) -> None:
    rows = Dataset.from_dict({"tokens": [["in", " New", "\u00a0York ", "[SEP]"]]})
    encoded = TokenClassification(TAGS).encode(
        task_of(), rows, ModelSource(str(encoder)).load_tokenizer(), DataSection(max_length=32)
    )
    assert encoded.alignment is not None
    logits = np.zeros((len(encoded.input_ids), 3), dtype=np.float32)
    for word, tag in enumerate((0, 1, 2, 0)):
        logits[encoded.alignment == word, tag] = 9.0
    (answer,) = TokenClassification(TAGS).to_json(task_of(), rows, encoded, logits)
    assert answer["tags"] == ["O", "B-X", "I-X", "O"]
    assert answer["entities"] == [{"label": "X", "start": 4, "end": 13, "text": "New \u00a0York"}]


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
        Dataset.from_dict({"tokens": [["a", "b"]], "tags": [tags]}, features=features) for tags in ([-1, -1], [-2, 1])
    )
    assert TokenClassification(TAGS).references(task_of(), hidden) is None
    with pytest.raises(DataError, match="row 1 has the label '-2', expected one of"):
        TokenClassification(TAGS).references(task_of(), undeclared)


@pytest.mark.parametrize(
    "tags",
    [
        [["O", "B-X", None], ["B-X", None, None]],
        [["O", "B-X", "-100"], ["B-X", "", " -1 "]],
        [[0, 1, -100], [1, -1, None]],
        [[0.0, 1.0, float("nan")], [1.0, -100.0, -1.0]],
    ],
)
def test_missing_tags_are_not_labels_and_are_left_out_of_loss_and_scores(tags: list[list[Any]], encoder: Path) -> None:
    rows, task = Dataset.from_dict({"tokens": [["the", "film", "bad"]] * 2, "tags": tags}), task_of()
    labels = resolve_tags(task, rows)
    assert labels == (("O", "B-X") if isinstance(tags[0][0], str) else ("0", "1"))
    head, task = TokenClassification(labels), task.model_copy(update={"labels": labels})
    gold = head.references(task, rows)
    assert gold == [[*labels, None], [labels[1], None, None]]
    assert compute_tag_weights("auto", task, labels, gold) == pytest.approx([3 / 2, 3 / 4])
    encoded = head.encode(task, rows, ModelSource(str(encoder)).load_tokenizer(), DataSection())
    assert encoded.labels is not None
    assert encoded.num_targets.tolist() == [2, 1]
    assert encoded.labels[encoded.labels != IGNORED_LABEL].tolist() == [0, 1, 1]
    logits = np.zeros((len(encoded.labels), 2), dtype=np.float32)
    logits[encoded.alignment != UNALIGNED, [0, 1, 0, 0, 1, 1]] = 1
    predictions = head.to_predictions(task, rows, encoded, logits)
    answers = head.with_gold(task, rows, encoded, logits, predictions)
    assert [(answer["right"], answer["loss"]) for answer in answers] == [(True, 0.0), (False, 1.0)]
    assert score_predictions(["accuracy"], "token_classification", predictions, gold) == pytest.approx(
        {"accuracy": 2 / 3}
    )
    if labels[0] == "O":
        scores = score_predictions(["seqeval"], "token_classification", predictions, gold, labels=labels)
        assert scores == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "accuracy": 2 / 3})


def test_tag_that_the_task_lists_is_a_label_even_if_it_is_minus_one() -> None:
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[-1, 1]]})
    assert TokenClassification(("-1", "1")).references(task_of(labels=("-1", "1")), rows) == [["-1", "1"]]


@pytest.mark.parametrize("tags", [["O B-X"], [1], [["O"], ["B-X"]]])
def test_tags_that_are_not_a_list_per_row_are_refused(tags: Any) -> None:
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [tags] if isinstance(tags[0], list) else tags})
    with pytest.raises(DataError, match=r"column 'tags' holds .*, expected a list of tags for each row"):
        resolve_tags(task_of(), rows)


def test_parts_of_speech_are_scored_by_accuracy() -> None:
    assert task_of(labels=("NOUN", "VERB")).metric_names == ("accuracy",)
    assert task_of(labels=("O", "PERSON")).metric_names == task_of().metric_names == ("seqeval",)
    assert task_of(labels=("NOUN", "VERB")).primary_metric == task_of(metrics=["accuracy"]).primary_metric == "accuracy"
    check_metrics(task_of(labels=("NOUN", "VERB")))
    check_metrics(task_of(labels=("O", "B-X", "Y"), metrics=["accuracy"]))
    for labels in (("O", "B-X", "Y"), ("NOUN", "VERB")):
        with pytest.raises(DataError, match=r"set task.metrics to \[accuracy\]"):
            check_metrics(task_of(labels=labels, metrics=["seqeval"]))


@pytest.mark.parametrize(
    ("labels", "tags", "entities"),
    [
        (("O", "U-X", "B-X", "L-X"), [1, 1, 2, 3, 0], [(0, 4), (5, 8), (9, 16)]),
        (("NOUN", "VERB"), [0, 0, 1, 0, 1], []),
        (("O", "b-x", "i-x"), [0, 1, 2, 1, 0], [(5, 12), (13, 16)]),
        (("O", "B_X", "I_X"), [0, 1, 2, 1, 0], [(5, 12), (13, 16)]),
        (("O", "B", "I"), [0, 1, 2, 1, 0], [(5, 12), (13, 16)]),
        (("O", "PERSON", "ORGANIZATION"), [2, 2, 1, 0, 2], [(0, 8), (9, 12), (17, 23)]),
        (("O", "B-X", "Y"), [0, 1, 2, 1, 0], None),  # unclear
    ],
)
def test_entities_are_decoded_in_each_scheme(
    labels: tuple[str, ...], tags: list[int], entities: list[tuple[int, int]] | None, encoder: Path
) -> None:
    tokenizer, task = ModelSource(str(encoder)).load_tokenizer(), task_of()
    rows = Dataset.from_dict({"tokens": [["film", "bad", "one", "two", "lovely"]]})
    head = TokenClassification(labels)
    encoded = head.encode(task, rows, tokenizer, DataSection())
    assert encoded.alignment is not None
    logits = np.zeros((len(encoded.alignment), len(labels)))
    logits[encoded.alignment != UNALIGNED, tags] = 1
    (answer,) = head.to_json(task, rows, encoded, logits)
    offsets = answer["entities"] and [(entity["start"], entity["end"]) for entity in answer["entities"]]
    assert offsets == entities


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


def test_casing_feature_of_an_earlier_version_is_read() -> None:
    config = BertConfig(**TokenClassification(TAGS).config_fields, marks_capitals=True)
    assert TokenClassification.from_config(task_of(), config, None).config_extras == {"casing_feature": True}


def test_auto_tag_weights_are_balanced() -> None:
    weights = compute_tag_weights("auto", task_of(), TAGS, [["O"] * 8 + ["B-X"] * 4])
    assert weights == pytest.approx([12 / 24, 12 / 12, 12 / 3])


def tagging_recipe(write_recipe: Callable[..., Path], encoder: Path, tags: list[Any], **task: Any) -> str:
    words = ["film", "bad", "soup", "lovely"]
    rows = [{"tokens": words, "tags": tags}] * 12 + [{"tokens": words, "tags": [None] * 4}] * 3
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {"train": "rows.jsonl", "validation": "rows.jsonl"}
    definition = {"files": files, "head": "token_classification", "text_columns": ["tokens"], "label_column": "tags"}
    content = {
        "task": definition | task,
        "model": {"name": str(encoder), "dropout": 0},
        "training": {"max_steps": 8, "global_batch_size": 2, "learning_rate": 5e-3},
        "evaluation": {"every_steps": 4},
        "data": {"max_length": 16},
    }
    return str(write_recipe(json.dumps(content)))


def test_parts_of_speech_choose_checkpoint_and_grid_point_by_accuracy(
    write_recipe: Callable[..., Path], encoder: Path
) -> None:
    recipe = tagging_recipe(write_recipe, encoder, ["NOUN", "ADJ", "NOUN", None])
    grid = load_finetuning(recipe, ["training.learning_rate=[1e-3, 5e-3]"])
    results = finetune_grid(cast("Grid", grid), Path("grid"), RunOptions(console=QUIET))
    assert results.best_by == "accuracy"
    assert set(results.mean_scores("validation")) == {"accuracy", "loss"}
    assert evaluate(chosen_run("grid"), console=QUIET).metrics["validation"] == pytest.approx(
        results.metrics["validation"]
    )
    run = read_run(Path(chosen_run("grid")))
    assert {label for pair in entity_pairs(run.predictions, run.tag_set) for label in pair} <= {"NOUN", "ADJ"}
    with pytest.raises(RecipeError, match=r"found evaluation\.best_by 'f1', expected one of"):
        finetune(load_recipe(recipe, ["evaluation.best_by=f1"]), Path("run"), RunOptions(console=QUIET))
    suite = load_suite(str(write_recipe(f"suite: [{recipe}]", "suite.yaml")))
    assert suite is not None
    suite_results = finetune_suite(suite, Path("suite"), RunOptions(console=QUIET))
    (task_results,) = (suite_results.tasks or {}).values()
    assert suite_results.average == task_results.mean("accuracy")


def test_run_report_and_predictions_have_the_entities_of_the_scores(
    write_recipe: Callable[..., Path], encoder: Path
) -> None:
    recipe = load_recipe(tagging_recipe(write_recipe, encoder, ["ORGANIZATION", "O", "person-other", "person-other"]))
    scores = finetune(recipe, Path("run"), RunOptions(console=QUIET)).mean_scores("validation")
    run = read_run(Path("run"))
    pairs = entity_pairs(run.predictions, run.tag_set)
    num_gold, num_predicted = (sum(pair[side] != NO_ENTITY for pair in pairs) for side in (0, 1))
    assert num_gold == 24
    num_correct = sum(gold == predicted for gold, predicted in pairs)
    assert scores["f1"] == pytest.approx(2 * num_correct / (num_gold + num_predicted))
    predict("run", PredictionInput(split="validation"), "predictions.jsonl", console=QUIET)
    entries = [json.loads(line) for line in Path("predictions.jsonl").read_text("utf-8").splitlines()]
    assert sum(len(entry["entities"]) for entry in entries[:12]) == num_predicted
    assert num_predicted


def test_tags_whose_entities_are_unclear_are_refused_before_training(
    write_recipe: Callable[..., Path], encoder: Path
) -> None:
    recipe = load_recipe(tagging_recipe(write_recipe, encoder, ["O", "B-X", "Y", "O"]))
    with pytest.raises(DataError, match=r"'B-X' with a position and 'Y' without.* set task\.metrics to \[accuracy\]"):
        set_up(recipe, None)
    recipe = load_recipe(tagging_recipe(write_recipe, encoder, ["O", "B-X", "Y", "O"], metrics=["accuracy"]))
    assert set_up(recipe, None).task.metric_names == ("accuracy",)
