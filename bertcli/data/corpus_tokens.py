"""The tokenized corpus on disk: created once, memory-mapped, and cached by content.

<cache>/corpora/<key>/
  tokens.bin       uint16 or uint32, all documents concatenated
  flags.bin        uint8 per token: 1 if it starts a word, plus 2 if it starts a sentence
  documents.npy    int64, the start of each document, and the end of the last one
  corpus.json      data type of the tokens, sources, numbers of tokens and of unknown tokens
  manifest.json    size and hash of each of these files
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import warnings
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.cache import cache_folder, get_or_create
from bertcli.data.corpus_reading import read_documents, source_files
from bertcli.data.encoding import special_ids, without_special_pieces
from bertcli.data.sources import load_rows
from bertcli.errors import DataError
from bertcli.files import hash_data_files
from bertcli.malloc import trim_memory
from bertcli.recipe.pretrain_schema import CorpusSection, Source

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 3  # increase when tokens or flags change, to invalidate cached corpora
WORD_START, SENTENCE_START = 1, 2
CHUNK_CHARACTERS = 1_000_000  # tokenized in one call, on all cores
UNSPACED_LETTER, UNSPACED_MARK, SPACE = 1, 2, 3  # kinds of characters
MAX_SENTENCE_CHARACTERS = 20_000  # longer sentences are split before tokenization
SENTENCE_END = re.compile(r"(?<=[.!?…])(?=\s+\S)|(?<=\n)(?=\S)")
# Full stops of Chinese and Japanese, Khmer, Devanagari, Burmese, Ethiopic, Arabic and Urdu, often not followed by a
# space, and any closing quotation marks and brackets after them.
FULL_STOP = re.compile(r"(?:[。！？｡។॥।။።؟۔]|……)[。！？｡។॥।။።؟۔…」』”’）】》]*")
# Chinese, Japanese, Thai, Lao, Burmese, Khmer, Tibetan …, their punctuation, and the full stops above.
UNSPACED = re.compile(
    r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u2e80-\u312f\u3190-\u9fff\ua9e0-\ua9ff"
    r"\uaa60-\uaadf\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff9f\U00016fe0-\U00018cff\U0001aff0-\U0001b2ff"
    r"\U00020000-\U0003ffff።॥।؟۔]"
)


@dataclass(frozen=True)
class Corpus:
    """Tokenized documents; document d is `tokens[document_offsets[d]:document_offsets[d + 1]]`."""

    tokens: np.ndarray  # [T] memory-mapped
    flags: np.ndarray  # [T] memory-mapped
    document_offsets: np.ndarray  # [D + 1] int64
    source_offsets: np.ndarray  # [number of sources + 1] first document of each source, and the end
    num_unknown: int = 0  # how many of the T tokens are the tokenizer's unknown token

    @property
    def unknown_share(self) -> float:
        """Fraction of the tokens that are unknown tokens."""
        return self.num_unknown / max(1, len(self.tokens))

    def document_lengths(self, documents: np.ndarray) -> np.ndarray:
        """Return the number of tokens in each of the documents with these indices."""
        return self.document_offsets[documents + 1] - self.document_offsets[documents]


def load_corpus(
    section: CorpusSection,
    tokenizer: PreTrainedTokenizerBase,
    mirror: Path | None,
    on_tokens: Callable[[int], None] = lambda num_tokens: None,
    warn: Callable[[str], None] = warnings.warn,
) -> Corpus:
    """Load the tokenized corpus from the cache; tokenize it first if the cached one is missing or damaged.

    Args:
        on_tokens: called during tokenization with the number of tokens so far.
        warn: called with a message if the cached corpus is damaged, or if another process is creating it.

    Raises:
        DataError: if a source cannot be read, or the corpus has fewer than two documents.
    """
    key = corpus_key(section, tokenizer, mirror)
    return _read_corpus(
        get_or_create(
            cache_folder() / "corpora" / key,
            lambda folder: _write_corpus(section, tokenizer, mirror, folder, on_tokens),
            warn,
        )
    )


def corpus_key(section: CorpusSection, tokenizer: PreTrainedTokenizerBase | None, mirror: Path | None) -> str:
    """Return the cache key of the tokenized corpus, or of the corpus text if `tokenizer` is None.

    Keys of equal options are equal if and only if the contents are equal; of large files
    (`files.MAX_HASHED_BYTES`), that means that sizes, times of change and a sample of the contents are equal.
    """
    state = hashlib.blake2b(digest_size=16)
    state.update(f"{FORMAT_VERSION} {section.max_documents}".encode())
    if tokenizer is not None:
        state.update(tokenizer.backend_tokenizer.to_str().encode())
    for source in section.sources:
        state.update(
            json.dumps([source.column, source.documents, source.dataset, source.config, source.split]).encode()
        )
        if source.encoding is not None:
            state.update(source.encoding.encode())
        if source.dataset == "sample":  # another version of bertcli may generate other documents
            for document in read_documents(source, mirror):
                state.update(document.encode())
        elif source.dataset is not None:
            state.update(load_rows(source.dataset, source.config, source.split, mirror)._fingerprint.encode())
        hash_data_files(state, source_files(source) if source.files else [])
    return state.hexdigest()


def _read_corpus(folder: Path) -> Corpus:
    metadata = json.loads((folder / "corpus.json").read_text("utf-8"))
    return Corpus(
        tokens=np.memmap(folder / "tokens.bin", dtype=metadata["dtype"], mode="r"),
        flags=np.memmap(folder / "flags.bin", dtype=np.uint8, mode="r"),
        document_offsets=np.load(folder / "documents.npy", mmap_mode="r"),
        source_offsets=np.asarray(metadata["sources"]),
        num_unknown=metadata["num_unknown"],
    )


def _write_corpus(
    section: CorpusSection,
    tokenizer: PreTrainedTokenizerBase,
    mirror: Path | None,
    folder: Path,
    on_tokens: Callable[[int], None],
) -> None:
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    document_offsets, source_offsets, num_tokens, num_unknown = array("q", [0]), [0], 0, 0
    unknown_id = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    with (folder / "tokens.bin").open("wb") as token_file, (folder / "flags.bin").open("wb") as flag_file:
        for source in section.sources:
            documents = islice(read_documents(source, mirror), section.max_documents)
            for chunk in _chunks(documents):
                ids, flags, lengths = _tokenize(tokenizer, chunk)
                token_file.write(ids.astype(dtype).tobytes())
                flag_file.write(flags.tobytes())
                document_offsets.extend((num_tokens + np.cumsum(lengths[lengths > 0])).tolist())
                num_tokens += len(ids)
                num_unknown += int(np.count_nonzero(ids == unknown_id))
                del chunk, ids, flags, lengths
                trim_memory()
                on_tokens(num_tokens)
            source_offsets.append(len(document_offsets) - 1)
    if (num_documents := len(document_offsets) - 1) < 2:
        found = f"{num_documents} non-empty document{'s' * (num_documents != 1)}"
        raise DataError(f"found {found} in the corpus, expected at least two")
    np.save(folder / "documents.npy", np.frombuffer(document_offsets, dtype=np.int64))
    metadata = {
        "dtype": np.dtype(dtype).name,
        "sources": source_offsets,
        "num_tokens": num_tokens,
        "num_unknown": num_unknown,
        "from": _describe(section.sources),
    }
    (folder / "corpus.json").write_text(json.dumps(metadata, indent=2))


def _describe(sources: tuple[Source, ...]) -> list[Any]:
    return [source.model_dump(exclude_defaults=True) for source in sources]


def _chunks(documents: Iterator[str]) -> Iterator[list[str]]:
    """Group documents into lists of about `CHUNK_CHARACTERS` characters."""
    chunk: list[str] = []
    num_characters = 0
    for document in documents:
        chunk.append(document)
        num_characters += len(document)
        if num_characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk


def _tokenize(tokenizer: PreTrainedTokenizerBase, documents: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the IDs [T] and flags [T] of all tokens, and the number of tokens in each document [D].

    Documents are split into sentences so that the tokenizer can use all cores.
    """
    sentences_of = [list(_split_sentences(document)) for document in documents]
    sentences = list(chain.from_iterable(sentences_of))
    encodings, ids = _encode(tokenizer, sentences)
    if np.isin(ids, [*special_ids(tokenizer)]).any():  # a literal `[MASK]` in the text is text
        encodings, ids = _encode(without_special_pieces(tokenizer), sentences)
    lengths = np.fromiter((len(encoding) for encoding in encodings), np.int64, len(encodings))
    num_tokens = int(lengths.sum())
    words = np.fromiter(
        (-1 if word is None else word for encoding in encodings for word in encoding.word_ids), np.int64, num_tokens
    )
    starts = (np.cumsum(lengths) - lengths)[lengths > 0]
    flags = (np.diff(words, prepend=-1) != 0) * np.uint8(WORD_START)
    flags[starts] = WORD_START | SENTENCE_START
    _mark_unspaced(sentences, encodings, flags)
    ends = np.concatenate(([0], np.cumsum(lengths)))[np.cumsum([0, *map(len, sentences_of)])]
    return ids, flags, np.diff(ends)


