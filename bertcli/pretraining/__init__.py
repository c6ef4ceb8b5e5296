"""The pretraining objectives by the name a recipe gives."""

from __future__ import annotations

from bertcli.pretraining.causal_lm import CausalLM
from bertcli.pretraining.masked_lm import MaskedLM
from bertcli.pretraining.objective import Objective
from bertcli.pretraining.replaced_token_detection import ReplacedTokens
from bertcli.pretraining.span_corruption import SpanCorruption
from bertcli.recipe.pretrain_schema import ObjectiveKind

OBJECTIVES: dict[ObjectiveKind, type[Objective]] = {
    "masked_lm": MaskedLM,
    "replaced_tokens": ReplacedTokens,
    "causal_lm": CausalLM,
    "span_corruption": SpanCorruption,
}
