"""Cross-entropy over a large vocabulary in little more memory than its logits. Shapes: M target tokens, V vocabulary.

PyTorch's version keeps the log-probabilities and allocates a gradient, each as large as the logits. This one processes
tokens in chunks and overwrites their logits with the gradient (Liger Kernel, Hsu et al. 2024,
https://arxiv.org/abs/2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bertcli.data.encoding import IGNORED_LABEL

MAX_CHUNK_LOGITS = 2**22  # 16 MB in fp32: small enough for a CPU's cache, large enough to keep a GPU busy


def inplace_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy of the `labels` [M], summed over the tokens, in fp32.

    Tokens whose label is `IGNORED_LABEL` do not count. If the `logits` [M, V] require a gradient, they are overwritten:
    do not use them afterwards.
    """
    loss: torch.Tensor = _InplaceCrossEntropy.apply(logits, labels)
    return loss


class _InplaceCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        buffer = logits.detach()
        chunk_size = max(1, MAX_CHUNK_LOGITS // logits.shape[-1])
        is_target = (labels != IGNORED_LABEL)[:, None]
        label_ids = labels.clamp(min=0)[:, None]
        total = logits.new_zeros((), dtype=torch.float32)
        for chunk, ids, counts in zip(
            buffer.split(chunk_size), label_ids.split(chunk_size), is_target.split(chunk_size), strict=True
        ):
            log_probs = torch.log_softmax(chunk, -1, dtype=torch.float32)
            total -= (log_probs.gather(-1, ids) * counts).sum()
            if ctx.needs_input_grad[0]:  # the gradient is softmax(logits) - one_hot(labels), or 0 without a label
                chunk.copy_(log_probs.exp_().mul_(counts))
                chunk.scatter_add_(-1, ids, -counts.to(chunk.dtype))
        ctx.save_for_backward(buffer)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad_logits,) = ctx.saved_tensors
        # Only by a scalar: on a CPU, bf16 times a tensor in fp32 would be computed in fp32 copies of all logits.
        return grad_logits.mul_(grad_output), None
