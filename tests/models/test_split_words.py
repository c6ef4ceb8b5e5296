"""Each kind of tokenizer reads the words of a list as it reads running text, also after plain transformers loads it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertcli.models.from_pretrained import ModelSource
from bertcli.models.split_words import find_different_words, is_kept_when_saved
from bertcli.models.tokenizer_training import train_tokenizer

TEXTS = [
    "the fox was quick and the dogs were lazy",
    "The foxes jumped over 12 dogs , didn 't they ?",
    "In 1984 the U.S. foxes met ( at noon ) in San José .",
    "the quick fox's film wasn't bad, was it?",
] * 3
ROWS = [[*text.split()] for text in TEXTS[:4]] + [["fox"], ["-", "fox,fox", "1984-12"]]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
NAMES = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True))
LLAMA_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train(
    pre_tokenizer: Any, normalizer: Any = None, *, unigram: bool = False, alphabet: Any = (), **options: Any
) -> Tokenizer:
    model: Any = models.Unigram() if unigram else models.BPE(unk_token="<unk>", **options)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer, normalizer
    shared: dict[str, Any] = {"vocab_size": 400, "special_tokens": SPECIAL, "show_progress": False}
    trainer: Any = trainers.UnigramTrainer(unk_token="<unk>", **shared)
    if not unigram:
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **shared, **options)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def generic(pre_tokenizer: Any, normalizer: Any = None, **options: Any) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=train(pre_tokenizer, normalizer, **options), **NAMES)


def byte_level(*, use_regex: bool = True) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def llama3() -> Any:
    split = pre_tokenizers.Split(Regex(LLAMA_PATTERN), behavior="isolated")
    return pre_tokenizers.Sequence([split, byte_level(use_regex=False)])


def of_class(name: str, pre_tokenizer: Any, **options: Any) -> PreTrainedTokenizerBase:
    """Return a tokenizer of a class that builds its own pre-tokenizer, with a trained vocabulary."""
    trained = train(pre_tokenizer, alphabet=pre_tokenizers.ByteLevel.alphabet())
    trained.model.save(".")
    tokenizer_class: Any = getattr(transformers, name)
    merges = [tuple(line.split(" ")) for line in Path("merges.txt").read_text("utf-8").splitlines()[1:]]
    return tokenizer_class(vocab=trained.get_vocab(with_added_tokens=False), merges=merges, **NAMES, **options)


def within_words(normalizer: Any) -> PreTrainedTokenizerBase:
    """Return a tokenizer that does not divide a text into words, whose merges in fact stay within words."""
    backend = train(pre_tokenizers.Metaspace())
    backend.pre_tokenizer, backend.normalizer = None, normalizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES)


def xlm_roberta() -> PreTrainedTokenizerBase:
    steps = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trained = train(steps, unigram=True)
    vocab = [(piece, 0.0) for piece in SPECIAL] + [
        (piece, -float(index)) for piece, index in trained.get_vocab().items() if piece not in SPECIAL
    ]
    return transformers.XLMRobertaTokenizer(vocab=vocab, **NAMES)


def characters() -> PreTrainedTokenizerBase:
    alphabet = sorted({*"".join(TEXTS)})
    backend = Tokenizer(models.WordLevel({token: index for index, token in enumerate(SPECIAL + alphabet)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES)


ALPHABET = pre_tokenizers.ByteLevel.alphabet()
CLIP = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CLIP_PATTERN), "removed", invert=True), byte_level()])
NFC = normalizers.NFC()
REPLACE = normalizers.Replace(" ", "▁")
KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "wordpiece": lambda: train_tokenizer(lambda: TEXTS, 200),
    "wordpiece, cased": lambda: train_tokenizer(lambda: TEXTS, 200, lowercase=False),
    "bpe of bertcli": lambda: train_tokenizer(lambda: TEXTS, 400, "bpe"),
    "unigram of bertcli": lambda: train_tokenizer(lambda: TEXTS, 200, "unigram"),
    "RoBERTa": partial(of_class, "RobertaTokenizer", byte_level()),
    "RoBERTa with spaces": partial(of_class, "RobertaTokenizer", byte_level(), add_prefix_space=True),
    "GPT-2": partial(of_class, "GPT2Tokenizer", byte_level()),
    "ModernBERT": partial(generic, byte_level(), NFC, alphabet=ALPHABET),
    "Llama 3": partial(generic, llama3(), alphabet=ALPHABET),
    "Qwen": partial(of_class, "Qwen2Tokenizer", llama3()),
    "metaspace bpe": partial(generic, pre_tokenizers.Metaspace(prepend_scheme="never")),
    "Llama 2": lambda: within_words(normalizers.Sequence([normalizers.Prepend("▁"), REPLACE])),
    "Gemma": lambda: within_words(REPLACE),
    "XLM-R": xlm_roberta,
    "CLIP": partial(generic, CLIP, normalizers.Lowercase(), end_of_word_suffix="</w>", alphabet=ALPHABET),
    "characters": characters,
}
FAMILIES = {
    "RoBERTa": "roberta",
    "GPT-2": "gpt2",
    "ModernBERT": "modernbert",
    "Llama 3": "eurobert",
    "XLM-R": "xlm-roberta",
}


def save(kind: str, family: str | None = None) -> PreTrainedTokenizerBase:
    """Save a tokenizer of a kind with the configuration of a family that uses it, in the folder `saved`."""
    tokenizer = KINDS[kind]()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<marker>"]})
    config_of(kind, family).save_pretrained("saved")
    tokenizer.save_pretrained("saved")
    return transformers.AutoTokenizer.from_pretrained("saved")


def config_of(kind: str, family: str | None = None) -> PretrainedConfig:
    return transformers.AutoConfig.for_model(family or FAMILIES.get(kind, "bert"))


def tokens(tokenizer: Any, text: str | list[str]) -> list[str]:
    ids = tokenizer(text, is_split_into_words=isinstance(text, list), add_special_tokens=False)["input_ids"]
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_words_have_the_tokens_of_running_text(kind: str) -> None:
    original, space = save(kind), "" if kind == "Llama 2" else " "  # it adds one itself
    tokenizer = ModelSource("saved").load_tokenizer(is_split_into_words=True)
    assert find_different_words(tokenizer, ROWS) is None
    assert is_kept_when_saved(tokenizer, config_of(kind))
    for folder in ("tags", "again"):  # the model is trained, used in plain transformers, and trained again
        config_of(kind).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        plain = transformers.AutoTokenizer.from_pretrained(folder)
        assert plain.special_tokens_map == original.special_tokens_map
        assert plain.all_special_ids == original.all_special_ids
        assert plain("fox")["input_ids"] == original(f"{space}fox")["input_ids"]  # special tokens included
        for words in ROWS:
            text = " ".join(words)
            assert tokens(plain, words) == tokens(plain, text) == tokens(original, f"{space}{text}")
        tokenizer = ModelSource(folder).load_tokenizer(is_split_into_words=True)


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_of_running_text_is_not_changed(kind: str) -> None:
    original = save(kind)
    assert tokens(ModelSource("saved").load_tokenizer(), TEXTS[1]) == tokens(original, TEXTS[1])


def test_words_without_spaces_cost_tokens() -> None:
    plain = save("ModernBERT")
    words = ["the", "fox"]
    assert len(tokens(plain, words)) > len(tokens(ModelSource("saved").load_tokenizer(is_split_into_words=True), words))
    assert find_different_words(plain, [[], words, words]) == (2, ["f", "ox"], ["Ġfox"])


def test_tokens_across_words_are_reported() -> None:
    backend = train(None)  # without a pre-tokenizer, a token may cover several words
    assert any(" " in token.strip() for token in backend.get_vocab())
    config_of("").save_pretrained("saved")
    PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES).save_pretrained("saved")
    different = find_different_words(ModelSource("saved").load_tokenizer(is_split_into_words=True), ROWS)
    assert different is not None
    assert different[0] == 5


def test_family_that_builds_its_own_tokenizer_does_not_keep_the_spaces() -> None:
    save("Qwen", "qwen2")
    tokenizer = ModelSource("saved").load_tokenizer(is_split_into_words=True)
    assert find_different_words(tokenizer, ROWS) is None
    assert not is_kept_when_saved(tokenizer, config_of("Qwen", "qwen2"))
