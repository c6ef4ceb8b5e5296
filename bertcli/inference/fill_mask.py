"""`bertcli predict` for a pretrained model: the likeliest tokens at each mask of a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bertcli.data.batching import token_budget_batches
from bertcli.data.encoding import encode_texts
from bertcli.data.formats import Row
from bertcli.data.prediction_inputs import in_chunks
from bertcli.errors import DataError, ModelError
from bertcli.models.from_pretrained import has_trained_head, load_config, load_model, load_tokenizer, longest_input
from bertcli.models.padding_free import speed_up
from bertcli.models.sparse_prediction import AskedPositions
from bertcli.recipe.schema import HardwareSection
from bertcli.training.devices import build_accelerator, on_device, width_multiple

MODEL_CLASS = "AutoModelForMaskedLM"
COMMON_MASK = "[MASK]"  # understood whatever the tokenizer's own mask is
ROWS_AT_ONCE = 1024


def fills_masks(name: str, mirror: Path | None) -> bool:
    """Whether the model `name` was pretrained to guess masked tokens, and for nothing else.

    Raises:
        ModelError: it was pretrained to tell replaced tokens, and guesses none.
    """
    config = load_config(name, mirror)
    if has_trained_head(config, MODEL_CLASS):
        return True
    if not has_trained_head(config, "AutoModelForPreTraining"):
        return False
    if config.model_type == "electra":  # whose class of that name is the discriminator alone
        raise ModelError(f"{name} tells replaced tokens and fills no masks; fine-tune it, or ask for its --features")
    return True


class MaskFiller:
    """A masked-language model ready to fill gaps."""

    def __init__(self, name: str, top_k: int, mirror: Path | None, hardware: HardwareSection | None):
        hardware = hardware or HardwareSection()
        self.top_k, self.max_tokens = top_k, hardware.eval_batch_tokens
        self.tokenizer = load_tokenizer(name, mirror)
        self.accelerator = build_accelerator(hardware)
        model = load_model(name, mirror, MODEL_CLASS, {})
        self.max_length = longest_input(self.tokenizer, model.config)
        asking = AskedPositions(model)
        speed_up(asking, self.accelerator.device)
        self.model = self.accelerator.prepare_model(asking, evaluation_mode=True).eval()

    def fill(self, inputs: Iterable[Row], column: str) -> Iterator[tuple[Row, dict[str, Any]]]:
        """For each text the tokens for each of its masks, likeliest first.

        Raises:
            DataError: a text has no mask, or only one that is too far back to be read.
        """
        mask = self.tokenizer.mask_token
        for number, chunk in enumerate(in_chunks(inputs, ROWS_AT_ONCE)):
            texts = [str(row[column]).replace(COMMON_MASK, mask) for row in chunk]
            encoded = encode_texts(self.tokenizer, texts, None, self.max_length)
            masks = np.concatenate(([0], np.cumsum(encoded.input_ids == self.tokenizer.mask_token_id)))
            wanting = np.flatnonzero(np.diff(masks[encoded.offsets]))
            answers: dict[int, list[list[dict[str, Any]]]] = {}
            for chosen in token_budget_batches(encoded.lengths[wanting], self.max_tokens):
                items = wanting[chosen]
                batch = encoded.batch(items, width_multiple(self.accelerator))
                answers |= dict(zip(items.tolist(), self._answers(batch), strict=True))
            for row in range(len(chunk)):
                if row in answers and len(answers[row]) < texts[row].count(mask):
                    raise DataError(
                        f"row {number * ROWS_AT_ONCE + row + 1} has {texts[row].count(mask)} {mask}, of which only "
                        f"{len(answers[row])} are among its first {self.max_length} tokens; shorten it"
                    )
                if row not in answers:
                    raise DataError(
                        f"row {number * ROWS_AT_ONCE + row + 1} has no {mask} among the first {self.max_length} tokens "
                        f"of {texts[row][:80]!r}"
                    )
                yield {column: chunk[row][column]}, {"masks": answers[row]}

    def _answers(self, batch: dict[str, torch.Tensor]) -> list[list[list[dict[str, Any]]]]:
        """Tokens and probabilities for each mask of each text of a batch."""
        asked = batch["input_ids"] == self.tokenizer.mask_token_id
        rows = asked.nonzero()[:, 0]
        with torch.inference_mode():
            inputs = on_device(batch | {"asked": asked}, self.model, self.accelerator.device)
            shares = self.model(**inputs).logits[:, : len(self.tokenizer)].float().softmax(-1)
            best = shares.topk(min(self.top_k, shares.shape[-1]))
        found: list[list[list[dict[str, Any]]]] = [[] for _ in range(len(batch["input_ids"]))]
        values, ids = best.values.cpu().numpy(), best.indices.cpu().numpy()
        for row, own_values, own_ids in zip(rows.tolist(), values, ids, strict=True):
            found[row].append(self._tokens(own_values, own_ids))
        return found

    def _tokens(self, values: np.ndarray, ids: np.ndarray) -> list[dict[str, Any]]:
        words = [str(self.tokenizer.decode([token])).strip() for token in ids.tolist()]
        return [
            {"token": word, "probability": round(float(value), 6)} for word, value in zip(words, values, strict=True)
        ]
