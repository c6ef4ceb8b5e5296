"""Answers a second: `bertcli predict` against `transformers.pipeline`, inputs of many lengths in random order."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from bertcli.cli.main import ENVIRONMENT
from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.models.from_pretrained import save_model
from bertcli.recipe.schema import HardwareSection
from bertcli.training.devices import cpu_computes_bf16
from tests.benchmarks.finetuning import config, sentences
from tests.benchmarks.measure import Contender, apart, race

LONGEST = 512  # what such a model reads


def bench(tokenizer: PreTrainedTokenizerBase, rounds: int) -> None:
    """Sentences as SST-2's and documents as IMDb's (230 words on average, cut at 512 tokens)."""
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    random = np.random.default_rng(0)
    reviews = random.gamma(2.0, 115.0, 192).clip(10, 1000).astype(int).tolist()

    def texts(lengths: list[int]) -> list[str]:
        return [" ".join(random.choice(words, size=length)) for length in lengths]

    with tempfile.TemporaryDirectory() as folder:
        apart(lambda: save_model(transformers.BertForSequenceClassification(config()), tokenizer, Path(folder)))
        for title, inputs in (
            ("prediction, SST-2 lengths", texts([length - 2 for length in sentences(2000)])),
            ("prediction, IMDb lengths", texts(reviews)),
        ):
            in_bf16 = _pipeline(folder, inputs, 32, ordered=True, dtype=torch.bfloat16)
            halves = [Contender("the same, sorted, in bf16", in_bf16, ENVIRONMENT)] if cpu_computes_bf16() else []
            race(title, "inputs/s", [
                Contender("pipeline, one by one", _pipeline(folder, inputs[:200], 1)),
                Contender("pipeline, batch_size=32", _pipeline(folder, inputs, 32)),
                Contender("the same, inputs sorted by length", _pipeline(folder, inputs, 32, ordered=True)),
                *halves,
                Contender("bertcli predict", _ours(folder, inputs), ENVIRONMENT),
            ], rounds)  # fmt: skip


def _pipeline(
    folder: str, inputs: list[str], batch_size: int, *, ordered: bool = False, dtype: torch.dtype = torch.float32
) -> Callable[[], float]:
    def work() -> float:
        pipe = transformers.pipeline("text-classification", folder, device="cpu", batch_size=batch_size, dtype=dtype)
        given = sorted(inputs, key=len) if ordered else inputs
        start = time.perf_counter()
        answers = pipe(given, truncation=True, max_length=LONGEST)
        assert len(answers) == len(inputs)
        return len(inputs) / (time.perf_counter() - start)

    return work


def _ours(folder: str, inputs: list[str]) -> Callable[[], float]:
    """The whole command with its start: model loaded, answers written."""

    def work() -> float:
        with tempfile.TemporaryDirectory() as place:
            start = time.perf_counter()
            answers = Path(place) / "answers.jsonl"
            count = predict(
                folder,
                [(text,) for text in inputs],
                str(answers),
                hardware=HardwareSection(device="cpu"),
                console=Console(mute=True),
            )
            assert count == len(inputs)
            return count / (time.perf_counter() - start)

    return work
