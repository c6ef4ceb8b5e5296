"""Predictions per second: `bertcli predict` against `transformers.pipeline`, on inputs of varied length."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from bertcli.cli.main import DEFAULT_ENVIRONMENT
from bertcli.commands.predict import predict
from bertcli.console import Console
from bertcli.data.prediction_inputs import PredictionInput
from bertcli.models.from_pretrained import save_model
from bertcli.recipe.schema import HardwareSection
from bertcli.training.devices import cpu_computes_bf16
from tests.benchmarks.finetuning import bert_config, sst2_lengths
from tests.benchmarks.measure import Contender, compare, run_in_process

MAX_LENGTH = 512  # tokens


def bench(tokenizer: PreTrainedTokenizerBase, rounds: int) -> None:
    """Sentences with SST-2's lengths and documents with IMDb's (230 words on average, truncated to 512 tokens)."""
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    random = np.random.default_rng(0)
    imdb_lengths = random.gamma(2.0, 115.0, 192).clip(10, 1000).astype(int).tolist()

    def build_texts(lengths: list[int]) -> list[str]:
        return [" ".join(random.choice(words, size=length)) for length in lengths]

    with tempfile.TemporaryDirectory() as folder:
        model_class = transformers.BertForSequenceClassification
        run_in_process(lambda: save_model(model_class(bert_config()), tokenizer, Path(folder)))
        for title, texts in (
            ("prediction, SST-2 lengths", build_texts([length - 2 for length in sst2_lengths(2000)])),
            ("prediction, IMDb lengths", build_texts(imdb_lengths)),
        ):
            in_bf16 = _pipeline(folder, texts, 32, sort=True, dtype=torch.bfloat16)
            bf16 = [Contender("the same, sorted, in bf16", in_bf16, DEFAULT_ENVIRONMENT)] if cpu_computes_bf16() else []
            compare(title, "inputs/s", [
                Contender("pipeline, one by one", _pipeline(folder, texts[:200], 1)),
                Contender("pipeline, batch_size=32", _pipeline(folder, texts, 32)),
                Contender("the same, inputs sorted by length", _pipeline(folder, texts, 32, sort=True)),
                *bf16,
                Contender("bertcli predict, including start-up", _bertcli(folder, texts), DEFAULT_ENVIRONMENT),
            ], rounds)  # fmt: skip


def _pipeline(
    folder: str, texts: list[str], batch_size: int, *, sort: bool = False, dtype: torch.dtype = torch.float32
) -> Callable[[], float]:
    def measure() -> float:
        pipe = transformers.pipeline("text-classification", folder, device="cpu", batch_size=batch_size, dtype=dtype)
        inputs = sorted(texts, key=len) if sort else texts
        start = time.perf_counter()
        predictions = pipe(inputs, truncation=True, max_length=MAX_LENGTH)
        assert len(predictions) == len(texts)
        return len(texts) / (time.perf_counter() - start)

    return measure


def _bertcli(folder: str, texts: list[str]) -> Callable[[], float]:
    """The whole command: loading the model, predicting, writing the predictions."""

    def measure() -> float:
        with tempfile.TemporaryDirectory() as output_folder:
            start = time.perf_counter()
            num_predictions = predict(
                folder,
                PredictionInput([(text,) for text in texts]),
                str(Path(output_folder) / "predictions.jsonl"),
                hardware=HardwareSection(device="cpu"),
                console=Console(mute=True),
            )
            assert num_predictions == len(texts)
            return num_predictions / (time.perf_counter() - start)

    return measure
