"""DeBERTa trains in mixed precision, with nearly the same results as in fp32."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from transformers import DebertaConfig, DebertaForSequenceClassification

from bertcli.models.padding_free import optimize_forward


@pytest.mark.parametrize("relative", [True, False])
def test_deberta_trains_in_bf16(relative: bool) -> None:
    torch.manual_seed(0)
    config = DebertaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        relative_attention=relative,
        pos_att_type=["c2p", "p2c"] if relative else None,
    )
    plain = DebertaForSequenceClassification(config).eval()
    model = deepcopy(plain)
    optimize_forward(model, torch.device("cpu"))
    inputs = {
        "input_ids": torch.randint(1, 50, (3, 9)),
        "attention_mask": torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 2 + [0] * 7]),
    }
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**inputs).logits
    torch.testing.assert_close(logits.float(), plain(**inputs).logits, atol=0.02, rtol=0.02)
    logits.sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="overflow"):
        plain(**inputs)  # once transformers can do this, `deberta_attention.py` can be removed
