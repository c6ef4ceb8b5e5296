"""Loading of models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bertcli.errors import ModelError
from bertcli.models.from_pretrained import ModelSource, check_model_class, save_model
from bertcli.models.lora import add_lora, save_lora
from bertcli.models.missing_weights import MissingWeights, describe_tensors
from bertcli.recipe.schema import TrainingSection

from ..conftest import allow_missing

CLASSIFIER = "AutoModelForSequenceClassification"
LAYER = "bert.encoder.layer.1.* (16 tensors)"
EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


def save(folder: str, encoder: Path, model_class: str, **fields: object) -> Path:
    """Save a randomly initialized model of the configuration of `encoder`."""
    config = transformers.AutoConfig.from_pretrained(encoder, **fields)
    torch.manual_seed(0)
    model = getattr(transformers, model_class).from_config(config)
    save_model(model, ModelSource(str(encoder)).load_tokenizer(), Path(folder))
    return Path(folder)


def drop(folder: Path, part: str) -> str:
    """Remove the tensors whose names contain `part` from a saved model; return its name."""
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if part not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    return str(folder)


def test_load_model_aligns_weights_in_memory(encoder: Path) -> None:
    for head in ("AutoModel", CLASSIFIER, "AutoModelForMaskedLM"):
        model = ModelSource(str(encoder)).load_model(head, on_missing=allow_missing)
        assert {part.data_ptr() % 64 for part in (*model.parameters(), *model.buffers())} == {0}


@pytest.mark.parametrize(
    ("part", "model_class", "named"),
    [
        ("encoder.layer.1.", CLASSIFIER, LAYER),
        ("encoder.layer.1.", "AutoModel", LAYER),
        ("encoder.layer.", CLASSIFIER, "bert.encoder.* (32 tensors)"),
        ("layer.1.output.dense", CLASSIFIER, "bert.encoder.layer.1.output.dense.* (2 tensors)"),
        ("word_embeddings", CLASSIFIER, EMBEDDINGS),
        ("classifier", CLASSIFIER, "classifier.* (2 tensors)"),
        ("classifier.bias", CLASSIFIER, "classifier.bias"),
        ("pooler", CLASSIFIER, "bert.pooler.* (2 tensors)"),
    ],
)
def test_weights_missing_from_a_model_are_refused(encoder: Path, part: str, model_class: str, named: str) -> None:
    name = drop(save("model", encoder, CLASSIFIER), part)
    with pytest.raises(ModelError, match=f"^model lacks weights that its configuration needs: {re.escape(named)};"):
        ModelSource(name).load_model(model_class)


def test_weights_missing_from_a_masked_language_model_are_refused(encoder: Path) -> None:
    name = drop(save("model", encoder, "AutoModelForMaskedLM"), "predictions.")
    with pytest.raises(ModelError, match=r"needs: cls\.\* \(5 tensors\);"):
        ModelSource(name).load_model("AutoModelForMaskedLM")
    drop(Path(name), "word_embeddings")  # the output matrix is tied to it, and missing with it
    with pytest.raises(ModelError, match=rf"needs: {EMBEDDINGS}, cls\.\* \(5 tensors\);"):
        ModelSource(name).load_model("AutoModelForMaskedLM")


def test_a_head_that_is_not_needed_may_be_missing(encoder: Path) -> None:
    name = drop(save("model", encoder, CLASSIFIER), "classifier")
    ModelSource(name).load_model("AutoModel")


@pytest.mark.parametrize(
    "model_class", ["AutoModel", "AutoModelForTokenClassification", "AutoModelForQuestionAnswering"]
)
def test_a_pooler_that_the_head_does_not_use_may_be_missing(encoder: Path, model_class: str) -> None:
    name = drop(save("model", encoder, model_class), "pooler")
    model = ModelSource(name).load_model(model_class).eval()
    inputs = {"input_ids": torch.tensor([[2, 7, 3]])}
    assert model.base_model.pooler is None
    assert torch.equal(model(**inputs)[0], ModelSource(name).load_model(model_class).eval()(**inputs)[0])


@pytest.mark.parametrize(
    ("family", "model_class"),
    [
        *[("roberta", head) for head in ("AutoModelForMaskedLM", CLASSIFIER, "AutoModelForMultipleChoice")],
        *[("albert", head) for head in ("AutoModelForMaskedLM", "AutoModelForPreTraining")],
        *[("electra", head) for head in ("AutoModelForMaskedLM", "AutoModelForPreTraining", CLASSIFIER)],
        *[("bert", head) for head in ("AutoModelForMaskedLM", "AutoModelForPreTraining", "AutoModelForCausalLM")],
        *[(family, "AutoModelForMaskedLM") for family in ("distilbert", "modernbert", "deberta-v2", "mpnet")],
        *[("t5", "AutoModelForSeq2SeqLM"), ("gpt2", "AutoModelForCausalLM")],
    ],
)
def test_no_weights_are_missing_from_a_saved_model(family: str, model_class: str) -> None:
    defaults = transformers.AutoConfig.for_model(family)
    sizes = {"num_hidden_layers": 2, "num_layers": 2, "vocab_size": 128, "hidden_size": 32, "intermediate_size": 32}
    sizes |= {"num_attention_heads": 2, "d_model": 32, "d_ff": 32, "d_kv": 16, "num_heads": 2, "embedding_size": 32}
    sizes |= {"pad_token_id": 0, "n_layer": 2, "n_embd": 32, "n_head": 2, "n_layers": 2, "dim": 32, "n_heads": 2}
    fields = {name: value for name, value in sizes.items() if hasattr(defaults, name)}
    model = getattr(transformers, model_class).from_config(transformers.AutoConfig.for_model(family, **fields))
    model.save_pretrained("model")
    loaded = ModelSource("model").load_model(model_class).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_a_new_head_and_missing_encoder_weights_are_reported(encoder: Path) -> None:
    found: list[MissingWeights] = []
    name = drop(save("model", encoder, "AutoModelForMaskedLM"), "layer.1.")
    for new_head in (False, True):
        ModelSource(name).load_model(CLASSIFIER, new_head=new_head, on_missing=found.append)
    assert found == [MissingWeights(LAYER, "bert.pooler.* (2 tensors), classifier.* (2 tensors)")] * 2
    with pytest.raises(ModelError, match=re.escape(LAYER)):
        ModelSource(name).load_model("AutoModelForTokenClassification", new_head=True)


def test_saved_layers_that_the_configuration_lacks_are_reported(encoder: Path) -> None:
    found: list[MissingWeights] = []
    for model_class in ("AutoModel", CLASSIFIER):
        folder = save(model_class, encoder, model_class, num_hidden_layers=3)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
        ModelSource(str(folder)).load_model(CLASSIFIER, on_missing=found.append)
    assert [weights.unused for weights in found] == ["bert.encoder.layer.2.* (16 tensors)"] * 2
    with pytest.raises(ModelError, match=r"weights that its configuration does not use: bert\.encoder\.layer\.2\.\*"):
        ModelSource(str(folder)).load_model(CLASSIFIER)


def test_weights_of_another_shape_are_refused_by_name(encoder: Path) -> None:
    folder = save("model", encoder, CLASSIFIER)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(ModelError, match=rf"{EMBEDDINGS} has the shape \[\d+, 16\], expected \[100, 16\]"):
        ModelSource("model").load_model(CLASSIFIER)


def test_a_missing_shard_is_refused_by_name(encoder: Path) -> None:
    folder = save("model", encoder, CLASSIFIER)
    transformers.AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(
        "sharded", max_shard_size="10KB"
    )
    shards = sorted(Path("sharded").glob("*.safetensors"))
    assert len(shards) > 1
    ModelSource("sharded").load_model(CLASSIFIER)
    shards[1].unlink()
    with pytest.raises(ModelError, match=rf"sharded: .*{shards[1].name}"):
        ModelSource("sharded").load_model(CLASSIFIER)


def test_tensors_are_listed_by_module() -> None:
    expected = [f"layer.{layer}.{part}.{kind}" for layer in range(9) for part in "ab" for kind in ("weight", "bias")]
    assert describe_tensors(expected[:4], expected) == "layer.0.* (4 tensors)"
    assert describe_tensors(expected[2:3], expected) == "layer.0.b.weight"
    assert describe_tensors(expected[2:8], expected) == "layer.0.b.* (2 tensors), layer.1.* (4 tensors)"
    assert describe_tensors(expected, expected) == "layer.* (36 tensors)"
    assert describe_tensors(expected[::4], expected).endswith("layer.4.a.weight and 4 more")


@pytest.mark.parametrize(
    ("family", "model_class", "head"),
    [
        ("deberta", "AutoModelForMultipleChoice", "multiple choice"),
        ("nomic_bert", "AutoModelForQuestionAnswering", "question answering"),
        ("bart", "AutoModelForTokenClassification", "token classification"),
    ],
)
def test_head_that_the_family_does_not_have_is_refused(family: str, model_class: str, head: str) -> None:
    Path("model").mkdir()
    transformers.AutoConfig.for_model(family).save_pretrained("model")
    save_file({"weight": torch.zeros(1)}, "model/model.safetensors")
    with pytest.raises(ModelError, match=f"cannot use model: {family} has no model for {head} \\({model_class}\\)"):
        ModelSource("model").load_model(model_class, on_missing=allow_missing)


def test_classifier_of_an_encoder_decoder_needs_the_first_token_of_its_decoder() -> None:
    check_model_class(transformers.T5Config(decoder_start_token_id=0), CLASSIFIER, "t5")
    with pytest.raises(ModelError, match=r"config\.json of t5 lacks decoder_start_token_id"):
        check_model_class(transformers.T5Config(), CLASSIFIER, "t5")


def test_tokenizer_without_a_fast_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.models.canine.tokenization_canine.UNICODE_VOCAB_SIZE", 99)  # of a million
    transformers.CanineConfig().save_pretrained("canine")
    transformers.CanineTokenizer().save_pretrained("canine")
    with pytest.raises(ModelError, match="the tokenizer of canine, a CanineTokenizer, has no fast version"):
        ModelSource("canine").load_tokenizer()


@pytest.mark.parametrize("config_only", [True, False])
@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "t5", "camembert", "xlnet", None])
def test_tokenizer_without_a_vocabulary_is_refused(encoder: Path, family: str | None, config_only: bool) -> None:
    """Without files, transformers makes up a tokenizer that has only special tokens."""
    save("model", encoder, CLASSIFIER)
    if family:
        Path("model/config.json").write_text(json.dumps({"model_type": family}))
        set_in_json(Path("model/tokenizer_config.json"), tokenizer_class=None)
    Path("model/tokenizer.json").unlink()
    if config_only:
        Path("model/tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=r"^no tokenizer in model: tokenizer\.json .* is missing, .*; restore it$"):
        ModelSource("model").load_tokenizer()


def test_missing_tokenizer_of_a_family_without_a_default_vocabulary_is_named() -> None:
    Path("model").mkdir()
    Path("model/config.json").write_text('{"model_type": "modernbert"}')
    with pytest.raises(ModelError, match=r"^cannot read the tokenizer in model: .* \(tokenizer\.json is missing\)$"):
        ModelSource("model").load_tokenizer()


def test_tokenizer_with_vocabulary_files_but_no_tokenizer_json_is_accepted(encoder: Path) -> None:
    save("model", encoder, CLASSIFIER)
    vocabulary = transformers.AutoTokenizer.from_pretrained("model").get_vocab()
    Path("model/tokenizer.json").unlink()
    Path("model/vocab.txt").write_text("\n".join(sorted(vocabulary, key=lambda token: vocabulary[token])))
    assert ModelSource("model").load_tokenizer().get_vocab() == vocabulary
    transformers.RobertaConfig().save_pretrained("byte-level")
    Path("byte-level/vocab.json").write_text(json.dumps({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5}))
    Path("byte-level/merges.txt").write_text("#version: 0.2\n")
    set_in_json(Path("byte-level/config.json"), architectures=["RobertaModel"])
    assert ModelSource("byte-level").load_tokenizer()("ab", add_special_tokens=False)["input_ids"] == [4, 5]


def set_in_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("hidden_act", "foo", "KeyError: 'foo'"),
        ("num_attention_heads", 0, "ZeroDivisionError: integer modulo by zero"),
        ("hidden_dropout_prob", 5, "ValueError: dropout probability has to be between 0 and 1, but got 5"),
        ("layer_norm_eps", "x", "StrictDataclassFieldValidationError: .*'layer_norm_eps': .*expected float"),
        ("dtype", "foo", "AttributeError: .*'foo'"),
        ("id2label", ["a"], "AttributeError: 'list'"),
        ("model_type", "foo", "ValueError: .* model type `foo`"),
    ],
)
def test_configuration_that_cannot_be_used_is_refused_by_file_and_reason(
    encoder: Path, field: str, value: object, reason: str
) -> None:
    source = ModelSource(save("model", encoder, CLASSIFIER))
    set_in_json(Path("model/config.json"), **{field: value})
    message = rf"^the config\.json of model cannot be used \({reason}.*\); correct or restore it$"
    with pytest.raises(ModelError, match=message):
        source.load_model(CLASSIFIER)
    if field in ("layer_norm_eps", "dtype", "id2label"):  # transformers reads config.json to find the tokenizer's class
        with pytest.raises(ModelError, match=message):
            source.load_tokenizer()


@pytest.mark.parametrize("architectures", ["Bert", [5]])
def test_architectures_that_are_not_class_names_are_refused(encoder: Path, architectures: object) -> None:
    source = ModelSource(save("model", encoder, CLASSIFIER))
    set_in_json(Path("model/config.json"), architectures=architectures)
    with pytest.raises(ModelError, match=r"config\.json of model has the architectures .*, expected a list of class"):
        _ = source.config


@pytest.mark.parametrize("name", ["classifier.weight", "bert.encoder.layer.0.output.dense.bias"])
def test_parameters_saved_as_integers_are_refused_by_name(encoder: Path, name: str) -> None:
    source = ModelSource(save("model", encoder, CLASSIFIER))
    file = Path("model/model.safetensors")
    state = load_file(file)
    save_file(state | {name: state[name].long(), "extra.position_ids": torch.arange(3)}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"^{name} in model/model\.safetensors is saved as I64, expected a floating"):
        source.load_model(CLASSIFIER)
    if name.startswith("classifier"):
        source.load_model(CLASSIFIER, new_head=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite_are_refused_by_name(encoder: Path, value: float, dtype: torch.dtype) -> None:
    source = ModelSource(save("model", encoder, CLASSIFIER))
    file = Path("model/model.safetensors")
    state = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    key = "bert.encoder.layer.1.attention.self.key.weight"
    for name, heads in ((key, (CLASSIFIER, "AutoModel")), ("classifier.bias", (CLASSIFIER,))):
        tensor = state[name].clone()
        tensor.view(-1)[1] = value
        save_file(state | {name: tensor}, file, {"format": "pt"})
        for head in heads:
            message = rf"^{name.removeprefix('bert.' if head == 'AutoModel' else '')} in model/model\.safetensors has "
            with pytest.raises(ModelError, match=rf"{message}values that are NaN or infinite, expected finite"):
                source.load_model(head)
    source.load_model(CLASSIFIER, new_head=True)  # which does not use the saved classifier


def test_large_finite_weights_are_accepted(encoder: Path) -> None:
    """Their sum overflows."""
    source = ModelSource(save("model", encoder, CLASSIFIER))
    file = Path("model/model.safetensors")
    state = load_file(file)
    save_file(state | {"classifier.bias": torch.full_like(state["classifier.bias"], 3e38)}, file, {"format": "pt"})
    source.load_model(CLASSIFIER)


def test_adapter_without_its_configuration_or_of_another_kind_is_refused(
    encoder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    save_adapter(encoder)
    config = Path("adapter/adapter_config.json")
    set_in_json(config, peft_type="IA3")
    recwarn.clear()
    with pytest.raises(ModelError, match=r"^the adapter in adapter has the peft_type 'IA3', expected 'LORA'; merge it"):
        ModelSource("adapter").load_model(CLASSIFIER)
    assert not recwarn.list
    for content in ("[]", "{"):
        config.write_text(content)
        with pytest.raises(ModelError, match=r"^cannot read the LoRA adapter in adapter: "):
            ModelSource("adapter").load_model(CLASSIFIER)
    config.unlink()
    with pytest.raises(ModelError, match=r"adapter in adapter: adapter_config\.json is missing; restore it$"):
        ModelSource("adapter").load_model(CLASSIFIER)


def test_adapter_that_is_not_finite_is_refused_by_name(encoder: Path) -> None:
    save_adapter(encoder)
    file = Path("adapter/adapter_model.safetensors")
    state = load_file(file)
    name = next(name for name in state if "lora_B" in name)
    save_file(state | {name: torch.full_like(state[name], torch.nan)}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lora_B\S* in adapter/adapter_model\.safetensors has values that are NaN"):
        ModelSource("adapter").load_model(CLASSIFIER)


def save_adapter(encoder: Path) -> None:
    source = ModelSource(str(encoder))
    model = source.load_model(CLASSIFIER, {"num_labels": 2}, on_missing=allow_missing)
    peft_model = add_lora(model, TrainingSection(strategy="lora", lora_rank=4), str(encoder.resolve()))
    save_lora(peft_model, source.load_tokenizer(), Path("adapter"), merged=False)


def test_adapter_of_another_rank_is_refused_by_shape(encoder: Path) -> None:
    save_adapter(encoder)
    set_in_json(Path("adapter/adapter_config.json"), r=8)
    with pytest.raises(ModelError) as caught:
        ModelSource("adapter").load_model(CLASSIFIER)
    assert re.fullmatch(
        r"the weights in adapter do not match its adapter_config\.json: \S+lora_A\.weight has the shape \[4, \d+\], "
        r"expected \[8, \d+\]; .* and \d+ more\. Restore its files",
        str(caught.value),
    )


def test_adapter_saved_as_integers_or_with_an_invalid_configuration_is_refused(encoder: Path) -> None:
    save_adapter(encoder)
    file = Path("adapter/adapter_model.safetensors")
    state = load_file(file)
    name = next(name for name in state if "classifier" in name)
    save_file(state | {name: state[name].int()}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"classifier\S* in adapter/adapter_model\.safetensors is saved as I32"):
        ModelSource("adapter").load_model(CLASSIFIER)
    set_in_json(Path("adapter/config.json"), num_attention_heads=0)
    with pytest.raises(ModelError, match=r"the config\.json of adapter cannot be used \(ZeroDivisionError"):
        ModelSource("adapter").load_model(CLASSIFIER)


def save_with_peft(base: Path, model_class: str, task_type: str | None, **config_fields: Any) -> torch.nn.Module:
    """Save an adapter in the folder `adapter` as peft does, without config.json and tokenizer; return the model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = getattr(transformers, model_class).from_pretrained(base, **config_fields).eval()
    adapter = LoraConfig(task_type=task_type, r=2, target_modules=["query", "value"])
    peft_model = get_peft_model(model, adapter).eval()
    for name, part in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(part)
    peft_model.save_pretrained("adapter")
    assert not Path("adapter/config.json").exists()
    return peft_model


