"""Trained tokenizers: round trips, special tokens, determinism and saving."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bertcli.data.encoding import split_at_spaces
from bertcli.data.sample import sample_documents
from bertcli.errors import DataError
from bertcli.models.tokenizer_training import train_tokenizer
from bertcli.recipe.pretrain_schema import TokenizerKind

KINDS: tuple[TokenizerKind, ...] = ("wordpiece", "bpe", "unigram")
TEXT = "anna saw the otter . but the soup was not bad ."


def trained(kind: TokenizerKind, size: int = 600, **options: bool) -> PreTrainedTokenizerBase:
    return train_tokenizer(lambda: sample_documents(200), size, kind, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_round_trip_without_unknown_tokens(kind: TokenizerKind) -> None:
    tokenizer = trained(kind)
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert decoded.replace(" ", "") == TEXT.replace(" ", "")  # WordPiece's decoder joins punctuation to words
    assert len(tokenizer) <= 600


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_is_the_same_after_saving(kind: TokenizerKind, tmp_path: Path) -> None:
    tokenizer = trained(kind)
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded(TEXT, "a soup") == tokenizer(TEXT, "a soup")
    assert reloaded.special_tokens_map == tokenizer.special_tokens_map
    assert reloaded.is_fast


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_adds_distinct_special_tokens(kind: TokenizerKind) -> None:
    tokenizer = trained(kind)
    names = (tokenizer.pad_token, tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token, tokenizer.unk_token)
    assert len({tokenizer.convert_tokens_to_ids(name) for name in names}) == 5
    output = tokenizer("soup", "bad")
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert output["input_ids"][0] == cls
    assert output["input_ids"].count(sep) == (3 if kind == "bpe" else 2)
    assert ("token_type_ids" in output) == (kind != "bpe")
    if kind != "bpe":
        assert set(output["token_type_ids"]) == {0, 1}
    masked = tokenizer(f"the {tokenizer.mask_token} was bad")["input_ids"]
    assert masked.count(tokenizer.mask_token_id) == 1


def test_tokenizer_bpe_encodes_any_text_and_others_follow_lowercase() -> None:
    tokenizer = trained("bpe")
    unusual = "Łódź 🦦 \t «née»\n"
    assert tokenizer.decode(tokenizer(unusual, add_special_tokens=False)["input_ids"]) == unusual
    assert tokenizer.unk_token_id not in tokenizer(unusual)["input_ids"]
    for kind in ("wordpiece", "unigram"):
        lower, cased = trained(kind), trained(kind, lowercase=False)  # type: ignore[arg-type]
        assert lower("SOUP")["input_ids"] == lower("soup")["input_ids"]
        assert cased("SOUP")["input_ids"] != cased("soup")["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_sentinels_are_single_tokens(kind: TokenizerKind) -> None:
    tokenizer = trained(kind, sentinels=True)
    ids = tokenizer("<extra_id_0> soup <extra_id_99>", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["<extra_id_0>", "<extra_id_99>"]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_tokenizer_rejects_a_corpus_without_words(kind: TokenizerKind) -> None:
    with pytest.raises(DataError, match="cannot train"):
        train_tokenizer(lambda: ["", "  "], 600, kind)


def test_tokenizer_training_is_deterministic_across_processes() -> None:
    """Hash tables are ordered differently in each process."""
    program = (
        "import json; from bertcli.data.sample import sample_documents; "
        "from bertcli.models.tokenizer_training import train_tokenizer; "
        "print(json.dumps([train_tokenizer(lambda: sample_documents(50), 300, kind).get_vocab() "
        f"for kind in {KINDS!r}]))"
    )
    expected = [train_tokenizer(lambda: sample_documents(50), 300, kind).get_vocab() for kind in KINDS]
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == expected


def test_unigram_scores_of_rare_characters_are_deterministic() -> None:
    rng, letters = (
        random.Random(0),
        "αβγδεζηθικλμνξοπ",
    )  # always two together: the pair is a piece, its letters are rare
    texts = [*sample_documents(50)]
    for pair in [letters[at : at + 2] for at in range(0, len(letters), 2)]:
        texts += ["".join([*rng.choices("aeiou", k=3), pair, *rng.choices("aeiou", k=3)]) for _ in range(80)]
    first, *others = (train_tokenizer(lambda: texts, 300, "unigram").backend_tokenizer.to_str() for _ in range(4))
    assert [*others] == [first] * 3


def test_tokenizer_keeps_no_special_tokens_from_training() -> None:
    tokenizer = trained("wordpiece")
    assert set(tokenizer.all_special_tokens) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert tokenizer.tokenize("a##a") != ["a", "##a"]
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_tokenizer_alphabet_has_one_entry_for_single_character_words() -> None:
    signs = [chr(0x4E00 + number) for number in range(300)]
    texts = ["".join(signs[at : at + 20]) for at in range(0, 300, 20)] + ["word worded words !"] * 50
    vocabulary = train_tokenizer(lambda: texts, 400).get_vocab()
    assert len(vocabulary) <= 400
    assert {"word", "worded", "!", *signs} <= vocabulary.keys()
    assert not {f"##{sign}" for sign in (*signs, "!")} & vocabulary.keys()


@pytest.mark.parametrize("size", [300, 500])
def test_tokenizer_alphabet_drops_rare_characters_if_the_vocabulary_is_small(size: int) -> None:
    letters = [chr(0xAC00 + number) for number in range(400)]  # Hangul syllables can continue a word
    texts = ["".join(letters[at : at + 20]) for at in range(0, 400, 20)] + ["words and words again"] * 50
    vocabulary = train_tokenizer(lambda: texts, size).get_vocab()
    assert len(vocabulary) <= size
    assert {"w", "##w", "##s"} <= vocabulary.keys()


@pytest.mark.parametrize(
    ("kind", "size", "num_unknown"),
    [("wordpiece", 3072, 0), ("unigram", 3072, 0), ("wordpiece", 2048, 475), ("unigram", 512, 1250)],
)
def test_tokenizer_knows_all_characters_that_fit_the_vocabulary(
    kind: TokenizerKind, size: int, num_unknown: int
) -> None:
    signs = [chr(0x4E00 + number) for number in range(1500)]
    texts = ["".join(signs[at : at + 20]) for at in range(0, 1500, 20)]
    tokenizer = train_tokenizer(lambda: texts, size, kind)
    assert len(tokenizer) <= size
    encodings = tokenizer.backend_tokenizer.encode_batch(signs, add_special_tokens=False)
    unknown = sum(tokenizer.unk_token_id in encoding.ids for encoding in encodings)
    assert unknown == pytest.approx(num_unknown, abs=10)


def test_tokenizer_alphabet_stays_at_1000_characters_if_they_cover_the_text() -> None:
    signs = [chr(0x4E00 + number) for number in range(1200)]
    texts = [*signs, *("".join(signs[:900]) for _ in range(300))]
    vocabulary = train_tokenizer(lambda: texts, 8192).get_vocab()
    assert len(vocabulary) == 1005


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_training_passes_on_errors_of_reading_the_corpus(kind: TokenizerKind) -> None:
    def texts() -> Iterator[str]:
        yield "a text"
        raise DataError("cannot read corpus.txt.gz")

    with pytest.raises(DataError, match=r"^cannot read corpus\.txt\.gz$"):
        train_tokenizer(texts, 600, kind)


def test_tokenizer_lowercase_strips_accents_only_with_wordpiece() -> None:
    for kind, expected in (("wordpiece", "cafe"), ("unigram", "café"), ("bpe", "Café")):
        tokenizer = train_tokenizer(lambda: ["Café cafe café"] * 9, 400, kind)  # type: ignore[arg-type]
        decoded = tokenizer.decode(tokenizer("Café", add_special_tokens=False)["input_ids"])
        assert decoded.strip() == expected


@pytest.mark.parametrize("lowercase", [True, False])
def test_tokenizer_lowercase_is_kept_after_saving(lowercase: bool, tmp_path: Path) -> None:
    texts = ["A fine Film", "Élan and Film"] * 5
    tokenizer = train_tokenizer(lambda: texts, 100, lowercase=lowercase)
    tokenizer.save_pretrained(tmp_path)
    words = "A fine Film élan"
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize(words) == tokenizer.tokenize(words)
    assert ("A" in tokenizer.tokenize(words)) != lowercase


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_of_a_long_text_is_that_of_its_parts(kind: TokenizerKind) -> None:
    text = " ".join(sample_documents(60)) + "\u00a0 a  b\t12 c-d . é"
    parts = list(split_at_spaces(text, 40))
    assert len(parts) > 99
    assert "".join(parts) == text
    vocabularies = [train_tokenizer(lambda: given, 300, kind).get_vocab() for given in (parts, [text])]  # noqa: B023
    assert vocabularies[0] == vocabularies[1]
