"""The environment of a run holds no secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertcli.recipe.load import dump_recipe, load_recipe, recipe_task
from bertcli.reports.pages import read_run, run_page
from bertcli.runs.claim import claim_run
from bertcli.runs.environment import describe_environment, mask_secrets
from bertcli.runs.model_card import build_model_card
from bertcli.runs.results import RunResults

SECRET = "tr0ub4dor"
HEX = "0123456789abcdef" * 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["--token", SECRET, "training.epochs=2"],
        [f"--token={SECRET}"],
        ["--hub-token", SECRET],
        [f"--api-key={SECRET}"],
        [f"api_key={SECRET}"],
        [f"WANDB_API_KEY={SECRET}"],
        [f"HF_TOKEN={SECRET}"],
        [f"hardware.password={SECRET}"],
        [f"client_secret={SECRET}"],
        [f"AWS_SECRET_ACCESS_KEY={SECRET}"],
        [f"model.name=hf_{SECRET}"],
        [f"task.dataset=https://me:{SECRET}@example.org/data"],
        [f"x=sk-proj-{SECRET}0123456789"],
        [f"x=ghp_{SECRET}0123456789"],
        [f"eyJhbGciOiJIUzI1NiJ9.{SECRET}.{SECRET}"],
        ["--sbatch", f"export=HF_TOKEN={SECRET}"],
        ["--sbatch", f"export=ALL,WANDB_API_KEY={SECRET},N=1"],
        [f"wandb_key={SECRET}"],
        [f"task={{dataset: x, token: {SECRET}}}"],
        [f"task={{'password': '{SECRET}'}}"],
        [f"task.dataset=https://{SECRET}@example.org/data"],
        [f"task.dataset=postgres://me:{SECRET}@{SECRET}@example.org/data"],
        [f"task.dataset=https://example.org/data?token={SECRET}&part=1"],
        [f"task.dataset=https://example.org/data?part=1&sig={SECRET}"],
        [f"task.dataset=https://example.org/data?X-Amz-Signature={SECRET}"],
        ["--header", f"Authorization: Bearer {SECRET}"],
        [f"x=npm_{SECRET}{'0' * 30}"],
        ["x=aB3/" + "aB3" * 12],
        [HEX],
        [f"x={HEX}"],
        ["x=" + "aB3" * 12],
    ],
)
def test_secrets_on_the_command_line_are_masked(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bertcli", "finetune", "glue/sst2", *arguments])
    text = json.dumps(describe_environment(), ensure_ascii=False)
    assert "bertcli finetune glue/sst2 " in text
    assert "…" in text
    assert not any(secret in text for secret in (SECRET, HEX, "aB3"))


@pytest.mark.parametrize(
    "argument",
    [
        "hardware.eval_batch_tokens=8192",
        "training.max_tokens=5000",
        "model.tokenizer=google-bert/bert-base-uncased",
        "task.label_column=keyword",
        "task.text_columns=[tokens]",
        "author=me",
        "--sbatch",
        "--overwrite",
        "https://example.org/data",
        f"/cache/{HEX}/model",
        "model.name=/data/hf_datasets/hf_models_v2/bert",
        "training.token_cutoff=0.1",
        "task={label_column: token, text_columns: [secret]}",
        "ssh://git@example.org/data",
        "http://localhost:8080/a@b",
        "runs/a_run_of_2024_with_a_rather_long_name_for_seed_1",
    ],
)
def test_ordinary_arguments_are_not_masked(argument: str) -> None:
    assert mask_secrets(["finetune", argument, "glue/sst2"]) == ["finetune", argument, "glue/sst2"]


def test_secrets_of_the_recipe_are_masked_in_card_and_report() -> None:
    recipe = load_recipe("glue/rte", [f"model.name=https://me:{SECRET}@example.org/hf_{SECRET}"])
    results = RunResults(run="run", best_by="accuracy", metrics={"validation": {"accuracy": 0.5}})
    results = results.model_copy(update={"num_train_examples": 1, "num_parameters": 1})
    packages = dict.fromkeys(("torch", "transformers", "bertcli"), "1")
    environment = {"packages": packages, "gpus": [], "processor": "", "cpus": 1}
    card = build_model_card(results, recipe, recipe_task(recipe), environment)
    assert "name: https://me:…@example.org/…" in card
    assert SECRET not in card
    folder = claim_run(Path("run"), dump_recipe(recipe)).open(print)
    folder.results.write_text(json.dumps(results.to_json()))
    assert f"me:{SECRET}" in folder.recipe.read_text()  # needed to resume
    assert SECRET not in run_page(read_run(folder.path))
