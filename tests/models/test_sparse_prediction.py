"""Logits of the target positions are those of the full model."""

from __future__ import annotations

import pytest
import torch
import transformers

from bertcli.models.sparse_prediction import SparsePrediction


@pytest.mark.parametrize("family", ["bert", "mobilebert"])
def test_logits_of_the_target_positions_are_those_of_the_full_model(family: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if family == "mobilebert":
        sizes |= {"intra_bottleneck_size": 16, "embedding_size": 16}
    config = transformers.AutoConfig.for_model(family, vocab_size=50, **sizes)
    model = transformers.AutoModelForMaskedLM.from_config(config).eval()
    input_ids, target_positions = torch.randint(5, 50, (2, 6)), torch.tensor([1, 4, 7])
    with torch.inference_mode():
        expected = model(input_ids=input_ids).logits.flatten(0, 1)[target_positions]
        actual = SparsePrediction(model)(target_positions=target_positions, input_ids=input_ids).logits
    torch.testing.assert_close(actual, expected)