@pytest.mark.parametrize(
    ("model_class", "task_type", "num_labels"),
    [
        (CLASSIFIER, "SEQ_CLS", 3),
        (CLASSIFIER, "SEQ_CLS", 1),
        ("AutoModelForTokenClassification", "TOKEN_CLS", 5),
        ("AutoModelForQuestionAnswering", "QUESTION_ANS", 2),
        ("AutoModel", "FEATURE_EXTRACTION", None),
    ],
)
def test_adapter_saved_by_peft_without_a_configuration_is_loaded_with_its_base(
    encoder: Path, model_class: str, task_type: str, num_labels: int | None
) -> None:
    expected = save_with_peft(
        encoder, model_class, task_type, **({} if num_labels is None else {"num_labels": num_labels})
    )
    source = ModelSource("adapter")
    model = source.load_model(model_class).eval()
    ids = torch.tensor([source.load_tokenizer()("a fine film")["input_ids"]])
    with torch.no_grad():
        outputs, expected_outputs = model(ids), expected(ids)
    for name, values in expected_outputs.items():
        torch.testing.assert_close(outputs[name], values)
    assert num_labels is None or model.config.num_labels == num_labels


def test_adapter_without_a_configuration_whose_base_or_class_is_unknown_is_refused(encoder: Path) -> None:
    save_with_peft(encoder, CLASSIFIER, "SEQ_CLS", num_labels=3)
    file = Path("adapter/adapter_config.json")
    set_in_json(file, task_type=None)
    with pytest.raises(ModelError, match=r"adapter in adapter has no config\.json.* no class of bert models.*save_pre"):
        ModelSource("adapter").load_model(CLASSIFIER)
    set_in_json(file, task_type="SEQ_CLS", base_model_name_or_path="./nowhere")
    with pytest.raises(ModelError, match=r"base model './nowhere' of the LoRA adapter in adapter: found no folder"):
        ModelSource("adapter").load_model(CLASSIFIER)


