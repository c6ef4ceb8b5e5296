"""Fine-tuning strategies: freezing, learning rate scales, LoRA and precomputed hidden states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from bertcli.errors import ModelError
from bertcli.models.freezing import (
    LayerFreezer,
    PrecomputedHiddenStates,
    lowest_trainable_depth,
    lr_scales,
    parameter_depths,
    reinitialize_layers,
)
from bertcli.models.from_pretrained import ModelSource, set_dropout
from bertcli.models.lora import add_lora, save_lora
from bertcli.models.padding_free import optimize_forward
from bertcli.recipe.plan import Plan
from bertcli.recipe.schema import TrainingSection

from ..conftest import allow_missing
from ..model_families import build_config, build_wordpiece_tokenizer

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


def build_small(family: str) -> Any:
    config = build_config(family, build_wordpiece_tokenizer())
    return transformers.AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_depths_follow_the_layers(family: str) -> None:
    model = build(family)
    depths = parameter_depths(model)
    assert set(depths) == {name for name, _ in model.named_parameters()}
    for name, depth in depths.items():
        words = name.split(".")
        numbers = [int(word) for word in words if word.isdigit()]
        is_layer = "layer" in words or "layers" in words
        assert depth == (numbers[0] + 1 if is_layer else 0 if "embeddings" in name else 4), name


def test_parameter_depths_find_embeddings_with_unusual_names() -> None:
    config = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
    depths = parameter_depths(transformers.GPT2ForSequenceClassification(config))
    assert depths["transformer.wte.weight"] == depths["transformer.wpe.weight"] == 0
    assert depths["transformer.h.1.mlp.c_fc.weight"] == 2
    assert depths["score.weight"] == 3


@pytest.mark.parametrize("family", ["gpt2", "t5", "albert", "funnel", "distilbert", "modernbert", "bert"])
def test_set_dropout_sets_every_dropout_field(family: str) -> None:
    config = transformers.CONFIG_MAPPING[family]()
    set_dropout(config, 0.0)
    left = {name: value for name, value in config.to_dict().items() if "drop" in name and value}
    assert not left


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_set_dropout_sets_the_rate_of_each_layer_of_a_token_classifier(family: str) -> None:
    sizes = {
        "n_layer": 1,
        "num_hidden_layers": 1,
        "n_embd": 16,
        "n_head": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
    }
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 20}
    defaults = transformers.CONFIG_MAPPING[family]()
    config = transformers.CONFIG_MAPPING[family](**{name: sizes[name] for name in sizes if hasattr(defaults, name)})
    set_dropout(config, 0.25)
    model = transformers.AutoModelForTokenClassification.from_config(config)
    assert {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)} == {0.25}


def test_parameter_depths_reject_families_that_share_one_layer() -> None:
    config = transformers.AlbertConfig(hidden_size=16, num_attention_heads=2, embedding_size=8, num_hidden_layers=4)
    with pytest.raises(ModelError, match="cannot identify the layers"):
        parameter_depths(transformers.AlbertModel(config))


@pytest.mark.parametrize("family", ["xlm", "flaubert"])
def test_parameter_depths_reject_families_with_the_parts_of_a_layer_in_several_lists(family: str) -> None:
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(family, emb_dim=16, n_layers=2))
    with pytest.raises(ModelError, match="cannot identify the layers"):
        parameter_depths(model)


def test_decoder_layers_are_above_those_of_the_encoder() -> None:
    sizes = {"encoder_layers": 2, "decoder_layers": 3, "d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    depths = parameter_depths(transformers.MBartForSequenceClassification(transformers.MBartConfig(**sizes)))
    assert depths["model.encoder.layers.1.fc1.weight"] == depths["model.encoder.layer_norm.weight"] == 2
    assert depths["model.decoder.layers.0.fc1.weight"] == 3
    assert depths["model.decoder.layer_norm.weight"] == depths["classification_head.dense.weight"] == 6
    assert depths["model.shared.weight"] == depths["model.decoder.embed_positions.weight"] == 0


def test_relative_positions_of_deberta_are_below_its_layers() -> None:
    model = build_small("deberta-v2")
    depths = parameter_depths(model)
    for part in ("rel_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"):
        assert depths[f"deberta.encoder.{part}"] == 0
    assert depths["deberta.encoder.conv.conv.weight"] == 1  # beside the first layer
    LayerFreezer(model, TrainingSection(freeze_layers=1), PLAN)
    trainable = [name for name, part in model.named_parameters() if part.requires_grad]
    assert trainable
    assert all(name.startswith(("deberta.encoder.layer.1.", "pooler.", "classifier.")) for name in trainable)


def test_features_strategy_needs_no_layers() -> None:
    model = build_small("albert")
    LayerFreezer(model, TrainingSection(strategy="features"), PLAN)
    trainable = {name for name, part in model.named_parameters() if part.requires_grad}
    assert trainable == {"albert.pooler.weight", "albert.pooler.bias", "classifier.weight", "classifier.bias"}


def test_lr_scales_decay_from_layer_to_layer() -> None:
    model = build()
    scales = lr_scales(model, TrainingSection(layer_decay=0.5, learning_rate=1e-3, head_learning_rate=4e-3))
    assert scales["classifier.weight"] == scales["bert.pooler.dense.bias"] == 4
    assert scales["bert.encoder.layer.2.output.dense.weight"] == 0.5
    assert scales["bert.encoder.layer.0.output.dense.weight"] == 0.125
    assert scales["bert.embeddings.word_embeddings.weight"] == 0.0625
    assert lr_scales(model, TrainingSection()) == {}


@pytest.mark.parametrize(
    ("settings", "lowest"),
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
def test_gradual_unfreezing_starts_from_the_top(settings: dict[str, Any], lowest: list[int]) -> None:
    section = TrainingSection(**settings)
    assert [lowest_trainable_depth(section, 3, PLAN, step) for step in (0, 10, 29)] == lowest


def test_layer_freezer_sets_trainable_parameters_at_each_step() -> None:
    model = build()
    freezer = LayerFreezer(model, TrainingSection(strategy="gradual", unfreeze_every_steps=1), PLAN)
    depths = parameter_depths(model)
    for step, lowest in enumerate([4, 3, 2, 1, 0, 0]):
        freezer.set_step(step)
        trainable = {name for name, part in model.named_parameters() if part.requires_grad}
        assert trainable == {name for name, depth in depths.items() if depth >= lowest}
    with pytest.raises(ModelError, match="has 3 layers"):
        LayerFreezer(model, TrainingSection(freeze_layers=4), PLAN)


def load_classifier(encoder: Path) -> PreTrainedModel:
    """Load an encoder with a new classifier."""
    return ModelSource(str(encoder)).load_model("AutoModelForSequenceClassification", on_missing=allow_missing)


def test_reinitialize_layers_changes_only_the_top_layers(encoder: Path) -> None:
    loaded = load_classifier(encoder)  # weights marked as loaded
    before = {name: part.clone() for name, part in loaded.named_parameters()}
    reinitialize_layers(loaded, 1)
    depths = parameter_depths(loaded)
    for name, part in loaded.named_parameters():
        is_reinitialized = depths[name] == 2 or "pooler" in name
        assert (not torch.equal(part, before[name])) == (
            is_reinitialized and name.endswith("weight") and "Norm" not in name
        ), name
    matrix = loaded.get_parameter("bert.encoder.layer.1.intermediate.dense.weight")
    assert abs(float(matrix.detach().std()) - loaded.config.initializer_range) < 0.02
    with pytest.raises(ModelError, match="has 2 layers"):
        reinitialize_layers(loaded, 3)


@pytest.mark.parametrize("merged", [True, False])
def test_lora_adapter_saved_alone_or_merged_gives_the_same_logits(encoder: Path, tmp_path: Path, merged: bool) -> None:
    model = load_classifier(encoder).eval()
    peft_model = add_lora(model, TrainingSection(strategy="lora", lora_rank=2), str(encoder))
    optimize_forward(model, torch.device("cpu"))
    trainable = {name for name, part in model.named_parameters() if part.requires_grad}
    assert all("lora" in name or "pooler" in name or "classifier" in name for name in trainable)
    assert sum("lora_A" in name for name in trainable) == 2 * 6  # matrices of the two layers
    with torch.no_grad():
        for part in model.parameters():
            if part.requires_grad:
                part.add_(0.3 * torch.randn_like(part))
    batch = {
        "input_ids": torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]]),
        "attention_mask": torch.tensor([[1] * 4, [1] * 3 + [0]]),
    }
    expected = model(**batch).logits
    save_lora(peft_model, ModelSource(str(encoder)).load_tokenizer(), tmp_path / "saved", merged=merged)
    assert (tmp_path / "saved" / "model.safetensors").is_file() == merged
    reloaded = ModelSource(str(tmp_path / "saved")).load_model("AutoModelForSequenceClassification").eval()
    torch.testing.assert_close(reloaded(**batch).logits, expected, atol=1e-5, rtol=1e-4)
    auto_class = transformers.AutoModelForSequenceClassification
    if merged:
        plain = auto_class.from_pretrained(tmp_path / "saved").eval()
    else:
        config = transformers.AutoConfig.from_pretrained(tmp_path / "saved")
        base = auto_class.from_pretrained(encoder, config=config)
        plain = PeftModel.from_pretrained(base, str(tmp_path / "saved")).eval()
    torch.testing.assert_close(plain(**batch).logits, expected, atol=1e-5, rtol=1e-4)
    fresh = ModelSource(str(tmp_path / "saved")).load_model("AutoModelForTokenClassification", new_head=True)
    assert torch.allclose(
        fresh.get_parameter("bert.encoder.layer.0.attention.self.query.weight"),
        reloaded.get_parameter("bert.encoder.layer.0.attention.self.query.weight"),
    )


def test_lora_corrupt_adapter_is_reported(encoder: Path, tmp_path: Path) -> None:
    model = load_classifier(encoder)
    peft_model = add_lora(model, TrainingSection(strategy="lora"), str(encoder))
    save_lora(peft_model, ModelSource(str(encoder)).load_tokenizer(), tmp_path, merged=False)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"corrupt")
    with pytest.raises(ModelError, match="LoRA adapter"):
        ModelSource(str(tmp_path)).load_model("AutoModelForSequenceClassification")


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("layer.1.", r"bert\.encoder\.layer\.1\.\* \(12 tensors\)"),
        ("layer.0.output.dense.lora_B.", r"bert\.encoder\.layer\.0\.output\.dense\.lora_B\.weight"),
        ("classifier.weight", r"classifier\.weight"),
    ],
)
def test_lora_adapter_that_lacks_weights_is_refused(encoder: Path, tmp_path: Path, part: str, named: str) -> None:
    peft_model = add_lora(load_classifier(encoder), TrainingSection(strategy="lora"), str(encoder))
    save_lora(peft_model, ModelSource(str(encoder)).load_tokenizer(), tmp_path, merged=False)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if part not in name}, path)
    with pytest.raises(ModelError, match=f"lacks weights that its configuration needs: {named}"):
        ModelSource(str(tmp_path)).load_model("AutoModelForSequenceClassification")


def test_lora_adapter_that_its_configuration_or_base_does_not_match_is_refused(encoder: Path, tmp_path: Path) -> None:
    peft_model = add_lora(load_classifier(encoder), TrainingSection(strategy="lora"), str(encoder))
    save_lora(peft_model, ModelSource(str(encoder)).load_tokenizer(), tmp_path / "adapter", merged=False)
    source, file = ModelSource(str(tmp_path / "adapter")), tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"target_modules": ["query"]}))
    with pytest.raises(ModelError, match="weights that its configuration does not use: bert"):
        source.load_model("AutoModelForSequenceClassification")
    shutil.copytree(encoder, tmp_path / "base")
    base_file = tmp_path / "base" / "config.json"
    base_file.write_text(json.dumps(json.loads(base_file.read_text()) | {"model_type": "electra"}))
    file.write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "base")}))
    with pytest.raises(ModelError, match=r"is for the model type bert, but its base model .* is of type electra"):
        source.load_model("AutoModelForSequenceClassification")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_precomputed_hidden_states_give_the_same_logits(family: str, head: str) -> None:
    if (family, head) == ("modernbert", "MultipleChoice"):
        pytest.skip("its head uses the attention mask")
    model = build(family, head).eval()
    shape = (2, 3, 5) if head == "MultipleChoice" else (2, 5)
    batch = {"input_ids": torch.randint(5, 50, shape), "attention_mask": torch.ones(shape, dtype=torch.long)}
    with torch.no_grad():
        expected = model(**batch)[0]
        hidden = model.base_model(*(part.flatten(0, -2) for part in batch.values())).last_hidden_state
        PrecomputedHiddenStates(model)
        optimize_forward(model, torch.device("cpu"))
        first_only = head in ("SequenceClassification", "MultipleChoice") and family != "modernbert"
        hidden_states = (hidden[:, :1] if first_only else hidden).reshape(*shape[:-1], -1, hidden.shape[-1])
        blank_batch = batch | {"input_ids": torch.zeros_like(batch["input_ids"])}
        torch.testing.assert_close(model(**blank_batch, frozen_hidden_states=hidden_states)[0], expected)
        torch.testing.assert_close(model(**batch)[0], expected)


@pytest.mark.parametrize(("family", "head"), [("gpt2", "SequenceClassification"), ("big_bird", "MultipleChoice")])
def test_precomputed_hidden_states_of_families_with_other_outputs_and_poolers(family: str, head: str) -> None:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    fields = sizes if family == "gpt2" else sizes | {"intermediate_size": 32}
    config = transformers.AutoConfig.for_model(family, vocab_size=50, pad_token_id=0, bos_token_id=1, **fields)
    model = getattr(transformers, f"AutoModelFor{head}").from_config(config).eval()
    shape = (2, 3, 5) if head == "MultipleChoice" else (2, 5)
    input_ids = torch.randint(5, 50, shape)
    with torch.no_grad():
        expected = model(input_ids=input_ids)[0]
        hidden = model.base_model(input_ids=input_ids.flatten(0, -2)).last_hidden_state
        PrecomputedHiddenStates(model)
        states = hidden.reshape(*shape, -1)
        torch.testing.assert_close(model(input_ids=input_ids, frozen_hidden_states=states)[0], expected)


def test_precomputed_hidden_states_are_refused_for_longformer() -> None:
    config = transformers.LongformerConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        attention_window=8,
    )
    model = transformers.LongformerForSequenceClassification(config)
    with pytest.raises(ModelError, match=r"strategy=features does not work with longformer .* training\.freeze_layers"):
        PrecomputedHiddenStates(model)
