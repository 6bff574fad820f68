"""Log-probs of the tokens wanted, from hidden states, without ever holding [tokens, vocabulary] for more than one
chunk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 256
"""Tokens whose logits are held at once: 256 x 49k float32 logits are 50 MB."""

Head = Callable[[Tensor], Tensor]


def _chunk(head: Head, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float() / temperature
    logsumexp = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logsumexp
    entropy = logsumexp - (logits.softmax(-1) * logits).sum(-1)
    return logprobs, entropy


class _FrozenHead(torch.autograd.Function):
    """Log-probs through a linear head whose weight gets no gradient.

    d logp_t / d h_t = (W[y_t] - softmax(z_t) W) / T is a vector of the hidden size, so it is worked out while the
    logits
    are there and kept in place of them: one pass over the vocabulary fewer than recomputing, and no logits stored.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float):  # type: ignore[override]
        logprobs, entropy, slopes = [], [], []
        for start in range(0, hidden.shape[0], CHUNK):
            part, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK]
            logits = torch.nn.functional.linear(part, weight, bias).float() / temperature
            logsumexp = logits.logsumexp(-1, keepdim=True)
            logprobs.append((logits.gather(-1, wanted.unsqueeze(-1)) - logsumexp).squeeze(-1))
            probs = (logits - logsumexp).exp_()
            entropy.append(logsumexp.squeeze(-1) - (probs * logits).sum(-1))
            slopes.append((weight[wanted] - probs.to(weight.dtype) @ weight) / temperature)
        ctx.save_for_backward(torch.cat(slopes))
        result = torch.cat(logprobs), torch.cat(entropy)
        ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    def backward(ctx, grad_logprobs: Tensor, _grad_entropy: Tensor | None):  # type: ignore[override]
        (slopes,) = ctx.saved_tensors
        return (grad_logprobs.unsqueeze(-1).to(slopes.dtype) * slopes), None, None, None, None


def token_logprobs(
    head: Head, hidden: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """log_softmax(head(hidden) / T)[target] and the entropy of each of these distributions.

    Args:
        head: the language head (with whatever scaling the model applies after it).
        hidden: [tokens, hidden] final hidden states at the positions that predict the targets.
        targets: [tokens] ids.
        temperature: T of the sampler, > 0.
        entropy_gradient: whether the entropy is differentiated (an entropy bonus); otherwise it comes detached.

    Returns:
        (logprobs [tokens], entropy [tokens]), float32, in nats.
    """
    if hidden.shape[0] == 0:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    needs_grad = torch.is_grad_enabled() and hidden.requires_grad
    plain_linear = type(head) is torch.nn.Linear and not head.weight.requires_grad
    if needs_grad and plain_linear and not entropy_gradient and not torch.is_autocast_enabled(hidden.device.type):
        assert isinstance(head, torch.nn.Linear)
        return _FrozenHead.apply(hidden, head.weight, head.bias, targets, temperature)  # type: ignore[no-any-return]
    logprobs, entropy = [], []
    for start in range(0, hidden.shape[0], CHUNK):
        part, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK]
        if torch.is_grad_enabled():
            values = checkpoint(_chunk, head, part, wanted, temperature, use_reentrant=False)
        else:
            values = _chunk(head, part, wanted, temperature)
        logprobs.append(values[0])
        entropy.append(values[1] if entropy_gradient else values[1].detach())
    return torch.cat(logprobs), torch.cat(entropy)
