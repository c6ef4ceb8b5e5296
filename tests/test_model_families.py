"""Every encoder family of transformers: each answer is that of plain transformers on the text alone, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from bertcli.errors import ModelError
from bertcli.models.freezing import PrecomputedHiddenStates, encoder_layers, parameter_depths
from bertcli.models.from_pretrained import UNSUPPORTED_FAMILIES
from bertcli.models.tokenizer_matching import match_tokenizer

from .model_families import (
    CELLS,
    CLASSIFIER,
    FAMILIES,
    PAIRS,
    TEXTS,
    build_config,
    build_tokenizer,
    check_family,
    documented_table,
    encode,
    format_table,
    read_table,
)

WITHOUT_LAYERS = (
    *("albert", "flaubert", "xlm"),  # refused
    *("reformer", "squeezebert"),  # layers without gradients, or that hooks do not see
)


def test_documented_table_has_every_family_and_cell() -> None:
    table = read_table(documented_table())
    assert tuple(table) == FAMILIES
    assert all(tuple(cells) == tuple(CELLS) for cells in table.values())
    assert format_table(table) == documented_table()


@pytest.mark.parametrize(
    ("family", "cell"),
    [
        *[("bert", cell) for cell in CELLS if cell != "ONNX"],
        *(("layoutlm", "text"), ("lxmert", "hidden states"), ("fnet", "choices"), ("reformer", "gradual")),
    ],
)
def test_some_cells_of_the_table(family: str, cell: str) -> None:
    assert check_family(family, [cell]) == {cell: read_table(documented_table())[family][cell]}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_answer_is_that_of_plain_transformers_or_refused(family: str) -> None:
    assert check_family(family) == read_table(documented_table())[family]


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({*FAMILIES} - {*UNSUPPORTED_FAMILIES} - {*WITHOUT_LAYERS}))
def test_no_part_that_the_layers_read_is_taken_for_one_above_them(family: str) -> None:
    """Layer decay and freezing must not treat such a part as the head."""
    model = build_any_model(family)
    layers, depths = encoder_layers(model), parameter_depths(model)
    states = []
    layers[-1].register_forward_hook(lambda layer, inputs, output: states.append(first_tensor(output)))
    model(**encode(build_tokenizer(family), TEXTS[1]))
    parameters = {name: part for name, part in model.named_parameters() if part.requires_grad}
    gradients = torch.autograd.grad(states[0].square().sum(), list(parameters.values()), allow_unused=True)
    read = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    assert read
    assert [name for name in read if depths[name] > len(layers)] == []


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({*FAMILIES} - {*UNSUPPORTED_FAMILIES}))
def test_head_on_precomputed_hidden_states_gives_the_same_logits(family: str) -> None:
    """As `training.strategy=features` trains it."""
    model, tokenizer = build_any_model(family), build_tokenizer(family)
    match_tokenizer(tokenizer, model.config, family)
    inputs: Any = tokenizer(TEXTS, PAIRS, return_tensors="pt", padding=True)
    try:
        PrecomputedHiddenStates(model)
    except ModelError:
        return
    with torch.inference_mode():
        hidden_states, expected = model.base_model(**inputs)[0], model(**inputs)[0]
        logits = model(**inputs, frozen_hidden_states=hidden_states)[0]
    assert torch.allclose(logits, expected, atol=1e-5)


def build_any_model(family: str) -> Any:
    """Return a small model of a family with one of the heads that it has."""
    config = build_config(family, build_tokenizer(family))
    for name in (CLASSIFIER, "AutoModelForTokenClassification", "AutoModelForQuestionAnswering"):
        auto_class: Any = getattr(transformers, name)
        if type(config) in auto_class._model_mapping:
            return auto_class.from_config(config).eval()
    raise AssertionError(f"{family} has no head")


def first_tensor(output: Any) -> torch.Tensor:
    """Return the hidden states in the output of a layer."""
    while not isinstance(output, torch.Tensor):
        output = output["hidden_states"] if isinstance(output, dict) else output[0]
    return output
