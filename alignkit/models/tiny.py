"""The model of tests, docs and first tries: a small Llama built in code, with a byte-level tokenizer."""

from __future__ import annotations

from typing import Any

import torch

from alignkit.data.chat import ChatFormat
from alignkit.models.tiny_tokenizer import tiny_tokenizer


def tiny_config(vocab_size: int, **changes: Any) -> Any:
    """A two-layer Llama of about 0.2 million parameters.

    Args:
        vocab_size: ids of the tokenizer.
        changes: fields of `transformers.LlamaConfig` to set otherwise.
    """
    from transformers import LlamaConfig

    fields: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    }
    return LlamaConfig(**{**fields, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """The tiny model and its tokenizer; the same seed gives the same weights.

    Returns:
        (LlamaForCausalLM in float32 and eval mode, tokenizer).
    """
    from transformers import LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = tiny_config(len(tokenizer), **changes)
    config.pad_token_id = tokenizer.pad_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.bos_token_id = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = None
    return model.eval(), tokenizer


def is_tiny(chat: ChatFormat) -> bool:
    """Whether a policy, known by its chat format, writes bytes as the tiny model does (whose weights know nothing)."""
    return chat.fingerprint == ChatFormat(tiny_tokenizer()).fingerprint
