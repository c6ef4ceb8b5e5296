"""Embeddings that learn in the rows that are met learn what the whole table learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, CanineConfig, CanineModel, PreTrainedModel

from bertcli.data.batching import training_batches
from bertcli.models.from_pretrained import load_tokenizer, save_model
from bertcli.models.padding_free import speed_up
from bertcli.models.seen_embeddings import MetRows, learn_met_rows
from bertcli.training.loop import train_steps
from bertcli.training.optimizer import build_optimizer

from .test_padding_free import CPU, FAMILIES, VOCABULARY, build, encode

LENGTHS = [11, 3, 7, 1, 4, 9, 2, 5]
STEPS = 12


def train(model: PreTrainedModel) -> list[float]:
    """Losses of some steps over two batches, with decay so strong that it shows."""
    encoded = encode(LENGTHS, labels="items")
    accelerator = Accelerator(cpu=True)
    optimizer = build_optimizer(model, learning_rate=1e-2, weight_decay=0.5, betas=(0.9, 0.999), epsilon=1e-8)
    batches = training_batches(
        encoded, global_batch_size=4, micro_batch_size=2, seed=0, start_step=0, total_steps=STEPS
    )

    def loss(outputs: object, targets: dict[str, torch.Tensor], counts: dict[str, int]) -> torch.Tensor:
        total = nn.functional.cross_entropy(outputs.logits, targets["labels"], reduction="sum")  # type: ignore[attr-defined]
        return total / counts["labels"]

    steps = train_steps(
        accelerator,
        *accelerator.prepare(model, optimizer),
        lambda step: 1e-2 * (1 - step / STEPS),
        batches,
        loss,
        max_grad_norm=0.5,
    )
    return [record.loss.item() for record in steps]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_met_learn_and_the_others_shrink_as_in_the_whole_table(family: str) -> None:
    met = np.unique(encode(LENGTHS, labels="items").input_ids)
    assert 10 < len(met) < 0.8 * VOCABULARY
    whole, other = (build(family, "AutoModelForSequenceClassification") for _ in range(2))
    learn_met_rows(other, met)
    rows = other.get_input_embeddings()
    assert isinstance(rows, MetRows)
    assert rows.weight.shape[0] == len(met) + 1
    speed_up(other, CPU)
    before = whole.get_input_embeddings().weight.detach().clone()
    assert train(other) == pytest.approx(train(whole), abs=1e-5)
    table = whole.get_input_embeddings().weight.detach()
    others = np.setdiff1d(np.arange(1, VOCABULARY), met)  # 0 is the padding's, of zeros
    assert (table[others].norm(dim=1) / before[others].norm(dim=1)).max() < 0.99
    torch.testing.assert_close(rows.whole(), table, rtol=1e-5, atol=1e-6)
    ids = torch.arange(VOCABULARY)[None, :40]
    for model in (whole, other):
        model.eval()
    with torch.inference_mode():
        logits = [model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for model in (whole, other)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_what_is_saved_is_the_whole_model(encoder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(encoder)
    learn_met_rows(model, np.arange(5, 40))
    model.get_input_embeddings().weight.data.mul_(0.5)  # of the met rows, and by their factor of the others
    save_model(model, load_tokenizer(str(encoder), None), tmp_path / "saved")
    before, after = load_file(encoder / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    assert before.keys() == after.keys()
    name = "embeddings.word_embeddings.weight"
    torch.testing.assert_close(after.pop(name), before.pop(name) / 2)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_row_that_was_not_to_be_met_is_right_and_stays() -> None:
    table = nn.Embedding(10, 4, padding_idx=0)
    before = table.weight.detach().clone()
    rows = MetRows(table, torch.tensor([0, 2, 7]))
    found = rows(torch.tensor([[7, 3], [0, 9]]))
    assert torch.equal(found, before[torch.tensor([[7, 3], [0, 9]])])
    found.sum().backward()
    gradient = rows.weight.grad
    assert gradient is not None
    assert torch.equal(gradient.sum(1), torch.tensor([0.0, 0.0, 4.0, 0.0]))  # neither padding's nor the factor's


@pytest.mark.parametrize("why", ["frozen", "nearly all met", "read elsewhere"])
def test_tables_that_gain_nothing_or_are_not_alone_stay(why: str) -> None:
    kind = "AutoModelForMaskedLM" if why == "read elsewhere" else "AutoModelForSequenceClassification"
    model = build("bert", kind)
    model.get_input_embeddings().weight.requires_grad_(why != "frozen")
    learn_met_rows(model, np.arange(VOCABULARY - 5 if why == "nearly all met" else 10))
    assert type(model.get_input_embeddings()) is nn.Embedding


def test_a_model_without_a_vocabulary_stays_as_it_is() -> None:
    model = CanineModel(CanineConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_hash_buckets=64))
    names = [name for name, _ in model.named_parameters()]
    learn_met_rows(model, np.arange(10))
    assert [name for name, _ in model.named_parameters()] == names
