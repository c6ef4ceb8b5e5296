"""What stands before and behind the model: tokenising, and making answers of SQuAD's start and end scores."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from datasets import Dataset, disable_caching, disable_progress_bars
from transformers import PreTrainedTokenizerBase

from bertcli.data.encoding import Encoded, encode_texts
from bertcli.heads.span_decoding import best_spans, read_answer
from bertcli.recipe.schema import AnswersSection
from tests.benchmarks.measure import Contender, race

N_BEST, LONGEST_ANSWER = 20, 30


def bench(tokenizer: PreTrainedTokenizerBase, rounds: int) -> None:
    """20,000 sentences tokenised; the best spans of 2,000 windows of 384 tokens."""
    disable_progress_bars()
    disable_caching()
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, size=size)) for size in random.integers(3, 40, 20_000)]

    def mapped(**options: Any) -> float:
        start = time.perf_counter()
        Dataset.from_dict({"text": texts}).map(lambda row: tokenizer(row["text"], truncation=True), **options)
        return len(texts) / (time.perf_counter() - start)

    def encoded() -> float:
        start = time.perf_counter()
        assert len(encode_texts(tokenizer, texts, None, 128, None)) == len(texts)
        return len(texts) / (time.perf_counter() - start)

    race("tokenising", "texts/s", [
        Contender("datasets.map, its defaults", mapped),
        Contender("datasets.map, batched", lambda: mapped(batched=True)),
        Contender("bertcli", encoded),
    ], rounds)  # fmt: skip
    _race_spans(rounds)


def _race_spans(rounds: int) -> None:
    """Each contender makes a list of the 20 best answers with their texts and probabilities for every window."""
    windows, length = 2000, 384
    logits = np.random.default_rng(0).normal(size=(windows * length, 2)).astype(np.float32)
    passage = "word " * length
    places = np.tile(np.stack((np.arange(length) * 5, np.arange(length) * 5 + 4), axis=1), (windows, 1))
    offsets = np.arange(windows + 1) * length
    ids = np.zeros(windows * length, dtype=np.int32)
    encoded = Encoded(ids, None, offsets, np.arange(windows), None, 0, places=places)
    wanted = AnswersSection(n_best_size=N_BEST, max_answer_length=LONGEST_ANSWER)
    some = 200

    def looped() -> float:
        begin = time.perf_counter()
        for window in range(some):
            start, end = logits[window * length : (window + 1) * length].T
            spans = places[window * length : (window + 1) * length]
            found: list[dict[str, Any]] = []
            for first in np.argsort(start)[-1 : -N_BEST - 1 : -1].tolist():
                for last in np.argsort(end)[-1 : -N_BEST - 1 : -1].tolist():
                    if first <= last < first + LONGEST_ANSWER:
                        text = passage[spans[first][0] : spans[last][1]]
                        found.append({"score": start[first] + end[last], "text": text})
            found = sorted(found, key=lambda one: one["score"], reverse=True)[:N_BEST]
            weights = np.exp(np.array([one["score"] for one in found]))
            for one, share in zip(found, weights / weights.sum(), strict=True):
                one["probability"] = share
        return some / (time.perf_counter() - begin)

    def vectorised() -> float:
        begin = time.perf_counter()
        found = best_spans(encoded, logits, wanted)
        for window in range(windows):
            null = logits[window * length]
            read_answer(passage, found, slice(window, window + 1), null, wanted, unanswerable=False)
        return windows / (time.perf_counter() - begin)

    race("SQuAD answers from scores, windows of 384 tokens", "windows/s", [
        Contender("a loop over windows, starts and ends", looped), Contender("bertcli", vectorised),
    ], rounds)  # fmt: skip
