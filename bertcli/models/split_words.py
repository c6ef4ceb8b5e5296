"""Tokenizers for lists of words: a word of a list gets the tokens that it has in running text.

Many tokenizers treat the space before a word as part of the word: in running text, byte-level BPE reads `Ġfox`. The
words of a list have no spaces, so it would read `f`, `ox`, which its model has rarely seen at the start of a word.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

SAMPLE = "The quick brown fox jumped over 12 lazy dogs, didn't it? In 1984, e.g. at San José (U.S.) / the lazy dogs."
KEPT_OPTIONS = (
    "extra_special_tokens",
    "model_max_length",
    "model_input_names",
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
)


def with_spaces_before_words(
    tokenizer: PreTrainedTokenizerBase, load: Callable[..., PreTrainedTokenizerBase]
) -> PreTrainedTokenizerBase:
    """Return a tokenizer that reads the words of a list as the given one reads them in running text.

    That is the given one if it does so already, as WordPiece does. Otherwise a space is added before each word and each
    text, in the way that changes nothing else in the sample: by the tokenizer's option, before its pre-tokenizer, or
    before its normalizer. If none of them does, the tokenizer is returned unchanged (see `find_different_words`).

    Args:
        load: loads the tokenizer, with the given options.
    """
    words = SAMPLE.split()
    running = _token_ids(tokenizer, f" {SAMPLE}")
    if find_different_words(tokenizer, [words]) is None:
        return tokenizer
    for candidate in _candidates(tokenizer, load):
        if _token_ids(candidate, words) == _token_ids(candidate, SAMPLE) == running:
            return candidate
    return tokenizer


def find_different_words(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[str]]
) -> tuple[int, list[str], list[str]] | None:
    """Compare the tokens of lists of words with those of the same words in running text, joined by spaces.

    Returns:
        The number of lists that differ, and for the first the differing part of its tokens as words and as running
        text; None if none differs.
    """
    pairs = ((_token_ids(tokenizer, [*words]), _token_ids(tokenizer, " ".join(words))) for words in rows if words)
    different = [pair for pair in pairs if pair[0] != pair[1]]
    if not different:
        return None
    first, second = ([str(token) for token in tokenizer.convert_ids_to_tokens(ids)] for ids in different[0])
    start = next((index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    return len(different), first[start : start + 4], second[start : start + 4]


def is_kept_when_saved(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> bool:
    """Return whether plain transformers gives words the same tokens after it saves the tokenizer and loads it again.

    It does not in families for which `AutoTokenizer` ignores the saved class and builds the tokenizer itself.
    """
    from transformers import TOKENIZER_MAPPING, AutoTokenizer, PreTrainedTokenizerFast

    family_class = TOKENIZER_MAPPING.get(type(config), None)
    if type(tokenizer) is not PreTrainedTokenizerFast or family_class in (None, PreTrainedTokenizerFast):
        return True
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        saved = AutoTokenizer.from_pretrained(folder)
    return _token_ids(saved, SAMPLE.split()) == _token_ids(tokenizer, SAMPLE.split())


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str | list[str]) -> list[int]:
    is_list = not isinstance(text, str)
    return tokenizer(text, is_split_into_words=is_list, add_special_tokens=False, verbose=False)["input_ids"]


def _candidates(
    tokenizer: PreTrainedTokenizerBase, load: Callable[..., PreTrainedTokenizerBase]
) -> Iterator[PreTrainedTokenizerBase]:
    """Yield versions of a tokenizer that add a space before a text, which may change other tokens as well."""
    from tokenizers import normalizers, pre_tokenizers

    if getattr(tokenizer, "add_prefix_space", None) is False:
        yield load(add_prefix_space=True)
    backend = _copy_backend(tokenizer)
    add_space = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False)
    steps = [] if backend.pre_tokenizer is None else [backend.pre_tokenizer]
    backend.pre_tokenizer = pre_tokenizers.Sequence([add_space, *steps])
    yield _with_backend(tokenizer, backend)
    backend = _copy_backend(tokenizer)
    steps = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(" "), *steps])
    yield _with_backend(tokenizer, backend)


def _copy_backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    return copy.deepcopy(tokenizer.backend_tokenizer)


def _with_backend(tokenizer: PreTrainedTokenizerBase, backend: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer with another backend, in the generic class: others rebuild theirs when they are loaded."""
    from transformers import PreTrainedTokenizerFast

    options = {name: getattr(tokenizer, name) for name in KEPT_OPTIONS if hasattr(tokenizer, name)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokenizer.special_tokens_map, **options)
