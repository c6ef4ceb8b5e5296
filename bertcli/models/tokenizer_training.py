"""Train a tokenizer on text: WordPiece (BERT), byte-level BPE (RoBERTa, GPT-2) or Unigram (SentencePiece).

Texts are streamed; only the counts of distinct words are kept in memory. Training is deterministic: the same texts
always yield the same vocabulary with the same ids (the tokenizers library alone guarantees this only for BPE).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from bertcli.errors import BertcliError, DataError
from bertcli.recipe.pretrain_schema import TokenizerKind

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

BERT_TOKENS = {name: f"[{name.removesuffix('_token').upper()}]" for name in
               ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")}  # fmt: skip
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "cls_token": "<s>",
    "sep_token": "</s>",
}
DEFAULT_MAX_LENGTH = 512  # model_max_length of a trained tokenizer
ALPHABET_SIZE = 1000  # characters in a WordPiece vocabulary, as in BERT's; rarer ones become the unknown token
MIN_ALPHABET_COVERAGE = 0.999  # of the text; below this, the alphabet may be larger, as for Chinese and Korean …
MAX_ALPHABET_SHARE = 0.5  # … and take this share of the vocabulary
UNIGRAM_SCORE_STEP = 1e-4  # of the tokenizers library, for characters that it adds
NUM_SENTINELS = 100  # as in T5


def train_tokenizer(
    texts: Callable[[], Iterable[str]],
    vocab_size: int,
    kind: TokenizerKind = "wordpiece",
    *,
    lowercase: bool = True,
    sentinels: bool = False,
) -> PreTrainedTokenizerBase:
    """Train a fast tokenizer on texts.

    Args:
        texts: returns a new iterator over all texts on each call.
        vocab_size: maximum number of entries, including special tokens; a small corpus yields fewer.
        lowercase: ignore case and, with `wordpiece`, accents (has no effect on `bpe`, which keeps every byte).
        sentinels: add T5's sentinel tokens `<extra_id_0>` ….

    Raises:
        DataError: if the texts contain no words, or training fails, for example because `vocab_size` is too small.
        BertcliError: if `texts` raises it.
    """
    special = ROBERTA_TOKENS if kind == "bpe" else BERT_TOKENS
    names = list(dict.fromkeys(special.values()))
    extra = [f"<extra_id_{number}>" for number in range(NUM_SENTINELS)] if sentinels else []
    tokenizer = _empty_tokenizer(kind, lowercase)
    try:
        trained_size = vocab_size - len(extra)
        max_entries = trained_size - len(names)
        alphabet = _alphabet(texts(), tokenizer, max_entries) if kind == "wordpiece" else {}
        trainer = _trainer(kind, trained_size, names, alphabet)
        known = _replace_rare_characters(texts, tokenizer, max_entries) if kind == "unigram" else texts()
        tokenizer.train_from_iterator(known, trainer=trainer)
    except BertcliError:  # raised by `texts`, such as for an unreadable file
        raise
    except Exception as error:  # the Rust library raises plain `Exception`
        raise DataError(f"cannot train a {kind} tokenizer with {vocab_size} entries ({error})") from error
    if tokenizer.get_vocab_size() <= len(names) + 1:  # Unigram always keeps its space marker
        raise DataError("cannot train a tokenizer: the texts contain no words")
    tokenizer = _canonicalize(kind, tokenizer, names, lowercase)
    tokenizer.post_processor = _post_processor(kind, tokenizer)
    return _wrap(kind, tokenizer, special, extra, lowercase=lowercase)


def _empty_tokenizer(kind: TokenizerKind, lowercase: bool) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=BERT_TOKENS["unk_token"]))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer
    tokenizer = Tokenizer(models.Unigram())
    steps = [normalizers.Nmt(), normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _alphabet(texts: Iterable[str], tokenizer: tokenizers.Tokenizer, max_entries: int) -> dict[str, bool]:
    """Return the most frequent normalized characters of the texts, and whether each can continue a word.

    They take up at most `max_entries` vocabulary entries. Punctuation and CJK characters are always whole words and
    take up one entry; the others take up two, as `x` and `##x`.
    """
    _, counts = _count_characters(texts, tokenizer)
    characters = _by_frequency(counts)
    is_covered = counts.total() * MIN_ALPHABET_COVERAGE <= sum(
        counts[character] for character in characters[:ALPHABET_SIZE]
    )
    num_entries = 0
    alphabet: dict[str, bool] = {}
    for character in characters[:ALPHABET_SIZE] if is_covered else characters:
        inside_word = tokenizer.normalizer.normalize_str(f"a{character}a")
        continues_words = len(tokenizer.pre_tokenizer.pre_tokenize_str(inside_word)) == 1
        num_entries += 1 + continues_words
        if num_entries > max_entries * (1 if len(alphabet) < ALPHABET_SIZE else MAX_ALPHABET_SHARE):
            break
        alphabet[character] = continues_words
    return dict(sorted(alphabet.items()))


def _replace_rare_characters(
    texts: Callable[[], Iterable[str]], tokenizer: tokenizers.Tokenizer, max_entries: int
) -> Iterable[str]:
    """Return the texts for training Unigram, which fails unless the vocabulary can hold all of their characters.

    If it cannot, rare characters are replaced with spaces in training, and become the unknown token.
    """
    normalized, counts = _count_characters(texts(), tokenizer)
    if len(counts) < max_entries:
        return texts()
    alphabet = {*_by_frequency(counts)[: int(max_entries * MAX_ALPHABET_SHARE)]}
    rare = {ord(character): " " for character, parts in normalized.items() if parts and alphabet.isdisjoint(parts)}
    return (text.translate(rare) for text in texts())


def _count_characters(texts: Iterable[str], tokenizer: tokenizers.Tokenizer) -> tuple[dict[str, str], Counter[str]]:
    """Return what each character of the texts is normalized to, without spaces, and the counts of these characters."""
    raw_counts: Counter[str] = Counter()
    for text in texts:
        raw_counts.update(text)
    normalized = {character: "".join(tokenizer.normalizer.normalize_str(character).split()) for character in raw_counts}
    counts: Counter[str] = Counter()
    for character, count in raw_counts.items():
        for part in normalized[character]:
            counts[part] += count
    return normalized, counts


def _by_frequency(counts: Counter[str]) -> list[str]:
    return sorted(sorted(counts), key=counts.__getitem__, reverse=True)


def _trainer(kind: TokenizerKind, vocab_size: int, special: list[str], alphabet: dict[str, bool]) -> Any:
    """Return the trainer; WordPiece's `##a` … get fixed ids first, since the ids of a pair's parts break ties."""
    from tokenizers import pre_tokenizers, trainers

    fixed = special + [f"##{character}" for character, continues_words in alphabet.items() if continues_words]
    shared: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": fixed, "show_progress": False}
    if kind == "bpe":
        return trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **shared)
    if kind == "wordpiece":
        limits: dict[str, Any] = {"initial_alphabet": list(alphabet), "limit_alphabet": max(1, len(alphabet))}
        return trainers.WordPieceTrainer(min_frequency=1, **limits, **shared)
    return trainers.UnigramTrainer(unk_token=BERT_TOKENS["unk_token"], **shared)


def _canonicalize(
    kind: TokenizerKind, trained: tokenizers.Tokenizer, special: list[str], lowercase: bool
) -> tokenizers.Tokenizer:
    """Drop the special tokens that only training needed, and make Unigram's scores and ids deterministic."""
    from tokenizers import AddedToken, models

    if kind == "bpe":
        return trained
    tokenizer = _empty_tokenizer(kind, lowercase)
    if kind == "wordpiece":
        vocab = trained.get_vocab(with_added_tokens=False)
        tokenizer.model = models.WordPiece(vocab, unk_token=BERT_TOKENS["unk_token"])
    else:
        # Scores are sums of floats in arbitrary order: their last digits, and the order by score, vary between runs.
        scores = {text: round(score, 6) for text, score in json.loads(trained.to_str())["model"]["vocab"]}
        # Characters that are kept only because the text contains them score 0.0001 more than one another, in arbitrary
        # order, from the lowest score on.
        lowest = min((score for text, score in scores.items() if text not in special), default=0.0)
        step_range = UNIGRAM_SCORE_STEP * sum(len(text) == 1 for text in scores)
        for text, score in scores.items():
            if len(text) == 1 and score < lowest + step_range:
                scores[text] = lowest
        trained_entries = sorted(entry for entry in scores.items() if entry[0] not in special)
        entries = [*((name, 0.0) for name in special), *trained_entries]
        tokenizer.model = models.Unigram(entries, special.index(BERT_TOKENS["unk_token"]))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer


def _post_processor(kind: TokenizerKind, tokenizer: tokenizers.Tokenizer) -> Any:
    """Return the template of special tokens: `[CLS] a [SEP] b [SEP]`, or RoBERTa's `<s> a </s></s> b </s>`."""
    from tokenizers import processors

    if kind == "bpe":
        start, end = ("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))
        return processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[start, end]
        )
    start, end = ("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))
    return processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[start, end]
    )


def _wrap(
    kind: TokenizerKind, tokenizer: tokenizers.Tokenizer, special: dict[str, str], extra: list[str], *, lowercase: bool
) -> PreTrainedTokenizerBase:
    """Wrap the tokenizer in the transformers class that saves and loads it."""
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    options: dict[str, Any] = {"tokenizer_object": tokenizer, "model_max_length": DEFAULT_MAX_LENGTH, **special}
    if extra:
        options["additional_special_tokens"] = extra
    if kind == "wordpiece":
        return BertTokenizer(do_lower_case=lowercase, **options)  # rebuilds its normalizer on load
    if kind == "bpe":
        return PreTrainedTokenizerFast(model_input_names=["input_ids", "attention_mask"], **options)
    return PreTrainedTokenizerFast(model_input_names=["input_ids", "token_type_ids", "attention_mask"], **options)
