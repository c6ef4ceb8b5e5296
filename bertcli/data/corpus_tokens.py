"""The tokens of a corpus on disk: made once, memory-mapped, keyed by what they are made of.

<cache>/corpora/<key>/
  tokens.bin       uint16 or uint32, all documents end to end
  flags.bin        uint8 a token: 1 begins a word, 2 begins a sentence
  documents.npy    int64, where each document begins, and the end
  corpus.json      what it was made of
  manifest.json    size and hash of each of these
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.cache import cache_folder, made_once
from bertcli.data.corpus_reading import files_of, read_documents
from bertcli.data.sources import load_rows
from bertcli.errors import DataError
from bertcli.malloc import give_back_memory
from bertcli.recipe.pretrain_schema import CorpusSection, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 2
BEGINS_WORD, BEGINS_SENTENCE = 1, 2
CHARACTERS_AT_ONCE = 1_000_000  # what is tokenised at a time, by all cores
LONGEST_PIECE = 20_000  # characters tokenised as one text
SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s+\S)|(?<=\n)(?=\S)")


@dataclass(frozen=True)
class Corpus:
    """Tokenised documents; document d is `tokens[documents[d]:documents[d + 1]]`."""

    tokens: np.ndarray  # [T] memory-mapped
    flags: np.ndarray  # [T] memory-mapped
    documents: np.ndarray  # [D + 1] int64
    sources: np.ndarray  # [number of sources + 1] first document of each, and the end

    def lengths_of(self, documents: np.ndarray) -> np.ndarray:
        """Tokens of the documents with these numbers."""
        return self.documents[documents + 1] - self.documents[documents]


def open_corpus(
    section: CorpusSection,
    tokenizer: PreTrainedTokenizerBase,
    mirror: Path | None,
    on_tokens: Callable[[int], None] = lambda num_tokens: None,
    warn: Callable[[str], None] = warnings.warn,
) -> Corpus:
    """The tokens of the corpus, made now if they are not in the cache, or damaged there.

    Args:
        on_tokens: told how many more tokens are done, while they are made.
        warn: told of damage.

    Raises:
        DataError: a source cannot be read, or the corpus is empty.
    """
    key = corpus_key(section, tokenizer, mirror)
    return _read_corpus(
        made_once(
            cache_folder() / "corpora" / key,
            lambda aside: _write_corpus(section, tokenizer, mirror, aside, on_tokens),
            warn,
        )
    )


def corpus_key(section: CorpusSection, tokenizer: PreTrainedTokenizerBase | None, mirror: Path | None) -> str:
    """A name for this text, or for its tokens by a tokenizer: the same if, and only if, contents and options are."""
    state = hashlib.blake2b(digest_size=16)
    state.update(f"{FORMAT} {section.max_documents}".encode())
    if tokenizer is not None:
        state.update(tokenizer.backend_tokenizer.to_str().encode())
    for source in section.sources:
        state.update(
            json.dumps([source.column, source.documents, source.dataset, source.config, source.split]).encode()
        )
        if source.dataset == "sample":  # another version may make other ones
            for document in read_documents(source, mirror):
                state.update(document.encode())
        elif source.dataset is not None:
            state.update(load_rows(source.dataset, source.config, source.split, mirror)._fingerprint.encode())
        for path in files_of(source) if source.files else ():
            state.update("".join(path.suffixes[-2:]).encode())  # of notes.jsonl.gz both tell how it is read
            with path.open("rb") as file:
                while part := file.read(1 << 22):
                    state.update(part)
    return state.hexdigest()


def _read_corpus(folder: Path) -> Corpus:
    about = json.loads((folder / "corpus.json").read_text("utf-8"))
    return Corpus(
        tokens=np.memmap(folder / "tokens.bin", dtype=about["dtype"], mode="r"),
        flags=np.memmap(folder / "flags.bin", dtype=np.uint8, mode="r"),
        documents=np.load(folder / "documents.npy", mmap_mode="r"),
        sources=np.asarray(about["sources"]),
    )


def _write_corpus(
    section: CorpusSection,
    tokenizer: PreTrainedTokenizerBase,
    mirror: Path | None,
    folder: Path,
    on_tokens: Callable[[int], None],
) -> None:
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    ends, sources, total = array("q", [0]), [0], 0
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "flags.bin").open("wb") as flags:
        for source in section.sources:
            documents = islice(read_documents(source, mirror), section.max_documents)
            for part in _chunks(documents):
                ids, marks, sizes = _tokenize(tokenizer, part)
                tokens.write(ids.astype(dtype).tobytes())
                flags.write(marks.tobytes())
                ends.extend((total + np.cumsum(sizes[sizes > 0])).tolist())
                total += len(ids)
                del part, ids, marks, sizes
                give_back_memory()
                on_tokens(total)
            sources.append(len(ends) - 1)
    if len(ends) < 3:
        raise DataError(f"found {len(ends) - 1} documents with words in the corpus, expected two or more")
    np.save(folder / "documents.npy", np.frombuffer(ends, dtype=np.int64))
    about = {"dtype": np.dtype(dtype).name, "sources": sources, "num_tokens": total}
    (folder / "corpus.json").write_text(json.dumps(about | {"from": _described(section.sources)}, indent=2))


def _described(sources: tuple[Source, ...]) -> list[Any]:
    return [source.model_dump(exclude_defaults=True) for source in sources]


def _chunks(documents: Iterator[str]) -> Iterator[list[str]]:
    """Documents in lists of about `CHARACTERS_AT_ONCE` characters."""
    chunk: list[str] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document)
        if size >= CHARACTERS_AT_ONCE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _tokenize(tokenizer: PreTrainedTokenizerBase, documents: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and flags of all tokens [T], and the number of each document's [D]; all cores work on sentences."""
    pieces = [list(_sentences(document)) for document in documents]
    sentences = list(chain.from_iterable(pieces))
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # a `[MASK]` that somebody wrote is text
    encodings = backend.encode_batch(sentences, add_special_tokens=False)
    backend.encode_special_tokens = False
    lengths = np.fromiter((len(encoding) for encoding in encodings), np.int64, len(encodings))
    total = int(lengths.sum())
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int64, total)
    words = np.fromiter(
        (-1 if word is None else word for encoding in encodings for word in encoding.word_ids), np.int64, total
    )
    starts = (np.cumsum(lengths) - lengths)[lengths > 0]
    flags = (np.diff(words, prepend=-1) != 0) * np.uint8(BEGINS_WORD)
    flags[starts] = BEGINS_WORD | BEGINS_SENTENCE
    ends = np.concatenate(([0], np.cumsum(lengths)))[np.cumsum([0, *map(len, pieces)])]
    return ids, flags, np.diff(ends)


def _sentences(document: str) -> Iterator[str]:
    """The sentences of a document: its lines, cut behind full stops; none is longer than `LONGEST_PIECE`."""
    for sentence in SENTENCE_END.split(document):
        rest = sentence
        while len(rest) > LONGEST_PIECE:
            cut = max(rest.rfind(" ", 1, LONGEST_PIECE), 0) or LONGEST_PIECE
            yield rest[:cut]
            rest = rest[cut:]
        if rest and not rest.isspace():
            yield rest
