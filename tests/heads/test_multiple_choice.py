"""Multiple choice: rows encoded as pairs, gold choices as numbers or letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from bertcli.errors import DataError
from bertcli.heads.multiple_choice import MultipleChoice, row_choices
from bertcli.models.from_pretrained import ModelSource
from bertcli.recipe.schema import DataSection
from bertcli.tasks.task import Task


def task_of(**rest: Any) -> Task:
    return Task.model_validate(
        {"head": "multiple_choice", "dataset": "x", "text_columns": ("text",), "choice_columns": ("choices",)} | rest
    )


SWAG = {"text_columns": ("sent1", "sent2"), "choice_columns": ("ending0", "ending1")}


def test_swag_rows_are_encoded_as_pairs_of_text_and_ending(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    columns = {"sent1": ["a fine film", "bad"], "sent2": ["the soup", "a train"], "label": [1, 0]}
    rows = Dataset.from_dict(columns | {"ending0": ["was awful", "x"], "ending1": ["b", "y"]})
    batch = MultipleChoice().encode(task_of(**SWAG), rows, tokenizer, DataSection()).batch(np.array([0, 1]))
    firsts = ["a fine film"] * 2 + ["bad"] * 2
    seconds = ["the soup was awful", "the soup b", "a train x", "a train y"]
    expected = tokenizer(firsts, seconds, padding=True, return_tensors="pt")
    for name, tensor in expected.items():
        assert batch[name].equal(tensor.view(2, 2, -1)), name
    assert batch["labels"].tolist() == [1, 0]


def test_loss_is_that_of_transformers_summed_over_questions() -> None:
    from transformers import BertConfig, BertForMultipleChoice

    torch.manual_seed(0)
    sizes = {"hidden_size": 14, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    model = BertForMultipleChoice(BertConfig(vocab_size=30, **sizes)).eval()
    labels = torch.randint(0, 3, (13,))
    output = model(input_ids=torch.randint(5, 30, (13, 3, 7)), labels=labels)
    head = MultipleChoice()
    assert torch.allclose(head.loss(head.logits(output), labels) / 13, output.loss, atol=1e-6)


@pytest.mark.parametrize(("label", "number"), [(2, 2), ("2", 2), ("C", 2), ("c", 2), (2.0, 2), ("2.0", 2), (" c ", 2)])
def test_gold_choice_is_a_number_or_a_letter(label: Any, number: int) -> None:
    rows = Dataset.from_dict({"text": ["t"], "choices": [["a", "b", "c"]], "label": [label]})
    references = MultipleChoice().references(task_of(), rows)
    assert references is not None
    assert references.tolist() == [number]


@pytest.mark.parametrize("label", [3, -2, "D", "both", 1.5, True, [1]])
def test_gold_answer_that_is_not_a_choice_is_reported_with_its_row(label: Any) -> None:
    rows = Dataset.from_dict({"text": ["t"], "choices": [["a", "b", "c"]], "label": [label]})
    with pytest.raises(DataError, match="row 1 has the answer"):
        MultipleChoice().references(task_of(), rows)


def test_hidden_answers_are_none_and_uneven_choices_are_rejected() -> None:
    rows = Dataset.from_dict({"text": ["t"], "choices": [["a", "b"]], "label": [-1]})
    assert MultipleChoice().references(task_of(), rows) is None
    with pytest.raises(DataError, match="row 2 has 3 choices, expected 2"):
        row_choices(task_of(), Dataset.from_dict({"text": ["t"] * 2, "choices": [["a", "b"], ["a", "b", "c"]]}))


def test_hidden_answer_in_a_labeled_split_is_rejected() -> None:
    features = Features(
        {"text": Value("string"), "choices": List(Value("string")), "label": ClassLabel(names=["0", "1"])}
    )
    rows = Dataset.from_dict({"text": ["t"] * 2, "choices": [["a", "b"]] * 2, "label": [0, -1]}, features=features)
    with pytest.raises(DataError, match="row 2 has the answer -1"):
        MultipleChoice().references(task_of(), rows)


def test_printed_list_of_choices_in_csv_is_a_list() -> None:
    rows = Dataset.from_dict({"text": ["t"] * 2, "choices": ["['red', 'green']", '["a", "b"]']})
    assert row_choices(task_of(), rows) == [["red", "green"], ["a", "b"]]
    with pytest.raises(DataError, match="row 1 has 1 choice, expected at least two"):
        row_choices(task_of(), Dataset.from_dict({"text": ["t"], "choices": ["red, green"]}))


def test_first_ten_rows_whose_answer_is_not_a_choice_are_named() -> None:
    rows = Dataset.from_dict({"text": ["t"] * 12, "choices": [["a", "b"]] * 12, "label": [2] * 12})
    with pytest.raises(DataError, match=r"rows 1, 2, .* 10, … \(12 rows\) have answers that are not choices"):
        MultipleChoice().references(task_of(), rows)


def test_hidden_answers_in_csv_cells_are_none() -> None:
    rows = Dataset.from_dict({"text": ["t"] * 2, "choices": [["a", "b"]] * 2, "label": ["", "-1"]})
    assert MultipleChoice().references(task_of(), rows) is None
