"""Causal language modeling (GPT): predict each token from the tokens before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bertcli.data.encoding import IGNORED_LABEL
from bertcli.pretraining.objective import Text, TokenObjective, TokenTargets


class CausalLM(TokenObjective):
    """Next-token prediction: the label at each position is the next token."""

    model_class = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"
    has_pipeline = True

    def config_fields(self) -> dict[str, Any]:
        """Return `is_decoder`, with which BERT-like encoders attend only to earlier tokens."""
        return {"is_decoder": True}

    @property
    def predicted_share(self) -> float:
        """All tokens have logits."""
        return 1.0

    def build_targets(self, texts: Sequence[Text], random: np.random.Generator) -> TokenTargets:
        """Label each token with the next one; `random` is not used."""
        encoded, _, _ = self.with_special_tokens(texts)
        labels = np.append(encoded.input_ids[1:], IGNORED_LABEL).astype(np.int64)
        labels[encoded.offsets[1:] - 1] = IGNORED_LABEL  # the last token of a sequence has no next token
        return TokenTargets(encoded.with_labels(encoded.input_ids, labels))
