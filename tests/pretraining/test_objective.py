"""Targets and losses of the pretraining objectives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ElectraConfig, ElectraForPreTraining, PreTrainedTokenizerBase

from bertcli.data.sample import sample_documents
from bertcli.models.generator_and_discriminator import build_generator_and_discriminator
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.pretraining.causal_lm import CausalLM
from bertcli.pretraining.masked_lm import MaskedLM
from bertcli.pretraining.objective import Text
from bertcli.pretraining.span_corruption import SpanCorruption, corrupt_spans, sample_span_mask
from bertcli.recipe.pretrain_schema import ObjectiveSection
from bertcli.training.devices import prepare_batch


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(lambda: sample_documents(100), 500, sentinels=True)


def sample_texts(tokenizer: PreTrainedTokenizerBase, num_texts: int = 50) -> list[Text]:
    empty = np.empty(0, np.int32)
    texts = []
    for document in sample_documents(num_texts, seed=5):
        ids = np.asarray(tokenizer(document, add_special_tokens=False)["input_ids"], np.int32)
        texts.append(Text(ids, np.ones(len(ids), bool), empty, empty.astype(bool), None))
    return texts


def test_span_mask_has_the_mask_fraction_and_mean_span_length() -> None:
    random = np.random.default_rng(0)
    num_masked, num_spans, num_tokens = 0, 0, 0
    for _ in range(1000):
        length = int(random.integers(20, 200))
        mask = sample_span_mask(length, 0.15, 3.0, 100, random)
        num_masked, num_tokens = num_masked + int(mask.sum()), num_tokens + length
        num_spans += int((mask & ~np.concatenate(([False], mask[:-1]))).sum())
        assert not mask[0]
    assert num_tokens > 100_000
    assert num_masked / num_tokens == pytest.approx(0.15, abs=0.01)
    assert num_masked / num_spans == pytest.approx(3.0, abs=0.15)


def test_span_corruption_loses_no_token() -> None:
    random = np.random.default_rng(1)
    sentinels = list(range(1000, 1100))
    for length in (2, 7, 60):
        ids = np.arange(length)
        input_ids, target_ids = corrupt_spans(ids, sample_span_mask(length, 0.4, 3.0, 100, random), sentinels)
        spans: dict[int, list[int]] = {}
        for token in target_ids.tolist():
            if token >= 1000:
                spans[token] = []
            else:
                spans[next(reversed(spans))].append(token)
        restored = [part for token in input_ids.tolist() for part in (spans[token] if token >= 1000 else [token])]
        assert restored == ids.tolist()
        assert [token for token in input_ids if token >= 1000] == list(spans) == sentinels[: len(spans)]


def test_span_corruption_decoder_inputs_are_the_labels_shifted_right(tokenizer: PreTrainedTokenizerBase) -> None:
    objective = SpanCorruption(ObjectiveSection(kind="span_corruption"), tokenizer)
    targets = objective.build_targets(sample_texts(tokenizer), np.random.default_rng(0))
    batch = targets.batch(np.arange(7))
    labels, decoder_input_ids = batch["labels"], batch["decoder_input_ids"]
    assert (decoder_input_ids[:, 0] == tokenizer.pad_token_id).all()
    is_label = labels[:, :-1] != -100
    assert decoder_input_ids[:, 1:][is_label].equal(labels[:, :-1][is_label])
    assert targets.num_targets["labels"] == int((targets.batch(np.arange(50))["labels"] != -100).sum())


def test_causal_lm_labels_are_the_next_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    objective = CausalLM(ObjectiveSection(kind="causal_lm"), tokenizer)
    targets = objective.build_targets(sample_texts(tokenizer), np.random.default_rng(0))
    batch = targets.batch(np.arange(9))
    ids, labels, lengths = batch["input_ids"], batch["labels"], batch["attention_mask"].sum(1)
    for row, length in enumerate(lengths.tolist()):
        assert labels[row, : length - 1].equal(ids[row, 1:length])
        assert (labels[row, length - 1 :] == -100).all()


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
def test_masked_lm_never_masks_special_or_unknown_tokens(tokenizer: PreTrainedTokenizerBase, masking: str) -> None:
    section = ObjectiveSection(masking=masking, mlm_probability=0.5)  # type: ignore[arg-type]
    texts = sample_texts(tokenizer, 300)
    for text in texts:
        text.first[3::7] = tokenizer.unk_token_id
    targets = MaskedLM(section, tokenizer).build_targets(texts, np.random.default_rng(0))
    labels = targets.batch(np.arange(300))["labels"]
    masked_ids = labels[labels != -100]
    assert len(masked_ids) > 3000
    assert not set(masked_ids.tolist()) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("round_up", [False, True])
@pytest.mark.parametrize("pairs", [None, "next_sentence"])
def test_masked_lm_loss_and_gradients_equal_transformers(
    tokenizer: PreTrainedTokenizerBase, pairs: Any, round_up: bool
) -> None:
    from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

    objective = MaskedLM(ObjectiveSection(pairs=pairs), tokenizer)
    texts = [replace(text, pair_label=row % 2) for row, text in enumerate(sample_texts(tokenizer, 13))]
    sequences = objective.build_targets(texts, np.random.default_rng(0))
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    model = (BertForPreTraining if pairs else BertForMaskedLM)(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()
    batch = sequences.batch(np.arange(13))
    expected = model(**{name: tensor for name, tensor in batch.items() if name != "target_positions"}).loss
    expected.backward()
    expected_gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    module = objective.build_module(model)
    inputs = prepare_batch(batch, module, torch.device("cpu"), round_up=round_up)
    targets = {name: inputs.pop(name) for name in sequences.num_targets}
    num_masked, num_rounded = (85, 88) if pairs else (81, 84)
    assert int((batch["labels"] != -100).sum()) == num_masked
    assert len(targets["labels"]) == (num_rounded if round_up else num_masked)
    with torch.inference_mode():
        assert objective.score_batch(module(**inputs), targets)["accuracy"][1] == num_masked
    loss = objective.loss(module(**inputs), targets, sequences.num_targets)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected_gradients[name], atol=1e-6), name


def test_generator_gets_no_gradient_from_the_discriminator_and_shares_its_embeddings() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "embedding_size": 16, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = ElectraConfig(vocab_size=50, intermediate_size=32, **sizes)
    joint = build_generator_and_discriminator(
        ElectraForPreTraining(config), ElectraConfig(vocab_size=50, **sizes), 0.25
    )
    assert joint.generator.model.config.hidden_size == 8
    embeddings = joint.discriminator.electra.embeddings.word_embeddings.weight
    assert joint.generator.model.electra.embeddings.word_embeddings.weight is embeddings
    original_ids = torch.randint(5, 50, (6, 13))
    masked_ids = original_ids.clone()
    masked_ids[:, ::4] = 3
    target_positions = (masked_ids == 3).flatten().nonzero()[:, 0]
    further = torch.tensor([1, 2, 15])  # targets that round their number up
    is_masked = masked_ids == 3
    positions = torch.cat([target_positions, further])
    output = joint(masked_ids, torch.ones_like(masked_ids), original_ids, is_masked, positions)
    assert not output.is_replaced[~is_masked].any()
    assert output.is_replaced[is_masked].any()
    output.discriminator_logits.sum().backward()
    assert all(parameter.grad is None for name, parameter in joint.generator.named_parameters() if "encoder" in name)
