"""The core's own loss, and how any loss is called: by the names of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from alignkit.calls import calling, whose
from alignkit.errors import ConfigError, PluginError
from alignkit.registry.records import BoundLoss


def nll(logprobs: Tensor) -> Tensor:
    """Negative log-likelihood of each learned token, -log p(y_t | x, y_<t), in nats.

    Args:
        logprobs: [responses, tokens].

    Returns:
        [responses, tokens], unreduced.
    """
    return -logprobs


def call_loss(loss: BoundLoss, tensors: Mapping[str, Any], name: str = "loss") -> dict[str, Tensor]:
    """Call a loss with the tensors that it names.

    Args:
        loss: the bound loss.
        tensors: everything there is, by name.
        name: what the term of a loss that returns one tensor is called.

    Returns:
        its terms by name.

    Raises:
        ConfigError: a tensor that nothing provides here.
        PluginError: it raised, or returned neither a tensor nor a dict of tensors.
    """
    missing = [name for name in loss.tensor_names if name not in tensors and name not in loss.optional]
    if missing:
        raise ConfigError(
            f"the loss asks for {missing}, which this verb and these data do not give",
            where=f"loss {loss.name}",
            remedy=f"there are: {', '.join(sorted(tensors))}",
        )
    with calling(loss, ""):
        value = loss(**{name: tensors[name] for name in loss.tensor_names if name in tensors})
    terms = value if isinstance(value, dict) else {name: value}
    wrong = {key: type(term).__name__ for key, term in terms.items() if not isinstance(term, Tensor)}
    if wrong:
        raise PluginError(f"the loss returned {wrong}", where=whose(loss), remedy="return a tensor or a dict of them")
    return terms
