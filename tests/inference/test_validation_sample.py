"""A sample of validation rows scores a model as `bertcli eval` does, and says how much worse a score is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bertcli.commands.evaluate import evaluate
from bertcli.finetuning.run import finetune
from bertcli.inference.validation_sample import load_validation_sample
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.onnx_export import load_for_export
from bertcli.recipe.schema import HardwareSection, Recipe
from bertcli.runs.folder import RunOptions

from ..conftest import QUIET


def test_validation_sample_is_evenly_spaced_and_scored(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("task.held_out_fraction=0.5", "data.max_eval_examples=3", "training.max_steps=2")
    finetune(recipe, Path("run"), RunOptions(console=QUIET))
    source = ModelSource("run")
    model, _ = load_for_export(source)
    sample = load_validation_sample(source, model, HardwareSection(device="cpu"))
    assert sample is not None
    assert {**sample.score(model), "loss": pytest.approx(0.7, abs=0.5)} == evaluate("run", console=QUIET).mean_scores(
        "validation"
    )
    part = load_validation_sample(source, model, HardwareSection(device="cpu"), max_rows=4)
    assert part is not None
    assert part.rows["text"][:] == sample.rows["text"][:][::5]
    batches = list(part.batches(["input_ids", "attention_mask"], 3, 5))
    assert [batch["input_ids"].shape[0] for batch in batches] == [3] * 5
    assert {*batches[0]} == {"input_ids", "attention_mask"}
    lengths = np.concatenate([batch["attention_mask"].sum(1).numpy() for batch in batches])
    assert {*lengths} == {*part.encoded.lengths}
    assert load_validation_sample(ModelSource("run/model"), model, HardwareSection(device="cpu")) is None
    assert part.points_lost("accuracy", 0.9, 0.88) == pytest.approx(2)
    assert part.points_lost("mse", 0.5, 0.51) == pytest.approx(2)
    assert part.points_lost("accuracy", 0.9, 0.91) == pytest.approx(-1)
