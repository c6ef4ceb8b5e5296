"""Models as they are loaded."""

from __future__ import annotations

from pathlib import Path

from bertcli.models.from_pretrained import load_model


def test_loaded_weights_lie_where_fresh_ones_would(encoder: Path) -> None:
    for head in ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"):
        model = load_model(str(encoder), None, head, {})
        assert {part.data_ptr() % 64 for part in (*model.parameters(), *model.buffers())} == {0}
