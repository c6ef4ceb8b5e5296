"""Cross-entropy over a large vocabulary in the memory of its logits alone. M tokens, V vocabulary.

PyTorch's keeps the log-probabilities, as large as the logits, and makes a gradient as large again. This one goes
through a few tokens at a time and leaves their gradient where their logits were (Liger Kernel, Hsu et al. 2024,
https://arxiv.org/abs/2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 2**22  # 16 MB in fp32: near enough to hand on a CPU, enough work at a time for a GPU


def vocabulary_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the `labels` [M], summed over the tokens. Consumes the `logits` [M, V]: nobody reads them after.

    Computed in fp32, whatever the logits are in.
    """
    loss: torch.Tensor = _VocabularyLoss.apply(logits, labels)
    return loss


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        given = logits.detach()
        at_once = max(1, LOGITS_AT_ONCE // logits.shape[-1])
        total = logits.new_zeros((), dtype=torch.float32)
        for part, answers in zip(given.split(at_once), labels[:, None].split(at_once), strict=True):
            logarithms = torch.log_softmax(part, -1, dtype=torch.float32)
            total -= logarithms.gather(-1, answers).sum()
            if ctx.needs_input_grad[0]:
                part.copy_(logarithms.exp_())
                part.scatter_add_(-1, answers, part.new_full(answers.shape, -1.0))
        ctx.save_for_backward(given)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (of_logits,) = ctx.saved_tensors
        return of_logits.mul_(gradient), None
