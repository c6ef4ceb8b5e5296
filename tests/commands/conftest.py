"""A run and its exported model, which takes seconds to trace; tests share them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bertcli.cli.main import app
from bertcli.commands import export as export_command
from bertcli.finetuning.run import finetune
from bertcli.models import onnx_export
from bertcli.recipe.load import load_recipe
from bertcli.runs.folder import RunOptions

from ..conftest import QUIET


@dataclass(frozen=True)
class ExportedRun:
    """A run, what `bertcli export` wrote for its model folder, and what it printed."""

    run: Path
    output: Path
    facts: dict[str, Any]
    messages: str


@pytest.fixture(scope="session")
def exported_run(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedRun:
    """A run that classifies reviews by F1, whose model is exported in fp32."""
    folder = tmp_path_factory.mktemp("exported")
    rows = [f"the {noun} was {word}" for noun in ("film", "soup", "train") for word in ("fine,good", "lovely,good")]
    rows += [row.replace("fine,good", "dull,bad").replace("lovely,good", "vile,bad") for row in rows]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *rows * 3]), "utf-8")
    (folder / "recipe.yaml").write_text(
        "task: {files: {train: reviews.csv}, text_columns: [text], labels: [bad, good], metrics: [f1]}\n"
        f"model: {{name: {encoder}}}\ndata: {{max_length: 16}}\ntraining: {{max_steps: 2}}\n",
        "utf-8",
    )
    finetune(load_recipe(str(folder / "recipe.yaml")), folder / "run", RunOptions(console=QUIET))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_command, "TIMING_SECONDS", 0.01)
        arguments = [str(folder / "run/model"), "--output", str(folder / "output"), "--json"]
        result = CliRunner().invoke(app, ["export", *arguments])
    assert result.exit_code == 0, result.stderr
    return ExportedRun(folder / "run", folder / "output", json.loads(result.stdout), result.stderr)


@pytest.fixture
def _traced(exported_run: ExportedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of the run is not traced again: its graph is copied."""
    graph = exported_run.output / "model.onnx"
    monkeypatch.setattr(onnx_export, "write_onnx", lambda model, names, path: shutil.copy(graph, path))
