"""Which weights learn, when, and how fast; and that a model that remembers its encoder answers the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from bertcli.errors import ModelError
from bertcli.models.freezing import Remembered, Unfreezing, depths_of, lowest_learning, rate_factors, reinitialise
from bertcli.models.from_pretrained import load_model, load_tokenizer, set_dropout
from bertcli.models.lora import add_lora, save_lora
from bertcli.models.padding_free import speed_up
from bertcli.recipe.plan import Plan
from bertcli.recipe.schema import TrainingSection

PLAN = Plan(100, 10, 30, 3, 10, 10, 1)
FAMILIES = ["bert", "roberta", "electra", "distilbert", "modernbert"]
HEADS = ["SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"]


def build(family: str = "bert", head: str = "SequenceClassification", layers: int = 3) -> Any:
    config = transformers.AutoConfig.for_model(family)
    sizes = {"hidden_size": 16, "dim": 16, "embedding_size": 16, "intermediate_size": 32, "hidden_dim": 32}
    sizes |= {"num_hidden_layers": layers, "n_layers": layers, "num_attention_heads": 2, "n_heads": 2, "vocab_size": 50}
    for name, value in sizes.items():
        if hasattr(config, name):
            setattr(config, name, value)
    config.pad_token_id = 0
    torch.manual_seed(0)
    return getattr(transformers, f"AutoModelFor{head}").from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_has_the_depth_of_its_part(family: str) -> None:
    model = build(family)
    depths = depths_of(model)
    assert set(depths) == {name for name, _ in model.named_parameters()}
    for name, depth in depths.items():
        words = name.split(".")
        numbers = [int(word) for word in words if word.isdigit()]
        is_layer = "layer" in words or "layers" in words
        assert depth == (numbers[0] + 1 if is_layer else 0 if "embeddings" in name else 4), name


def test_embeddings_are_known_whatever_they_are_called() -> None:
    config = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
    depths = depths_of(transformers.GPT2ForSequenceClassification(config))
    assert depths["transformer.wte.weight"] == depths["transformer.wpe.weight"] == 0
    assert depths["transformer.h.1.mlp.c_fc.weight"] == 2
    assert depths["score.weight"] == 3


@pytest.mark.parametrize("family", ["gpt2", "t5", "albert", "funnel", "distilbert", "modernbert", "bert"])
def test_no_dropout_is_left_where_none_is_wanted(family: str) -> None:
    config = transformers.CONFIG_MAPPING[family]()
    set_dropout(config, 0.0)
    left = {name: value for name, value in config.to_dict().items() if "drop" in name and value}
    assert not left


def test_a_family_that_shares_its_layers_is_refused() -> None:
    config = transformers.AlbertConfig(hidden_size=16, num_attention_heads=2, embedding_size=8, num_hidden_layers=4)
    with pytest.raises(ModelError, match="cannot be told apart"):
        depths_of(transformers.AlbertModel(config))


def test_each_layer_learns_slower_than_the_one_above_it() -> None:
    model = build()
    factors = rate_factors(model, TrainingSection(layer_decay=0.5, learning_rate=1e-3, head_learning_rate=4e-3))
    assert factors["classifier.weight"] == factors["bert.pooler.dense.bias"] == 4
    assert factors["bert.encoder.layer.2.output.dense.weight"] == 0.5
    assert factors["bert.encoder.layer.0.output.dense.weight"] == 0.125
    assert factors["bert.embeddings.word_embeddings.weight"] == 0.0625
    assert rate_factors(model, TrainingSection()) == {}


@pytest.mark.parametrize(
    ("given", "lowest"),
    [
        ({}, [0, 0, 0]),
        ({"freeze_embeddings": True}, [1, 1, 1]),
        ({"freeze_layers": 2}, [3, 3, 3]),
        ({"strategy": "features"}, [4, 4, 4]),
        ({"strategy": "gradual"}, [4, 1, 0]),  # 4 stages in the first half of 30 steps: one every 3
        ({"strategy": "gradual", "freeze_layers": 1}, [4, 3, 2]),
        ({"strategy": "gradual", "unfreeze_every_steps": 10}, [4, 3, 2]),
        ({"strategy": "gradual", "unfreeze_every_epochs": 2.0}, [4, 4, 3]),
    ],
)
def test_layers_join_from_the_top_as_the_recipe_says(given: dict[str, Any], lowest: list[int]) -> None:
    section = TrainingSection(**given)
    assert [lowest_learning(section, 3, PLAN, step) for step in (0, 10, 29)] == lowest


def test_what_learns_is_counted_at_each_stage() -> None:
    model = build()
    unfreezing = Unfreezing(model, TrainingSection(strategy="gradual", unfreeze_every_steps=1), PLAN)
    depths = depths_of(model)
    for step, lowest in enumerate([4, 3, 2, 1, 0, 0]):
        unfreezing.set_for(step)
        learning = {name for name, part in model.named_parameters() if part.requires_grad}
        assert learning == {name for name, depth in depths.items() if depth >= lowest}
    with pytest.raises(ModelError, match="has 3 layers"):
        Unfreezing(model, TrainingSection(freeze_layers=4), PLAN)


def test_the_highest_layers_begin_anew_and_no_other(encoder: Path) -> None:
    loaded = load_model(str(encoder), None, "AutoModelForSequenceClassification", {})  # weights marked as loaded
    before = {name: part.clone() for name, part in loaded.named_parameters()}
    reinitialise(loaded, 1)
    depths = depths_of(loaded)
    for name, part in loaded.named_parameters():
        is_new = depths[name] == 2 or "pooler" in name
        assert (not torch.equal(part, before[name])) == (is_new and name.endswith("weight") and "Norm" not in name), (
            name
        )
    matrix = loaded.get_parameter("bert.encoder.layer.1.intermediate.dense.weight")
    assert abs(float(matrix.detach().std()) - loaded.config.initializer_range) < 0.02
    with pytest.raises(ModelError, match="has 2 layers"):
        reinitialise(loaded, 3)


@pytest.mark.parametrize("merged", [True, False])
def test_additions_saved_alone_or_merged_answer_as_they_were_trained(
    encoder: Path, tmp_path: Path, merged: bool
) -> None:
    model = load_model(str(encoder), None, "AutoModelForSequenceClassification", {}).eval()
    view = add_lora(model, TrainingSection(strategy="lora", lora_rank=2), str(encoder))
    speed_up(model, torch.device("cpu"))
    learning = {name for name, part in model.named_parameters() if part.requires_grad}
    assert all("lora" in name or "pooler" in name or "classifier" in name for name in learning)
    assert sum("lora_A" in name for name in learning) == 2 * 6  # matrices of the two layers
    with torch.no_grad():
        for part in model.parameters():
            if part.requires_grad:
                part.add_(0.3 * torch.randn_like(part))
    batch = {
        "input_ids": torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]]),
        "attention_mask": torch.tensor([[1] * 4, [1] * 3 + [0]]),
    }
    expected = model(**batch).logits
    save_lora(view, load_tokenizer(str(encoder), None), tmp_path / "saved", merged=merged)
    assert (tmp_path / "saved" / "model.safetensors").is_file() == merged
    reloaded = load_model(str(tmp_path / "saved"), None, "AutoModelForSequenceClassification", {}).eval()
    torch.testing.assert_close(reloaded(**batch).logits, expected, atol=1e-5, rtol=1e-4)
    auto_class = transformers.AutoModelForSequenceClassification
    if merged:
        plain = auto_class.from_pretrained(tmp_path / "saved").eval()
    else:
        config = transformers.AutoConfig.from_pretrained(tmp_path / "saved")
        base = auto_class.from_pretrained(encoder, config=config)
        plain = PeftModel.from_pretrained(base, str(tmp_path / "saved")).eval()
    torch.testing.assert_close(plain(**batch).logits, expected, atol=1e-5, rtol=1e-4)
    fresh = load_model(str(tmp_path / "saved"), None, "AutoModelForTokenClassification", {}, fresh_head=True)
    assert torch.allclose(
        fresh.get_parameter("bert.encoder.layer.0.attention.self.query.weight"),
        reloaded.get_parameter("bert.encoder.layer.0.attention.self.query.weight"),
    )


def test_spoilt_additions_are_named(encoder: Path, tmp_path: Path) -> None:
    model = load_model(str(encoder), None, "AutoModelForSequenceClassification", {})
    view = add_lora(model, TrainingSection(strategy="lora"), str(encoder))
    save_lora(view, load_tokenizer(str(encoder), None), tmp_path, merged=False)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"spoilt")
    with pytest.raises(ModelError, match="additions"):
        load_model(str(tmp_path), None, "AutoModelForSequenceClassification", {})


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_remembered_hidden_states_answers_the_same(family: str, head: str) -> None:
    if (family, head) == ("modernbert", "MultipleChoice"):
        pytest.skip("transformers reads its mask inside the head")
    model = build(family, head).eval()
    shape = (2, 3, 5) if head == "MultipleChoice" else (2, 5)
    batch = {"input_ids": torch.randint(5, 50, shape), "attention_mask": torch.ones(shape, dtype=torch.long)}
    with torch.no_grad():
        expected = model(**batch)[0]
        hidden = model.base_model(*(part.flatten(0, -2) for part in batch.values())).last_hidden_state
        Remembered(model)
        speed_up(model, torch.device("cpu"))
        first_only = head in ("SequenceClassification", "MultipleChoice") and family != "modernbert"
        vectors = (hidden[:, :1] if first_only else hidden).reshape(*shape[:-1], -1, hidden.shape[-1])
        blank = batch | {"input_ids": torch.zeros_like(batch["input_ids"])}
        torch.testing.assert_close(model(**blank, vectors=vectors)[0], expected)
        torch.testing.assert_close(model(**batch)[0], expected)
