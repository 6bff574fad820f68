"""Log-probs of the tokens wanted, from hidden states, without ever holding [tokens, vocabulary] for more than one
chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 256
"""Tokens whose logits are held at once: 256 x 49k float32 logits are 50 MB."""

Head = Callable[[Tensor], Tensor]


class TokenTensors(NamedTuple):
    """What the head says of each token, [tokens] float32 in nats.

    Args:
        logprobs: of the token taken.
        entropy: of the whole distribution.
        mean_logprobs: mean log-prob over the vocabulary; None unless asked for.
    """

    logprobs: Tensor
    entropy: Tensor
    mean_logprobs: Tensor | None = None


def scaled_head(model: Any) -> Head:
    """The head of a bare transformers model, with the scaling some families apply after it (Granite, Cohere, Gemma).

    It goes by names of the configuration; `alignkit.models.ways` compares it with the model's own logits.
    """
    config, head = model.config, model.get_output_embeddings()
    divide = getattr(config, "logits_scaling", None)
    multiply = getattr(config, "logit_scale", None)
    softcap = getattr(config, "final_logit_softcapping", None)
    if not any((divide, multiply, softcap)):
        return head  # type: ignore[no-any-return]

    def scaled(hidden: Tensor) -> Tensor:
        logits: Tensor = head(hidden)
        if divide:
            logits = logits / divide
        if multiply:
            logits = logits * multiply
        return torch.tanh(logits / softcap) * softcap if softcap else logits

    return scaled


def _chunk(head: Head, hidden: Tensor, targets: Tensor, temperature: float, mean: bool) -> tuple[Tensor, ...]:
    logits = head(hidden).float() / temperature
    logsumexp = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logsumexp
    entropy = logsumexp - (logits.softmax(-1) * logits).sum(-1)
    return (logprobs, entropy, logits.mean(-1) - logsumexp) if mean else (logprobs, entropy)


def one_number(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
    """What a head with one output (a score, a value) says of hidden states […, H]: […] float32.

    Computed as its weights are kept, autocast or not: in bfloat16 a score of 10 has no neighbour nearer than 0.06, and
    many responses would have the same one.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.to(head.weight.dtype)).squeeze(-1).float()


class _FrozenHead(torch.autograd.Function):
    """Log-probs through a linear head whose weight gets no gradient.

    d logp_t / d h_t = (onehot(y_t) - softmax(z_t)) W / T is a vector of the hidden size, so it is worked out while the
    logits are there and kept in place of them: one pass over the vocabulary fewer than recomputing, and no logits
    stored.
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
            # 1 - p of a likely token is the sum of the others: as a difference, of numbers or of W[y] and softmax(z) W,
            # it would be lost in their rounding.
            place = wanted.unsqueeze(-1)
            probs.scatter_(-1, place, 0.0).scatter_(-1, place, -probs.sum(-1, keepdim=True))
            slopes.append((probs.to(weight.dtype) @ weight) / -temperature)
        ctx.save_for_backward(torch.cat(slopes))
        result = torch.cat(logprobs), torch.cat(entropy)
        ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    def backward(ctx, grad_logprobs: Tensor, _grad_entropy: Tensor | None):  # type: ignore[override]
        (slopes,) = ctx.saved_tensors
        return (grad_logprobs.unsqueeze(-1).to(slopes.dtype) * slopes), None, None, None, None


def token_logprobs(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
    mean: bool = False,
) -> TokenTensors:
    """log_softmax(head(hidden) / T)[target] and the entropy of each of these distributions.

    Args:
        head: the language head (with whatever scaling the model applies after it).
        hidden: [tokens, hidden] final hidden states at the positions that predict the targets.
        targets: [tokens] ids.
        temperature: T of the sampler, > 0.
        entropy_gradient: whether the entropy is differentiated (an entropy bonus); otherwise it comes detached.
        mean: work out `mean_logprobs` too, with gradient.
    """
    if hidden.shape[0] == 0:
        nothing = hidden.new_zeros(0, dtype=torch.float32)
        return TokenTensors(nothing, nothing, nothing if mean else None)
    needs_grad = torch.is_grad_enabled() and hidden.requires_grad
    plain_linear = type(head) is torch.nn.Linear and not head.weight.requires_grad
    fused = plain_linear and not entropy_gradient and not mean
    if needs_grad and fused and not torch.is_autocast_enabled(hidden.device.type):
        assert isinstance(head, torch.nn.Linear)
        return TokenTensors(*_FrozenHead.apply(hidden, head.weight, head.bias, targets, temperature))
    logprobs, entropy, means = [], [], []
    for start in range(0, hidden.shape[0], CHUNK):
        part, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK]
        if torch.is_grad_enabled():
            values = checkpoint(_chunk, head, part, wanted, temperature, mean, use_reentrant=False)
        else:
            values = _chunk(head, part, wanted, temperature, mean)
        logprobs.append(values[0])
        entropy.append(values[1] if entropy_gradient else values[1].detach())
        means += values[2:]
    return TokenTensors(torch.cat(logprobs), torch.cat(entropy), torch.cat(means) if mean else None)
