"""Guess the next token from those before it (GPT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bertcli.data.encoding import IGNORED_LABEL
from bertcli.pretraining.objective import AskedTokens, Text, TokenObjective


class CausalLM(TokenObjective):
    """Every token but the first is asked for; the label at a place is the token behind it."""

    model_class = "AutoModelForCausalLM"

    def config_fields(self) -> dict[str, Any]:
        """BERT-like encoders only look back if they are told to be decoders."""
        return {"is_decoder": True}

    def ask(self, texts: Sequence[Text], random: np.random.Generator) -> AskedTokens:
        """The texts as they are; chance has no part in it."""
        encoded, _, _ = self.framed(texts)
        labels = np.append(encoded.input_ids[1:], IGNORED_LABEL).astype(np.int64)
        labels[encoded.offsets[1:] - 1] = IGNORED_LABEL  # nothing follows the last token of a sequence
        return AskedTokens(encoded.with_labels(encoded.input_ids, labels))
