"""Compiled layers compute what the others compute, and no length of batch compiles them anew."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partialmethod

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AlbertConfig, AlbertModel

from bertcli.data.token_index import with_layout
from bertcli.errors import UsageError
from bertcli.models.compile import compile_layers, undo_compiling
from bertcli.models.padding_free import speed_up
from tests.models.test_padding_free import CPU, FAMILIES, LENGTHS, assert_same, build, encode, loss_and_gradients

CLASSIFIER = "AutoModelForSequenceClassification"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What one test compiles is not found by the next."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def traced_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts are traced and run as they were traced, without the minute that compiling takes."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))


def compare_at(lengths_of_batches: list[list[int]], family: str) -> None:
    plain, model = build(family, CLASSIFIER), build(family, CLASSIFIER)
    speed_up(model, CPU)
    assert compile_layers(model) == (2 if family == "distilbert" else 6)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for lengths in lengths_of_batches:
        batch = encode(lengths, labels="items").batch(np.arange(len(lengths)))
        compiled = loss_and_gradients(model, with_layout(batch, "first", on_cpu=True))
        assert_same(loss_and_gradients(plain, batch), compiled)


@pytest.mark.usefixtures("traced_alone")
@pytest.mark.parametrize("family", FAMILIES)
def test_traced_layers_compute_the_same(family: str) -> None:
    compare_at([LENGTHS], family)
    assert counters["stats"]["unique_graphs"] == (1 if family == "distilbert" else 3)  # for all layers together


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_layers_compute_the_same_at_any_length(family: str) -> None:
    compare_at([LENGTHS, [6, 6, 6]], family)
    known = counters["stats"]["unique_graphs"]
    compare_at([LENGTHS, [9, 2], [6, 6, 6], [17, 4, 3, 3], [30, 8]], family)
    assert counters["stats"]["unique_graphs"] == known
    assert not counters["graph_break"]


@pytest.mark.usefixtures("traced_alone")
def test_dropout_is_torchs_own_in_what_is_compiled() -> None:
    model = build("bert", CLASSIFIER)
    speed_up(set_dropout_of(model, 0.5), CPU)
    compile_layers(model)
    batch = encode(LENGTHS, labels="items").batch(np.arange(len(LENGTHS)))
    losses = {loss_and_gradients(model, with_layout(batch, "first", on_cpu=True))[0] for _ in range(3)}
    assert len(losses) == 3
    assert not counters["graph_break"]


@pytest.mark.usefixtures("traced_alone")
def test_what_was_compiled_is_undone() -> None:
    plain, model = build("bert", CLASSIFIER), build("bert", CLASSIFIER)
    speed_up(model, CPU)
    as_it_was = str(model)
    assert compile_layers(model)
    undo_compiling(model)
    assert str(model) == as_it_was
    batch = encode(LENGTHS, labels="items").batch(np.arange(len(LENGTHS)))
    assert_same(loss_and_gradients(plain, batch), loss_and_gradients(model, with_layout(batch, "first", on_cpu=True)))
    assert not counters["stats"]["unique_graphs"]


def test_of_a_family_that_shares_one_layer_nothing_is_compiled() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "embedding_size": 8}
    assert compile_layers(AlbertModel(AlbertConfig(vocab_size=20, **sizes))) == 0


@pytest.mark.slow
def test_compiled_dropout_draws_the_same_numbers() -> None:
    model = set_dropout_of(build("bert", CLASSIFIER), 0.5)
    batch = encode(LENGTHS, labels="items").batch(np.arange(len(LENGTHS)))
    torch.manual_seed(3)
    plain = loss_and_gradients(model, batch)
    compile_layers(model)
    torch.manual_seed(3)
    assert_same(plain, loss_and_gradients(model, batch))
    assert counters["stats"]["unique_graphs"] == 3


@pytest.mark.slow
def test_what_the_compiler_fails_at_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)
    model = build("bert", CLASSIFIER)
    batch = encode(LENGTHS, labels="items").batch(np.arange(len(LENGTHS)))
    plain = loss_and_gradients(model, batch)
    with torch._inductor.config.patch(force_disable_caches=True):
        assert compile_layers(model, may_fail=True)
        assert_same(plain, loss_and_gradients(model, batch))


def set_dropout_of(model: torch.nn.Module, rate: float) -> torch.nn.Module:
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = rate
    return model


def test_without_a_compiler_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match=r"needs g\+\+, clang\+\+ or what CXX names"):
        compile_layers(build("bert", CLASSIFIER))
