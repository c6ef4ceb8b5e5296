"""Recomputed activations give the same loss, gradients and random numbers, and need less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from bertcli.commands.pretrain import pretrain
from bertcli.console import Console
from bertcli.data.encoding import Encoded
from bertcli.data.sample import sample_documents
from bertcli.errors import ModelError
from bertcli.finetuning.run import finetune
from bertcli.models.gradient_checkpointing import checkpoint_layers
from bertcli.models.padding_free import optimize_forward
from bertcli.models.sparse_prediction import SparsePrediction
from bertcli.recipe.load import load_pretrain_recipe
from bertcli.recipe.schema import Recipe
from bertcli.runs.folder import RunOptions
from bertcli.training import memory
from bertcli.training.devices import prepare_batch

from ..conftest import QUIET

CPU = torch.device("cpu")
LENGTHS = (5, 23, 9, 14, 2)
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3, "vocab_size": 90}
SIZES |= {"dim": 32, "hidden_dim": 48, "n_heads": 2, "n_layers": 3, "embedding_size": 32, "pad_token_id": 0}
SIZES |= {"d_model": 32, "encoder_layers": 3, "num_layers": 3, "head_dim": 16, "n_embd": 32, "n_layer": 3, "n_head": 2}
HEADS = ("SequenceClassification", "TokenClassification", "MaskedLM")


def build(family: str, head: str, dropout: float = 0.1) -> nn.Module:
    defaults = transformers.AutoConfig.for_model(family)
    fields = {name: value for name, value in SIZES.items() if hasattr(defaults, name)}
    fields |= {name: dropout for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout",
                                          "attention_dropout", "mlp_dropout") if hasattr(defaults, name)}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **fields)
    model: nn.Module = getattr(transformers, f"AutoModelFor{head}").from_config(config)
    return SparsePrediction(model) if head == "MaskedLM" else model  # type: ignore[arg-type]


def batch_of(head: str, lengths: tuple[int, ...] = LENGTHS) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(0)
    ids = random.integers(5, 90, sum(lengths)).astype(np.int32)
    offsets = np.cumsum([0, *lengths])
    batch = Encoded(ids, None, offsets, np.arange(len(lengths)), None, 0).batch(np.arange(len(lengths)))
    if head == "MaskedLM":
        targets = torch.from_numpy(random.random(batch["input_ids"].shape) < 0.3)
        batch["target_positions"] = targets & (batch["input_ids"] != 0)
    return batch


def step(
    model: nn.Module, head: str, lengths: tuple[int, ...] = LENGTHS
) -> tuple[torch.Tensor, Any, torch.Tensor, int]:
    """Return the loss and gradients of a training step, the random state after it, and the bytes that were kept."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    model.train()
    inputs = prepare_batch(batch_of(head, lengths), model, CPU)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(**inputs).logits
        if head == "TokenClassification":  # padding has no loss
            logits = logits[batch_of(head, lengths)["attention_mask"].bool()]
        loss = logits.square().sum()
    parameters = {part.untyped_storage().data_ptr() for part in model.parameters()}
    num_bytes = sum(size for address, size in kept.items() if address not in parameters)
    loss.backward()
    gradients = {name: part.grad for name, part in model.named_parameters()}
    model.zero_grad()
    return loss.detach(), gradients, torch.get_rng_state(), num_bytes


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "modernbert", "deberta-v2", "eurobert"])
def test_loss_and_gradients_are_those_without_checkpointing(family: str, head: str) -> None:
    model = build(family, head)
    optimize_forward(model, CPU)
    recomputing = copy.deepcopy(build(family, head))
    optimize_forward(recomputing, CPU)
    checkpoint_layers(recomputing)
    for lengths in (LENGTHS, (11, 11, 11)):  # with and without padding
        (loss, gradients, state, _), (*others, _) = step(model, head, lengths), step(recomputing, head, lengths)
        assert torch.equal(loss, others[0])
        for name, gradient in gradients.items():
            assert (gradient is None) == (others[1][name] is None), name
            assert gradient is None or torch.equal(gradient, others[1][name]), name
        assert torch.equal(state, others[2])  # dropout has drawn as many random numbers


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_loss_and_gradients_of_decoders_do_not_depend_on_a_cache(family: str) -> None:
    head = "SequenceClassification"
    model, recomputing = build(family, head, 0.0), build(family, head, 0.0)
    for part in (model, recomputing):
        for module in part.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        optimize_forward(part, CPU)
    checkpoint_layers(recomputing)
    (loss, gradients, *_), others = step(model, head), step(recomputing, head)
    torch.testing.assert_close(others[0], loss)
    for name, gradient in gradients.items():
        assert gradient is None or torch.allclose(gradient, others[1][name], atol=1e-5), name


