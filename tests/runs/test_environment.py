"""The environment of a run holds no secrets."""

from __future__ import annotations

import json

import pytest

from bertcli.runs.environment import describe_environment, mask_secrets

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
        "runs/a_run_of_2024_with_a_rather_long_name_for_seed_1",
    ],
)
def test_ordinary_arguments_are_not_masked(argument: str) -> None:
    assert mask_secrets(["finetune", argument, "glue/sst2"]) == ["finetune", argument, "glue/sst2"]
