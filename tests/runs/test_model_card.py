"""The model card: the hub's own library reads it back, and nothing a person names breaks out of it."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load

from bertcli.recipe.load import load_pretrain_recipe
from bertcli.recipe.schema import ModelSection, Recipe
from bertcli.runs.model_card import _block, write_card, write_pretraining_card
from bertcli.tasks import task_named
from bertcli.tasks.task import Task

ENVIRONMENT = {
    "gpus": [], "cpus": 2, "processor": "AVX2",
    "packages": {"bertcli": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
}  # fmt: skip
SHARED = {
    "seed": 1, "num_evaluations": 3, "best_step": 20, "total_steps": 30, "num_train_examples": 1000,
    "train_seconds": 75.0, "num_parameters": 12345, "device": "cpu", "precision": "fp32", "size": "tiny",
}  # fmt: skip
HOSTILE = 'x: "y" ` <script>\n---\ninjected: true\n```\n# a heading\n````\n<script>|'


def card_of(
    task: Task, metrics: dict[str, Any], model: str | None = "google-bert/bert-base-uncased", base: str | None = None
) -> str:
    recipe = Recipe(task=task, model=ModelSection(name=model))
    results = SHARED | {"metrics": metrics, "model": model, "best_by": "f1", "task": task.name, "head": task.head}
    return write_card(results, recipe, task, ENVIRONMENT, base)


def data_of(card: str) -> ModelCardData:
    """The metadata as the hub reads it."""
    Path("README.md").write_text(card, "utf-8")
    assert metadata_load("README.md") == ModelCard.load("README.md").data.to_dict()
    data = ModelCard.load("README.md").data
    assert isinstance(data, ModelCardData)
    return data


def test_metadata_say_what_the_model_is_and_how_good() -> None:
    metrics = {"validation": {"accuracy": 0.9, "f1": 0.25, "loss": 0.3}, "validation_mismatched": {"accuracy": 0.8}}
    card = card_of(task_named("glue/mnli"), metrics)
    data = data_of(card)
    assert (data.library_name, data.pipeline_tag, data.tags) == ("transformers", "text-classification", ["bertcli"])
    assert (data.base_model, data.datasets) == ("google-bert/bert-base-uncased", ["nyu-mll/glue"])
    assert data.metrics == ["accuracy", "f1"]
    assert (data.license, data.language) == (None, None)
    found = [
        (one.dataset_config, one.dataset_split, one.metric_type, one.metric_value) for one in data.eval_results or ()
    ]
    assert found == [
        ("mnli", "validation_matched", "accuracy", 0.9),
        ("mnli", "validation_matched", "f1", 0.25),
        ("mnli", "validation_mismatched", "accuracy", 0.8),
    ]
    assert "trained for 1m15s in fp32 on 2 CPU cores (AVX2)" in card
    assert "| validation            | loss     | 0.3000 |" in card
    assert "  name: google-bert/bert-base-uncased\n" in card[card.index("## Recipe") :]


def test_what_is_no_name_on_the_hub_is_not_given_as_one() -> None:
    Path("my/encoder").mkdir(parents=True)
    task = Task.model_validate({"files": {"train": ["/home/me/rows.csv"]}, "text_columns": ["text"]})
    data = data_of(card_of(task, {"validation": {"f1_macro": 0.5}}, "my/encoder"))
    assert (data.base_model, data.datasets) == (None, None)
    (result,) = data.eval_results or ()
    assert (result.dataset_type, result.dataset_split) == ("own files", "held out of the training rows")
    assert (result.metric_type, result.metric_name) == ("f1", "f1_macro")
    data = data_of(card_of(task_named("sample/entities"), {"validation": {"f1": 0.5}}, None))
    assert (data.datasets, [one.dataset_type for one in data.eval_results or ()]) == (None, ["embedded sample"])


def test_the_program_of_each_kind_is_python() -> None:
    import transformers

    for task, base in product(("glue/stsb", "ner/conll2003", "squad/v2", "choice/swag"), (None, "/a/base")):
        card = card_of(task_named(task), {"validation": {"f1": 0.5}}, base=base)
        program = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)[0]
        compile(program, "card", "exec")
        (names,) = re.findall(r"from transformers import (.*)", program)
        assert names == "pipeline" or all(hasattr(transformers, name) for name in names.split(", "))
        assert data_of(card).library_name == ("transformers" if base is None else "peft")


def test_nothing_a_person_names_breaks_out() -> None:
    task = Task.model_validate({"dataset": HOSTILE, "name": "mine", "config": HOSTILE, "text_columns": [HOSTILE]})
    card = card_of(task, {"validation": {"f1": 0.5}}, HOSTILE)
    data = data_of(card)
    assert "injected" not in data.to_dict()
    (result,) = data.eval_results or ()
    assert result.dataset_config == HOSTILE
    text = ModelCard(card).text
    outside = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert re.findall("^#.*", outside, re.MULTILINE) == ["# mine", "## Recipe"]
    assert "<script>" not in re.sub(r"(`+).*?(?<!`)\1(?!`)", "", outside)


def test_no_line_of_a_block_ends_it() -> None:
    assert _block("yaml", "a\n```\nb") == "````yaml\na\n```\nb\n````"


@pytest.mark.parametrize(
    ("words", "pipeline"),
    [
        ((), "fill-mask"),
        (("objective.kind=causal_lm",), "text-generation"),
        (("objective.kind=span_corruption",), "text2text-generation"),
        (("objective.kind=replaced_tokens",), "feature-extraction"),
    ],
)
def test_a_pretrained_models_card_tells_its_objective(words: tuple[str, ...], pipeline: str) -> None:
    recipe = load_pretrain_recipe("pretrain/novels", words)
    results = SHARED | {
        "metrics": {"validation": {"loss": 2.5, "accuracy": 0.5}}, "objective": recipe.objective.kind, "family": "bert",
        "model": None, "num_tokens": 1000, "num_documents": 10, "unigram_entropy": 6.5,
    }  # fmt: skip
    card = write_pretraining_card(results, recipe, ENVIRONMENT)
    data = data_of(card)
    assert (data.pipeline_tag, data.base_model) == (pipeline, None)
    assert data.datasets == ["computationalstylistics/100_english_novels", "Salesforce/wikitext"]
    (result,) = data.eval_results or ()
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.5)
    assert "entropy without context" in card
