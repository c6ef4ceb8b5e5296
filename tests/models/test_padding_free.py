"""Padding-free computes what the padded model computes: outputs, losses and gradients, for each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from bertcli.data.encoding import IGNORED_LABEL, Encoded
from bertcli.data.packing import Packed
from bertcli.data.token_index import with_layout
from bertcli.models.cls_states import first_states, tell_first_states
from bertcli.models.from_pretrained import set_dropout
from bertcli.models.padding_free import speed_up
from bertcli.models.sparse_prediction import AskedPositions
from bertcli.training.devices import on_device

CPU = torch.device("cpu")
FAMILIES = ["bert", "roberta", "electra", "distilbert"]
LENGTHS = [11, 3, 7, 1, 4]
VOCABULARY = 50


def on_each_batch(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test for each family, as on a CPU and as elsewhere, with padding and without."""
    for name, values, ids in (
        ("lengths", [LENGTHS, [6, 6, 6]], ["padded", "full"]),
        ("on_cpu", [True, False], None),
        ("family", FAMILIES, None),
    ):
        test = pytest.mark.parametrize(name, values, ids=ids)(test)
    return test


def build(family: str, model_class: str, **fields: object) -> PreTrainedModel:
    config = transformers.AutoConfig.for_model(family)
    sizes = {"hidden_size": 16, "dim": 16, "embedding_size": 16, "intermediate_size": 32, "hidden_dim": 32}
    sizes |= {"num_hidden_layers": 2, "n_layers": 2, "num_attention_heads": 2, "n_heads": 2}
    sizes |= {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "initializer_range": 0.2, "pad_token_id": 0}
    for name, value in (sizes | fields).items():
        if hasattr(config, name):
            setattr(config, name, value)
    set_dropout(config, 0.0)
    torch.manual_seed(0)
    return getattr(transformers, model_class).from_config(config)


def encode(lengths: list[int], *, labels: str) -> Encoded:
    random = np.random.default_rng(0)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = random.integers(5, VOCABULARY, offsets[-1]).astype(np.int32)
    of_tokens = np.where(random.random(len(ids)) < 0.4, ids, IGNORED_LABEL).astype(np.int64)
    of_tokens[offsets[-2] :] = IGNORED_LABEL
    of_items = np.arange(len(lengths)) % 2
    per_token = labels == "tokens"
    given = of_tokens if per_token else of_items
    return Encoded(ids, None, offsets, np.arange(len(lengths)), given, 0, labels_per_token=per_token)


