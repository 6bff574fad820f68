"""The problem: two prompts, eight tokens, two tokens a response, so that all 57 responses of a prompt can be listed.

Everything is a pure function of `Problem`: the rewards, r ~ N(0, 1) for each prompt and response, and the weights of
the policy that starts, a Llama of one layer, by counter-based random numbers; no library's generator has a say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.plugin import ConfigError, Groups, check_values, stream_key, uniforms

if TYPE_CHECKING:
    from torch import Tensor

WORDS = ("<pad>", "<end>", "<user>", "<assistant>", "a", "b", "c", "d")
"""The vocabulary; the policy may say any of it."""
END = 1
"""The token that ends a response."""
PROMPTS = ("a b", "c")
"""What is asked."""
WIDTH = 32
"""Of the model: 10,848 weights in all."""
SPREAD = 0.3
"""Standard deviation of its weights."""

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<user> ' + m['content'] + ' <end>' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<assistant> ' + m['content'] + ' <end>' }}"
    "{% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@dataclass(frozen=True)
class Problem:
    """What is to be solved: J = E r - beta KL(pi || reference), averaged over the prompts.

    Args:
        beta: of the KL, in units of the reward per nat.
        length: tokens of the longest response; 2 gives 57 responses a prompt, 3 gives 400.
        seed: of the rewards and of the policy that starts.

    Raises:
        ConfigError: no KL, or a length whose responses are too many to list.
    """

    beta: float = 0.5
    length: int = 2
    seed: int = 7

    def __post_init__(self) -> None:
        check_values(self)
        if not self.beta > 0 or self.length not in (1, 2, 3):
            raise ConfigError(
                f"beta={self.beta}, length={self.length}",
                where="suite enumerable",
                remedy="a beta above 0, and a length of 1, 2 or 3",
            )

    @property
    def tree(self) -> Tree:
        """All responses."""
        return tree(self.length)

    def rewards(self) -> Tensor:
        """[prompts, responses] float64, r ~ N(0, 1)."""
        return _rewards(self.seed, self.length)


@dataclass(frozen=True)
class Tree:
    """All responses up to a length, and the way to each: its tokens one after another, each from a state.

    A state is what has been said so far. Response r takes, at its t-th token, `token[r, t]` in `state[r, t]`.

    Args:
        responses: token ids of each; all but those of full length end with END.
        states: the beginnings that do not end with END, shortest first.
        state: [responses, length] number of the state; 0 behind the response's end.
        token: [responses, length]; 0 behind its end.
        mask: [responses, length] bool, True where there is a token.
    """

    responses: tuple[tuple[int, ...], ...]
    states: tuple[tuple[int, ...], ...]
    state: Tensor
    token: Tensor
    mask: Tensor

    def number(self, ids: Sequence[int]) -> int:
        """The place of a response.

        Raises:
            KeyError: it is none of this tree's.
        """
        return _numbers(len(self.mask[0]))[tuple(ids)]


@cache
def tree(length: int) -> Tree:
    """The tree of all responses of at most `length` tokens."""
    import torch

    states: list[tuple[int, ...]] = [()]
    for _ in range(length - 1):
        longest = [s for s in states if len(s) == len(states[-1])]
        states += [(*s, token) for s in longest for token in range(len(WORDS)) if token != END]
    ended = [(*state, END) for state in states]
    cut = [(*s, t) for s in states if len(s) == length - 1 for t in range(len(WORDS)) if t != END]
    responses = tuple(ended + cut)
    state = torch.tensor([[states.index(r[:t]) if t < len(r) else 0 for t in range(length)] for r in responses])
    token = torch.tensor([[r[t] if t < len(r) else 0 for t in range(length)] for r in responses])
    mask = torch.tensor([[t < len(r) for t in range(length)] for r in responses])
    return Tree(responses, tuple(states), state, token, mask)


@cache
def _rewards(seed: int, length: int) -> Tensor:
    import torch

    count = len(tree(length).responses)
    return torch.tensor(np.stack([normals(count, "enumerable", seed, "rewards", prompt) for prompt in PROMPTS]))


@cache
def _numbers(length: int) -> dict[tuple[int, ...], int]:
    return {response: number for number, response in enumerate(tree(length).responses)}


def normals(count: int, *path: int | str) -> np.ndarray:
    """[count] float64 ~ N(0, 1), a function of the path alone (Box and Muller 1958)."""
    keys = np.full(count, stream_key(*path), dtype=np.uint64)
    radius, angle = (uniforms(keys, np.arange(count, dtype=np.uint64) * 2 + side) for side in (0, 1))
    return np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)


def tokenizer() -> Any:
    """One id a word of `WORDS`, words parted by white space."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in WORDS[:4]])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=WORDS[END],
        pad_token=WORDS[0],
        unk_token=WORDS[0],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = TEMPLATE
    return made


def model(seed: int) -> Any:
    """The policy that starts: a Llama of one layer, its matrices drawn from N(0, `SPREAD`^2), its norms 1."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=END,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        made = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            drawn = SPREAD * normals(weight.numel(), "enumerable", seed, "weights", name)
            weight.copy_(torch.tensor(drawn).view_as(weight)) if weight.dim() > 1 else weight.fill_(1.0)
    return made.eval()


def prompts(rows: int = len(PROMPTS), apart: bool = True) -> Groups:
    """The prompts in turn, as many rows as asked for.

    Args:
        rows: how many.
        apart: whether each repetition counts as a prompt of its own, told from the others by white space that no token
            sees: for methods that keep one response of a prompt. Otherwise they are the same prompt.
    """
    turns = [(PROMPTS[i % len(PROMPTS)], i // len(PROMPTS) if apart else 0) for i in range(rows)]
    return Groups.from_prompts(text + "".join(" \t"[int(bit)] for bit in f"{k:b}") * (k > 0) for text, k in turns)


def listed(text: str) -> int:
    """The number of a prompt among `PROMPTS`, white space left aside.

    Raises:
        ValueError: it is none of them.
    """
    return PROMPTS.index(" ".join(text.split()))
