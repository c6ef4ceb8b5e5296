"""Tiny models of every encoder family of transformers, and what bertcli does with each of them.

`python -m tests.model_families [FAMILY …]` prints the table of `recipes/model-families.md`.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertcli.commands.export import export
from bertcli.errors import BertcliError
from bertcli.finetuning.run import finetune
from bertcli.inference.embeddings import FeatureExtractor, pool
from bertcli.inference.fill_mask import MaskFiller
from bertcli.inference.loaded_model import load_for_inference, predict_inputs
from bertcli.models.from_pretrained import UNSUPPORTED_FAMILIES, ModelSource, check_model_class
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.recipe.load import load_recipe
from bertcli.recipe.schema import DataSection, HardwareSection
from bertcli.runs.folder import RunOptions

from .conftest import QUIET, REPOSITORY
from .conftest import TEXTS as SENTENCES

CLASSIFIER = "AutoModelForSequenceClassification"
TOLERANCE = 1e-4
FP32 = HardwareSection(device="cpu", precision="fp32")
TABLE_START, TABLE_END = "<!-- families: start -->", "<!-- families: end -->"  # in recipes/model-families.md
DECODERS = ("bloom", "gemma2", "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "modernbert-decoder", "opt", "phi",
            "qwen2", "qwen3")  # fmt: skip
BYTE_LEVEL_FAMILIES = ("roberta", "bart", "longformer")
SIZES = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "true_hidden_size"], 32),
    **dict.fromkeys(["intra_bottleneck_size"], 32),
    **dict.fromkeys(["intermediate_size", "d_ff", "d_inner", "hidden_dim"], 64),
    **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim"], 64),
    **dict.fromkeys(["max_position_embeddings", "n_positions"], 128),
    **dict.fromkeys(["num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_heads", "n_head", "num_heads", "encoder_attention_heads"], 2),
    **dict.fromkeys(["decoder_attention_heads", "num_key_value_heads"], 2),
    **dict.fromkeys(["d_kv", "d_head"], 16),
    "entity_vocab_size": 8,
}
UNSUPPORTED_FIELDS = {
    "xlnet": {"max_position_embeddings"},
    "funnel": {"num_hidden_layers"},
    "gpt2": {*SIZES} - {"n_embd", "n_layer", "n_head", "n_positions"},
}
SPECIFIC_FIELDS: dict[str, dict[str, Any]] = {
    "longformer": {"attention_window": [8, 8]},
    "funnel": {"block_sizes": [1, 1, 1], "num_decoder_layers": 1},
    **{family: {"decoder_start_token_id": 0} for family in ("t5", "mt5", "umt5", "bart", "mbart", "mvp")},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8,  # as DeBERTa-v3
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "reformer": {
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "attention_head_size": 16,
        "num_buckets": 4,
        "is_decoder": False,
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "roberta": {"type_vocab_size": 1},
    "fnet": {"tpu_short_seq_length": 64},
}


def build_wordpiece_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer like BERT's."""
    return train_tokenizer(lambda: SENTENCES, 128)


def build_roberta_tokenizer() -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer like RoBERTa's: a space belongs to the following word, no token types."""
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(SENTENCES, vocab_size=300, special_tokens=special, show_progress=False)
    state = json.loads(trained._tokenizer.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in state["merges"]]
    return transformers.RobertaTokenizer(vocab=state["vocab"], merges=merges, add_prefix_space=True)


def build_xlnet_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer like XLNet's: [CLS] is last, has a token type of its own, and padding is on the left."""
    wordpiece: Any = build_wordpiece_tokenizer()
    wordpiece.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A:0 [SEP]:0 [CLS]:2",
        pair="$A:0 [SEP]:0 $B:1 [SEP]:1 [CLS]:2",
        special_tokens=[(token, wordpiece.convert_tokens_to_ids(token)) for token in ("[SEP]", "[CLS]")],
    )
    names = {name: wordpiece.special_tokens_map[name] for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=wordpiece.backend_tokenizer, padding_side="left", model_input_names=inputs, **names
    )


def build_gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer like GPT-2's: it adds no special tokens, the end of text is its only one."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SENTENCES, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")