def loss_and_gradients(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Of a batch as it is, or as `on_device` makes it; the mean over labelled tokens or items."""
    model.train()
    model.zero_grad()
    labels = batch["labels"]
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], abs=1e-6)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert torch.allclose(gradient, other[1][name], atol=2e-6), name


def count_rows(layer: torch.nn.Module) -> list[int]:
    """A list that grows by the number of tokens that each call of a linear layer computes."""
    seen: list[int] = []
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    return seen


def ends_of(model: torch.nn.Module) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The first linear layer, and the one that takes the last layer's inner width back."""
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    return linear[0], [module for module in linear if module.in_features == 32][-1]


@on_each_batch
def test_a_classifier_computes_no_padding_and_its_last_layer_first_tokens_alone(
    family: str, on_cpu: bool, lengths: list[int]
) -> None:
    batch = encode(lengths, labels="items").batch(np.arange(len(lengths)))
    padded = loss_and_gradients(build(family, "AutoModelForSequenceClassification"), batch)
    model = build(family, "AutoModelForSequenceClassification")
    speed_up(model, CPU)
    first, last = map(count_rows, ends_of(model))
    assert_same(padded, loss_and_gradients(model, with_layout(batch, "first", on_cpu=on_cpu)))
    assert first == [sum(lengths)]
    assert last == [len(lengths)]
    assert_same(padded, loss_and_gradients(model, batch))  # a plain batch is read as ever


@on_each_batch
def test_a_language_model_computes_no_padding_and_its_last_layer_asked_tokens_alone(
    family: str, on_cpu: bool, lengths: list[int]
) -> None:
    batch = encode(lengths, labels="tokens").batch(np.arange(len(lengths)))
    padded = loss_and_gradients(build(family, "AutoModelForMaskedLM"), batch)
    asked = batch["labels"] != IGNORED_LABEL
    assert not asked[-1].any()  # a sequence that nothing is asked of
    model = AskedPositions(build(family, "AutoModelForMaskedLM"))
    speed_up(model, CPU)
    first, last = map(count_rows, ends_of(model))
    flat = batch | {"labels": batch["labels"][asked], "asked": asked}
    loss, gradients = loss_and_gradients(model, with_layout(flat, "asked", on_cpu=on_cpu))
    assert_same(padded, (loss, {name.removeprefix("model."): gradient for name, gradient in gradients.items()}))
    assert first == [sum(lengths)]
    assert last == [int(asked.sum())]


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_packed_rows_give_the_loss_of_sequences_alone(family: str, on_cpu: bool) -> None:
    encoded = encode(LENGTHS, labels="tokens")
    padded = loss_and_gradients(build(family, "AutoModelForMaskedLM"), encoded.batch(np.arange(len(LENGTHS))))
    rows = [np.array([0, 1]), np.array([2, 3, 4])]
    packed = Packed(encoded, rows, 1 if family == "roberta" else 0).batch(np.arange(2))
    asked = packed["labels"] != IGNORED_LABEL
    for reading in ("all", "asked"):
        model: torch.nn.Module = build(family, "AutoModelForMaskedLM")
        if reading == "asked":
            model = AskedPositions(model)
            packed |= {"labels": packed["labels"][asked], "asked": asked}
        speed_up(model, CPU)
        loss, gradients = loss_and_gradients(model, with_layout(packed, reading, on_cpu=on_cpu))
        assert_same(padded, (loss, {name.removeprefix("model."): gradient for name, gradient in gradients.items()}))


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_tokens_are_skipped_only_where_nobody_looks_at_them(family: str) -> None:
    batch = encode(LENGTHS, labels="items").batch(np.arange(len(LENGTHS)))
    batch["attention_mask"][:, 2] = 0
    padded = loss_and_gradients(build(family, "AutoModelForSequenceClassification"), batch)
    model = build(family, "AutoModelForSequenceClassification")
    speed_up(model, CPU)
    free = on_device(batch, model, CPU)
    assert len(free["computed"].places) == int(batch["attention_mask"].sum())
    assert_same(padded, loss_and_gradients(model, free))
    reader = build(family, "AutoModelForTokenClassification")
    speed_up(reader, CPU)
    assert "computed" not in on_device(batch, reader, CPU)


@pytest.mark.parametrize("model_class", ["SequenceClassification", "TokenClassification"])
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_cpu_few_numbers_of_tokens_occur_and_what_fills_them_up_changes_nothing(
    family: str, model_class: str
) -> None:
    lengths, reading = [32, *[10] * 10, 1], "first" if model_class.startswith("S") else "all"
    batch = encode(lengths, labels="items" if reading == "first" else "tokens").batch(np.arange(len(lengths)))
    batch["labels"].clamp_(max=1)
    padded = loss_and_gradients(build(family, f"AutoModelFor{model_class}"), batch)
    model = build(family, f"AutoModelFor{model_class}")
    speed_up(model, CPU)
    first, _ = map(count_rows, ends_of(model))
    assert_same(padded, loss_and_gradients(model, with_layout(batch, reading, on_cpu=True)))
    assert (sum(lengths), first) == (133, [136])


@pytest.mark.parametrize("on_cpu", [True, False])
def test_answers_compete_without_padding(on_cpu: bool) -> None:
    encoded = encode(LENGTHS, labels="items")
    batch = {name: part for name, part in encoded.batch(np.arange(len(LENGTHS))).items() if name != "labels"}
    model = build("bert", "AutoModelForQuestionAnswering").eval()
    plain = model(**batch).start_logits
    speed_up(model, CPU)
    for given in (batch, with_layout(batch, "all", on_cpu=on_cpu)):
        logits = model(**given).start_logits
        for row, length in enumerate(LENGTHS):
            assert torch.allclose(logits[row].softmax(-1)[:length], plain[row, :length].softmax(-1), atol=1e-6)


def test_dropout_on_attention_drops_the_right_share() -> None:
    model = build("bert", "AutoModel", num_hidden_layers=1)
    model.encoder.layer[0].attention.self.dropout.p = 0.5
    batch = {
        name: value for name, value in encode(LENGTHS, labels="items").batch(np.arange(5)).items() if name != "labels"
    }
    with torch.no_grad():
        expected = model.eval()(**batch).last_hidden_state
        speed_up(model, CPU)
        torch.manual_seed(0)
        many = torch.stack([model.train()(**batch).last_hidden_state for _ in range(400)])
    assert not torch.equal(many[0], many[1])
    assert (many.mean(0) - expected)[batch["attention_mask"].bool()].abs().mean() < 0.15


def test_what_is_saved_is_a_plain_model(tmp_path: Path) -> None:
    model = build("bert", "AutoModelForSequenceClassification").eval()
    batch = encode(LENGTHS, labels="items").batch(np.arange(5))
    expected = model(**batch).logits
    speed_up(model, CPU)
    model.save_pretrained(tmp_path)
    assert "bertcli" not in (tmp_path / "config.json").read_text()
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.allclose(plain(**batch).logits, expected, atol=1e-6)


def test_other_families_are_left_as_they_are() -> None:
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    model = transformers.T5ForConditionalGeneration(config)
    speed_up(model, CPU)
    assert not hasattr(model, "padding_free")


@on_each_batch
def test_the_states_of_first_tokens_are_those_of_the_padded_model(
    family: str, on_cpu: bool, lengths: list[int]
) -> None:
    plain, told = (build(family, "AutoModelForSequenceClassification") for _ in range(2))
    speed_up(told, CPU)
    tell_first_states(told, [1, 2])
    batch = encode(lengths, labels="items").batch(np.arange(len(lengths)))
    batch.pop("labels")
    hidden = plain.eval()(**batch, output_hidden_states=True).hidden_states
    expected = torch.stack([layer[:, 0] for layer in hidden[1:]], 1)
    for _ in range(2):  # the second batch finds nothing of the first
        outputs = told.eval()(**with_layout(batch, "first", on_cpu=on_cpu))
        assert torch.allclose(first_states(outputs), expected, atol=1e-5)
