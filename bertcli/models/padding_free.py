"""Encoders that skip padding, and positions the head does not use.

Forward hooks remove padding before the layer stack and restore it afterwards, so embeddings, heads and saved weights
remain those of transformers. The last layer is computed only for the tokens that the head uses: the first one for a
classifier, the target positions for a masked language model. Padding removal: ByteTransformer (Zhai et al. 2022,
https://arxiv.org/abs/2210.03052), MosaicBERT (Portes et al. 2023, https://arxiv.org/abs/2312.17482).
Shapes as in `bertcli.data.token_index`, and H hidden.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bertcli.models.cpu_dropout import use_cpu_dropout
from bertcli.models.deberta_attention import attend_in_one_precision
from bertcli.models.regression_output import use_fp32_output
from bertcli.models.shared_encoder import SharedEncoder, find_encoders
from bertcli.models.varlen_attention import ATTENTION, pad_input, varlen_attention_forward

STACKS = {  # the encoder's attribute that holds its layer stack
    "bert": "encoder",
    "roberta": "encoder",
    "camembert": "encoder",
    "xlm-roberta": "encoder",
    "electra": "encoder",
    "distilbert": "transformer",
}
FIRST_TOKEN_MODELS = ("ForSequenceClassification", "ForMultipleChoice")


def optimize_forward(model: nn.Module, device: torch.device) -> None:
    """Make a model skip unnecessary computation without changing its results; a regression model's are in fp32.

    The model then accepts batches from `bertcli.data.token_index.add_token_index`. Families that are not in `STACKS`
    do not skip any computation, but get fp32 regression results and, on a CPU, faster dropout; DeBERTa can then be
    trained in mixed precision.
    """
    for task_model in model.models if isinstance(model, SharedEncoder) else [model]:
        encoders = find_encoders(task_model)
        if encoders and all(_is_supported(encoder) for encoder in encoders):
            PaddingFree(task_model, encoders)
        use_fp32_output(task_model)
    attend_in_one_precision(model)
    if device.type == "cpu":
        use_cpu_dropout(model)


def _is_supported(encoder: PreTrainedModel) -> bool:
    return encoder.config.model_type in STACKS and not getattr(encoder.config, "is_decoder", False)


class PaddingFree:
    """The hooks of a padding-free model (`model.padding_free`), with the token indices of the current batch."""

    def __init__(self, model: nn.Module, encoders: list[PreTrainedModel]):
        first_only = type(model).__name__.endswith(FIRST_TOKEN_MODELS)
        self.output_tokens = "first" if first_only else getattr(model, "output_tokens", "all")
        self.unpadded: Any = None  # `bertcli.data.token_index.TokenIndex`; None: the batch stays padded
        self.output_positions: Any = None  # `TokenIndex`; None: the last layer processes all tokens
        self._is_full = False  # whether the batch has no padding
        self._shape = (0, 0)  # B, S
        self._mask: torch.Tensor | None = None
        model.padding_free = self  # type: ignore[assignment]
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end, always_call=True)
        for encoder in encoders:
            encoder.set_attn_implementation(ATTENTION)
            encoder.register_forward_pre_hook(self._remove_mask, with_kwargs=True)
            stack: Any = getattr(encoder, STACKS[encoder.config.model_type])
            stack.register_forward_pre_hook(self._unpad, with_kwargs=True)
            stack.register_forward_hook(self._pad)
            last = stack.layer[-1]
            last.forward = partial(self._last_layer, last, last.forward)

    def _begin(self, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, Any]:
        inputs = dict(inputs)
        self.unpadded, self.output_positions = inputs.pop("unpadded", None), inputs.pop("output_positions", None)
        self._is_full = inputs.pop("is_full", False)
        self._mask = inputs.get("attention_mask")
        return args, inputs

    def _end(self, _: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """Mask the span logits of padding, which were not computed and must not compete with those of real tokens."""
        mask, self.unpadded, self.output_positions, self._mask = self._mask, None, None, None
        if mask is not None and "start_logits" in (outputs or ()):
            for name in ("start_logits", "end_logits"):
                outputs[name] = outputs[name].masked_fill(mask == 0, torch.finfo(outputs[name].dtype).min)
        return outputs

    def _remove_mask(self, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Drop a redundant mask, since building the attention mask from it would synchronize with the device."""
        is_redundant = self._is_full or self.unpadded is not None
        return (args, {**inputs, "attention_mask": None}) if is_redundant else None

    def _unpad(self, _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Unpad the stack's input: [B, S, H] to [1, T, H]."""
        hidden = args[0] if args else inputs["hidden_states"]
        self._shape = hidden.shape[:2]
        if self.unpadded is None:
            return None
        tokens = hidden.flatten(0, 1)[self.unpadded.indices][None]
        return args[1:], {**inputs, "hidden_states": tokens, "attention_mask": None, "unpadded": self.unpadded}

    def _pad(self, _: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """Pad the stack's output: [1, T, H] to [B, S, H], with zeros.

        If only some positions were computed, return [B, 1, H] (first tokens) or [1, M, H] (target positions) instead.
        """
        hidden = outputs["last_hidden_state"]
        if self.output_positions is not None:
            outputs["last_hidden_state"] = hidden.transpose(0, 1) if self.output_tokens == "first" else hidden
        elif self.unpadded is not None:
            outputs["last_hidden_state"] = pad_input(hidden[0], self.unpadded.indices, *self._shape)
        return outputs

    def _last_layer(self, layer: Any, full_forward: Any, *args: Any, **inputs: Any) -> torch.Tensor:
        """Compute the last layer: [1, M, H] for the output positions, or [B, S, H] or [1, T, H] without any."""
        if self.output_positions is None:
            return full_forward(*args, **inputs)
        hidden = args[0] if args else inputs["hidden_states"]
        mask = args[1] if len(args) > 1 else inputs.get("attention_mask")
        tokens = hidden.flatten(0, 1)[self.output_positions.indices][None]
        attention = partial(
            varlen_attention_forward,
            attention_mask=mask,
            unpadded=self.unpadded,
            output_positions=self.output_positions,
        )
        forward = _distilbert_layer if hasattr(layer, "ffn") else _bert_layer
        return forward(layer, tokens, hidden, attention)


def _bert_layer(layer: Any, tokens: torch.Tensor, hidden: torch.Tensor, attention: Any) -> torch.Tensor:
    """Compute a layer of BERT (RoBERTa, ELECTRA …) for some `tokens` [1, M, H] that attend to all of `hidden`."""
    self_attention = layer.attention.self
    query, key, value = self_attention.query(tokens), self_attention.key(hidden), self_attention.value(hidden)
    context = _context(self_attention, query, key, value, attention)
    attended = layer.attention.output(context, tokens)
    return layer.output(layer.intermediate(attended), attended)


def _distilbert_layer(layer: Any, tokens: torch.Tensor, hidden: torch.Tensor, attention: Any) -> torch.Tensor:
    """Compute a layer of DistilBERT in the same way."""
    self_attention = layer.attention
    query, key, value = self_attention.q_lin(tokens), self_attention.k_lin(hidden), self_attention.v_lin(hidden)
    context = _context(self_attention, query, key, value, attention)
    attended = layer.sa_layer_norm(self_attention.out_lin(context) + tokens)
    return layer.output_layer_norm(layer.ffn(attended) + attended)


def _context(
    self_attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention: Any
) -> torch.Tensor:
    """Return the attention output [1, M, H] of the projected `query` over `key` and `value` [B, S, H] or [1, T, H]."""
    head_size = self_attention.attention_head_size
    heads = (part.unflatten(-1, (-1, head_size)).transpose(-3, -2) for part in (query, key, value))
    rate = self_attention.dropout.p if self_attention.training else 0.0
    return attention(self_attention, *heads, dropout=rate, scaling=self_attention.scaling)[0].flatten(-2)
