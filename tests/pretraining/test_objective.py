"""Objectives by counting: spans lost and said again, next tokens, what the generator sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ElectraConfig, ElectraForPreTraining, PreTrainedTokenizerBase

from bertcli.data.sample import sample_documents
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.pretraining.causal_lm import CausalLM
from bertcli.pretraining.masked_lm import MaskedLM
from bertcli.pretraining.objective import Text
from bertcli.pretraining.replaced_token_detection import build_generator_and_discriminator
from bertcli.pretraining.span_corruption import SpanCorruption, corrupt, lose_spans
from bertcli.recipe.pretrain_schema import ObjectiveSection
from bertcli.training.devices import on_device


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(lambda: sample_documents(100), 500, sentinels=True)


def texts_of(tokenizer: PreTrainedTokenizerBase, number: int = 50) -> list[Text]:
    nothing = np.empty(0, np.int32)
    made = []
    for document in sample_documents(number, seed=5):
        ids = np.asarray(tokenizer(document, add_special_tokens=False)["input_ids"], np.int32)
        made.append(Text(ids, np.ones(len(ids), bool), nothing, nothing.astype(bool), None))
    return made


def test_the_asked_share_is_lost_in_spans_of_the_asked_length() -> None:
    random = np.random.default_rng(0)
    lost, spans, total = 0, 0, 0
    for _ in range(1000):
        length = int(random.integers(20, 200))
        mask = lose_spans(length, 0.15, 3.0, 100, random)
        lost, total = lost + int(mask.sum()), total + length
        spans += int((mask & ~np.concatenate(([False], mask[:-1]))).sum())
        assert not mask[0]
    assert total > 100_000
    assert lost / total == pytest.approx(0.15, abs=0.01)
    assert lost / spans == pytest.approx(3.0, abs=0.15)


def test_text_and_answer_together_are_the_text() -> None:
    random = np.random.default_rng(1)
    sentinels = list(range(1000, 1100))
    for length in (2, 7, 60):
        ids = np.arange(length)
        kept, said = corrupt(ids, lose_spans(length, 0.4, 3.0, 100, random), sentinels)
        spans: dict[int, list[int]] = {}
        for token in said.tolist():
            if token >= 1000:
                spans[token] = []
            else:
                spans[next(reversed(spans))].append(token)
        whole = [part for token in kept.tolist() for part in (spans[token] if token >= 1000 else [token])]
        assert whole == ids.tolist()
        assert [token for token in kept if token >= 1000] == list(spans) == sentinels[: len(spans)]


def test_the_decoder_reads_the_answer_one_place_behind(tokenizer: PreTrainedTokenizerBase) -> None:
    objective = SpanCorruption(ObjectiveSection(kind="span_corruption"), tokenizer)
    asked = objective.ask(texts_of(tokenizer), np.random.default_rng(0))
    batch = asked.batch(np.arange(7))
    labels, read = batch["labels"], batch["decoder_input_ids"]
    assert (read[:, 0] == tokenizer.pad_token_id).all()
    real = labels[:, :-1] != -100
    assert read[:, 1:][real].equal(labels[:, :-1][real])
    assert asked.counts["labels"] == int((asked.batch(np.arange(50))["labels"] != -100).sum())


def test_the_label_of_a_place_is_the_next_token(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = CausalLM(ObjectiveSection(kind="causal_lm"), tokenizer).ask(texts_of(tokenizer), np.random.default_rng(0))
    batch = asked.batch(np.arange(9))
    ids, labels, lengths = batch["input_ids"], batch["labels"], batch["attention_mask"].sum(1)
    for row, length in enumerate(lengths.tolist()):
        assert labels[row, : length - 1].equal(ids[row, 1:length])
        assert (labels[row, length - 1 :] == -100).all()


@pytest.mark.parametrize("unit", ["tokens", "words", "spans"])
def test_special_tokens_are_never_asked_for(tokenizer: PreTrainedTokenizerBase, unit: str) -> None:
    section = ObjectiveSection(unit=unit, mlm_probability=0.5)  # type: ignore[arg-type]
    texts = texts_of(tokenizer, 300)
    for text in texts:
        text.first[3::7] = tokenizer.unk_token_id
    asked = MaskedLM(section, tokenizer).ask(texts, np.random.default_rng(0))
    batch = asked.batch(np.arange(300))
    chosen = batch["labels"][batch["labels"] != -100]
    assert len(chosen) > 3000
    assert not set(chosen.tolist()) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("pairs", [None, "next_sentence"])
def test_the_loss_and_gradient_are_those_of_the_whole_head(tokenizer: PreTrainedTokenizerBase, pairs: Any) -> None:
    from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

    objective = MaskedLM(ObjectiveSection(pairs=pairs), tokenizer)
    texts = [replace(text, pair_label=row % 2) for row, text in enumerate(texts_of(tokenizer, 13))]
    asked = objective.ask(texts, np.random.default_rng(0))
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    model = (BertForPreTraining if pairs else BertForMaskedLM)(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()
    batch = asked.batch(np.arange(13))
    whole = model(**{name: tensor for name, tensor in batch.items() if name != "asked"}).loss
    whole.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    asking = objective.build(model)
    sent = on_device(batch, asking, torch.device("cpu"))
    targets = {name: sent.pop(name) for name in asked.counts}
    loss = objective.loss(asking(**sent), targets, asked.counts)
    loss.backward()
    assert loss.item() == pytest.approx(whole.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-6), name


def test_the_generator_learns_nothing_from_the_discriminator_and_shares_its_embeddings() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "embedding_size": 16, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = ElectraConfig(vocab_size=50, intermediate_size=32, **sizes)
    joint = build_generator_and_discriminator(
        ElectraForPreTraining(config), ElectraConfig(vocab_size=50, **sizes), 0.25
    )
    assert joint.generator.model.config.hidden_size == 8
    embeddings = joint.discriminator.electra.embeddings.word_embeddings.weight
    assert joint.generator.model.electra.embeddings.word_embeddings.weight is embeddings
    original = torch.randint(5, 50, (6, 13))
    masked = original.clone()
    masked[:, ::4] = 3
    output = joint(masked, torch.ones_like(masked), original, (masked == 3).flatten().nonzero()[:, 0])
    assert not output.replaced[:, 1::4].any()
    output.discriminator_logits.sum().backward()
    assert all(parameter.grad is None for name, parameter in joint.generator.named_parameters() if "encoder" in name)