def _encode(tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> tuple[list[tokenizers.Encoding], np.ndarray]:
    """Return the encoding of each sentence, and the IDs [T] of all tokens."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    encodings = backend.encode_batch(sentences, add_special_tokens=False)
    backend.encode_special_tokens = False
    return encodings, np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int64)


def _mark_unspaced(sentences: list[str], encodings: list[tokenizers.Encoding], flags: np.ndarray) -> None:
    """Mark in `flags` [T] the starts of words and sentences in scripts that do not separate them by spaces.

    In these scripts each token counts as a word, but tokens that are parts of one character, or a space and the
    character that follows it, form one word. (BERT's WordPiece has one token per Chinese character, so each character
    is a word, as in BERT's whole-word masking.)
    """
    unspaced = [index for index, sentence in enumerate(sentences) if UNSPACED.search(sentence)]
    if not unspaced:
        return
    text = "".join(sentences[index] for index in unspaced)
    num_tokens = np.fromiter((len(encoding) for encoding in encodings), np.int64, len(encodings))
    is_unspaced = np.isin(np.arange(len(encodings)), unspaced)
    tokens = np.flatnonzero(np.repeat(is_unspaced, num_tokens))
    if len(tokens) == 0:
        return
    text_starts = np.cumsum([0, *(len(sentences[index]) for index in unspaced)])[:-1]
    offsets = chain.from_iterable(chain.from_iterable(encodings[index].offsets for index in unspaced))
    starts, ends = np.fromiter(offsets, np.int64, 2 * len(tokens)).reshape(-1, 2).T + np.repeat(
        text_starts, num_tokens[unspaced]
    )
    kinds = _character_kinds(text)
    first, last = kinds[np.minimum(starts, len(kinds) - 1)][1:], kinds[np.maximum(ends - 1, 0)][:-1]
    shares_no_character = (starts[1:] >= ends[:-1]) & (ends[:-1] > starts[:-1])
    follows_unspaced = (last == UNSPACED_LETTER) | (last == UNSPACED_MARK)
    is_start = shares_no_character & (last != SPACE) & ((first == UNSPACED_LETTER) | follows_unspaced)
    is_start &= first != UNSPACED_MARK
    flags[tokens[1:][is_start]] |= WORD_START
    boundaries = np.fromiter((match.end() for match in FULL_STOP.finditer(text)), np.int64)
    first_tokens = np.searchsorted(np.maximum.accumulate(starts), boundaries)
    flags[tokens[first_tokens[first_tokens < len(tokens)]]] |= WORD_START | SENTENCE_START


def _character_kinds(text: str) -> np.ndarray:
    """Return the kind of each character: `UNSPACED_LETTER`, `UNSPACED_MARK` (on a letter), `SPACE` or 0."""
    codes, indices = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    kinds = np.zeros(len(codes), np.uint8)
    for index, character in enumerate(map(chr, codes.tolist())):
        if character.isspace():
            kinds[index] = SPACE
        elif UNSPACED.match(character):
            kinds[index] = UNSPACED_MARK if unicodedata.category(character).startswith("M") else UNSPACED_LETTER
    return kinds[indices]


def _split_sentences(document: str) -> Iterator[str]:
    """Split a document at line breaks and sentence ends, into parts of at most `MAX_SENTENCE_CHARACTERS`."""
    for sentence in SENTENCE_END.split(document):
        rest = sentence
        while len(rest) > MAX_SENTENCE_CHARACTERS:
            cut = max(rest.rfind(" ", 1, MAX_SENTENCE_CHARACTERS), 0) or MAX_SENTENCE_CHARACTERS
            yield rest[:cut]
            rest = rest[cut:]
        if rest and not rest.isspace():
            yield rest
