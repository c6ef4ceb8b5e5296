"""`bertcli push`: the uploaded files and the errors, with a fake Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from typer.testing import CliRunner, Result

from bertcli.cli.main import app
from bertcli.files import write_manifest
from bertcli.runs.folder import RunFolder

CARD = """---
library_name: transformers
tags:
- bertcli
---

```python
pipe = pipeline("text-classification", model="model")
```

Notes that I added to the card.
"""
TOKEN = "hf_secretsecret"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["push", *arguments])


@pytest.fixture(autouse=True)
def _logged_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


@pytest.fixture
def run() -> RunFolder:
    """A finished run."""
    folder = RunFolder(Path("runs/small"))
    folder.model.mkdir(parents=True)
    (folder.model / "config.json").write_text("{}")
    (folder.model / "model.safetensors").write_bytes(b"\0" * 1500)
    folder.recipe.write_text("task: glue/sst2\n")
    folder.card.write_text(CARD)
    folder.results.write_text('{"run": "runs/small"}')
    folder.environment.write_text('{"command": "bertcli finetune"}')
    return folder


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a fake Hub receives: the created repository (`repository`) and the `files` by path."""
    received: dict[str, Any] = {}

    def create_repo(_: object, name: str, *, private: bool | None, exist_ok: bool) -> str:
        received["repository"] = (name, private, exist_ok)
        return f"https://huggingface.co/{name}"

    def create_commit(_: object, name: str, operations: list[Any], *, commit_message: str) -> None:
        received["files"] = {operation.path_in_repo: operation.path_or_fileobj for operation in operations}

    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", create_commit)
    return received


def test_push_uploads_only_the_model_and_its_card(run: RunFolder, uploaded: dict[str, Any]) -> None:
    options = ("--private", "--license", "apache-2.0", "--language", "en", "--language", "de", "--json")
    result = call("runs/small", "me/my-model", *options)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["address"] == "https://huggingface.co/me/my-model"
    assert uploaded["repository"] == ("me/my-model", True, True)
    assert sorted(uploaded["files"]) == ["README.md", "config.json", "model.safetensors"]
    card = ModelCard(uploaded["files"]["README.md"].decode())
    assert isinstance(card.data, ModelCardData)
    assert (card.data.license, card.data.language, card.data.tags) == ("apache-2.0", ["en", "de"], ["bertcli"])
    assert 'pipeline("text-classification", model="me/my-model")' in card.text
    assert "Notes that I added to the card." in card.text
    assert run.card.read_text() == CARD
    assert TOKEN not in result.stdout + result.stderr
    assert not any(TOKEN.encode() in path.read_bytes() for path in Path().rglob("*") if path.is_file())


def test_push_leaves_out_the_manifest_and_warns_about_a_changed_model(run: RunFolder, uploaded: dict[str, Any]) -> None:
    write_manifest(run.model)
    result = call("runs/small", "me/my-model")
    assert sorted(uploaded["files"]) == ["README.md", "config.json", "model.safetensors"]
    assert "warning" not in result.stderr
    (run.model / "model.safetensors").write_bytes(b"\1" * 1500)
    result = call("runs/small", "me/my-model")
    assert result.exit_code == 0
    assert "has changed since the run saved it: the hash of model.safetensors" in " ".join(result.stderr.split())


def test_push_adds_no_license_or_language_by_default(run: RunFolder, uploaded: dict[str, Any]) -> None:
    call("runs/small", "me/my-model")
    data = ModelCard(uploaded["files"]["README.md"].decode()).data.to_dict()
    assert set(data) == {"library_name", "tags"}
    assert uploaded["repository"] == ("me/my-model", None, True)


def test_push_dry_run_lists_the_files(run: RunFolder, uploaded: dict[str, Any]) -> None:
    result = call("runs/small", "me/my-model", "--dry-run")
    assert result.exit_code == 0
    assert "| model.safetensors | 1.5 kB |" in result.stderr
    assert uploaded == {}


def test_push_rejects_invalid_names_and_unfinished_runs(run: RunFolder, uploaded: dict[str, Any]) -> None:
    for name in ("me//my", "a/b/c", 'x" or 1'):
        assert call("runs/small", name).exit_code == 2
    run.results.unlink()
    result = call("runs/small", "me/my-model")
    assert result.exit_code == 2
    assert "no finished run" in result.stderr
    assert uploaded == {}


def test_push_of_an_adapter_requires_a_base_model_on_the_hub(run: RunFolder, uploaded: dict[str, Any]) -> None:
    for base, is_local in (("google-bert/bert-base-uncased", False), (str(Path("base").resolve()), True)):
        (run.model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        result = call("runs/small", "me/my-model")
        assert result.exit_code == (2 if is_local else 0)
        assert base in " ".join(result.stderr.split())
    assert "training.lora_merge=true" in result.stderr


def test_push_without_a_token_says_how_to_log_in(run: RunFolder) -> None:
    result = call("runs/small", "me/my-model")
    assert result.exit_code == 1
    assert "hf auth login" in result.stderr


def test_push_reports_an_unreachable_hub(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: TOKEN)
    result = call("runs/small", "me/my-model")
    assert result.exit_code == 1
    assert "request to the Hub failed for model me/my-model" in result.stderr
    assert "Traceback" not in result.stderr
    assert TOKEN not in result.stderr
