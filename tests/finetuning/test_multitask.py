"""Several tasks in one encoder: each is scored, saved and used by itself; a stopped run goes on exactly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands.evaluate import evaluate
from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.errors import Interrupted, ModelError, RecipeError, RunFolderError, UsageError
from bertcli.finetuning.multitask import finetune_together
from bertcli.recipe.suite import Suite, load_finetuning
from bertcli.runs.folder import RunOptions
from bertcli.training import trainer as train_module

QUIET = Console(quiet=True)
TASKS = ["sentiment", "similarity", "entities", "choices"]


def load(encoder: Path, *overrides: str) -> Suite:
    Path("suite.yaml").write_text(
        f"suite: [{', '.join(f'sample/{task}' for task in TASKS)}]\n"
        f"together: {{kind: equal}}\nmodel: {{name: {encoder}}}\n"
        "data: {max_length: 64, max_train_examples: 40, max_eval_examples: 10}\n"
        "training: {max_steps: 12, global_batch_size: 8, learning_rate: 1e-3, epochs: 1, seed: 1}\n"
        "evaluation: {every_steps: 6}\n",
        "utf-8",
    )
    suite = load_finetuning("suite.yaml", overrides)
    assert isinstance(suite, Suite)
    return suite


def test_each_task_is_scored_saved_and_used_by_itself(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = load(encoder, "data.max_eval_examples=null", "hardware.precision=bf16")
    monkeypatch.setattr("bertcli.console.SECONDS_BETWEEN_LINES", 0.0)
    results = finetune_together(suite, Path("run"), RunOptions(console=Console()))
    assert "step 6/12  evaluating 1600  " in capsys.readouterr().err
    scores = results["metrics"]["validation"]
    assert results["best_by"] == "average"
    deciding = [scores[f"sample/{name}"] for name in ("sentiment/accuracy", "entities/f1", "choices/accuracy")]
    assert scores["average"] == pytest.approx((sum(deciding) + scores["sample/similarity/pearson"]) / 4)
    for task in TASKS:
        own = evaluate(f"run/model/sample-{task}", console=QUIET)["metrics"]["validation"]
        assert own == pytest.approx({name: scores[f"sample/{task}/{name}"] for name in own})
    found = evaluate("run", console=QUIET)
    assert found["metrics"]["validation"] == pytest.approx(scores)
    assert found["num_examples"] == 4 * 400
    with pytest.raises(UsageError, match=r"name one beside --task: run/model/sample-sentiment, "):
        evaluate("run", task_name="sample/sentiment", console=QUIET)
    with pytest.raises(ModelError, match=r"name one of its models: run/model/sample-choices, "):
        predict("run", [["a fine film"]], console=QUIET)
    encoders = [load_file(f"run/model/sample-{task}/model.safetensors") for task in TASKS]
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert all(torch.equal(encoders[0][name], other[name]) for other in encoders)
    assert not torch.equal(encoders[0]["classifier.weight"], encoders[3]["classifier.weight"])
    AutoModelForSequenceClassification.from_pretrained("run/model/sample-sentiment")
    assert finetune_together(suite, Path("run"), RunOptions(console=QUIET)) == results


def test_each_seed_tells_of_further_splits_and_its_answers_and_names_a_model_that_is_there(
    encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(
        "extends: sample/sentiment\n"
        "task: {dataset: sample, config: sentiment, text_columns: [text], splits: {more_validation: [test]}}\n"
    )
    words = [
        "suite=[mine.yaml, sample/questions]",
        "training.seed=[1, 2]",
        "training.max_steps=2",
        "evaluation.every_steps=2",
    ]
    results = finetune_together(load(encoder, *words), Path("run"), RunOptions(console=Console()))
    assert set(results["metrics"]["test"]) == {f"mine.yaml/{name}" for name in ("accuracy", "f1_macro", "loss")}
    for seed in (1, 2):
        own = json.loads(Path(f"run/seed-{seed}/results.json").read_text())["metrics"]
        assert set(own["test"]) == set(results["metrics"]["test"])
        scores = own["validation"]
        assert scores["sample/questions/f1"] > 1  # in percent
        expected = (scores["mine.yaml/accuracy"] + scores["sample/questions/f1"] / 100) / 2
        assert scores["average"] == pytest.approx(expected)
        for file in ("mine-validation.jsonl", "sample-questions-validation.jsonl"):
            assert len(Path(f"run/seed-{seed}/predictions/{file}").read_text().splitlines()) == 10
    (model,) = re.findall(r"next +bertcli predict (\S+) ", capsys.readouterr().err)
    assert Path(model, "config.json").is_file()
    found = evaluate("run", console=QUIET)["metrics"]["validation"]
    assert set(found) == set(results["metrics"]["validation"])
    assert len(found["average"]["values"]) == 2


@pytest.mark.parametrize("overrides", [(), ("training.strategy=gradual", "training.unfreeze_every_steps=2")])
def test_a_stopped_run_of_several_tasks_goes_on_exactly(
    encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: tuple[str, ...],
) -> None:
    whole = finetune_together(load(encoder, *overrides), Path("whole"), RunOptions(console=QUIET))
    asked = iter([None] * 4 + [15])
    with monkeypatch.context() as patch:
        patch.setattr(train_module._Run, "_agreed", lambda run, request, step: next(asked, 15))
        with pytest.raises(Interrupted):
            finetune_together(load(encoder, *overrides), Path("run"), RunOptions(console=QUIET))
    other = load(encoder, *overrides, "hardware.log_every_steps=5")  # which changes nothing that is learned
    resumed = finetune_together(other, Path("run"), RunOptions(console=Console()))
    told = capsys.readouterr().err
    assert "run goes on with hardware.log_every_steps 20 → 5; what is learned is the same" in told
    with pytest.raises(RunFolderError, match="of another recipe"):
        finetune_together(load(encoder, *overrides, "training.epochs=2"), Path("run"), RunOptions(console=QUIET))
    assert resumed["metrics"] == whole["metrics"]
    last = "checkpoints/step-00000012/model.safetensors"
    for name, tensor in load_file(f"whole/{last}").items():
        assert torch.equal(tensor, load_file(f"run/{last}")[name]), name


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.strategy=lora"], "for one task, not for several together"),
        (["model.name=null"], "need one vocabulary"),
        (["training.epochs=[1, 2]"], "found a list under training beside together"),
        (["start_from={sentiment: choices}"], "found start_from beside together"),
    ],
)
def test_what_cannot_be_learned_together_is_refused(encoder: Path, overrides: list[str], words: str) -> None:
    def run() -> Any:
        return finetune_together(load(encoder, *overrides), Path("run"), RunOptions(console=QUIET))

    with pytest.raises(RecipeError, match=words):
        run()


def test_jobs_of_one_run_are_refused(encoder: Path) -> None:
    load(encoder)
    told = CliRunner().invoke(app, ["finetune", "suite.yaml", "--jobs", "2", "--run", "run"])
    assert told.exit_code == 2
    assert "tasks trained together are one" in told.stderr


def test_keys_that_differ_are_named_with_the_cure() -> None:
    Path("suite.yaml").write_text("suite: [glue/rte, glue/mrpc]\ntogether: {}\ntraining: {epochs: 1}\n")
    Path("a.yaml").write_text("extends: sample/sentiment\ntraining: {learning_rate: 1e-5}\n")
    Path("suite.yaml").write_text("suite: [a.yaml, sample/topics]\ntogether: {}\n")
    with pytest.raises(RecipeError, match=r"found training\.learning_rate 1e-05 \(a\.yaml\).*give it in the suite"):
        load_finetuning("suite.yaml")