def test_adapter_without_the_name_of_its_base_is_refused(encoder: Path) -> None:
    save_with_peft(encoder, CLASSIFIER, "SEQ_CLS", num_labels=3)
    for name in (None, "", 5):
        set_in_json(Path("adapter/adapter_config.json"), base_model_name_or_path=name)
        with pytest.raises(
            ModelError, match=r"^the adapter_config\.json in adapter does not name the base model .*Hub$"
        ):
            ModelSource("adapter").load_model(CLASSIFIER)


@pytest.mark.parametrize("has_config", [False, True])
def test_adapter_in_the_folder_of_its_base_is_refused(encoder: Path, has_config: bool) -> None:
    save_with_peft(encoder, CLASSIFIER, "SEQ_CLS", num_labels=3)
    if has_config:
        shutil.copytree(save("base", encoder, CLASSIFIER), "adapter", dirs_exist_ok=True)
    set_in_json(Path("adapter/adapter_config.json"), base_model_name_or_path=str(Path("adapter").resolve()))
    with pytest.raises(ModelError, match=r"base model .* of the LoRA adapter in adapter: that is the folder of the ad"):
        ModelSource("adapter").load_model(CLASSIFIER)


def test_adapter_of_a_language_model_keeps_the_head_of_its_base(encoder: Path) -> None:
    base = save("base", encoder, "AutoModelForMaskedLM")
    expected = save_with_peft(base, "AutoModelForMaskedLM", None)
    source, ids = ModelSource("adapter"), torch.tensor([[2, 9, 4, 3]])
    with torch.no_grad():
        torch.testing.assert_close(source.load_model("AutoModelForMaskedLM").eval()(ids).logits, expected(ids).logits)


