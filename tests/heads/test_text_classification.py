"""Text classification: labels by name, losses as in transformers, predictions as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from bertcli.data.encoding import Encoded
from bertcli.data.sources import read_files
from bertcli.errors import DataError
from bertcli.heads.labels import compute_class_weights, resolve_labels
from bertcli.heads.text_classification import TextClassification, average_windows
from bertcli.recipe.schema import TrainingSection
from bertcli.tasks.task import Task


def task_of(**rest: Any) -> Task:
    return Task.model_validate({"dataset": "x", "text_columns": ("text",), **rest})


def class_labels(names: list[str], values: list[int]) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": ["t"] * len(values), "label": values}, features=features)


def test_labels_are_matched_by_name_in_any_order() -> None:
    rows = class_labels(["positive", "negative"], [0, 1, 1])
    task = task_of(labels=("negative", "positive"))
    assert resolve_labels(task, rows) == ("negative", "positive")
    head = TextClassification("single_label", ("negative", "positive"))
    assert head.references(task, rows).tolist() == [1, 0, 0]


def test_labels_come_from_the_task_row_then_the_data_set_then_the_rows() -> None:
    declared = class_labels(["z", "a"], [0, 0])
    assert resolve_labels(task_of(), declared) == ("z", "a")
    assert resolve_labels(task_of(), Dataset.from_dict({"text": ["t"] * 3, "label": ["c", "a", "b"]})) == (
        "a",
        "b",
        "c",
    )
    with pytest.raises(DataError, match=r"lists the labels \['x', 'y'\], the dataset declares \['z', 'a'\]"):
        resolve_labels(task_of(labels=("x", "y")), declared)


def test_single_distinct_label_is_rejected() -> None:
    with pytest.raises(DataError, match="at least two"):
        resolve_labels(task_of(), Dataset.from_dict({"text": ["t"], "label": ["a"]}))


def test_unknown_label_is_reported_with_its_row() -> None:
    rows = Dataset.from_dict({"text": ["t"] * 2, "label": ["good", "godo"]})
    message = r"row 2 has the label 'godo', expected one of .* Did you mean good\? It begins 't'\. Fix the row"
    with pytest.raises(DataError, match=message):
        TextClassification("single_label", ("bad", "good")).references(task_of(), rows)


def test_hidden_labels_are_none() -> None:
    head = TextClassification("single_label", ("no", "yes"))
    assert head.references(task_of(), class_labels(["no", "yes"], [-1, -1])) is None
    assert head.references(task_of(), Dataset.from_dict({"text": ["t"]})) is None
    with pytest.raises(DataError, match="row 2 has no label"):
        head.references(task_of(), class_labels(["no", "yes"], [1, -1]))
    regression = TextClassification("regression", ())
    assert regression.references(task_of(), Dataset.from_dict({"text": ["t"], "label": [-1.0]})) is None


def test_empty_cell_and_unlisted_minus_one_are_missing_labels(write_csv: Callable[..., Path]) -> None:
    def rows_of(*labels: str) -> Dataset:
        return read_files(
            [str(write_csv("rows.csv", ["text", "label"], [["t", label] for label in labels]))], task_of()
        )

    assert resolve_labels(task_of(), rows_of("a", "", "b", "-1")) == ("a", "b")
    head = TextClassification("single_label", ("-1", "1"))
    assert head.references(task_of(), rows_of("", " ", "-1")) is None
    listed = task_of(labels=("-1", "1"))
    gold = head.references(listed, rows_of("1", "-1"))
    assert gold is not None
    assert gold.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"row 2 has no label.* or set data\.skip_unlabelled=true\.$"):
        head.references(listed, rows_of("1", ""))
    with pytest.raises(DataError, match=r"row 2 has no label.* If -1 is a label, list it in task\.labels"):
        head.references(task_of(), rows_of("1", "-1"))
    multi_label = TextClassification("multi_label", ("a", "b"))
    multi_hot = multi_label.references(task_of(problem="multi_label"), rows_of("a,b", ""))
    assert multi_hot is not None
    assert multi_hot.tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1_5", "1,5", "one"])
def test_non_finite_or_missing_number_is_reported_with_its_row(value: float | str | None) -> None:
    rows = Dataset.from_dict({"text": ["t", "t"], "label": ["1.0" if isinstance(value, str) else 1.0, value]})
    with pytest.raises(DataError, match="row 2"):
        TextClassification("regression", ()).references(task_of(problem="regression"), rows)


def test_multi_label_cells_are_lists_or_comma_separated() -> None:
    head = TextClassification("multi_label", ("a", "b", "c"))
    expected = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    lists = Dataset.from_dict({"text": ["t"] * 3, "label": [["a", "c"], [], ["b"]]})
    texts = Dataset.from_dict({"text": ["t"] * 3, "label": ["a, c", "", "b"]})
    assert head.references(task_of(problem="multi_label"), lists).tolist() == expected
    assert head.references(task_of(problem="multi_label"), texts).tolist() == expected


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_loss_is_that_of_transformers_summed_over_examples(problem: Any) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    head = TextClassification(problem, () if problem == "regression" else ("a", "b", "c"))
    sizes = {"hidden_size": 14, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=30, **sizes, **head.config_fields)).eval()
    ids = torch.randint(5, 30, (13, 7))
    labels = {
        "single_label": torch.randint(0, 3, (13,)),
        "multi_label": torch.randint(0, 2, (13, 3)).float(),
        "regression": torch.rand(13) * 5,
    }[problem]
    output = model(input_ids=ids, labels=labels)
    assert torch.allclose(head.loss(output.logits, labels) / 13, output.loss, atol=1e-6)


def json_predictions(head: TextClassification, logits: np.ndarray) -> list[dict[str, Any]]:
    rows = Dataset.from_dict({"text": ["t"] * len(logits)})
    offsets = np.arange(len(logits) + 1)
    encoded = Encoded(np.zeros(len(logits), np.int32), None, offsets, np.arange(len(logits)), None, pad_token_id=0)
    return head.to_json(task_of(), rows, encoded, logits)


def test_json_predictions_have_labels_and_probabilities() -> None:
    logits = np.array([[0.0, 2.0], [1.0, -1.0]], dtype=np.float32)
    single = json_predictions(TextClassification("single_label", ("no", "yes")), logits)
    assert [entry["label"] for entry in single] == ["yes", "no"]
    assert sum(single[0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    multiple = json_predictions(TextClassification("multi_label", ("x", "y")), logits)
    assert [entry["labels"] for entry in multiple] == [["y"], ["x"]]
    assert json_predictions(TextClassification("regression", ()), logits[:, :1]) == [{"score": 0.0}, {"score": 1.0}]


def test_logits_of_windows_are_averaged() -> None:
    logits = np.array([[0.0, 3.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    encoded = Encoded(np.zeros(4, np.int32), None, np.arange(5), np.array([0, 1, 1, 2]), None, pad_token_id=0)
    assert average_windows(encoded, logits).tolist() == [[0.0, 3.0], [1.5, 0.0], [0.0, 1.0]]


def test_probabilities_of_confident_logits_differ() -> None:
    logits = np.array([[20.0, 30.0], [20.0, 31.0]], dtype=np.float32)
    for problem in ("multi_label", "single_label"):
        (first, second) = TextClassification(problem, ("x", "y")).probabilities(logits)[:, 1]
        assert first < second < 1


def test_auto_class_weights_are_balanced_with_a_mean_of_one() -> None:
    gold = np.array([0] * 30 + [1] * 10)
    weights = compute_class_weights("auto", task_of(), ("no", "yes"), gold)
    assert weights == pytest.approx([40 / 60, 40 / 20])
    assert np.mean([weights[label] for label in gold]) == pytest.approx(1.0)
    head = TextClassification("single_label", ("no", "yes"), weights)
    logits, labels = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    weighted = head.loss(logits, labels, TrainingSection()).item()
    assert weighted == pytest.approx((losses * torch.tensor(weights)[labels]).sum().item())
    assert head.loss(logits, labels).item() == pytest.approx(losses.sum().item())  # scores do not depend on weights


@pytest.mark.parametrize(
    ("weights", "message"), [({"no": 1.0}, "one for each"), ("auto", "no training row has the label 'yes'")]
)
def test_class_weights_for_other_labels_are_rejected(weights: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compute_class_weights(weights, task_of(), ("no", "yes"), np.zeros(4, dtype=int))


@pytest.mark.parametrize("cell", ["١", "infinity", "1_5", "0x10", "1e300", "1e", "."])
@pytest.mark.filterwarnings("error")
def test_regression_target_that_is_not_a_plain_number_is_refused(cell: str) -> None:
    rows = Dataset.from_dict({"text": ["a", "b"], "label": ["1", cell]})
    with pytest.raises(DataError, match=r"row 2 has no finite number in column 'label'"):
        TextClassification("regression", ()).references(task_of(problem="regression"), rows)


def test_regression_targets_in_decimal_and_scientific_notation_are_numbers() -> None:
    rows = Dataset.from_dict({"text": ["a"] * 6, "label": [" 1 ", "+1.5", "-.5", "2.", "1e-3", "2E+2"]})
    gold = TextClassification("regression", ()).references(task_of(problem="regression"), rows)
    assert gold is not None
    assert gold.tolist() == pytest.approx([1, 1.5, -0.5, 2, 0.001, 200])