def build_tokenizer(family: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer of the kind that a family uses, WordPiece by default."""
    if family in DECODERS:
        return build_gpt2_tokenizer()
    if family == "xlnet":
        return build_xlnet_tokenizer()
    return build_roberta_tokenizer() if family in BYTE_LEVEL_FAMILIES else build_wordpiece_tokenizer()


def build_config(family: str, tokenizer: PreTrainedTokenizerBase, **fields: Any) -> Any:
    """Return the configuration of a small model of a family, for this tokenizer."""
    defaults = transformers.AutoConfig.for_model(family)
    names = {name for name in SIZES if hasattr(defaults, name)} - UNSUPPORTED_FIELDS.get(family, set())
    sizes = {name: SIZES[name] for name in names} | SPECIFIC_FIELDS.get(family, {})
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id or tokenizer.cls_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.eos_token_id or tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }
    if getattr(defaults, "pad_token_id", None) is not None:
        ids["pad_token_id"] = ids["pad_token_id"] or 0
    sizes |= {name: value for name, value in ids.items() if value is not None}
    config = transformers.AutoConfig.for_model(family, **sizes | fields, vocab_size=len(tokenizer))
    config.architectures = config.architectures or []
    return config


def save(
    family: str,
    tokenizer: PreTrainedTokenizerBase,
    model_class: str = CLASSIFIER,
    folder: str | Path | None = None,
    **fields: Any,
) -> PreTrainedModel:
    """Save a small model with random weights, those of the padding token included, to `folder` (default: `family`)."""
    auto_class: Any = getattr(transformers, model_class)
    torch.manual_seed(0)
    model = auto_class.from_config(build_config(family, tokenizer, **fields)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder or family)
    tokenizer.save_pretrained(folder or family)
    return model


def save_supported(
    family: str, tokenizer: PreTrainedTokenizerBase, model_class: str, folder: str, **fields: Any
) -> None:
    """Save a small model (see `save`), or only a configuration of a family that bertcli does not support.

    Raises:
        ModelError: if the family has no model of this class.
    """
    config = build_config(family, tokenizer)
    if family not in UNSUPPORTED_FAMILIES:
        check_model_class(config, model_class, folder)
        save(family, tokenizer, model_class, folder, **fields)
        return
    names: Any = getattr(transformers, model_class)._model_mapping._model_mapping.get(family)
    if names is None:
        check_model_class(config, model_class, folder)
    config.architectures = [names] if isinstance(names, str) else [*names]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file({"weight": torch.zeros(1)}, Path(folder, "model.safetensors"))


TEXTS = ["a fine film", "what a lovely day the soup was awful i love it", "i love bad train", "the soup was fine"]
PAIRS = ["bad train", "what a film", "a lovely day the soup was awful i love it", "fine"]
LABELS = {"id2label": {0: "bad", 1: "good", 2: "so"}, "label2id": {"bad": 0, "good": 1, "so": 2}}


def plain(folder: str, model_class: str, output: str = "logits") -> Callable[..., np.ndarray]:
    """Return a function that computes the output of a saved model in plain transformers, for inputs [1, S]."""
    auto_class: Any = getattr(transformers, model_class)
    model = auto_class.from_pretrained(folder).eval()

    def compute(inputs: Any) -> np.ndarray:
        with torch.inference_mode():
            outputs = model(**inputs)
        names = ("start_logits", "end_logits") if output == "spans" else (output,)
        parts = [outputs[name].numpy() for name in names]
        return np.stack(parts, -1)[0] if output == "spans" else parts[0][0]

    return compute


def encode(tokenizer: Any, *texts: Any, **options: Any) -> dict[str, torch.Tensor]:
    return dict(tokenizer(*texts, return_tensors="pt", **options))


def assert_close(found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, f"shape {found.shape}, expected {expected.shape}"
    difference = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
    assert difference <= TOLERANCE, f"differs by {difference:.1e}"


def predicted(folder: str, rows: list[dict[str, Any]]) -> tuple[list[np.ndarray], Any]:
    """Return the logits that bertcli predicts for rows that share batches, and the tokenizer that it uses."""
    loaded = load_for_inference(ModelSource(folder), FP32)
    chunks = list(predict_inputs(loaded, loaded.task, rows, QUIET))
    (_, _, encoded, logits) = chunks[0]
    if loaded.head.per_token:
        logits = [logits[start:end] for start, end in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)]
    return list(logits), loaded.tokenizer


def check_single(family: str, tokenizer: Any) -> None:
    save_supported(family, tokenizer, CLASSIFIER, "model", **LABELS)
    found, used = predicted("model", [{"text": text} for text in TEXTS])
    compute = plain("model", CLASSIFIER)
    for text, logits in zip(TEXTS, found, strict=True):
        assert_close(logits, compute(encode(used, text)))


def check_pair(family: str, tokenizer: Any) -> None:
    save_supported(family, tokenizer, CLASSIFIER, "model", **LABELS)
    loaded = load_for_inference(ModelSource("model"), FP32)
    task = loaded.task.model_copy(update={"text_columns": ("text", "text_pair")})
    rows = [{"text": text, "text_pair": pair} for text, pair in zip(TEXTS, PAIRS, strict=True)]
    ((_, _, _, found),) = predict_inputs(loaded, task, rows, QUIET)
    compute = plain("model", CLASSIFIER)
    for text, pair, logits in zip(TEXTS, PAIRS, found, strict=True):
        assert_close(logits, compute(encode(loaded.tokenizer, text, pair)))


def check_tags(family: str, tokenizer: Any) -> None:
    save_supported(family, tokenizer, "AutoModelForTokenClassification", "model", **LABELS)
    words = [text.split() for text in TEXTS]
    found, used = predicted("model", [{"tokens": row} for row in words])
    compute = plain("model", "AutoModelForTokenClassification")
    for row, logits in zip(words, found, strict=True):
        assert_close(logits, compute(encode(used, row, is_split_into_words=True)))


def check_questions(family: str, tokenizer: Any) -> None:
    save_supported(family, tokenizer, "AutoModelForQuestionAnswering", "model")
    rows = [{"question": text, "context": pair} for text, pair in zip(TEXTS, PAIRS, strict=True)]
    found, used = predicted("model", rows)
    compute = plain("model", "AutoModelForQuestionAnswering", "spans")
    for row, logits in zip(rows, found, strict=True):
        assert_close(logits, compute(encode(used, row["question"], row["context"])))


def check_choices(family: str, tokenizer: Any) -> None:
    save_supported(family, tokenizer, "AutoModelForMultipleChoice", "model")
    rows = [{"text": text, "choices": [PAIRS[0], PAIRS[row]]} for row, text in enumerate(TEXTS[1:], 1)]
    found, used = predicted("model", rows)
    compute = plain("model", "AutoModelForMultipleChoice")
    for row, logits in zip(rows, found, strict=True):
        for choice, logit in zip(row["choices"], logits, strict=True):
            inputs = {name: value[None] for name, value in encode(used, row["text"], choice).items()}
            assert_close([logit], compute(inputs))


def check_masks(family: str, tokenizer: Any) -> None:
    save_supported(family, tokenizer, "AutoModelForMaskedLM", "model")
    filler = MaskFiller(ModelSource("model"), 3, FP32)
    texts = [f"{text} {filler.tokenizer.mask_token} day" for text in TEXTS]
    compute = plain("model", "AutoModelForMaskedLM")
    predictions, _ = filler.predict_rows([{"text": text} for text in texts], 0, "text")
    for text, found in zip(texts, predictions, strict=True):
        inputs = encode(filler.tokenizer, text)
        logits = torch.from_numpy(compute(inputs))[inputs["input_ids"][0] == filler.tokenizer.mask_token_id]
        expected = logits.softmax(-1).topk(3).values[0]
        assert_close([entry["probability"] for entry in found["masks"][0]], expected)


def check_features(family: str, tokenizer: Any) -> None:
    save_supported(family, tokenizer, "AutoModel", "model")
    layers = [0, 1, -1]
    extractor = FeatureExtractor(ModelSource("model"), layers, DataSection(), FP32)
    encoded = extractor.encode(TEXTS, None)
    found = pool(extractor.hidden_states(encoded), encoded, "mean")
    model: Any = transformers.AutoModel.from_pretrained("model").eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    for text, features in zip(TEXTS, found, strict=True):
        inputs = encode(extractor.tokenizer, text)
        with torch.inference_mode():
            states = model(**inputs, output_hidden_states=True).hidden_states
        assert_close(features, np.stack([states[layer][0].mean(0).numpy() for layer in layers]))


def check_export(family: str, tokenizer: Any) -> None:
    import onnxruntime

    save_supported(family, tokenizer, CLASSIFIER, "model", **LABELS)
    export("model", Path("exported"), console=QUIET)
    session = onnxruntime.InferenceSession("exported/model.onnx")
    used: Any = transformers.AutoTokenizer.from_pretrained("exported")
    compute = plain("model", CLASSIFIER)
    for text in TEXTS:
        inputs = encode(used, text)
        (found, *_) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
        assert_close(found[0], compute(inputs))


def check_strategy(*overrides: str) -> Callable[[str, Any], None]:
    """Return a check that fine-tunes an encoder for two steps, then predicts."""

    def check(family: str, tokenizer: Any) -> None:
        save_supported(family, tokenizer, "AutoModel", "model")
        rows = [f"{text},{label}" for text in TEXTS for label in ("bad", "good")]
        Path("rows.csv").write_text("\n".join(["text,label", *rows]), "utf-8")
        Path("recipe.yaml").write_text(
            "task: {files: {train: rows.csv, validation: rows.csv}, text_columns: [text], labels: [bad, good]}\n"
            "model: {name: model}\ndata: {max_length: 100}\n"
            "training: {max_steps: 2, global_batch_size: 4, learning_rate: 1e-2, seed: 1}\n"
            "hardware: {device: cpu, precision: fp32}\n",
            "utf-8",
        )
        finetune(load_recipe("recipe.yaml", overrides), Path("run"), RunOptions(console=QUIET))
        found, used = predicted("run", [{"text": text} for text in TEXTS])
        compute = plain("run/model", CLASSIFIER)
        for text, logits in zip(TEXTS, found, strict=True):
            assert_close(logits, compute(encode(used, text)))

    return check


CELLS: dict[str, Callable[[str, Any], None]] = {
    "text": check_single,
    "pair": check_pair,
    "tags": check_tags,
    "questions": check_questions,
    "choices": check_choices,
    "masks": check_masks,
    "hidden states": check_features,
    "frozen encoder": check_strategy("training.strategy=features"),
    "gradual": check_strategy("training.strategy=gradual", "training.unfreeze_every_steps=1"),
    "LoRA": check_strategy("training.strategy=lora", "training.lora_merge=true"),
    "layer decay": check_strategy("training.layer_decay=0.5"),
    "frozen layers": check_strategy("training.freeze_layers=1"),
    "ONNX": check_export,
}


def _families() -> tuple[str, ...]:
    """Return the encoder families that have a class for one of bertcli's heads, and some decoders that do."""
    from transformers.models.auto import modeling_auto as auto

    heads = ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "MULTIPLE_CHOICE", "MASKED_LM")
    names = {head: {*getattr(auto, f"MODEL_FOR_{head}_MAPPING_NAMES")} for head in heads}
    is_encoder = names["MASKED_LM"] | names["MULTIPLE_CHOICE"]
    decoders = {*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - is_encoder
    return (*sorted(set().union(*names.values()) - decoders), *DECODERS)


FAMILIES = _families()


def check_family(family: str, cells: Iterable[str] = CELLS) -> dict[str, str]:
    """Return what bertcli does with each cell of a family: nothing else than plain transformers (``), or a refusal.

    Raises:
        AssertionError: if an output differs from that of plain transformers on the text alone.
    """
    results = {}
    for cell in cells:
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            try:
                CELLS[cell](family, build_tokenizer(family))
                results[cell] = ""
            except BertcliError as error:
                results[cell] = generalized(str(error), family)
            except AssertionError as error:
                raise AssertionError(f"{family}, {cell}: {error}") from error
    return results


def generalized(sentence: str, family: str) -> str:
    """Return an error message without the family's name and numbers, so that families share footnotes."""
    sentence = re.sub(rf"(?<![\w-]){family}(?![\w-])|(?<=cannot export )\w+", "FAMILY", sentence)
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "N", sentence)


