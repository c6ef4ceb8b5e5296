"""Loading of models."""

from __future__ import annotations

from pathlib import Path

from bertcli.models.from_pretrained import ModelSource


def test_load_model_aligns_weights_in_memory(encoder: Path) -> None:
    for head in ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"):
        model = ModelSource(str(encoder)).load_model(head)
        assert {part.data_ptr() % 64 for part in (*model.parameters(), *model.buffers())} == {0}
