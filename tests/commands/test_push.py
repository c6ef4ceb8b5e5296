"""What goes to the hub, and what is said when it does not; stand-ins take the hub's place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from typer.testing import CliRunner, Result

from bertcli.cli.main import app
from bertcli.runs.folder import RunFolder

CARD = """---
library_name: transformers
tags:
- bertcli
---

```python
answer = pipeline("text-classification", model="model")
```

A model I wrote these words about.
"""
TOKEN = "hf_secretsecret"


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["push", *words])


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
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
    folder.results.write_text("{}")
    folder.environment.write_text('{"command": "bertcli finetune"}')
    return folder


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the hub was given, by path, with what was said of it."""
    given: dict[str, Any] = {}

    def create_repo(_: object, name: str, *, private: bool | None, exist_ok: bool) -> str:
        given["made"] = (name, private, exist_ok)
        return f"https://huggingface.co/{name}"

    def create_commit(_: object, name: str, operations: list[Any], *, commit_message: str) -> None:
        given["files"] = {one.path_in_repo: one.path_or_fileobj for one in operations}

    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", create_commit)
    return given


def test_model_and_card_go_and_nothing_else(run: RunFolder, sent: dict[str, Any]) -> None:
    words = ("--private", "--license", "apache-2.0", "--language", "en", "--language", "de", "--json")
    told = call("runs/small", "me/my-model", *words)
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["address"] == "https://huggingface.co/me/my-model"
    assert sent["made"] == ("me/my-model", True, True)
    assert sorted(sent["files"]) == ["README.md", "config.json", "model.safetensors"]
    card = ModelCard(sent["files"]["README.md"].decode())
    assert isinstance(card.data, ModelCardData)
    assert (card.data.license, card.data.language, card.data.tags) == ("apache-2.0", ["en", "de"], ["bertcli"])
    assert 'pipeline("text-classification", model="me/my-model")' in card.text
    assert "A model I wrote these words about." in card.text
    assert run.card.read_text() == CARD
    assert TOKEN not in told.stdout + told.stderr
    assert not any(TOKEN.encode() in path.read_bytes() for path in Path().rglob("*") if path.is_file())


def test_nobody_invents_a_licence_or_a_language(run: RunFolder, sent: dict[str, Any]) -> None:
    call("runs/small", "me/my-model")
    data = ModelCard(sent["files"]["README.md"].decode()).data.to_dict()
    assert set(data) == {"library_name", "tags"}
    assert sent["made"] == ("me/my-model", None, True)


def test_a_dry_run_lists_what_would_go(run: RunFolder, sent: dict[str, Any]) -> None:
    told = call("runs/small", "me/my-model", "--dry-run")
    assert told.exit_code == 0
    assert "| model.safetensors | 1.5 kB |" in told.stderr
    assert sent == {}


def test_what_is_not_finished_or_no_name_is_refused(run: RunFolder, sent: dict[str, Any]) -> None:
    for name in ("me//my", "a/b/c", 'x" or 1'):
        assert call("runs/small", name).exit_code == 2
    run.results.unlink()
    told = call("runs/small", "me/my-model")
    assert told.exit_code == 2
    assert "no finished run" in told.stderr
    assert sent == {}


def test_additions_go_only_where_their_base_can_be_had(run: RunFolder, sent: dict[str, Any]) -> None:
    for base, is_here in (("google-bert/bert-base-uncased", False), (str(Path("base").resolve()), True)):
        (run.model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        told = call("runs/small", "me/my-model")
        assert told.exit_code == (2 if is_here else 0)
        assert base in " ".join(told.stderr.split())
    assert "training.lora_merge=true" in told.stderr


def test_a_missing_token_is_told_with_the_cure(run: RunFolder) -> None:
    told = call("runs/small", "me/my-model")
    assert told.exit_code == 1
    assert "hf auth login" in told.stderr


def test_an_unreachable_hub_is_told(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: TOKEN)
    told = call("runs/small", "me/my-model")
    assert told.exit_code == 1
    assert "the hub did not answer as it should for model me/my-model" in told.stderr
    assert "Traceback" not in told.stderr
    assert TOKEN not in told.stderr
