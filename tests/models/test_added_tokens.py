"""Words and markers that extend a vocabulary: how texts are tokenized, and the rows of models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from bertcli.errors import DataError, ModelError
from bertcli.models.added_tokens import AddedTokens, add_tokens, read_tokens
from bertcli.models.from_pretrained import ModelSource, save_model
from bertcli.models.tokenizer_training import train_tokenizer

from ..conftest import TEXTS

KEY = "model.add_tokens"
LOWERCASE = [*TEXTS, "patients at the party were treated with drug doses"]


@pytest.fixture(scope="module")
def uncased() -> PreTrainedTokenizerBase:
    return train_tokenizer(lambda: LOWERCASE, 150)


@pytest.fixture(params=["uncased", "cased", "bpe", "unigram", "roberta", "pretrained"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def tokenizer_of(kind: str, roberta_tokenizer: PreTrainedTokenizerBase, encoder: Path) -> PreTrainedTokenizerBase:
    if kind == "roberta":
        return copy.deepcopy(roberta_tokenizer)
    if kind == "pretrained":
        return ModelSource(str(encoder)).load_tokenizer()
    algorithm: Any = {"uncased": "wordpiece", "cased": "wordpiece"}.get(kind, kind)
    vocab_size = {"bpe": 300, "unigram": 60}.get(kind, 150)
    return train_tokenizer(lambda: LOWERCASE, vocab_size, algorithm, lowercase=kind != "cased")


def tokens(tokenizer: Any, text: str) -> list[str]:
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return list(tokenizer.convert_ids_to_tokens(ids))


def test_words_match_as_whole_words_and_markers_anywhere(
    kind: str, roberta_tokenizer: PreTrainedTokenizerBase, encoder: Path
) -> None:
    tokenizer = tokenizer_of(kind, roberta_tokenizer, encoder)
    plain = copy.deepcopy(tokenizer)
    added = add_tokens(tokenizer, ("art", "imatinib", "[DRUG]", "il-2"), KEY)
    assert len(added.pieces) == 4
    assert added.note == "4 added tokens"
    for text, word, number in (
        ("art", "art", 1),
        ("a fine art, art", "art", 2),
        ("(art)", "art", 1),
        ("the party, artful: smart", "art", 0),
        ("imatinib imatinibs", "imatinib", 1),
        ("a [DRUG] x[DRUG]y", "[DRUG]", 2),
        ("il-2 il-21 (il-2)", "il-2", 2),
    ):
        assert tokens(tokenizer, text).count(word) == number, text
    for text in ("the party", "smart doses were treated"):
        assert tokens(tokenizer, text) == tokens(plain, text)
    words = tokenizer([["take", "imatinib", "(art)"]], is_split_into_words=True)
    assert words.word_ids(0).count(1) == 1


@pytest.mark.parametrize("kind", ["uncased", "cased", "bpe", "unigram"])
def test_saved_tokenizer_finds_the_same_ids_in_plain_transformers(
    kind: str, roberta_tokenizer: PreTrainedTokenizerBase, encoder: Path
) -> None:
    tokenizer = tokenizer_of(kind, roberta_tokenizer, encoder)
    add_tokens(tokenizer, ("Imatinib", "art", "[DRUG]", "naïve"), KEY)
    tokenizer.save_pretrained("saved")
    texts = ["Imatinib, imatinib and IMATINIB.", "a naïve party: art [DRUG] [drug]x", "naive"]
    loaded = transformers.AutoTokenizer.from_pretrained("saved")
    assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]


def test_an_uncased_tokenizer_ignores_the_case_of_words(uncased: PreTrainedTokenizerBase) -> None:
    for written in ("imatinib", "Imatinib", "IMATINIB"):
        tokenizer = copy.deepcopy(uncased)
        (index,) = add_tokens(tokenizer, (written,), KEY).pieces
        for text in ("imatinib", "Imatinib", "IMATINIB"):
            assert tokenizer(f"with {text}.", add_special_tokens=False)["input_ids"].count(index) == 1
    cased = train_tokenizer(lambda: LOWERCASE, 150, lowercase=False)
    (index,) = add_tokens(cased, ("imatinib",), KEY).pieces
    assert index not in cased("Imatinib")["input_ids"]


def test_words_of_scripts_without_spaces_match_inside_a_sentence() -> None:
    tokenizer = train_tokenizer(lambda: ["使用药物治疗"] * 3, 60, "unigram")
    (index,) = add_tokens(tokenizer, ("伊马替尼",), KEY).pieces
    assert index in tokenizer("使用伊马替尼治疗")["input_ids"]


def test_no_space_is_left_before_an_added_word_of_a_byte_level_tokenizer(
    roberta_tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer = copy.deepcopy(roberta_tokenizer)
    add_tokens(tokenizer, ("zyx",), KEY)
    assert tokens(tokenizer, "fine zyx film") == [*tokens(roberta_tokenizer, "fine"), "zyx",
                                                 *tokens(roberta_tokenizer, " film")]  # fmt: skip


def test_known_and_repeated_tokens_are_skipped_and_named(uncased: PreTrainedTokenizerBase) -> None:
    tokenizer, size = copy.deepcopy(uncased), len(uncased)
    added = add_tokens(tokenizer, ("party", "Party", "imatinib", "IMATINIB", "[MASK]", "imatinib"), KEY)
    assert list(added.pieces) == [size]
    assert added.note == (
        "1 added token; skipped 2 already in the vocabulary: party, [MASK]; skipped 3 listed twice: "
        "Party (model.add_tokens[1]), IMATINIB (model.add_tokens[3]), imatinib (model.add_tokens[5])"
    )
    assert add_tokens(tokenizer, ("imatinib",), KEY).note.startswith("0 added tokens; skipped 1 already")
    assert len(tokenizer) == size + 1


def test_padding_saved_with_a_tokenizer_adds_no_pieces(uncased: PreTrainedTokenizerBase) -> None:
    expected = add_tokens(copy.deepcopy(uncased), ("party", "imatinib"), KEY)
    tokenizer = copy.deepcopy(uncased)
    tokenizer.backend_tokenizer.enable_padding(length=20)
    assert add_tokens(tokenizer, ("party", "imatinib"), KEY) == expected


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe", "unigram"])
def test_special_tokens_remain_special(algorithm: Any) -> None:
    vocab_size = {"wordpiece": 150, "bpe": 300, "unigram": 60}[algorithm]
    tokenizer = train_tokenizer(lambda: LOWERCASE, vocab_size, algorithm)
    special = tuple(tokenizer.all_special_tokens)
    before = copy.deepcopy(tokenizer.added_tokens_decoder)
    assert add_tokens(tokenizer, special, KEY).known == special
    assert tokenizer.added_tokens_decoder == before


def test_word_with_the_text_of_a_piece_uses_its_entry(roberta_tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer = copy.deepcopy(roberta_tokenizer)
    vocab = tokenizer.get_vocab()
    word = next(word for word in sorted(vocab) if word.isascii() and word.isalpha() and f"Ġ{word}" not in vocab)
    added = add_tokens(tokenizer, (word, "zyxzyx"), KEY)
    assert added.note == f"1 added token; 1 use the entry of a piece of the same text: {word}"
    assert tokenizer.encode(f"a {word}", add_special_tokens=False)[-1] == vocab[word]


def test_file_has_a_token_per_line() -> None:
    Path("words.txt").write_bytes("\ufeffimatinib\r\n\n [DRUG] \nil-2".encode())
    assert read_tokens("words.txt", KEY) == [
        ("imatinib", "words.txt:1"), ("[DRUG]", "words.txt:3"), ("il-2", "words.txt:4")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nnew york\n", r"^words\.txt:2: found 'new york', expected a single word or marker without spaces"),
        (b"a\nb\x00\n", r"^words\.txt:2: found 'b\\x00', expected printable characters"),
        (b"a\n\xff\n", r"^words\.txt:2: not valid UTF-8"),
        (b"x" * 101, r"^words\.txt:1: found 'xxx.*, expected at most 100 characters"),
        (b"\n \n", r"found 0 tokens in words\.txt, expected 1 to 10,000"),
        (b"".join(b"w%d\n" % number for number in range(10_001)), r"found 10,001 tokens in words\.txt"),
        (None, r"^cannot read words\.txt, the file of model\.add_tokens \(No such file"),
    ],
)
def test_unusable_files_are_refused_with_the_line(content: bytes | None, message: str) -> None:
    if content is not None:
        Path("words.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_tokens("words.txt", KEY)


def test_token_that_is_normalized_to_nothing_is_refused(uncased: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"^model\.add_tokens\[1\]: the tokenizer normalizes .* to nothing"):
        add_tokens(copy.deepcopy(uncased), ("imatinib", "\u0301"), KEY)


@pytest.mark.parametrize(("old", "new"), [(100, 103), (96, 104), (128, 192), (110, 110)])
def test_padding_of_the_vocabulary_is_used_and_kept(old: int, new: int) -> None:
    first = {100: 100, 96: 96, 128: 128, 110: 105}[old]
    added = AddedTokens({first + number: [5, 6] for number in range(3)})
    assert added.vocab_size(old) == new


SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
SIZES |= {"d_model": 32, "d_ff": 32, "d_kv": 16, "num_heads": 2, "num_layers": 2, "embedding_size": 32, "n_head": 2}
SIZES |= {"n_embd": 32, "n_layer": 2, "dim": 32, "n_heads": 2, "n_layers": 2, "emb_dim": 32, "hidden_dim": 64}
SIZES |= {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
SIZES |= {
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "true_hidden_size": 32,
    "intra_bottleneck_size": 32,
}
FAMILIES = [
    *[("bert", f"AutoModelFor{head}") for head in ("MaskedLM", "PreTraining", "SequenceClassification")],
    *[(family, "AutoModelForMaskedLM") for family in ("roberta", "albert", "distilbert", "electra", "mpnet", "xlm")],
    *[(family, "AutoModelForMaskedLM") for family in ("modernbert", "deberta-v2", "mobilebert", "ibert")],
    *[("albert", "AutoModelForPreTraining"), ("t5", "AutoModelForSeq2SeqLM"), ("gpt2", "AutoModelForCausalLM")],
    *[("bart", "AutoModelForSeq2SeqLM"), ("xlnet", "AutoModelForSequenceClassification")],
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "model_class"), FAMILIES)
def test_new_rows_are_the_means_of_those_of_the_pieces(family: str, model_class: str, tied: bool) -> None:
    defaults = transformers.AutoConfig.for_model(family)
    fields = {name: value for name, value in SIZES.items() if hasattr(defaults, name)}
    fields |= {"vocab_size": 60, "pad_token_id": 0, "tie_word_embeddings": tied}
    torch.manual_seed(0)
    model = getattr(transformers, model_class).from_config(transformers.AutoConfig.for_model(family, **fields)).eval()
    for name, part in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(part)
    old, inputs = copy.deepcopy(model), {"input_ids": torch.tensor([[5, 9, 17, 5, 30, 2]])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    added = AddedTokens({60: [5, 7], 61: [9], 62: [11, 12, 13]})
    added.extend_model(model)
    assert model.config.vocab_size == 63
    table, old_table = (part.get_input_embeddings().weight for part in (model, old))
    assert torch.equal(table[:60], old_table)
    for index, pieces in added.pieces.items():
        torch.testing.assert_close(table[index], old_table[pieces].mean(0))
    with torch.no_grad():
        logits, old_logits = model(**inputs)[0], old(**inputs)[0]
    torch.testing.assert_close(logits[..., : old_logits.shape[-1]], old_logits)
    if old_logits.shape[-1] == 60:
        assert logits.shape[-1] == 63
        for index, pieces in added.pieces.items():  # linear in the rows
            torch.testing.assert_close(logits[..., index], old_logits[..., pieces].mean(-1), atol=1e-5, rtol=1e-4)
    model.save_pretrained("saved")
    loaded, report = type(model).from_pretrained("saved", output_loading_info=True)
    assert not report["mismatched_keys"]
    assert not report["missing_keys"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**inputs)[0], logits)


def test_spare_rows_of_a_padded_vocabulary_are_used(encoder: Path) -> None:
    tokenizer = ModelSource(str(encoder)).load_tokenizer()
    config = transformers.AutoConfig.from_pretrained(encoder, vocab_size=len(tokenizer) + 5)
    model = transformers.BertForMaskedLM(config)
    table = model.bert.embeddings.word_embeddings.weight
    old = table.detach().clone()
    added = add_tokens(tokenizer, ("imatinib", "[DRUG]"), KEY)
    added.extend_model(model)
    assert model.config.vocab_size == len(old)
    assert model.bert.embeddings.word_embeddings.weight is model.cls.predictions.decoder.weight is table
    for index, pieces in added.pieces.items():
        torch.testing.assert_close(table[index], old[pieces].mean(0))
    others = [index for index in range(len(old)) if index not in added.pieces]
    assert torch.equal(table[others], old[others])
    save_model(model, tokenizer, Path("saved"))
    assert ModelSource("saved").load_model("AutoModelForMaskedLM").config.vocab_size == len(old)


def test_model_without_a_vocabulary_is_refused() -> None:
    config = transformers.CanineConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ModelError, match="tokens cannot be added to canine models"):
        AddedTokens({60: [5]}).extend_model(transformers.CanineModel(config))