@pytest.mark.parametrize(
    ("renamed", "message"), [("adapter_model.bin", "pickled LoRA adapter"), ("gone", "is missing")]
)
def test_adapter_without_a_configuration_and_weights_is_refused(encoder: Path, renamed: str, message: str) -> None:
    save_with_peft(encoder, CLASSIFIER, "SEQ_CLS", num_labels=3)
    Path("adapter/adapter_model.safetensors").rename(f"adapter/{renamed}")
    with pytest.raises(ModelError, match=f"^no weights in adapter: .*{message}"):
        ModelSource("adapter").load_model(CLASSIFIER)


def test_adapter_without_a_configuration_is_found_in_the_mirror_with_its_base(encoder: Path) -> None:
    save_with_peft(encoder, "AutoModelForMaskedLM", None)
    set_in_json(Path("adapter/adapter_config.json"), base_model_name_or_path="some/base")
    shutil.copytree("adapter", "mirror/models/some/adapter")
    shutil.copytree(encoder, "mirror/models/some/base")
    source = ModelSource("some/adapter", Path("mirror"))
    assert source.config.architectures == ["BertForMaskedLM"]
    model = source.load_model(CLASSIFIER, {"num_labels": 4}, on_missing=allow_missing)
    key = "encoder.layer.0.attention.self.query.weight"
    base = ModelSource(str(encoder)).load_model("AutoModel").state_dict()[key]
    assert not torch.equal(model.base_model.state_dict()[key], base)
