"""DeBERTa trains in mixed precision, with nearly the same results as in fp32, and without unused positions."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from transformers import (
    DebertaConfig,
    DebertaForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
)

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


@pytest.mark.parametrize("length", [2, 5, 6, 13])  # with 8 buckets, distances above 4 share an embedding
@pytest.mark.parametrize("buckets", [8, -1])
@pytest.mark.parametrize("shares_keys", [True, False])
def test_unused_relative_positions_change_no_loss_or_gradient(shares_keys: bool, buckets: int, length: int) -> None:
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=buckets, max_position_embeddings=12,
        share_att_key=shares_keys, norm_rel_ebd="layer_norm", position_biased_input=False, initializer_range=0.3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    plain = DebertaV2ForSequenceClassification(config)
    model = deepcopy(plain)
    optimize_forward(model, torch.device("cpu"))
    ids = torch.randint(1, 50, (3, length))
    mask = (torch.arange(length) < torch.tensor([[length], [2], [1]])).long()
    projection = model.deberta.encoder.layer[0].attention.self.query_proj
    sizes: list[int] = []
    projection.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    for each in (plain, model):
        each(input_ids=ids, attention_mask=mask).logits.pow(2).sum().backward()
    for (name, one), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-4, msg=name)
    if shares_keys:
        assert sizes[1] == 2 * (length if length <= 5 else 8 if buckets > 0 else min(length, 12))
