"""Padding-free models match padded ones: outputs, losses and gradients, for each family."""

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
from bertcli.data.packing import PackedSequences
from bertcli.data.token_index import add_token_index, labeled_tokens
from bertcli.models.cls_states import cls_hidden_states, record_cls_states
from bertcli.models.freezing import encoder_layers
from bertcli.models.from_pretrained import set_dropout
from bertcli.models.padding_free import FAMILIES as SUPPORTED
from bertcli.models.padding_free import optimize_forward
from bertcli.models.shared_encoder import SharedEncoder
from bertcli.models.sparse_prediction import SparsePrediction
from bertcli.models.tokenizer_matching import first_position_id
from bertcli.models.varlen_attention import varlen_attention_forward
from bertcli.training.devices import prepare_batch

CPU = torch.device("cpu")
FAMILIES = ["bert", "roberta", "electra", "distilbert", "modernbert"]  # with a partial last layer
OTHER_FAMILIES = [
    *("camembert", "xlm-roberta", "data2vec-text", "ernie", "albert", "roberta-prelayernorm", "xlm-roberta-xl"),
    *("eurobert", "nomic_bert", "gte", "jina_embeddings_v3"),
]
LENGTHS = [11, 3, 7, 1, 4]
VOCABULARY = 50


def on_each_batch(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test for each family, with the CPU and GPU layouts, with padding and without."""
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
    sizes |= {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 3}
    for name, value in (sizes | fields).items():
        if hasattr(config, name):
            setattr(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    set_dropout(config, 0.0)
    torch.manual_seed(0)
    return getattr(transformers, model_class).from_config(config)


def encode(lengths: list[int], *, labels: str) -> Encoded:
    random = np.random.default_rng(0)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = random.integers(5, VOCABULARY, offsets[-1]).astype(np.int32)
    token_labels = np.where(random.random(len(ids)) < 0.4, ids, IGNORED_LABEL).astype(np.int64)
    token_labels[offsets[-2] :] = IGNORED_LABEL
    item_labels = np.arange(len(lengths)) % 2
    per_token = labels == "tokens"
    chosen = token_labels if per_token else item_labels
    return Encoded(ids, None, offsets, np.arange(len(lengths)), chosen, 0, labels_per_token=per_token)


def has_class(family: str, name: str) -> bool:
    """Return whether transformers has a class for this kind of model of the family."""
    return type(transformers.AutoConfig.for_model(family)) in getattr(transformers, name)._model_mapping


def loss_and_gradients(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the mean loss over labeled tokens or items, and the gradients, of a batch with or without token index."""
    model.train()
    model.zero_grad()
    labels = batch["labels"]
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(expected: tuple[float, dict[str, torch.Tensor]], actual: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert expected[0] == pytest.approx(actual[0], abs=1e-6)
    assert expected[1].keys() == actual[1].keys()
    for name, gradient in expected[1].items():
        assert torch.allclose(gradient, actual[1][name], atol=2e-6), name


def count_tokens(layer: torch.nn.Module) -> list[int]:
    """Return a list that records the number of tokens of each call of a linear layer."""
    counts: list[int] = []
    layer.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[:-1].numel()))
    return counts


