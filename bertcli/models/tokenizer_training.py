"""Vocabularies learned from text: WordPiece (BERT), byte-level BPE (RoBERTa, GPT-2), Unigram (SentencePiece).

Texts are streamed; what is kept in memory are the counts of their distinct words. The same texts always give the same
vocabulary and the same numbers in it; the tokenizers library alone sees to that for BPE only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from bertcli.errors import DataError
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
LONGEST_INPUT = 512  # what a learned tokenizer says a model reads, until a model says otherwise
LARGEST_ALPHABET = 1000  # characters in a WordPiece vocabulary, as the original's; rarer ones are unknown
NUM_SENTINELS = 100  # marks of lost spans, as T5's


def train_tokenizer(
    texts: Callable[[], Iterable[str]],
    vocabulary_size: int,
    kind: TokenizerKind = "wordpiece",
    *,
    lowercase: bool = True,
    sentinels: bool = False,
) -> PreTrainedTokenizerBase:
    """A fast tokenizer learned from texts.

    Args:
        texts: gives them all, anew each time.
        vocabulary_size: entries at most, special tokens included; a small corpus gives fewer.
        lowercase: ignore case and accents (not with `bpe`, which keeps every byte).
        sentinels: add T5's marks of lost spans, `<extra_id_0>` ….

    Raises:
        DataError: the texts hold no words.
    """
    special = ROBERTA_TOKENS if kind == "bpe" else BERT_TOKENS
    names = list(dict.fromkeys(special.values()))
    extra = [f"<extra_id_{number}>" for number in range(NUM_SENTINELS)] if sentinels else []
    learner = _learner(kind, lowercase)
    try:
        own_size = vocabulary_size - len(extra)
        alphabet = _alphabet(texts(), learner, own_size - len(names)) if kind == "wordpiece" else {}
        trainer = _trainer(kind, own_size, names, alphabet)
        learner.train_from_iterator(texts(), trainer=trainer)
    except Exception as error:  # what the Rust library raises has no type of its own
        raise DataError(f"cannot learn a {kind} vocabulary of {vocabulary_size} entries ({error})") from error
    if learner.get_vocab_size() <= len(names) + 1:  # Unigram keeps the mark of a space in any case
        raise DataError("cannot learn a vocabulary: the corpus holds no words")
    learner = _in_order(kind, learner, names, lowercase)
    learner.post_processor = _frame(kind, learner)
    return _wrapped(kind, learner, special, extra, lowercase=lowercase)


def _learner(kind: TokenizerKind, lowercase: bool) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    if kind == "bpe":
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        learner.decoder = decoders.ByteLevel()
        return learner
    if kind == "wordpiece":
        learner = Tokenizer(models.WordPiece(unk_token=BERT_TOKENS["unk_token"]))
        learner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        learner.decoder = decoders.WordPiece()
        return learner
    learner = Tokenizer(models.Unigram())
    cleaning = [normalizers.Nmt(), normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])]
    learner.normalizer = normalizers.Sequence(cleaning)
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.decoder = decoders.Metaspace()
    return learner


def _alphabet(texts: Iterable[str], learner: tokenizers.Tokenizer, room: int) -> dict[str, bool]:
    """The commonest characters of the texts, as the learner's normalizer leaves them, and whether each goes on words.

    As many as have `room` in the vocabulary. Marks and CJK characters are words of their own and take one entry there;
    the others take two, alone and as `##…`.
    """
    written: Counter[str] = Counter()
    for text in texts:
        written.update(text)
    counts: Counter[str] = Counter()
    for character, count in written.items():
        for clean in "".join(learner.normalizer.normalize_str(character).split()):
            counts[clean] += count
    kept: dict[str, bool] = {}
    for character in sorted(sorted(counts), key=counts.__getitem__, reverse=True)[:LARGEST_ALPHABET]:
        around = learner.normalizer.normalize_str(f"a{character}a")
        goes_on = len(learner.pre_tokenizer.pre_tokenize_str(around)) == 1
        room -= 1 + goes_on
        if room < 0:
            break
        kept[character] = goes_on
    return dict(sorted(kept.items()))


def _trainer(kind: TokenizerKind, vocabulary_size: int, special: list[str], alphabet: dict[str, bool]) -> Any:
    """Ties between pairs go by the numbers of their parts, so WordPiece's `##a` … are numbered before it starts."""
    from tokenizers import pre_tokenizers, trainers

    numbered = special + [f"##{character}" for character, goes_on in alphabet.items() if goes_on]
    shared: dict[str, Any] = {"vocab_size": vocabulary_size, "special_tokens": numbered, "show_progress": False}
    if kind == "bpe":
        return trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **shared)
    if kind == "wordpiece":
        limits: dict[str, Any] = {"initial_alphabet": list(alphabet), "limit_alphabet": max(1, len(alphabet))}
        return trainers.WordPieceTrainer(min_frequency=1, **limits, **shared)
    return trainers.UnigramTrainer(unk_token=BERT_TOKENS["unk_token"], **shared)


def _in_order(
    kind: TokenizerKind, learned: tokenizers.Tokenizer, special: list[str], lowercase: bool
) -> tokenizers.Tokenizer:
    """The same vocabulary without the marks of the training, and without the chance in Unigram's numbers."""
    from tokenizers import AddedToken, models

    if kind == "bpe":
        return learned
    ordered = _learner(kind, lowercase)
    if kind == "wordpiece":
        ordered.model = models.WordPiece(learned.get_vocab(with_added_tokens=False), unk_token=BERT_TOKENS["unk_token"])
    else:
        # Scores are sums of floats in the order of the day: their last digits and the order by them are chance.
        scores = {text: round(score, 6) for text, score in json.loads(learned.to_str())["model"]["vocab"]}
        own = sorted(entry for entry in scores.items() if entry[0] not in special)
        entries = [*((name, 0.0) for name in special), *own]
        ordered.model = models.Unigram(entries, special.index(BERT_TOKENS["unk_token"]))
    ordered.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return ordered


def _frame(kind: TokenizerKind, learner: tokenizers.Tokenizer) -> Any:
    """What the tokenizer sets around texts: `[CLS] a [SEP] b [SEP]`, or RoBERTa's `<s> a </s></s> b </s>`."""
    from tokenizers import processors

    if kind == "bpe":
        start, end = ("<s>", learner.token_to_id("<s>")), ("</s>", learner.token_to_id("</s>"))
        return processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[start, end]
        )
    start, end = (("[CLS]", learner.token_to_id("[CLS]")), ("[SEP]", learner.token_to_id("[SEP]")))
    return processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[start, end]
    )


def _wrapped(
    kind: TokenizerKind, learner: tokenizers.Tokenizer, special: dict[str, str], extra: list[str], *, lowercase: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer as transformers saves and loads it."""
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    options: dict[str, Any] = {"tokenizer_object": learner, "model_max_length": LONGEST_INPUT, **special}
    if extra:
        options["additional_special_tokens"] = extra
    if kind == "wordpiece":
        return BertTokenizer(do_lower_case=lowercase, **options)  # it makes its normalizer anew when it is loaded
    if kind == "bpe":
        return PreTrainedTokenizerFast(model_input_names=["input_ids", "attention_mask"], **options)
    return PreTrainedTokenizerFast(model_input_names=["input_ids", "token_type_ids", "attention_mask"], **options)
