"""The one forward pass: shared prompts where the model's attention can do it, one response a row where it cannot."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignkit.data.encode import EncodedGroup
from alignkit.errors import ConfigError
from alignkit.models import lower
from alignkit.models.attention import Piece, as_now, by_pieces, mask_of_pieces
from alignkit.models.batch import LEAST_SHARED, MicroBatch, collate

log = logging.getLogger("alignkit")

PROVEN = frozenset({"llama", "gpt2", "mistral", "qwen2", "qwen3", "smollm3"})
"""Families whose shared-prefix forward is proven equal to the plain one in the tests: no probe at load."""

DENIED = frozenset(
    {
        "mamba",
        "mamba2",
        "falcon_mamba",
        "rwkv",
        "recurrent_gemma",
        "jamba",
        "zamba",
        "zamba2",
        "bamba",
        "xlstm",
        "bert",
        "t5",
    }
)
"""Families whose layers carry a state along the row, or see both ways: a segment mask cannot part the responses."""

TOLERANCE = 2e-4
"""Largest difference of hidden states (relative to their scale) a probe accepts, float32; measured 1e-6 to 2e-5."""

_PROBED: dict[tuple[str, bool], bool] = {}

UNFIT = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError)
"""What models raise that cannot be read in some way."""


def bare(model: Any) -> Any:
    """The transformers model itself, out of its PEFT wrapper if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def body_of(model: nn.Module) -> Any:
    """The trunk that gives hidden states, without the head."""
    inner = bare(model)
    trunk = getattr(inner, inner.base_model_prefix, None)
    return inner.model if trunk is None else trunk  # Llama 4 names another attribute than its own


def checkpoint_layers(model: nn.Module) -> None:
    """Compute the layers' activations again in the backward pass rather than keep them.

    transformers itself does so in training mode alone, where families also drop out, by rates that each keeps in places
    of its own; here the model stays in evaluation mode.

    Raises:
        ConfigError: the family has no layers that can be computed again.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} has no layers whose activations could be computed again",
            where="checkpointing",
            remedy="leave checkpointing out; a smaller max_tokens saves memory too",
        )
    for layer in layers:
        if "forward" not in vars(layer):
            layer.forward = functools.partial(_computed_again, layer.forward)


def _computed_again(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return layer(*args, **kwargs)
    again = as_now()
    return checkpoint(layer, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again()), **kwargs)


def window_of(config: Any) -> int | None:
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


def segment_mask(batch: MicroBatch, window: int | None = None) -> Tensor:
    """Who may look at whom: [B, 1, L, L] bool, True where the query (second last axis) sees the key.

    A token sees what stands before it in its own response and in the prompt, and, with a sliding window, no further
    back than `window` positions. Padding sees itself only, so that no row of the softmax is empty.
    """
    segments, positions = batch.segments, batch.position_ids
    length = segments.shape[1]
    index = torch.arange(length, device=segments.device)
    before = index[None, :] <= index[:, None]
    key, query = segments[:, None, :], segments[:, :, None]
    seen = before & (key >= 0) & ((key == 0) | (key == query)) & (query >= 0)
    if window is not None:
        seen &= positions[:, :, None] - positions[:, None, :] < window
    return (seen | torch.eye(length, dtype=torch.bool, device=segments.device)).unsqueeze(1)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


MaskOf = Callable[[int | None], Tensor]
"""The mask for layers that look back so many tokens; None: all."""


def attention_masks(model: nn.Module, batch: MicroBatch) -> Any:
    """What to pass as `attention_mask` for a batch with shared prompts, in the form the model's attention reads."""
    additive = bare(model).config._attn_implementation != "sdpa"
    dtype = next(model.parameters()).dtype

    def build(window: int | None) -> Tensor:
        mask = segment_mask(batch, window)
        return _additive(mask, dtype) if additive else mask

    return masks_of(model, build)


def masks_are_known(model: nn.Module) -> bool:
    """Whether all layers look back to the start, or so many tokens: a probe's short rows would not show what another
    kind of attention does to long ones, such as in chunks."""
    kinds = set(getattr(bare(model).config, "layer_types", None) or ())
    return kinds <= {"full_attention", "sliding_attention"}


def masks_of(model: nn.Module, build: MaskOf) -> Any:
    """One mask for all layers, or one for each kind of layers, as the model takes them."""
    config = bare(model).config
    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in kinds:
        masks = {"sliding_attention": build(window_of(config))}
        if "full_attention" in kinds:
            masks["full_attention"] = build(None)
        return masks if len(kinds) > 1 or _takes_mapping(model) else masks["sliding_attention"]
    return build(window_of(config))


def _takes_mapping(model: nn.Module) -> bool:
    return hasattr(body_of(model), "has_sliding_layers")


