"""`bertcli predict --features`: hidden states of an encoder, pooled or per token, written to Parquet or `.npy`.

The counterpart of the original BERT's `extract_features.py`. Shapes: N texts, T tokens of all texts, L selected layers,
H hidden size.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertcli.data.encoding import Encoded, encode_texts, special_tokens_template
from bertcli.data.formats import Row, join_words
from bertcli.data.prediction_inputs import batched
from bertcli.errors import DataError, UsageError
from bertcli.files import new_file
from bertcli.inference.forward import compute_logits
from bertcli.inference.prediction_formats import INPUT_PREFIX
from bertcli.inference.prediction_outputs import check_feature_output
from bertcli.models.big_bird_attention import reset_attention_type
from bertcli.models.deberta_attention import attend_in_one_precision
from bertcli.models.from_pretrained import ModelSource, check_model_class
from bertcli.models.tokenizer_matching import match_tokenizer, max_input_length
from bertcli.recipe.schema import DataSection, HardwareSection
from bertcli.training.devices import build_accelerator

if TYPE_CHECKING:
    import pyarrow
    import torch

CHUNK_SIZE = 256  # number of rows whose token features are in memory
NO_INPUTS = "found no inputs, so there are no features to write; add a row"


class FeatureExtractor:
    """An encoder that returns the hidden states of selected layers.

    Args:
        layers: layers to return; 0 is the embedding layer, 1 the first layer, -1 the last.
        data: only `max_length` is used.
        hardware: device, precision and batch size; None: the defaults.

    Raises:
        UsageError: if the model does not have one of the layers.
        ModelError: if the model lacks weights, or is incompatible with its tokenizer.
    """

    def __init__(self, source: ModelSource, layers: list[int], data: DataSection, hardware: HardwareSection | None):
        config = source.config
        check_model_class(config, "AutoModel", source.name)
        num_layers = config.num_hidden_layers
        for layer in layers:
            if not -num_layers - 1 <= layer <= num_layers:
                raise UsageError(
                    f"found layer {layer}, expected 0 (embeddings) to {num_layers}, or -1 (last) to {-num_layers - 1}"
                )
        self.layers = layers
        self.tokenizer = source.load_tokenizer()
        match_tokenizer(self.tokenizer, config, source.name)
        hardware = hardware or HardwareSection()
        self.accelerator, self.max_tokens = build_accelerator(hardware), hardware.eval_batch_tokens
        model = source.load_model("AutoModel", {"output_hidden_states": True})
        if config.is_encoder_decoder:
            model = model.get_encoder()
        attend_in_one_precision(model)
        reset_attention_type(model)
        self.model = self.accelerator.prepare_model(model, evaluation_mode=True)
        self.max_length = min(data.max_length, max_input_length(self.tokenizer, config))

    @property
    def has_cls_token(self) -> bool:
        """Whether texts start with a special token, or end with [CLS]."""
        template = special_tokens_template(self.tokenizer, pair=False)
        return bool(template.prefix) or self.tokenizer.cls_token_id in template.suffix

    def encode(self, texts: list[str], pairs: list[str] | None) -> Encoded:
        """Encode texts or pairs of texts, truncated to the maximum length."""
        return encode_texts(self.tokenizer, texts, pairs, self.max_length)

    def hidden_states(self, encoded: Encoded) -> np.ndarray:
        """Return the hidden states of all tokens, including special ones. [T, L, H]"""
        hidden_states, _ = compute_logits(
            self.accelerator, self.model, encoded, self._select_layers, per_token=True, max_tokens=self.max_tokens
        )
        return hidden_states

    def _select_layers(self, outputs: Any) -> torch.Tensor:
        import torch

        return torch.stack([outputs.hidden_states[layer] for layer in self.layers], dim=-2)


def pool(hidden_states: np.ndarray, encoded: Encoded, pooling: str) -> np.ndarray:
    """Pool hidden states [T, L, H] to one vector per text: the mean over its tokens, or its [CLS] token's. [N, L, H]"""
    if pooling == "cls":  # XLNet, the only family that is padded on the left, has [CLS] at the end
        return hidden_states[encoded.offsets[1:] - 1 if encoded.padding_side == "left" else encoded.offsets[:-1]]
    sums = np.add.reduceat(hidden_states, encoded.offsets[:-1], axis=0)
    return sums / encoded.lengths[:, None, None].astype(np.float32)