def format_table(results: dict[str, dict[str, str]]) -> str:
    """Return the table of families and cells in Markdown, with a footnote for each reason of a refusal."""
    reasons = list(dict.fromkeys(reason for cells in results.values() for reason in cells.values() if reason))
    numbers = {"": "✓"} | {reason: f"[{number}]" for number, reason in enumerate(reasons, 1)}
    rows = [["family", *CELLS], ["---"] * (1 + len(CELLS))]
    rows += [[family, *(numbers[cells[cell]] for cell in CELLS)] for family, cells in results.items()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))])


def read_table(text: str) -> dict[str, dict[str, str]]:
    """Return the results of a table that `format_table` wrote."""
    reasons = {f"[{number}]": reason for number, reason in re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE)}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    names = rows[0][1:]
    return {
        family: dict(zip(names, (reasons.get(cell, "") for cell in cells), strict=True)) for family, *cells in rows[2:]
    }


def documented_table() -> str:
    """Return the table in `recipes/model-families.md`."""
    text = (REPOSITORY / "recipes" / "model-families.md").read_text("utf-8")
    return text.partition(TABLE_START)[2].partition(TABLE_END)[0].strip()


if __name__ == "__main__":
    print(format_table({family: check_family(family) for family in sys.argv[1:] or FAMILIES}))
