"""Compiled layers give the same results, and new batch shapes do not recompile them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partialmethod

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AlbertConfig, AlbertModel

from bertcli.data.token_index import add_token_index
from bertcli.errors import UsageError
from bertcli.models.compile import compile_layers, uncompile_layers
from bertcli.models.padding_free import optimize_forward
from tests.models.test_padding_free import CPU, FAMILIES, LENGTHS, assert_same, build, encode, loss_and_gradients

CLASSIFIER = "AutoModelForSequenceClassification"


@pytest.fixture(autouse=True)
def reset_compiler() -> Iterator[None]:
    """Isolate the tests from each other's compiled code."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace the layers without compiling them, which would take a minute."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))


def assert_same_when_compiled(batch_lengths: list[list[int]], family: str) -> None:
    plain, model = build(family, CLASSIFIER), build(family, CLASSIFIER)
    optimize_forward(model, CPU)
    assert compile_layers(model) == (2 if family in ("distilbert", "modernbert") else 6)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for lengths in batch_lengths:
        batch = encode(lengths, labels="items").batch(np.arange(len(lengths)))
        compiled = loss_and_gradients(model, add_token_index(batch, "first", on_cpu=True, round_up=True))
        assert_same(loss_and_gradients(plain, batch), compiled)


@pytest.mark.usefixtures("eager_backend")
@pytest.mark.parametrize(
    "family", [FAMILIES[0], *(pytest.param(other, marks=pytest.mark.slow) for other in FAMILIES[1:])]
)
def test_compile_traced_layers_give_the_same_results(family: str) -> None:
    assert_same_when_compiled([LENGTHS], family)
    assert counters["stats"]["unique_graphs"] == (
        1 if family in ("distilbert", "modernbert") else 3
    )  # shared by all layers


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_compile_gives_the_same_results_for_any_length(family: str) -> None:
    assert_same_when_compiled([LENGTHS, [6, 6, 6]], family)
    num_graphs = counters["stats"]["unique_graphs"]
    assert_same_when_compiled([LENGTHS, [9, 2], [6, 6, 6], [17, 4, 3, 3], [30, 8]], family)
    assert counters["stats"]["unique_graphs"] == num_graphs
    assert not counters["graph_break"]


@pytest.mark.usefixtures("eager_backend")
def test_compile_restores_torch_dropout() -> None:
    model = build("bert", CLASSIFIER)
    optimize_forward(with_dropout(model, 0.5), CPU)
    compile_layers(model)
    batch = encode(LENGTHS, labels="items").batch(np.arange(len(LENGTHS)))
    losses = {
        loss_and_gradients(model, add_token_index(batch, "first", on_cpu=True, round_up=True))[0] for _ in range(3)
    }
    assert len(losses) == 3
    assert not counters["graph_break"]


@pytest.mark.usefixtures("eager_backend")
def test_uncompile_layers_restores_the_model() -> None:
    plain, model = build("bert", CLASSIFIER), build("bert", CLASSIFIER)
    optimize_forward(model, CPU)
    before = str(model)
    assert compile_layers(model)
    uncompile_layers(model)
    assert str(model) == before
    batch = encode(LENGTHS, labels="items").batch(np.arange(len(LENGTHS)))
    assert_same(
        loss_and_gradients(plain, batch),
        loss_and_gradients(model, add_token_index(batch, "first", on_cpu=True, round_up=True)),
    )
    assert not counters["stats"]["unique_graphs"]


def test_compile_skips_families_that_share_one_layer() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "embedding_size": 8}
    assert compile_layers(AlbertModel(AlbertConfig(vocab_size=20, **sizes))) == 0


@pytest.mark.slow
def test_compile_keeps_the_random_numbers_of_dropout() -> None:
    model = with_dropout(build("bert", CLASSIFIER), 0.5)
    batch = encode(LENGTHS, labels="items").batch(np.arange(len(LENGTHS)))
    torch.manual_seed(3)
    plain = loss_and_gradients(model, batch)
    compile_layers(model)
    torch.manual_seed(3)
    assert_same(plain, loss_and_gradients(model, batch))
    assert counters["stats"]["unique_graphs"] == 3


@pytest.mark.slow
def test_compile_suppress_errors_falls_back_to_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    model = build("bert", CLASSIFIER)
    batch = encode(LENGTHS, labels="items").batch(np.arange(len(LENGTHS)))
    plain = loss_and_gradients(model, batch)
    inductor, dynamo = torch._inductor.config, torch._dynamo.config  # a monkeypatch would leave `dynamo` broken
    with inductor.patch(force_disable_caches=True), dynamo.patch(suppress_errors=False):
        assert compile_layers(model, suppress_errors=True)
        assert_same(plain, loss_and_gradients(model, batch))


def with_dropout(model: torch.nn.Module, rate: float) -> torch.nn.Module:
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = rate
    return model


def test_compile_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler, and none was found"):
        compile_layers(build("bert", CLASSIFIER))
