"""Training only the seen rows of word embeddings gives the same model as training the full table."""

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
from bertcli.models.from_pretrained import ModelSource, save_model
from bertcli.models.padding_free import optimize_forward
from bertcli.models.seen_embeddings import SeenRowsEmbedding, train_seen_rows_only
from bertcli.training.loop import train_steps
from bertcli.training.optimizer import build_optimizer

from .test_padding_free import CPU, FAMILIES, VOCABULARY, build, encode

LENGTHS = [11, 3, 7, 1, 4, 9, 2, 5]
STEPS = 12


def train(model: PreTrainedModel) -> list[float]:
    """Return the losses of some steps over two batches, with a weight decay strong enough to matter."""
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
def test_seen_rows_learn_and_unseen_rows_decay_as_in_the_full_table(family: str) -> None:
    seen = np.unique(encode(LENGTHS, labels="items").input_ids)
    assert 10 < len(seen) < 0.8 * VOCABULARY
    full, sparse = (build(family, "AutoModelForSequenceClassification") for _ in range(2))
    train_seen_rows_only(sparse, seen)
    rows = sparse.get_input_embeddings()
    assert isinstance(rows, SeenRowsEmbedding)
    assert rows.weight.shape[0] == len(seen) + 1
    optimize_forward(sparse, CPU)
    before = full.get_input_embeddings().weight.detach().clone()
    assert train(sparse) == pytest.approx(train(full), abs=1e-5)
    table = full.get_input_embeddings().weight.detach()
    unseen = np.setdiff1d(np.arange(1, VOCABULARY), seen)  # 0 is padding, all zeros
    assert (table[unseen].norm(dim=1) / before[unseen].norm(dim=1)).max() < 0.99
    torch.testing.assert_close(rows.full_weight(), table, rtol=1e-5, atol=1e-6)
    ids = torch.arange(VOCABULARY)[None, :40]
    for model in (full, sparse):
        model.eval()
    with torch.inference_mode():
        logits = [model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for model in (full, sparse)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_saved_model_has_all_rows(encoder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(encoder)
    train_seen_rows_only(model, np.arange(5, 40))
    model.get_input_embeddings().weight.data.mul_(0.5)  # seen rows directly, unseen rows by their factor
    save_model(model, ModelSource(str(encoder)).load_tokenizer(), tmp_path / "saved")
    before, after = load_file(encoder / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    assert before.keys() == after.keys()
    name = "embeddings.word_embeddings.weight"
    torch.testing.assert_close(after.pop(name), before.pop(name) / 2)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_unseen_rows_are_correct_and_have_no_gradient() -> None:
    table = nn.Embedding(10, 4, padding_idx=0)
    before = table.weight.detach().clone()
    rows = SeenRowsEmbedding(table, torch.tensor([0, 2, 7]))
    output = rows(torch.tensor([[7, 3], [0, 9]]))
    assert torch.equal(output, before[torch.tensor([[7, 3], [0, 9]])])
    output.sum().backward()
    gradient = rows.weight.grad
    assert gradient is not None
    assert torch.equal(gradient.sum(1), torch.tensor([0.0, 0.0, 4.0, 0.0]))  # none for padding and the factor row


@pytest.mark.parametrize("case", ["frozen", "nearly all seen", "tied"])
def test_frozen_tied_or_fully_used_embeddings_are_unchanged(case: str) -> None:
    model_class = "AutoModelForMaskedLM" if case == "tied" else "AutoModelForSequenceClassification"
    model = build("bert", model_class)
    model.get_input_embeddings().weight.requires_grad_(case != "frozen")
    train_seen_rows_only(model, np.arange(VOCABULARY - 5 if case == "nearly all seen" else 10))
    assert type(model.get_input_embeddings()) is nn.Embedding


def test_model_without_a_vocabulary_is_unchanged() -> None:
    model = CanineModel(CanineConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_hash_buckets=64))
    names = [name for name, _ in model.named_parameters()]
    train_seen_rows_only(model, np.arange(10))
    assert [name for name, _ in model.named_parameters()] == names
