"""The end of a run: what the best evaluation decoded is used again, and the model is calibrated once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertcli.commands.evaluate import evaluate
from bertcli.errors import RecipeError
from bertcli.files import MANIFEST
from bertcli.finetuning import best_model as best_model_module
from bertcli.finetuning.run import finetune
from bertcli.metrics.answers import load_answers
from bertcli.models.temperature_scaling import saved_temperature
from bertcli.recipe.load import dump_recipe, load_recipe, recipe_task
from bertcli.recipe.schema import Recipe
from bertcli.runs.claim import claim_run
from bertcli.runs.folder import RunOptions
from bertcli.training import trainer as trainer_module

from ..conftest import QUIET

CALIBRATED = ("answers.calibrated=true", "task.metrics=[accuracy, log_loss, calibration_error]")


def interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def predictions(run: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(run, "predictions/validation.jsonl").read_text().splitlines()]


def test_calibrated_probabilities_are_those_of_plain_transformers(recipe_of: Callable[..., Recipe]) -> None:
    results = finetune(recipe_of(*CALIBRATED, "training.learning_rate=0.01"), Path("run"), RunOptions(console=QUIET))
    before, after = (results.mean_scores(split) for split in ("validation", "validation_calibrated"))
    assert after["log_loss"] < before["log_loss"]
    assert after["accuracy"] == before["accuracy"]
    assert saved_temperature(Path("run/model")) == results.temperature
    assert f"divided by {results.temperature:.4g}, the temperature" in Path("run/README.md").read_text("utf-8")
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    model = AutoModelForSequenceClassification.from_pretrained("run/model")
    lines = predictions("run")
    with torch.no_grad():
        inputs = tokenizer([line["texts"]["text"] for line in lines], padding=True, return_tensors="pt")
        confidences = model(**inputs).logits.softmax(-1).max(-1).values.tolist()
    assert [line["confidence"] for line in lines] == pytest.approx(confidences, abs=1e-5)
    evaluated = evaluate("run", console=QUIET).mean_scores("validation")
    assert {name: evaluated[name] for name in after} == pytest.approx(after, abs=1e-5)


def test_run_stopped_after_its_calibration_ends_as_an_undisturbed_one(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(*CALIBRATED)
    expected = finetune(recipe, Path("undisturbed"), RunOptions(console=QUIET))

    with monkeypatch.context() as patch:
        patch.setattr(best_model_module, "PredictionLines", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert saved_temperature(Path("run/model")) is not None
    manifest = Path("run/model", MANIFEST)
    listed = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({name: entry for name, entry in listed.items() if name != "model.safetensors"}))
    claim_run(Path("run"), dump_recipe(recipe), overwrite=True)  # is not refused because of the unlisted file
    shutil.copytree("run", "without logits")
    Path("without logits/.logits.safetensors").unlink()
    expected_weights = load_file("undisturbed/model/model.safetensors")
    for run in ("run", "without logits"):
        results = finetune(recipe, Path(run), RunOptions(console=QUIET))
        assert json.loads(Path(run, "model", MANIFEST).read_text()) == listed
        assert results.temperature == expected.temperature
        for split, intervals in expected.intervals.items():
            for name, interval in intervals.items():
                assert results.intervals[split][name] == pytest.approx(interval, abs=1e-5)
        calibrated = expected.mean_scores("validation_calibrated")
        assert results.mean_scores("validation_calibrated") == pytest.approx(calibrated)
        weights = load_file(f"{run}/model/model.safetensors")
        assert all(torch.equal(tensor, weights[name]) for name, tensor in expected_weights.items())


def test_thresholds_are_tuned_on_calibrated_probabilities(recipe_of: Callable[..., Recipe]) -> None:
    overrides = ("answers.calibrated=true", "answers.thresholds=tuned", "task.problem=multi_label")
    results = finetune(recipe_of(*overrides), Path("run"), RunOptions(console=QUIET))
    assert results.temperature is not None
    tuned = results.mean_scores("validation_tuned")
    evaluated = evaluate("run", console=QUIET).mean_scores("validation")
    assert {name: evaluated[name] for name in tuned} == pytest.approx(tuned)


def same_end(first: Path, second: Path) -> bool:
    """Whether predictions, answers, scores and intervals of two runs are equal in every digit."""
    lines = [(run / "predictions/validation.jsonl").read_bytes() for run in (first, second)]
    arrays = [load_answers(run / "predictions/validation.npz") for run in (first, second)]
    results = [json.loads((run / "results.json").read_text()) for run in (first, second)]
    return (
        lines[0] == lines[1]
        and arrays[0].keys() == arrays[1].keys()
        and all(np.array_equal(values, arrays[1][name]) for name, values in arrays[0].items())
        and all(results[0][key] == results[1][key] for key in ("metrics", "intervals"))
    )


@pytest.mark.parametrize("name", ["sentiment", "entities", "questions", "open-questions", "choices", "similarity"])
def test_validation_rows_are_decoded_once_per_evaluation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["training.max_steps=4", "evaluation.every_steps=2", "data.max_length=64", "data.max_eval_examples=30"]
    recipe = load_recipe(f"sample/{name}", [*overrides, "data.max_train_examples=40", "model.vocab_size=400"])
    head = recipe_task(recipe).head_class
    decoded: list[int] = []
    original = head.to_predictions

    def count(self: Any, task: Any, rows: Any, encoded: Any, logits: Any) -> Any:
        decoded.append(len(rows))
        return original(self, task, rows, encoded, logits)

    monkeypatch.setattr(head, "to_predictions", count)
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    assert decoded == [30, 30]

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "finalize", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe, Path("resumed"), RunOptions(console=QUIET))
    finetune(recipe, Path("resumed"), RunOptions(console=QUIET))  # has only what is on the disk
    assert decoded == [30] * 5
    assert same_end(Path("run"), Path("resumed"))


def test_adapters_are_not_calibrated(recipe_of: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=r"set training\.lora_merge=true"):
        finetune(recipe_of(*CALIBRATED, "training.strategy=lora"), Path("run"), RunOptions(console=QUIET))
    assert not Path("run").exists()
