"""Regression in the units of the targets: standardized while training, folded into the saved output layer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sklearn.metrics import mean_squared_error
from torch import nn

from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.errors import DataError, Interrupted
from bertcli.finetuning.multitask import finetune_multitask
from bertcli.finetuning.run import finetune
from bertcli.finetuning.setup import set_up
from bertcli.heads.text_classification import TextClassification
from bertcli.models.from_pretrained import ModelSource, save_model
from bertcli.models.lora import add_lora, save_lora
from bertcli.models.padding_free import optimize_forward
from bertcli.models.regression_output import RegressionOutput, standardize_targets, use_fp32_output
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe, TrainingSection
from bertcli.recipe.suite import load_suite
from bertcli.runs.folder import RunOptions

from ..conftest import QUIET
from .test_padding_free import CPU, FAMILIES, build

MEAN, STD = 10_000.0, 3000.0
WORDS = ("dull", "bad", "awful", "fine", "lovely", "day")
QUIET_OPTIONS = RunOptions(console=QUIET)


def write_targets(path: str, scale: float, shift: float) -> None:
    """Write 48 rows; the target is the number of good words in the text, scaled and shifted."""
    random = np.random.default_rng(0)
    words = random.choice(WORDS, (48, 5))
    lines = (
        json.dumps({"text": " ".join(row), "label": float(np.isin(row, WORDS[3:]).sum() * scale + shift)})
        for row in words
    )
    Path(path).write_text("\n".join(lines))


@pytest.fixture
def recipe_of(encoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Recipe]:
    """Build the recipe of a regression whose targets are scaled and shifted; 4 epochs of 6 steps."""
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))

    def build_recipe(scale: float, shift: float, *overrides: str, model: str | Path = encoder) -> Recipe:
        write_targets("rows.jsonl", scale, shift)
        Path("regression.yaml").write_text(
            "task: {files: {train: rows.jsonl, validation: rows.jsonl}, text_columns: [text], problem: regression}\n"
            f"model: {{name: {model}}}\ndata: {{max_length: 16}}\nevaluation: {{every_epochs: 1}}\n"
            "training: {epochs: 4, global_batch_size: 8, learning_rate: 1e-2, seed: 1}\n",
            "utf-8",
        )
        return load_recipe("regression.yaml", overrides)

    return build_recipe


def gold_and_predicted(run: str) -> tuple[np.ndarray, np.ndarray]:
    lines = [json.loads(line) for line in Path(run, "predictions", "validation.jsonl").read_text().splitlines()]
    gold, predicted = (np.array([line[key] for line in lines]) for key in ("gold", "predicted"))
    return gold, predicted


UNITS = [(1000.0, 10_000.0), pytest.param(1e-4, -3e-4, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("scale", "shift"), UNITS)
def test_regression_targets_of_any_size_are_learned_as_standardized_ones(
    recipe_of: Callable[..., Recipe], scale: float, shift: float
) -> None:
    results = finetune(recipe_of(scale, shift), Path("run"), QUIET_OPTIONS)
    gold, predicted = gold_and_predicted("run")
    scores = results.metrics["validation"]
    assert scores["loss"] == pytest.approx(mean_squared_error(gold, predicted), rel=1e-4)
    assert scores["loss"] < 0.5 * gold.var()
    mean, std = gold.mean(), gold.std()
    finetune(recipe_of(scale / std, (shift - mean) / std), Path("standardized"), QUIET_OPTIONS)
    assert predicted == pytest.approx(gold_and_predicted("standardized")[1] * std + mean, abs=0.03 * std)


@pytest.mark.parametrize(("scale", "shift"), UNITS)
def test_regression_evaluated_predicted_or_loaded_by_transformers_is_in_units(
    recipe_of: Callable[..., Recipe], scale: float, shift: float
) -> None:
    results = finetune(recipe_of(scale, shift), Path("run"), QUIET_OPTIONS)
    _, predicted = gold_and_predicted("run")
    assert evaluate("run", console=QUIET).metrics == results.metrics  # type: ignore[union-attr]
    texts = [json.loads(line)["text"] for line in Path("rows.jsonl").read_text().splitlines()]
    predict("run", PredictionInput([(text,) for text in texts]), "predictions.jsonl", console=QUIET)
    scores = [json.loads(line)["score"] for line in Path("predictions.jsonl").read_text().splitlines()]
    assert scores == pytest.approx(predicted, rel=1e-5)
    pipeline = transformers.pipeline("text-classification", "run/model", function_to_apply="none")
    assert [entry["score"] for entry in pipeline(texts)] == pytest.approx(predicted, rel=1e-4, abs=1e-5 * scale)


def test_regression_interrupted_and_resumed_ends_with_the_same_model(
    recipe_of: Callable[..., Recipe], stop_after: Callable[..., None]
) -> None:
    recipe = recipe_of(1000, 10_000)
    finetune(recipe, Path("whole"), QUIET_OPTIONS)
    stop_after(9)
    with pytest.raises(Interrupted):
        finetune(recipe, Path("resumed"), QUIET_OPTIONS)
    finetune(recipe, Path("resumed"), QUIET_OPTIONS)
    weights, others = (load_file(f"{run}/model/model.safetensors") for run in ("whole", "resumed"))
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


def test_regression_finetuned_again_starts_from_the_numbers_that_the_model_predicts(
    recipe_of: Callable[..., Recipe],
) -> None:
    first = finetune(recipe_of(1000, 10_000), Path("first"), QUIET_OPTIONS)
    overrides = ("training.learning_rate=1e-9", "training.max_steps=1")
    again = finetune(recipe_of(1000, 10_000, *overrides, model="first"), Path("again"), QUIET_OPTIONS)
    assert again.metrics["validation"]["loss"] == pytest.approx(first.metrics["validation"]["loss"], rel=1e-4)
    shifted = set_up(recipe_of(1000, 30_000, model="first"), None).build_model(QUIET).eval()
    ids = torch.randint(5, 40, (3, 7))
    loaded = ModelSource("first").load_model("AutoModelForSequenceClassification").eval()
    torch.testing.assert_close(shifted(ids).logits, loaded(ids).logits, rtol=1e-4, atol=1.0)
    new = set_up(recipe_of(1000, 30_000, "model.new_head=true", model="first"), None).build_model(QUIET).eval()
    assert new(ids).logits.detach().numpy() == pytest.approx(32_500, abs=3 * 1200)  # the mean of the new targets


@pytest.mark.parametrize("merged", [True, False])
def test_regression_lora_adapter_and_merged_model_predict_in_units(encoder: Path, tmp_path: Path, merged: bool) -> None:
    source = ModelSource(str(encoder))
    model = source.load_model(
        "AutoModelForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}, on_missing=lambda _: None
    )
    standardize_targets(model, MEAN, STD, is_new_head=True)
    peft_model = add_lora(model, TrainingSection(strategy="lora"), str(encoder))
    ids = torch.randint(5, 40, (3, 7))
    expected = model.eval()(ids).logits
    save_lora(peft_model, source.load_tokenizer(), tmp_path / "saved", merged=merged)
    loaded = ModelSource(str(tmp_path / "saved")).load_model("AutoModelForSequenceClassification").eval()
    torch.testing.assert_close(loaded(ids).logits, expected)
    assert expected.mean().item() == pytest.approx(MEAN, abs=STD)


def test_regression_in_multitask_training_predicts_in_units(
    recipe_of: Callable[..., Recipe], encoder: Path, write_recipe: Callable[..., Path]
) -> None:
    recipe_of(1000, 10_000)
    files = "files: {train: rows.jsonl, validation: rows.jsonl}, text_columns: [text], problem: regression"
    for name in ("first", "second"):
        write_recipe(f"extends: regression.yaml\ntask: {{name: {name}, {files}}}\n", f"{name}.yaml")
    write_recipe("suite: [first.yaml, second.yaml]\nmultitask: {}\n", "suite.yaml")
    results = finetune_multitask(load_suite("suite.yaml", ()), Path("run"), QUIET_OPTIONS)
    assert results.metrics["validation"]["first.yaml/loss"] < 2 * 1200**2
    assert evaluate("run", console=QUIET).metrics["validation"] == results.metrics["validation"]  # type: ignore[union-attr]


def test_moderate_regression_targets_are_trained_on_as_they_are(recipe_of: Callable[..., Recipe]) -> None:
    setup = set_up(recipe_of(1, 0), None)
    assert setup.target_scale is None
    assert type(setup.build_model(QUIET).classifier) is nn.Linear
    console = Console()
    lines: list[str] = []
    console.say = lines.append  # type: ignore[method-assign]
    finetune(recipe_of(1000, 10_000), Path("run"), RunOptions(console=console, dry_run=True))
    gold = [json.loads(row)["label"] for row in Path("rows.jsonl").read_text().splitlines()]
    note = f"targets standardized (mean {np.mean(gold):,.6g}, standard deviation {np.std(gold):,.6g})"
    assert f"task      custom: regression; {note}" in lines


@pytest.mark.parametrize(
    ("scale", "shift", "message"),
    [
        (0, 7, r"rows\.jsonl: all training rows have the same number in column 'label'.*set task.label_column"),
        (1e-4, 1000, r"mean 1,000, standard deviation .* subtract a constant from column 'label'"),
        (1e16, 0, r"rows 1, .* no finite number .* found \de\+16; .*within ±1e\+15"),
    ],
)
def test_regression_targets_that_32_bit_floats_cannot_learn_are_rejected(
    recipe_of: Callable[..., Recipe], scale: float, shift: float, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        set_up(recipe_of(scale, shift), None)


def test_regression_gradient_is_that_of_the_loss_of_standardized_targets() -> None:
    torch.manual_seed(0)
    layer, plain = nn.Linear(5, 1), nn.Linear(5, 1)
    plain.load_state_dict(layer.state_dict())
    features, targets = torch.randn(13, 5), torch.randn(13, 1)
    inputs = features.clone().requires_grad_(), features.clone().requires_grad_()
    output = RegressionOutput(layer, MEAN, STD)
    loss = nn.functional.mse_loss(output(inputs[0]), targets * STD + MEAN)
    expected = nn.functional.mse_loss(plain(inputs[1]), targets)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item() * STD**2, rel=1e-4)
    for found, wanted in ((layer.weight, plain.weight), (layer.bias, plain.bias), inputs):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, "albert", "gpt2"])
def test_regression_model_of_each_family_is_saved_as_it_predicts(family: str, encoder: Path, tmp_path: Path) -> None:
    model = build(family, "AutoModelForSequenceClassification", num_labels=1)
    before = set(model.state_dict())
    standardize_targets(model, MEAN, STD, is_new_head=True)
    ids = torch.randint(5, 40, (1, 7))
    expected = model.eval()(ids).logits
    save_model(model, ModelSource(str(encoder)).load_tokenizer(), tmp_path / "saved")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert set(loaded.state_dict()) == before
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-4, atol=1e-2)
    standardize_targets(loaded, 2 * MEAN, STD / 2, is_new_head=False)  # to be fine-tuned on other numbers
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-4, atol=1e-2)


def test_regression_without_a_bias_is_scaled_by_the_root_mean_square() -> None:
    output = RegressionOutput(nn.Linear(5, 1, bias=False), MEAN, STD)
    assert (output.mean, output.std) == (0.0, math.hypot(MEAN, STD))
    assert output.in_units()[1] is None


def test_regression_numbers_are_not_rounded_to_bf16() -> None:
    model = build("bert", "AutoModelForSequenceClassification", num_labels=1).eval()
    model.classifier.bias.data.fill_(MEAN + 1.25)
    ids = torch.randint(5, 40, (3, 7))
    expected = model(ids).logits
    optimize_forward(model, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.1)


def test_classifier_is_left_as_it_is() -> None:
    model = build("bert", "AutoModelForSequenceClassification", num_labels=2)
    use_fp32_output(model)
    assert type(model.classifier) is nn.Linear


def test_regression_finetuned_again_on_another_scale_is_reported_with_both_scales(
    recipe_of: Callable[..., Recipe],
) -> None:
    finetune(recipe_of(1, 0), Path("small"), QUIET_OPTIONS)
    finetune(recipe_of(1000, 10_000, model="small"), Path("large"), QUIET_OPTIONS)

    def warnings_of(recipe: Recipe) -> list[str]:
        console = Console(quiet=True)
        messages: list[str] = []
        console.warn = messages.append  # type: ignore[method-assign]
        set_up(recipe, None).build_model(console)
        return messages

    (warning,) = warnings_of(recipe_of(1000, 10_000, model="small"))
    assert re.fullmatch(
        r"small starts far .* \(mean 12,\d+\.?\d*, standard deviation 1,\d+\.?\d*\) .* \(mean 2\.\d+, "
        r"standard deviation 1\.\d+\); set model\.new_head=true .*",
        warning,
    )
    (warning,) = warnings_of(recipe_of(1, 0, model="large"))  # whose config.json holds the scale of its last training
    assert warning.startswith("large starts far")
    assert warnings_of(recipe_of(1000, 10_000, "model.new_head=true", model="small")) == []
    assert warnings_of(recipe_of(800, 11_000, model="large")) == []
    assert warnings_of(recipe_of(1.5, 1, model="small")) == []


@pytest.mark.parametrize("saved", [None, {}, {"mean": "1", "std": 2}, {"mean": 1, "std": 0}])
def test_regression_model_of_unknown_scale_is_finetuned_without_a_warning(saved: object) -> None:
    config = transformers.BertConfig(target_scale=saved)
    assert TextClassification("regression", (), trained_scale=(0.0, 1.0)).scale_problem(config) is None
