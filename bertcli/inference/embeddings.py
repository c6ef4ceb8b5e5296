"""`bertcli predict --features`: an encoder's vectors for texts, pooled or one a token, to Parquet or `.npy`.

What `extract_features.py` of the original BERT did. Shapes: N texts, T tokens of them, L layers, H hidden width.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.encoding import Encoded, encode_texts
from bertcli.data.formats import Row, as_text
from bertcli.data.prediction_inputs import in_chunks
from bertcli.errors import UsageError, did_you_mean
from bertcli.files import open_new
from bertcli.inference.forward import compute_logits
from bertcli.models.from_pretrained import load_config, load_model, load_tokenizer, longest_input
from bertcli.recipe.schema import DataSection, HardwareSection
from bertcli.training.devices import build_accelerator

if TYPE_CHECKING:
    import torch

POOLINGS = ("mean", "cls", "tokens")
ENDINGS = (".parquet", ".npy")
ROWS_AT_ONCE = 256  # all their tokens' vectors are in memory at once


class Extractor:
    """An encoder that gives the vectors of chosen layers."""

    def __init__(
        self, name: str, layers: list[int], data: DataSection, mirror: Path | None, hardware: HardwareSection | None
    ):
        config = load_config(name, mirror)
        num_layers = config.num_hidden_layers
        for layer in layers:
            if not -num_layers - 1 <= layer <= num_layers:
                raise UsageError(f"found layer {layer}, expected 0 (embeddings) to {num_layers}, or -1 for the last …")
        self.layers = layers
        self.tokenizer = load_tokenizer(name, mirror)
        hardware = hardware or HardwareSection()
        self.accelerator, self.max_tokens = build_accelerator(hardware), hardware.eval_batch_tokens
        model = load_model(name, mirror, "AutoModel", {"output_hidden_states": True})
        self.model = self.accelerator.prepare_model(model, evaluation_mode=True)
        self.max_length = min(data.max_length, longest_input(self.tokenizer, config))

    def encode(self, texts: list[str], pairs: list[str] | None) -> Encoded:
        """Texts (or pairs) as the encoder reads them, cut at its longest input."""
        return encode_texts(self.tokenizer, texts, pairs, self.max_length)

    def vectors(self, encoded: Encoded) -> np.ndarray:
        """The vectors of all tokens, special ones included. [T, L, H]"""
        vectors, _ = compute_logits(
            self.accelerator,
            self.model,
            encoded,
            self._chosen_layers,
            per_token=True,
            max_tokens=self.max_tokens,
        )
        return vectors

    def _chosen_layers(self, outputs: Any) -> torch.Tensor:
        import torch

        return torch.stack([outputs.hidden_states[layer] for layer in self.layers], dim=-2)


def pool(vectors: np.ndarray, encoded: Encoded, pooling: str) -> np.ndarray:
    """One vector a text from those of its tokens [T, L, H]: their mean, or the first token's. [N, L, H]"""
    if pooling == "cls":
        return vectors[encoded.offsets[:-1]]
    return np.add.reduceat(vectors, encoded.offsets[:-1], axis=0) / encoded.lengths[:, None, None].astype(np.float32)


def write_features(
    extractor: Extractor, rows: Iterable[Row], columns: tuple[str, ...], output: Path, pooling: str
) -> int:
    """Write the vectors of each row's text (or pair); return the number of rows. Memory does not grow with them.

    Parquet holds the texts, and for each layer a column `layer_<n>`; `.npy` an array [N, H], or [N, L, H] with
    several layers.

    Raises:
        UsageError: an unknown pooling or ending, vectors a token in `.npy`, or the file exists.
    """
    if pooling not in POOLINGS:
        raise UsageError(
            f"found pooling {pooling!r}, expected one of {', '.join(POOLINGS)}.{did_you_mean(pooling, POOLINGS)}"
        )
    if output.suffix not in ENDINGS:
        raise UsageError(f"found --output {output}, expected a file that ends in {' or '.join(ENDINGS)}")
    if output.suffix == ".npy":
        if pooling == "tokens":
            raise UsageError("texts have different numbers of tokens, which .npy cannot hold; name a .parquet file")
        return _write_npy(_pooled(extractor, rows, columns, pooling), output, extractor.layers)
    return _write_parquet(_tables(extractor, rows, columns, pooling), output)


def _encoded_chunks(
    extractor: Extractor, rows: Iterable[Row], columns: tuple[str, ...]
) -> Iterator[tuple[list[Row], Encoded, np.ndarray]]:
    for chunk in in_chunks(rows, ROWS_AT_ONCE):
        texts = [[as_text(row[column]) for row in chunk] for column in columns[:2]]
        encoded = extractor.encode(texts[0], texts[1] if len(texts) > 1 else None)
        yield chunk, encoded, extractor.vectors(encoded)


def _pooled(extractor: Extractor, rows: Iterable[Row], columns: tuple[str, ...], pooling: str) -> Iterator[np.ndarray]:
    for _, encoded, vectors in _encoded_chunks(extractor, rows, columns):
        yield pool(vectors, encoded, pooling)


def _write_npy(parts: Iterator[np.ndarray], output: Path, layers: list[int]) -> int:
    """Write the vectors first and the header, which holds their number, afterwards."""
    open_new(output).close()
    count, width = 0, 0
    with tempfile.TemporaryFile(dir=output.parent) as body, output.open("wb") as file:
        for part in parts:
            count, width = count + len(part), part.shape[-1]
            body.write(np.ascontiguousarray(part, dtype="<f4").tobytes())
        shape = (count, len(layers), width) if len(layers) > 1 else (count, width)
        np.lib.format.write_array_header_2_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        body.seek(0)
        shutil.copyfileobj(body, file)
    return count


def _tables(extractor: Extractor, rows: Iterable[Row], columns: tuple[str, ...], pooling: str) -> Iterator[Any]:
    import pyarrow

    for chunk, encoded, vectors in _encoded_chunks(extractor, rows, columns):
        cells: dict[str, Any] = {column: [as_text(row[column]) for row in chunk] for column in columns[:2]}
        offsets = pyarrow.array(encoded.offsets, pyarrow.int32())
        if pooling == "tokens":
            tokens = extractor.tokenizer.convert_ids_to_tokens(encoded.input_ids.tolist())
            cells["tokens"] = pyarrow.ListArray.from_arrays(offsets, pyarrow.array(tokens))
        values = vectors if pooling == "tokens" else pool(vectors, encoded, pooling)
        for at, layer in enumerate(extractor.layers):
            flat = pyarrow.array(np.ascontiguousarray(values[:, at], dtype=np.float32).ravel())
            column = pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[-1])
            cells[f"layer_{layer}"] = pyarrow.ListArray.from_arrays(offsets, column) if pooling == "tokens" else column
        yield pyarrow.table(cells)


def _write_parquet(tables: Iterator[Any], output: Path) -> int:
    import pyarrow.parquet

    open_new(output).close()
    count = 0
    writer = None
    for table in tables:
        writer = writer or pyarrow.parquet.ParquetWriter(output, table.schema)
        writer.write_table(table)
        count += len(table)
    if writer:
        writer.close()
    return count