def test_only_the_last_layer_keeps_its_activations() -> None:
    lengths = (64,) * 4
    sizes: dict[bool, int] = {}
    for checkpointing in (False, True):
        model = build("bert", "TokenClassification")
        optimize_forward(model, CPU)
        if checkpointing:
            checkpoint_layers(model)
        sizes[checkpointing] = step(model, "TokenClassification", lengths)[3]
    assert sizes[True] < 0.5 * sizes[False]
    flags = [layer.gradient_checkpointing for layer in model.bert.encoder.layer]  # type: ignore[union-attr]
    assert flags == [True, True, False]


def test_frozen_layers_have_no_gradient() -> None:
    model = build("bert", "SequenceClassification")
    for name, part in model.named_parameters():
        part.requires_grad_("embeddings" not in name and ".layer.0." not in name)
    checkpoint_layers(model)
    hidden: list[torch.Tensor] = []
    model.bert.encoder.layer[0].register_forward_hook(lambda *arguments: hidden.append(arguments[2]))  # type: ignore[union-attr, operator]
    step(model, "SequenceClassification")
    assert not (hidden[0][0] if isinstance(hidden[0], tuple) else hidden[0]).requires_grad


def test_family_without_support_is_refused() -> None:
    model = build("albert", "MaskedLM")
    with pytest.raises(ModelError, match="but albert models in transformers do not support it; set it to auto"):
        checkpoint_layers(model)


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(f"{run}/model/model.safetensors")


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.strategy=gradual"],
        pytest.param(["training.freeze_layers=1"], marks=pytest.mark.slow),
        ["training.strategy=lora", "training.lora_merge=true"],
        pytest.param(["hardware.precision=bf16", "hardware.micro_batch_size=3"], marks=pytest.mark.slow),
        pytest.param(["training.strategy=features"], marks=pytest.mark.slow),
    ],
)
def test_run_learns_the_same_with_checkpointing(recipe_of: Callable[..., Recipe], overrides: list[str]) -> None:
    for setting in ("false", "true"):
        recipe = recipe_of("model.dropout=0.1", f"hardware.gradient_checkpointing={setting}", *overrides)
        finetune(recipe, Path(setting), RunOptions(console=QUIET))
    assert all(torch.equal(weights("false")[name], part) for name, part in weights("true").items())


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("bert", ["packing=true"]),
        pytest.param("bert", [], marks=pytest.mark.slow),
        ("electra", ["objective.kind=replaced_token_detection"]),
    ],
)
def test_pretraining_learns_the_same_with_checkpointing(
    monkeypatch: pytest.MonkeyPatch, family: str, overrides: list[str]
) -> None:
    monkeypatch.setenv("BERTCLI_CACHE", str(Path("cache").resolve()))
    Path("corpus.txt").write_text("\n\n".join(sample_documents(60)))
    sizes = "hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 2, intermediate_size: 64"
    Path("recipe.yaml").write_text(
        "corpus: {sources: [{files: corpus.txt}], held_out_fraction: 0.1}\ntokenizer: {vocab_size: 300}\n"
        f"model: {{family: {family}, size: null, config_overrides: {{{sizes}}}}}\nphases: [{{max_length: 32}}]\n"
        "training: {max_steps: 3, global_batch_size: 8, learning_rate: 3e-3}\n"
    )
    for setting in ("false", "true"):
        recipe = load_pretrain_recipe("recipe.yaml", [*overrides, f"hardware.gradient_checkpointing={setting}"])
        pretrain(recipe, Path(setting), RunOptions(console=QUIET))
    assert all(torch.equal(weights("false")[name], part) for name, part in weights("true").items())


def test_hidden_states_are_distilled_with_checkpointing(recipe_of: Callable[..., Recipe]) -> None:
    finetune(recipe_of("training.max_steps=1"), Path("teacher"), RunOptions(console=QUIET))
    for setting in ("false", "true"):
        recipe = recipe_of(
            "training.teacher=teacher", "training.teacher_hidden_weight=1", f"hardware.gradient_checkpointing={setting}"
        )
        finetune(recipe, Path(setting), RunOptions(console=QUIET))
    assert all(torch.equal(weights("false")[name], part) for name, part in weights("true").items())


def test_auto_recomputes_only_if_memory_is_short(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[nn.Module] = []
    monkeypatch.setattr("bertcli.training.train_state.checkpoint_layers", calls.append)
    for available, is_short in ((1e9, False), (2e5, True)):
        monkeypatch.setattr(memory, "available_memory", lambda *_, size=available: size)
        finetune(recipe_of("training.max_steps=1"), Path(f"{available}"), RunOptions(console=Console()))
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("memory ")]
        assert ("with gradient checkpointing" in line) == is_short
        assert len(calls) == is_short
