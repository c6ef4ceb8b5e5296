"""Model cards: `huggingface_hub` parses them, and no user-provided text breaks their structure."""

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
from bertcli.runs.model_card import _block, build_model_card, build_pretraining_card
from bertcli.runs.results import RunResults
from bertcli.tasks import get_task
from bertcli.tasks.task import Task

ENVIRONMENT = {
    "gpus": [], "cpus": 2, "processor": "AVX2",
    "packages": {"bertcli": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
}  # fmt: skip
SHARED = {
    "run": "run", "seed": 1, "num_evaluations": 3, "best_step": 20, "total_steps": 30, "num_train_examples": 1000,
    "train_seconds": 75.0, "num_parameters": 12345, "device": "cpu", "precision": "fp32", "size": "tiny",
}  # fmt: skip
HOSTILE = 'x: "y" ` <script>\n---\ninjected: true\n```\n# a heading\n````\n<script>|'


def card_of(
    task: Task,
    metrics: dict[str, Any],
    model: str | None = "google-bert/bert-base-uncased",
    base: str | None = None,
    **more_results: Any,
) -> str:
    recipe = Recipe(task=task, model=ModelSection(name=model))
    results = SHARED | {"metrics": metrics, "model": model, "best_by": "f1", "task": task.name, "head": task.head}
    results |= more_results
    return build_model_card(RunResults.model_validate(results), recipe, task, ENVIRONMENT, base)


def data_of(card: str) -> ModelCardData:
    """The metadata as parsed by the Hub."""
    Path("README.md").write_text(card, "utf-8")
    assert metadata_load("README.md") == ModelCard.load("README.md").data.to_dict()
    data = ModelCard.load("README.md").data
    assert isinstance(data, ModelCardData)
    return data


def test_card_metadata_describes_model_and_scores() -> None:
    metrics = {"validation": {"accuracy": 0.9, "f1": 0.25, "loss": 0.3}, "validation_mismatched": {"accuracy": 0.8}}
    card = card_of(get_task("glue/mnli"), metrics)
    data = data_of(card)
    assert (data.library_name, data.pipeline_tag, data.tags) == ("transformers", "text-classification", ["bertcli"])
    assert (data.base_model, data.datasets) == ("google-bert/bert-base-uncased", ["nyu-mll/glue"])
    assert data.metrics == ["accuracy", "f1"]
    assert (data.license, data.language) == (None, None)
    results = data.eval_results or ()
    assert [(row.dataset_config, row.dataset_split, row.metric_type, row.metric_value) for row in results] == [
        ("mnli", "validation_matched", "accuracy", 0.9),
        ("mnli", "validation_matched", "f1", 0.25),
        ("mnli", "validation_mismatched", "accuracy", 0.8),
    ]
    assert "trained for 1m15s in fp32 on 2 CPU cores (AVX2)" in card
    assert "| validation            | loss     | 0.3000 |" in card
    assert "  name: google-bert/bert-base-uncased\n" in card[card.index("## Recipe") :]


def test_card_omits_local_models_and_data_sets() -> None:
    Path("my/encoder").mkdir(parents=True)
    task = Task.model_validate({"files": {"train": ["/home/me/rows.csv"]}, "text_columns": ["text"]})
    data = data_of(card_of(task, {"validation": {"f1_macro": 0.5}}, "my/encoder"))
    assert (data.base_model, data.datasets) == (None, None)
    (result,) = data.eval_results or ()
    assert (result.dataset_type, result.dataset_split) == ("local files", "held out from training rows")
    assert (result.metric_type, result.metric_name) == ("f1", "f1_macro")
    data = data_of(card_of(get_task("sample/entities"), {"validation": {"f1": 0.5}}, None))
    assert (data.datasets, [row.dataset_type for row in data.eval_results or ()]) == (None, ["built-in sample"])


def test_card_code_of_each_head_compiles() -> None:
    import transformers

    for task, base in product(("glue/stsb", "ner/conll2003", "squad/v2", "choice/swag"), (None, "/a/base")):
        card = card_of(get_task(task), {"validation": {"f1": 0.5}}, base=base)
        code = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)[0]
        compile(code, "card", "exec")
        (names,) = re.findall(r"from transformers import (.*)", code)
        assert names == "pipeline" or all(hasattr(transformers, name) for name in names.split(", "))
        assert data_of(card).library_name == ("transformers" if base is None else "peft")


@pytest.mark.parametrize("temperature", [None, 1.0, 1.73456])
def test_card_says_whether_the_model_is_calibrated(temperature: float | None) -> None:
    card = card_of(get_task("glue/sst2"), {"validation": {"accuracy": 0.5}}, temperature=temperature)
    found = re.findall(r"logits are divided by (\S+), the temperature", card)
    assert found == ([] if temperature is None else [f"{temperature:.4g}"])
    data_of(card)


def test_card_escapes_user_text() -> None:
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


def test_card_code_block_fence_is_longer_than_backticks_inside() -> None:
    assert _block("yaml", "a\n```\nb") == "````yaml\na\n```\nb\n````"


@pytest.mark.parametrize(
    ("overrides", "pipeline"),
    [
        ((), "fill-mask"),
        (("objective.kind=causal_lm",), "text-generation"),
        (("objective.kind=span_corruption",), "text2text-generation"),
        (("objective.kind=replaced_token_detection",), "feature-extraction"),
    ],
)
def test_pretraining_card_names_the_pipeline_of_the_objective(overrides: tuple[str, ...], pipeline: str) -> None:
    recipe = load_pretrain_recipe("pretrain/novels", overrides)
    results = SHARED | {
        "metrics": {"validation": {"loss": 2.5, "accuracy": 0.5}}, "objective": recipe.objective.kind, "family": "bert",
        "model": None, "num_tokens": 1000, "num_documents": 10, "unigram_cross_entropy": 6.5,
    }  # fmt: skip
    card = build_pretraining_card(RunResults.model_validate(results), recipe, ENVIRONMENT)
    data = data_of(card)
    assert (data.pipeline_tag, data.base_model) == (pipeline, None)
    assert data.datasets == ["computationalstylistics/100_english_novels", "Salesforce/wikitext"]
    (result,) = data.eval_results or ()
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.5)
    assert "unigram cross-entropy" in card
