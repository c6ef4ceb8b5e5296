"""The work before and after the model: tokenization, and SQuAD answers from start and end logits."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from datasets import Dataset, disable_caching, disable_progress_bars
from transformers import PreTrainedTokenizerBase

from bertcli.data.encoding import Encoded, encode_texts
from bertcli.heads.span_decoding import best_spans, select_answer
from bertcli.recipe.schema import AnswersSection
from tests.benchmarks.measure import Contender, compare

N_BEST_SIZE, MAX_ANSWER_LENGTH = 20, 30


def bench(tokenizer: PreTrainedTokenizerBase, rounds: int) -> None:
    """Tokenize 20,000 sentences; decode the best spans of 2,000 windows of 384 tokens."""
    disable_progress_bars()
    disable_caching()
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, size=size)) for size in random.integers(3, 40, 20_000)]

    def map_rate(**options: Any) -> float:
        start = time.perf_counter()
        Dataset.from_dict({"text": texts}).map(lambda row: tokenizer(row["text"], truncation=True), **options)
        return len(texts) / (time.perf_counter() - start)

    def bertcli_rate() -> float:
        start = time.perf_counter()
        assert len(encode_texts(tokenizer, texts, None, 128, None)) == len(texts)
        return len(texts) / (time.perf_counter() - start)

    compare("tokenization", "texts/s", [
        Contender("datasets.map, default flags", map_rate),
        Contender("datasets.map, batched", lambda: map_rate(batched=True)),
        Contender("bertcli", bertcli_rate),
    ], rounds)  # fmt: skip
    _compare_span_decoding(rounds)


def _compare_span_decoding(rounds: int) -> None:
    """Each contender lists the 20 best answers of every window with their texts and probabilities."""
    num_windows, length = 2000, 384
    logits = np.random.default_rng(0).normal(size=(num_windows * length, 2)).astype(np.float32)
    passage = "word " * length
    char_offsets = np.tile(np.stack((np.arange(length) * 5, np.arange(length) * 5 + 4), axis=1), (num_windows, 1))
    offsets = np.arange(num_windows + 1) * length
    ids = np.zeros(num_windows * length, dtype=np.int32)
    encoded = Encoded(ids, None, offsets, np.arange(num_windows), None, 0, alignment=char_offsets)
    options = AnswersSection(n_best_size=N_BEST_SIZE, max_answer_length=MAX_ANSWER_LENGTH)
    num_loop_windows = 200

    def loop_rate() -> float:
        started_at = time.perf_counter()
        for window in range(num_loop_windows):
            tokens = slice(window * length, (window + 1) * length)
            start, end = logits[tokens].T
            spans = char_offsets[tokens]
            answers: list[dict[str, Any]] = []
            for first in np.argsort(start)[-1 : -N_BEST_SIZE - 1 : -1].tolist():
                for last in np.argsort(end)[-1 : -N_BEST_SIZE - 1 : -1].tolist():
                    if first <= last < first + MAX_ANSWER_LENGTH:
                        text = passage[spans[first][0] : spans[last][1]]
                        answers.append({"score": start[first] + end[last], "text": text})
            answers = sorted(answers, key=lambda answer: answer["score"], reverse=True)[:N_BEST_SIZE]
            weights = np.exp(np.array([answer["score"] for answer in answers]))
            for answer, probability in zip(answers, weights / weights.sum(), strict=True):
                answer["probability"] = probability
        return num_loop_windows / (time.perf_counter() - started_at)

    def bertcli_rate() -> float:
        started_at = time.perf_counter()
        spans = best_spans(encoded, logits, options)
        for window in range(num_windows):
            null_logits = logits[window * length]
            select_answer(passage, spans, slice(window, window + 1), null_logits, options, unanswerable=False)
        return num_windows / (time.perf_counter() - started_at)

    compare("SQuAD answers from logits, windows of 384 tokens", "windows/s", [
        Contender("a loop over windows, starts and ends", loop_rate), Contender("bertcli", bertcli_rate),
    ], rounds)  # fmt: skip