def write_features(
    extractor: FeatureExtractor,
    rows: Iterable[Row],
    columns: tuple[str, ...],
    output: Path,
    pooling: str,
    *,
    overwrite: bool = False,
) -> int:
    """Write the features of each row's text (or pair) and return the number of rows; rows are streamed.

    Parquet files contain the texts, with `input_` before a name that is taken, and a column `layer_<n>` per layer;
    `.npy` files contain an array [N, H], or [N, L, H] for several layers.

    Raises:
        UsageError: if `check_feature_output` rejects the output, for example because the file exists and `overwrite` is
            not set, or `pooling` is `cls` but the tokenizer adds no [CLS] token.
        DataError: if there are no rows.
    """
    check_feature_output(output, pooling, overwrite=overwrite)
    if pooling == "cls" and not extractor.has_cls_token:
        raise UsageError("the tokenizer of this model adds no [CLS] token to a text; use --pooling mean")
    with new_file(output, overwrite=overwrite) as tmp:
        if output.suffix == ".npy":
            return _write_npy(_pooled_chunks(extractor, rows, columns, pooling), tmp, extractor.layers)
        return _write_parquet(_feature_tables(extractor, rows, columns, pooling), tmp)


def _encoded_chunks(
    extractor: FeatureExtractor, rows: Iterable[Row], columns: tuple[str, ...]
) -> Iterator[tuple[dict[str, list[str]], Encoded, np.ndarray]]:
    """Yield, for each chunk, its texts by column, their encoding, and their hidden states [T, L, H]."""
    for chunk in batched(rows, CHUNK_SIZE):
        texts = [[join_words(row[column]) for row in chunk] for column in columns[:2]]
        encoded = extractor.encode(texts[0], texts[1] if len(texts) > 1 else None)
        yield dict(zip(columns, texts, strict=False)), encoded, extractor.hidden_states(encoded)


def _pooled_chunks(
    extractor: FeatureExtractor, rows: Iterable[Row], columns: tuple[str, ...], pooling: str
) -> Iterator[np.ndarray]:
    for _, encoded, hidden_states in _encoded_chunks(extractor, rows, columns):
        yield pool(hidden_states, encoded, pooling)


def _write_npy(chunks: Iterator[np.ndarray], output: Path, layers: list[int]) -> int:
    """Write an array of unknown length: its values to a temporary file, then the header and a copy of the values."""
    num_rows, hidden_size = 0, 0
    with tempfile.TemporaryFile(dir=output.parent) as body, output.open("wb") as file:
        for chunk in chunks:
            num_rows, hidden_size = num_rows + len(chunk), chunk.shape[-1]
            body.write(np.ascontiguousarray(chunk, dtype="<f4").tobytes())
        if not num_rows:
            raise DataError(NO_INPUTS)
        shape = (num_rows, len(layers), hidden_size) if len(layers) > 1 else (num_rows, hidden_size)
        np.lib.format.write_array_header_2_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        body.seek(0)
        shutil.copyfileobj(body, file)
    return num_rows


def _feature_tables(
    extractor: FeatureExtractor, rows: Iterable[Row], columns: tuple[str, ...], pooling: str
) -> Iterator[pyarrow.Table]:
    import pyarrow

    for texts, encoded, hidden_states in _encoded_chunks(extractor, rows, columns):
        reserved = {*(f"layer_{layer}" for layer in extractor.layers), *["tokens"] * (pooling == "tokens")}
        cells: dict[str, Any] = {f"{INPUT_PREFIX * (name in reserved)}{name}": texts[name] for name in texts}
        offsets = pyarrow.array(encoded.offsets, pyarrow.int32())
        if pooling == "tokens":
            tokens = extractor.tokenizer.convert_ids_to_tokens(encoded.input_ids.tolist())
            cells["tokens"] = pyarrow.ListArray.from_arrays(offsets, pyarrow.array(tokens))
        features = hidden_states if pooling == "tokens" else pool(hidden_states, encoded, pooling)
        for index, layer in enumerate(extractor.layers):
            values = pyarrow.array(np.ascontiguousarray(features[:, index], dtype=np.float32).ravel())
            vectors = pyarrow.FixedSizeListArray.from_arrays(values, features.shape[-1])
            cells[f"layer_{layer}"] = (
                pyarrow.ListArray.from_arrays(offsets, vectors) if pooling == "tokens" else vectors
            )
        yield pyarrow.table(cells)


def _write_parquet(tables: Iterator[pyarrow.Table], output: Path) -> int:
    import pyarrow.parquet

    num_rows = 0
    writer = None
    for table in tables:
        writer = writer or pyarrow.parquet.ParquetWriter(output, table.schema)
        writer.write_table(table)
        num_rows += len(table)
    if writer is None:
        raise DataError(NO_INPUTS)
    writer.close()
    return num_rows
