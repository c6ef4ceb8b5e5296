"""The pretraining objectives by the name a recipe gives."""

from __future__ import annotations

from bertcli.heads.causal_lm import CausalLM
from bertcli.heads.masked_lm import MaskedLM
from bertcli.heads.objective import Objective
from bertcli.heads.replaced_tokens import ReplacedTokens
from bertcli.heads.span_corruption import SpanCorruption
from bertcli.recipe.pretrain import ObjectiveKind

OBJECTIVES: dict[ObjectiveKind, type[Objective]] = {
    "masked_lm": MaskedLM,
    "replaced_tokens": ReplacedTokens,
    "causal_lm": CausalLM,
    "span_corruption": SpanCorruption,
}
