"""`bertcli predict` for masked language models: the most probable tokens at each mask of a text.

Shapes: M masks of all texts in a batch, V vocabulary, K tokens kept per mask.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bertcli.data.batching import token_budget_batches
from bertcli.data.encoding import RowWarning, encode_texts
from bertcli.data.formats import Row
from bertcli.errors import DataError, ModelError
from bertcli.inference.prediction_formats import Prediction
from bertcli.models.from_pretrained import ModelSource
from bertcli.models.padding_free import optimize_forward
from bertcli.models.sparse_prediction import SparsePrediction
from bertcli.models.tokenizer_matching import is_padding_sensitive, match_tokenizer, max_input_length
from bertcli.recipe.schema import HardwareSection
from bertcli.training.devices import build_accelerator, compiles_each_size, pad_to_multiple_of, prepare_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_CLASS = "AutoModelForMaskedLM"
MASK_PLACEHOLDER = "[MASK]"  # accepted in texts for every tokenizer, whatever its mask token

TokenPredictions = list[dict[str, Any]]  # tokens and probabilities for one mask, most probable first


def has_masked_lm_head(source: ModelSource) -> bool:
    """Return whether the saved model has a masked-language-modeling head.

    Raises:
        ModelError: if it is a pretrained ELECTRA discriminator, which has no such head.
    """
    if source.has_head(MODEL_CLASS):
        return True
    if not source.has_head("AutoModelForPreTraining"):
        return False
    if source.config.model_type == "electra":  # its pretraining class is the discriminator only
        raise ModelError(
            f"{source.name} is an ELECTRA discriminator, which detects replaced tokens and cannot fill masks; "
            "fine-tune it, or extract features with --features"
        )
    return True


def with_masks_in_texts(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy of the tokenizer that recognizes the mask token in a text, but no other special tokens."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] &= token["content"] != tokenizer.mask_token
    copied = copy.copy(tokenizer)
    copied._tokenizer = Tokenizer.from_str(json.dumps(state))
    return copied


class MaskFiller:
    """A masked language model that fills the masks of texts.

    Args:
        top_k: number of tokens per mask.
        hardware: device, precision and batch size; None: the defaults.

    Raises:
        ModelError: if the model lacks weights, or is incompatible with its tokenizer.
    """

    def __init__(self, source: ModelSource, top_k: int, hardware: HardwareSection | None):
        hardware = hardware or HardwareSection()
        self.top_k, self.max_tokens = top_k, hardware.eval_batch_tokens
        self.tokenizer = source.load_tokenizer()
        match_tokenizer(self.tokenizer, source.config, source.name)
        self.text_tokenizer = with_masks_in_texts(self.tokenizer)
        self.accelerator = build_accelerator(hardware)
        pretrained = source.load_model(MODEL_CLASS)
        self.max_length = max_input_length(self.tokenizer, pretrained.config)
        model = SparsePrediction(pretrained)
        optimize_forward(model, self.accelerator.device)
        self.model = self.accelerator.prepare_model(model, evaluation_mode=True).eval()

    def predict_rows(self, rows: list[Row], first_row: int, column: str) -> tuple[list[Prediction], list[RowWarning]]:
        """Return `masks` for each row, the most probable tokens for each mask in the text of `column`; no warnings.

        Args:
            first_row: index of the first row, for messages.

        Raises:
            DataError: if a text has no mask, or a mask beyond the maximum length.
        """
        texts = [str(row[column]).replace(MASK_PLACEHOLDER, self.tokenizer.mask_token) for row in rows]
        predictions = self._fill_texts(texts)
        for index, text in enumerate(texts):
            self._check_masks(first_row + index + 1, text, len(predictions.get(index, [])))
        return [{"masks": predictions[index]} for index in range(len(rows))], []

    def _fill_texts(self, texts: list[str]) -> dict[int, list[TokenPredictions]]:
        """Return the predictions for each mask of a text, by the text's index; texts without masks are omitted."""
        encoded = encode_texts(self.text_tokenizer, texts, None, self.max_length)
        cumulative_masks = np.concatenate(([0], np.cumsum(encoded.input_ids == self.tokenizer.mask_token_id)))
        masked_texts = np.flatnonzero(np.diff(cumulative_masks[encoded.offsets]))
        predictions: dict[int, list[TokenPredictions]] = {}
        lengths = encoded.lengths[masked_texts]
        same_length = is_padding_sensitive(self.model, int(lengths.max(initial=0)))
        multiple_of = 1 if same_length else pad_to_multiple_of(self.accelerator)
        for batch_indices in token_budget_batches(lengths, self.max_tokens, same_length=same_length):
            items = masked_texts[batch_indices]
            batch = encoded.batch(items, multiple_of)
            predictions |= dict(zip(items.tolist(), self._fill_batch(batch), strict=True))
        return predictions

    def _fill_batch(self, batch: dict[str, torch.Tensor]) -> list[list[TokenPredictions]]:
        """Return the predictions for each mask of each text of a batch."""
        is_mask = batch["input_ids"] == self.tokenizer.mask_token_id
        text_indices = is_mask.nonzero()[:, 0]  # [M]
        with torch.inference_mode():
            batch = batch | {"target_positions": is_mask}
            round_up = compiles_each_size(self.accelerator)
            inputs = prepare_batch(batch, self.model, self.accelerator.device, round_up=round_up)
            probabilities = self.model(**inputs).logits[:, : len(self.tokenizer)].float().softmax(-1)  # [M, V]
            top = probabilities.topk(min(self.top_k, probabilities.shape[-1]))  # [M, K]
        predictions: list[list[TokenPredictions]] = [[] for _ in range(len(batch["input_ids"]))]
        values, ids = top.values.cpu().numpy(), top.indices.cpu().numpy()
        for text_index, mask_values, mask_ids in zip(text_indices.tolist(), values, ids, strict=True):
            predictions[text_index].append(self._token_predictions(mask_values, mask_ids))
        return predictions

    def _token_predictions(self, probabilities: np.ndarray, ids: np.ndarray) -> TokenPredictions:
        tokens = [str(self.tokenizer.decode([token_id])).strip() for token_id in ids.tolist()]
        return [
            {"token": token, "probability": round(float(probability), 6)}
            for token, probability in zip(tokens, probabilities, strict=True)
        ]

    def _check_masks(self, row: int, text: str, num_filled: int) -> None:
        mask = self.tokenizer.mask_token
        if not num_filled:
            raise DataError(
                f"row {row} has no {mask} among the first {self.max_length} tokens of {text[:80]!r}; add one there"
            )
        if num_filled < text.count(mask):
            raise DataError(
                f"row {row} has {text.count(mask)} {mask}, but only {num_filled} among its first {self.max_length} "
                "tokens; shorten the text"
            )