def hidden_states(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Final hidden states [B, L, H] of a batch.

    Rows with one response need no mask of ours: causal attention never looks at the padding on the right.
    """
    body, found = body_of(model), None
    with _attention(model, batch):
        if batch.pieces:
            row = lower.Row(batch.input_ids, batch.position_ids, batch.pieces)
            found = lower.states(bare(body), row, functools.partial(_masks_of_pieces, model))
        states: Tensor = body(**_inputs(model, batch)).last_hidden_state if found is None else found
    return states


def states_and_logits(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Final hidden states [B, L, H] of a batch, and the model's own logits [B, L, V], whatever it does for them."""
    states: list[Tensor] = []
    hook = body_of(model).register_forward_hook(lambda _, __, out: states.append(out.last_hidden_state))
    try:
        with _attention(model, batch):
            logits = bare(model)(**_inputs(model, batch)).logits
    finally:
        hook.remove()
    return states[0], logits


def _attention(model: nn.Module, batch: MicroBatch) -> AbstractContextManager[None]:
    return by_pieces(body_of(model).config) if batch.pieces else nullcontext()


def _masks_of_pieces(model: nn.Module, pieces: Sequence[Piece]) -> Any:
    return masks_of(model, functools.partial(mask_of_pieces, pieces))


def _inputs(model: nn.Module, batch: MicroBatch) -> dict[str, Any]:
    mask: Any
    if batch.pieces:
        mask = _masks_of_pieces(model, batch.pieces)
    else:
        mask = attention_masks(model, batch) if batch.shared else (batch.segments >= 0).long()
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
    return {**inputs, "attention_mask": mask, "use_cache": False}


def config_digest(model: nn.Module) -> str:
    """SHA-256 of a model's configuration."""
    return hashlib.sha256(bare(model).config.to_json_string(use_diff=False).encode()).hexdigest()


def can_share_prompts(model: nn.Module) -> bool:
    """Whether shared-prefix batches are right for this model: denied, proven, or probed once and remembered."""
    config = bare(model).config
    family = getattr(config, "model_type", "")
    if family in DENIED or not masks_are_known(model) or getattr(config, "is_encoder_decoder", False):
        log.warning(
            "%s: prompts are not shared between responses (its attention cannot); using the plain forward", family
        )
        return False
    if family in PROVEN:
        return True
    if not _probed(model, packed=False):
        log.warning("%s: the shared-prefix forward differs from the plain one; using the plain forward", family)
        return False
    return True


def can_pack_rows(model: nn.Module) -> bool:
    """Whether batches of a single row are right for this model, and fast.

    On a processor they are: nothing is computed for padding, nor of a dense mask. On a GPU each piece would be a few
    small kernels of its own, and padded rows with a mask are taken until somebody has measured.
    """
    if next(model.parameters()).device.type != "cpu" or not can_share_prompts(model):
        return False
    return getattr(bare(model).config, "model_type", "") in PROVEN or _probed(model, packed=True)


def _probed(model: nn.Module, packed: bool) -> bool:
    key = config_digest(model), packed
    if key not in _PROBED:
        _PROBED[key] = _probe(model, packed)
    return _PROBED[key]


def _probe(model: nn.Module, packed: bool = False) -> bool:
    """Compare values and one gradient of the two layouts on two small groups."""
    vocabulary = min(int(bare(model).config.vocab_size), 50)
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(1, vocabulary, (n,), generator=generator).tolist()

    begin = ids(LEAST_SHARED)
    groups = [
        EncodedGroup([*begin, *ids(5)], [ids(4), ids(3)], None, 0),
        EncodedGroup([*begin, *ids(3)], [ids(2), ids(6)], None, 1),
    ]
    device = next(model.parameters()).device
    try:
        layouts = ({"shared": True, "packed": packed}, {"shared": False})
        batches = [collate(groups, [0, 1], [0, 2], pad_id=0, **each).to(device) for each in layouts]
        results = [_probe_values(model, batch) for batch in batches]
    except UNFIT as error:
        log.log(logging.DEBUG if packed else logging.WARNING, "shared-prefix probe failed: %s", error)
        return False
    scale = max(float(results[1][0].abs().max()), 1.0)
    close = float((results[0][0] - results[1][0]).abs().max()) < TOLERANCE * scale
    slope = max(float(results[1][1].abs().max()), 1e-3)
    return close and float((results[0][1] - results[1][1]).abs().max()) < 10 * TOLERANCE * slope


def _probe_values(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    weight = bare(model).get_input_embeddings().weight
    wanted = weight.requires_grad
    weight.requires_grad_(True)
    try:
        with torch.enable_grad(), torch.autocast(weight.device.type, enabled=False):  # rounding is no difference
            taken = gather_hidden(hidden_states(model, batch), batch)
            ordered = torch.cat([taken[r][batch.response_mask[r]] for r in range(len(taken))])
            # Not of their squares: most families norm the states last, and the sum of these is always the same.
            slopes = torch.arange(ordered.numel(), device=ordered.device).cos().view_as(ordered)
            (gradient,) = torch.autograd.grad((ordered.float() * slopes).sum(), weight)
    finally:
        weight.requires_grad_(wanted)
    return ordered.detach().float(), gradient.float()


def gather_hidden(hidden: Tensor, batch: MicroBatch) -> Tensor:
    """[R, T, H]: the states that predict each learned token (padding takes the row's first state; mask it)."""
    return _states_at(hidden, batch.row.unsqueeze(1), batch.predict_index)


def last_hidden(hidden: Tensor, batch: MicroBatch) -> Tensor:
    """[R, H]: the state at the last token of each response, found by layout, not by looking for a pad id."""
    return _states_at(hidden, batch.row, batch.last_index)


def _states_at(hidden: Tensor, row: Tensor, index: Tensor) -> Tensor:
    """hidden[row, index], whose gradient is summed in one order: all responses to a prompt read its last state, and of
    an index torch adds what several threads have for one place as they come, otherwise in each run."""
    return nn.functional.embedding(row * hidden.shape[1] + index, hidden.flatten(0, 1))


def mean_hidden(hidden: Tensor, batch: MicroBatch) -> Tensor:
    """[R, H]: the mean of the states at the tokens of each response, which never include those of its prompt."""
    own = batch.segments[batch.row, batch.last_index]
    inside = batch.segments[batch.row.unsqueeze(1), batch.predict_index] == own.unsqueeze(1)
    taken = (inside & batch.response_mask).unsqueeze(-1)  # at all tokens but the last, which predicts nothing learned
    total = gather_hidden(hidden, batch).where(taken, 0).sum(1) + last_hidden(hidden, batch)
    return total / (taken.sum(1) + 1)