def first_and_last_linear(model: torch.nn.Module) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return the first linear layer, and the second feed-forward one of the last layer."""
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    return linear[0], [module for module in linear if module.in_features == 32][-1]


@on_each_batch
def test_padding_free_classifier_skips_padding_and_its_last_layer_other_tokens(
    family: str, on_cpu: bool, lengths: list[int]
) -> None:
    batch = encode(lengths, labels="items").batch(np.arange(len(lengths)))
    padded = loss_and_gradients(build(family, "AutoModelForSequenceClassification"), batch)
    model = build(family, "AutoModelForSequenceClassification")
    optimize_forward(model, CPU)
    first, last = map(count_tokens, first_and_last_linear(model))
    assert_same(padded, loss_and_gradients(model, add_token_index(batch, "first", on_cpu=on_cpu, round_up=on_cpu)))
    assert first == [sum(lengths)]
    assert last == [len(lengths)]
    assert_same(padded, loss_and_gradients(model, batch))  # a plain batch still works


@on_each_batch
def test_padding_free_tagger_skips_tokens_without_a_label_in_the_last_layer_in_training(
    family: str, on_cpu: bool, lengths: list[int]
) -> None:
    batch = encode(lengths, labels="tokens").batch(np.arange(len(lengths)))
    batch["labels"].clamp_(max=1)
    num_labeled = int((batch["labels"] != IGNORED_LABEL).sum())
    padded = loss_and_gradients(build(family, "AutoModelForTokenClassification"), batch)
    model = build(family, "AutoModelForTokenClassification")
    optimize_forward(model, CPU)
    model.train()
    first, last = map(count_tokens, first_and_last_linear(model))
    assert_same(padded, loss_and_gradients(model, prepare_batch(batch, model, CPU)))
    assert (first, last) == ([sum(lengths)], [num_labeled])
    targets = labeled_tokens(batch, round_up=on_cpu)
    labeled = batch | {"target_positions": targets, "labels": batch["labels"][targets]}
    assert_same(padded, loss_and_gradients(model, add_token_index(labeled, "labeled", on_cpu=on_cpu, round_up=on_cpu)))
    model.eval()
    unlabeled = {name: value for name, value in batch.items() if name != "labels"}
    expected = build(family, "AutoModelForTokenClassification").eval()(**unlabeled).logits
    for whole in (prepare_batch(unlabeled, model, CPU), prepare_batch(batch, model, CPU)):
        whole.pop("labels", None)
        is_token = batch["attention_mask"].bool()
        assert torch.allclose(model(**whole).logits[is_token], expected[is_token], atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_without_any_label_trains_a_padding_free_tagger_on_nothing(family: str) -> None:
    batch = encode(LENGTHS, labels="tokens").batch(np.arange(len(LENGTHS)))
    batch["labels"].fill_(IGNORED_LABEL)
    model = build(family, "AutoModelForTokenClassification")
    optimize_forward(model, CPU)
    inputs = prepare_batch(batch, model.train(), CPU)
    labels = inputs.pop("labels")
    logits = model(**inputs).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")
    loss.backward()
    assert loss == 0
    unused = {name for name, part in model.named_parameters() if part.grad is None}
    assert not unused  # other processes wait for the gradients of all parameters
    assert not any(part.grad.any() for part in model.parameters() if part.grad is not None)


def test_labeled_tokens_are_rounded_up_to_few_sizes() -> None:
    batch = encode([30] * 10, labels="tokens").batch(np.arange(10))
    is_labeled = batch["labels"] != IGNORED_LABEL
    rounded = labeled_tokens(batch, round_up=True)
    assert (int(is_labeled.sum()), int(rounded.sum())) == (99, 100)
    assert not (is_labeled & ~rounded).any()
    assert torch.equal(labeled_tokens(batch, round_up=False), is_labeled)
    batch["labels"].fill_(IGNORED_LABEL)
    assert int(labeled_tokens(batch, round_up=False).sum()) == 2


def test_tokens_that_round_the_number_of_labeled_ones_up_are_spread_over_the_rows() -> None:
    batch = encode([38] * 60, labels="tokens").batch(np.arange(60))
    is_labeled = batch["labels"] != IGNORED_LABEL
    further = (labeled_tokens(batch, round_up=True) & ~is_labeled).sum(1)
    assert int(further.sum()) > 10
    assert int(further.max()) == 1  # the last layer pads the queries of each row to those of the longest
    few = {"labels": batch["labels"].masked_fill(~is_labeled, 0), "attention_mask": batch["attention_mask"]}
    few["labels"][0, :3] = IGNORED_LABEL
    assert bool(labeled_tokens(few, round_up=True).all())  # fewer candidates than it takes
    few["attention_mask"][0, :3] = 0
    assert int(labeled_tokens(few, round_up=True).sum()) == is_labeled.numel() - 3
    assert bool(labeled_tokens(few, round_up=True, may_be_padding=True).all())


@on_each_batch
def test_padding_free_masked_lm_skips_padding_and_its_last_layer_other_tokens(
    family: str, on_cpu: bool, lengths: list[int]
) -> None:
    batch = encode(lengths, labels="tokens").batch(np.arange(len(lengths)))
    padded = loss_and_gradients(build(family, "AutoModelForMaskedLM"), batch)
    target_positions = batch["labels"] != IGNORED_LABEL
    assert not target_positions[-1].any()  # a sequence without target positions
    model = SparsePrediction(build(family, "AutoModelForMaskedLM"))
    optimize_forward(model, CPU)
    first, last = map(count_tokens, first_and_last_linear(model))
    flat = batch | {"labels": batch["labels"][target_positions], "target_positions": target_positions}
    loss, gradients = loss_and_gradients(model, add_token_index(flat, "targets", on_cpu=on_cpu, round_up=on_cpu))
    assert_same(padded, (loss, {name.removeprefix("model."): gradient for name, gradient in gradients.items()}))
    assert first == [sum(lengths)]
    assert last == [int(target_positions.sum())]


@pytest.mark.parametrize("model_class", ["SequenceClassification", "TokenClassification", "MaskedLM"])
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_other_families_skip_padding_without_changing_loss_or_gradients(family: str, model_class: str) -> None:
    assert {*FAMILIES, *OTHER_FAMILIES} == {*SUPPORTED}
    name = f"AutoModelFor{model_class}"
    if not has_class(family, name):
        pytest.skip("transformers has no such class")
    batch = encode(LENGTHS, labels="items" if model_class.startswith("S") else "tokens").batch(np.arange(len(LENGTHS)))
    if model_class == "TokenClassification":
        batch["labels"].clamp_(max=1)
    for lengths_are_equal in (False, True):
        if lengths_are_equal:
            batch = {part: value[:1] for part, value in batch.items()}
        padded = loss_and_gradients(build(family, name), batch)
        model = build(family, name)
        optimize_forward(model, CPU)
        layers = model.base_model.encoder if family == "albert" else encoder_layers(model)[0]
        counts = count_tokens(next(module for module in layers.modules() if isinstance(module, torch.nn.Linear)))
        inputs = prepare_batch(batch, model, CPU)
        assert ("unpadded" in inputs) != lengths_are_equal
        assert_same(padded, loss_and_gradients(model, inputs))
        assert counts == [int(batch["attention_mask"].sum())]


@pytest.mark.parametrize("pooling", ["mean", "late", "bos", "cls"])
@pytest.mark.parametrize("family", ["modernbert", "eurobert"])
def test_each_pooling_of_a_classifier_gives_the_loss_of_the_padded_model(family: str, pooling: str) -> None:
    if (family, pooling) in {("modernbert", "late"), ("modernbert", "bos"), ("eurobert", "cls")}:
        pytest.skip("not a pooling of this family")
    batch = encode(LENGTHS, labels="items").batch(np.arange(len(LENGTHS)))
    name = "AutoModelForSequenceClassification"
    padded = loss_and_gradients(build(family, name, classifier_pooling=pooling), batch)
    model = build(family, name, classifier_pooling=pooling)
    optimize_forward(model, CPU)
    assert_same(padded, loss_and_gradients(model, prepare_batch(batch, model, CPU)))


@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # the second one takes the path with dropout
@pytest.mark.parametrize("reach", [3, 0])
@pytest.mark.parametrize("lengths", [[100, 41, 3], [64, 64], [13, 1], [9, 1]])
def test_local_attention_of_long_texts_is_that_of_transformers(lengths: list[int], reach: int, dropout: float) -> None:
    batch = encode(lengths, labels="tokens").batch(np.arange(len(lengths)))
    batch["labels"].clamp_(max=1)
    name = "AutoModelForTokenClassification"
    fields: dict[str, Any] = {"num_hidden_layers": 3, "max_position_embeddings": 128, "sliding_window": reach}
    padded = loss_and_gradients(build("modernbert", name, **fields), batch)
    model: Any = build("modernbert", name, **fields)
    for layer in model.model.layers:
        layer.attn.attention_dropout = dropout
    optimize_forward(model, CPU)
    assert_same(padded, loss_and_gradients(model, batch))
    assert_same(padded, loss_and_gradients(model, prepare_batch(batch, model, CPU)))


@pytest.mark.parametrize("family", [*FAMILIES, *OTHER_FAMILIES])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_packed_rows_give_the_loss_of_separate_sequences(family: str, on_cpu: bool) -> None:
    if not has_class(family, "AutoModelForMaskedLM"):
        pytest.skip("transformers has no such class")
    encoded = encode(LENGTHS, labels="tokens")
    padded = loss_and_gradients(build(family, "AutoModelForMaskedLM"), encoded.batch(np.arange(len(LENGTHS))))
    rows = [np.array([0, 1]), np.array([2, 3, 4])]
    first_id = first_position_id(build(family, "AutoModelForMaskedLM").config)
    packed = PackedSequences(encoded, rows, first_id).batch(np.arange(2))
    target_positions = packed["labels"] != IGNORED_LABEL
    for output_tokens in ("all", "targets") if SUPPORTED[family].last_layer else ("all",):
        model: torch.nn.Module = build(family, "AutoModelForMaskedLM")
        if output_tokens == "targets":
            model = SparsePrediction(model)
            packed |= {"labels": packed["labels"][target_positions], "target_positions": target_positions}
        optimize_forward(model, CPU)
        loss, gradients = loss_and_gradients(
            model, add_token_index(packed, output_tokens, on_cpu=on_cpu, round_up=on_cpu)
        )
        if output_tokens == "targets":
            gradients = {name.removeprefix("model."): gradient for name, gradient in gradients.items()}
        assert_same(padded, (loss, gradients))


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_tokens_are_skipped_only_if_their_output_is_unused(family: str) -> None:
    batch = encode(LENGTHS, labels="items").batch(np.arange(len(LENGTHS)))
    batch["attention_mask"][:, 2] = 0
    padded = loss_and_gradients(build(family, "AutoModelForSequenceClassification"), batch)
    model = build(family, "AutoModelForSequenceClassification")
    optimize_forward(model, CPU)
    prepared = prepare_batch(batch, model, CPU)
    if family == "modernbert":  # its local attention depends on the distances of tokens
        assert "unpadded" not in prepared
    else:
        assert len(prepared["unpadded"].indices) == int(batch["attention_mask"].sum())
    assert_same(padded, loss_and_gradients(model, prepared))
    tagger = build(family, "AutoModelForTokenClassification")
    optimize_forward(tagger, CPU)
    del batch["labels"]
    assert "unpadded" not in prepare_batch(batch, tagger, CPU)


@pytest.mark.parametrize("model_class", ["SequenceClassification", "TokenClassification"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fill_tokens_round_the_token_count_up_and_change_no_result(family: str, model_class: str) -> None:
    lengths, output_tokens = [32, *[10] * 10, 1], "first" if model_class.startswith("S") else "all"
    batch = encode(lengths, labels="items" if output_tokens == "first" else "tokens").batch(np.arange(len(lengths)))
    batch["labels"].clamp_(max=1)
    padded = loss_and_gradients(build(family, f"AutoModelFor{model_class}"), batch)
    model = build(family, f"AutoModelFor{model_class}")
    optimize_forward(model, CPU)
    first, _ = map(count_tokens, first_and_last_linear(model))
    assert_same(padded, loss_and_gradients(model, add_token_index(batch, output_tokens, on_cpu=True, round_up=True)))
    assert (sum(lengths), first) == (133, [136])


@pytest.mark.parametrize("family", FAMILIES)
def test_full_batch_of_one_task_does_not_change_the_padded_batch_of_another(family: str) -> None:
    shared = SharedEncoder(
        [build(family, f"AutoModelFor{kind}Classification").eval() for kind in ("Token", "Sequence")]
    )
    optimize_forward(shared, CPU)
    full = encode([6] * 12, labels="items").batch(np.arange(12))
    padded = encode([6] * 12 + [3], labels="items").batch(np.arange(13))  # so little padding that it stays
    outputs = []
    for batches in ([padded], [full, padded]):
        for batch in batches:
            task = torch.full((len(batch["input_ids"]),), int(batch is padded))
            inputs = prepare_batch(
                {name: batch[name] for name in ("input_ids", "attention_mask")} | {"task": task}, shared, CPU
            )
            logits = shared(**inputs).logits
        outputs.append(logits)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_span_logits_of_padding_are_masked(on_cpu: bool) -> None:
    encoded = encode(LENGTHS, labels="items")
    batch = {name: part for name, part in encoded.batch(np.arange(len(LENGTHS))).items() if name != "labels"}
    model = build("bert", "AutoModelForQuestionAnswering").eval()
    plain = model(**batch).start_logits
    optimize_forward(model, CPU)
    for inputs in (batch, add_token_index(batch, "all", on_cpu=on_cpu, round_up=on_cpu)):
        logits = model(**inputs).start_logits
        for row, length in enumerate(LENGTHS):
            assert torch.allclose(logits[row].softmax(-1)[:length], plain[row, :length].softmax(-1), atol=1e-6)


def test_attention_dropout_keeps_the_mean() -> None:
    model = build("bert", "AutoModel", num_hidden_layers=1)
    model.encoder.layer[0].attention.self.dropout.p = 0.5
    batch = {
        name: value for name, value in encode(LENGTHS, labels="items").batch(np.arange(5)).items() if name != "labels"
    }
    with torch.no_grad():
        expected = model.eval()(**batch).last_hidden_state
        optimize_forward(model, CPU)
        torch.manual_seed(0)
        samples = torch.stack([model.train()(**batch).last_hidden_state for _ in range(400)])
    assert not torch.equal(samples[0], samples[1])
    assert (samples.mean(0) - expected)[batch["attention_mask"].bool()].abs().mean() < 0.15


def test_saved_model_is_plain_transformers(tmp_path: Path) -> None:
    model = build("bert", "AutoModelForSequenceClassification").eval()
    batch = encode(LENGTHS, labels="items").batch(np.arange(5))
    expected = model(**batch).logits
    optimize_forward(model, CPU)
    model.save_pretrained(tmp_path)
    assert "bertcli" not in (tmp_path / "config.json").read_text()
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.allclose(plain(**batch).logits, expected, atol=1e-6)


def test_unsupported_families_are_unchanged() -> None:
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    model = transformers.T5ForConditionalGeneration(config)
    optimize_forward(model, CPU)
    assert not hasattr(model, "padding_free")


@on_each_batch
def test_cls_states_match_the_padded_model(family: str, on_cpu: bool, lengths: list[int]) -> None:
    plain, model = (build(family, "AutoModelForSequenceClassification") for _ in range(2))
    optimize_forward(model, CPU)
    record_cls_states(model, [1, 2])
    batch = encode(lengths, labels="items").batch(np.arange(len(lengths)))
    batch.pop("labels")
    hidden = plain.eval()(**batch, output_hidden_states=True).hidden_states
    expected = torch.stack([layer[:, 0] for layer in hidden[1:]], 1)
    final_norm = getattr(plain.base_model, "final_norm", lambda states: states)  # not part of the last layer
    for _ in range(2):  # the second batch must see nothing of the first
        outputs = model.eval()(**add_token_index(batch, "first", on_cpu=on_cpu, round_up=on_cpu))
        states = cls_hidden_states(outputs)
        states = torch.cat((states[:, :-1], final_norm(states[:, -1:])), 1)
        assert torch.allclose(states, expected, atol=1e-5)


@pytest.mark.parametrize("num_heads", [2, 1])  # of keys and values
def test_separate_attention_operations_in_bf16_are_close_to_the_fused_ones(num_heads: int) -> None:
    torch.manual_seed(0)
    shapes = ((3, 2, 7, 8), (3, num_heads, 7, 8), (3, num_heads, 7, 8))
    query, key, value = (torch.randn(shape, dtype=torch.bfloat16) for shape in shapes)
    mask = (torch.arange(7) < torch.tensor([[7], [4], [1]]))[:, None, None]
    module = torch.nn.Module()
    module.num_key_value_groups = 2 // num_heads  # type: ignore[assignment]
    separate, _ = varlen_attention_forward(module, query, key, value, mask)
    inputs = (part.float() for part in (query, key, value))
    fused, _ = varlen_attention_forward(module, *inputs, mask)
    assert separate.dtype == torch.bfloat16
    torch.testing.assert_close(separate.float(), fused, atol=0.02, rtol=0.02)
