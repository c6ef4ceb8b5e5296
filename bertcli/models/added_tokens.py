"""Extend the vocabulary of a tokenizer and a model with words and markers, such as `imatinib` and `[DRUG]`.

The row of a new token in the embeddings, and in the output layer of a language model, is the mean of the rows of the
pieces that the tokenizer divided it into before (Gee et al. 2022, https://aclanthology.org/2022.emnlp-industry.41).
Shapes: V old and W new vocabulary size, H hidden.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertcli.errors import DataError, ModelError, quoted, shortened
from bertcli.recipe.schema import MAX_ADDED_TOKENS, added_token_problem

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MULTIPLES = (64, 8)  # a vocabulary size that is a multiple of one of these remains one
MAX_LISTED = 5  # in a note
UNSPACED_SCRIPTS = {  # first words of the Unicode names of letters in scripts without spaces between words
    *("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "MYANMAR", "KHMER", "TIBETAN"),
}
SPACE_IN_TOKENS = (b'"ByteLevel"', b'"Metaspace"')  # pre-tokenizers whose tokens contain the space before a word


@dataclass(frozen=True)
class AddedTokens:
    """The tokens that `add_tokens` has added to a tokenizer.

    Attributes:
        pieces: for the ID of each token, the IDs of the pieces that it was divided into before.
        known: tokens that were skipped because they are in the vocabulary.
        duplicates: tokens that were skipped because they are listed before, with their locations.
        reused: tokens that have the text of an entry of the vocabulary, such as a piece that continues a word; texts
            are now matched with that entry, which keeps its row.
    """

    pieces: dict[int, list[int]]
    known: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    reused: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.pieces)

    @property
    def note(self) -> str:
        """The number of added tokens, and which ones were skipped or reuse an entry of the vocabulary."""
        skipped = ((self.known, "already in the vocabulary"), (self.duplicates, "listed twice"))
        notes = [f"; skipped {len(tokens)} {cause}: {_listed(tokens)}" for tokens, cause in skipped if tokens]
        if self.reused:
            notes.append(f"; {len(self.reused)} use the entry of a piece of the same text: {_listed(self.reused)}")
        return f"{len(self.pieces)} added token{'' if len(self.pieces) == 1 else 's'}{''.join(notes)}"

    @property
    def fingerprint(self) -> str:
        """A hash of the added tokens' IDs and pieces."""
        return hashlib.blake2b(json.dumps([*self.pieces.items()]).encode(), digest_size=16).hexdigest()

    def vocab_size(self, vocab_size: int) -> int:
        """Return the vocabulary size of a model after it is extended; padding that has room for the tokens is used."""
        num_entries = max(self.pieces, default=-1) + 1
        if num_entries <= vocab_size:
            return vocab_size
        multiple = next((multiple for multiple in MULTIPLES if vocab_size % multiple == 0), 1)
        return -(-num_entries // multiple) * multiple

    def extend_model(self, model: PreTrainedModel) -> None:
        """Add rows for the tokens to all tensors of `model` that have one for each entry of the vocabulary, in place.

        New rows that only pad the vocabulary are the mean of all rows.

        Raises:
            ModelError: if the model has no vocabulary, or no such tensor.
        """
        from torch import nn

        if not self:
            return
        dims, config = _vocabulary_dims(model), model.config
        old_size, new_size = config.vocab_size, self.vocab_size(config.vocab_size)
        is_extended: set[int] = set()  # a tied parameter has several names
        for name, dim in dims.items():
            owner: Any = model.get_submodule(name.rpartition(".")[0])
            tensor: torch.Tensor = getattr(owner, name.rpartition(".")[2])
            if id(tensor) not in is_extended:
                rows = tensor.detach().movedim(dim, 0)
                tensor.data = self._extended(rows, new_size).movedim(0, dim).contiguous()
                is_extended.add(id(tensor))
            size_name = "num_embeddings" if isinstance(owner, nn.Embedding) else ("out_features", "in_features")[dim]
            if hasattr(owner, size_name):
                setattr(owner, size_name, new_size)
        for module in model.modules():
            if getattr(module, "vocab_size", None) == old_size:
                module.vocab_size = new_size  # type: ignore[assignment]
        config.vocab_size = new_size

    def _extended(self, rows: torch.Tensor, new_size: int) -> torch.Tensor:
        """Return the rows [V, …] with those of the added tokens and of padding. [W, …]"""
        import torch

        extended = torch.cat([rows, rows.mean(0, keepdim=True).repeat(new_size - len(rows), *[1] * (rows.dim() - 1))])
        for index, pieces in self.pieces.items():
            extended[index] = rows[pieces].mean(0)
        return extended


NO_ADDED_TOKENS = AddedTokens({})


def _vocabulary_dims(model: PreTrainedModel) -> dict[str, int]:
    """Return, by name, the dimension of each parameter and buffer that depends on the size of the vocabulary."""
    import torch

    config: Any = copy.deepcopy(model.config)
    config.vocab_size = getattr(config, "vocab_size", 0) + 1
    with torch.device("meta"):
        larger = {name: tensor.shape for name, tensor in _named_tensors(type(model)(config))}
    dims = {
        name: next(dim for dim, size in enumerate(tensor.shape) if size != larger[name][dim])
        for name, tensor in _named_tensors(model)
        if tensor.is_floating_point() and tensor.shape != larger[name]
    }
    if not dims:
        raise ModelError(f"tokens cannot be added to {model.config.model_type} models, which have no vocabulary")
    return dims


def _named_tensors(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def read_tokens(value: str | tuple[str, ...], key: str) -> list[tuple[str, str]]:
    """Return the tokens that a recipe adds, in order, each with its location; empty lines of a file are skipped.

    Args:
        value: a list of tokens, or the path of a file with one token per line.
        key: the recipe's key, for messages.

    Raises:
        DataError: if the file cannot be read, has too many tokens or none, or a line is not a token.
    """
    if not isinstance(value, str):
        return [(token, f"{key}[{index}]") for index, token in enumerate(value)]
    path = Path(value)
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not valid UTF-8; convert the file of {key} to UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read {path}, the file of {key} ({error.strerror}); correct the path") from error
    tokens = [(line.strip(), f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    for token, location in tokens:
        if (problem := added_token_problem(token)) is not None:
            raise DataError(f"{location}: found {quoted(token)}, {problem}")
    if not 0 < len(tokens) <= MAX_ADDED_TOKENS:
        raise DataError(
            f"found {len(tokens):,} tokens in {path}, expected 1 to {MAX_ADDED_TOKENS:,}, one per line; add only the "
            "most frequent words, or train a tokenizer on the corpus"
        )
    return tokens


def add_tokens(tokenizer: PreTrainedTokenizerBase, value: str | tuple[str, ...], key: str) -> AddedTokens:
    """Add tokens to a fast tokenizer, in place; those that it does not divide into pieces are skipped.

    A word is matched in the normalized text, so an uncased tokenizer ignores its case, and only as a whole word, unless
    its script has no spaces. A marker, which neither starts nor ends with a letter or digit, is matched anywhere, as it
    is written.

    Args:
        value: a list of tokens, or the path of a file with one token per line.
        key: the recipe's key, for messages.

    Raises:
        DataError: if `read_tokens` raises it, or the tokenizer normalizes a token to nothing.
        ModelError: if the tokenizer would not find a token in a text.
    """
    backend, vocab_size = tokenizer.backend_tokenizer, len(tokenizer)
    normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    state = b"" if pre_tokenizer is None else pre_tokenizer.__getstate__()
    has_spaces = any(name in state for name in SPACE_IN_TOKENS)
    encode = partial(tokenizer.encode, add_special_tokens=False, verbose=False)  # without the padding of the backend
    earlier = tokenizer.get_added_vocab()
    new: dict[str, list[int]] = {}  # pieces by token
    known, duplicates, forms = list[str](), list[str](), set[str]()
    for token, location in read_tokens(value, key) if value else ():
        form = token if normalizer is None or not _is_word(token) else normalizer.normalize_str(token)
        pieces = encode(f" {token}")
        if not form.strip() or not pieces:
            raise DataError(f"{location}: the tokenizer normalizes {quoted(token)} to nothing; remove it")
        if form in forms:
            duplicates.append(f"{token} ({location})")
        elif token in earlier or (len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id):
            known.append(token)
        else:
            new[token] = pieces
        forms.add(form)
    tokenizer.add_tokens([_added_token(token, has_spaces=has_spaces) for token in new])
    ids: Any = tokenizer.convert_tokens_to_ids([*new])
    for token, index in zip(new, ids, strict=True):
        if index not in encode(f"a {token}"):
            raise ModelError(f"the tokenizer would not find {quoted(token)} in a text; remove it from {key}")
    rows = {index: new[token] for token, index in zip(new, ids, strict=True) if index >= vocab_size}
    reused = tuple(token for token, index in zip(new, ids, strict=True) if index < vocab_size)
    return AddedTokens(rows, tuple(known), tuple(duplicates), reused)


def _added_token(token: str, *, has_spaces: bool) -> Any:
    from tokenizers import AddedToken

    is_word = _is_word(token)
    is_spaced = all(
        unicodedata.name(end, "").partition(" ")[0] not in UNSPACED_SCRIPTS for end in (token[0], token[-1])
    )
    single_word = is_word and is_spaced
    return AddedToken(token, single_word=single_word, lstrip=has_spaces, normalized=is_word, special=False)


def _is_word(token: str) -> bool:
    """Return whether a token is a word, not a marker."""
    return any(re.match(r"\w", end) for end in (token[0], token[-1]))


def _listed(tokens: tuple[str, ...]) -> str:
    more = f" and {len(tokens) - MAX_LISTED} more" if len(tokens) > MAX_LISTED else ""
    return f"{', '.join(shortened(token) for token in tokens[:MAX_LISTED])}{more}"
