"""What tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import Recipe


@pytest.fixture
def recipe_of(encoder: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Recipe]:
    """The recipe of a run of a few steps over the reviews, with overrides; the cache is its own."""
    monkeypatch.setenv("BERTCLI_CACHE", str(tmp_path / "cache"))

    def build(*overrides: str) -> Recipe:
        path = Path("small.yaml")
        path.write_text(
            f"task: {{files: {{train: {reviews}}}, text_columns: [text], labels: [negative, positive]}}\n"
            f"model: {{name: {encoder}}}\ndata: {{max_length: 16}}\n"
            "training: {epochs: 2, global_batch_size: 7, learning_rate: 1e-2, seed: 1}\n"
            "hardware: {log_every_steps: 1}\n",
            "utf-8",
        )
        return load_recipe(str(path), overrides)

    return build
