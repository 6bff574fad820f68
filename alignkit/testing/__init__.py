"""What tests of methods repeat: the tiny model, one step with its gradients, rounds of improvement, tensors of groups;
and `conformance`, the checks that every plugin should pass.

For the tests of plugins, of this repository and elsewhere, and of the core. Everything runs on the CPU in a moment and
fetches nothing. Whatever of the engine a test needs stands here once, so that an engine that changes inside breaks no
plugin's tests.
"""

from alignkit.data.encode import encode_groups
from alignkit.models.tiny import tiny_model
from alignkit.models.tiny_tokenizer import CONTROL_TOKENS, tiny_tokenizer
from alignkit.registry.host import PluginHost, default_host
from alignkit.testing.conformance import conformance
from alignkit.testing.given import (
    DEMOS,
    PAIRS,
    PROMPTS,
    TEXTS,
    bound,
    isolated_host,
    letters,
    ranking,
    save_states,
    tiny_chat,
    tiny_policy,
)
from alignkit.testing.learning import Watched, first_gradients, learn, one_step, rollouts, same_gradients
from alignkit.testing.pretended import PretendedGPU, pretended_gpu
from alignkit.testing.tensors import learned_ids, learned_sequences, reduced, tensors_of, training_data

__all__ = [
    "CONTROL_TOKENS",
    "DEMOS",
    "PAIRS",
    "PROMPTS",
    "TEXTS",
    "PluginHost",
    "PretendedGPU",
    "Watched",
    "bound",
    "conformance",
    "default_host",
    "encode_groups",
    "first_gradients",
    "isolated_host",
    "learn",
    "learned_ids",
    "learned_sequences",
    "letters",
    "one_step",
    "pretended_gpu",
    "ranking",
    "reduced",
    "rollouts",
    "same_gradients",
    "save_states",
    "tensors_of",
    "tiny_chat",
    "tiny_model",
    "tiny_policy",
    "tiny_tokenizer",
    "training_data",
]
