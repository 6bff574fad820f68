"""Chat templates by name, for base models, which have none: the layouts that the field calls so.

Those of `TEXT` mark turns with words and end an answer with the tokenizer's own end token, so that any base model can
learn them. Those of `TOKENS` mark turns with tokens of their own, which the tokenizer must have: a mark that is cut
into pieces of text could be written by anyone.
"""

from __future__ import annotations

from typing import Any

from alignkit.errors import ConfigError


def _turns(system: str, user: str, assistant: str, prompt: str) -> str:
    """A template of Jinja expressions: of `text`, a turn's own, by role; and of what stands before an answer.

    Blocks in their place would eat the line breaks that follow them.
    """
    branches = (("if", "system", system), ("elif", "user", user), ("elif", "assistant", assistant))
    written = "".join(f"{{% {test} message['role'] == '{role}' %}}{{{{ {each} }}}}" for test, role, each in branches)
    refusal = "{% else %}{{ raise_exception('roles are system, user and assistant') }}{% endif %}"
    loop = "{% for message in messages %}{% set text = message['content'] %}" + written + refusal + "{% endfor %}"
    return loop + "{% if add_generation_prompt %}{{ " + prompt + " }}{% endif %}"


TEXT = {
    # Taori et al. 2023, without the sentence in front: give it as a system turn.
    "alpaca": _turns(
        r"text + '\n\n'",
        r"'### Instruction:\n' + text + '\n\n'",
        r"'### Response:\n' + text + eos_token + '\n\n'",
        r"'### Response:\n'",
    ),
    # Wang et al. 2023 (Tulu, https://arxiv.org/abs/2306.04751), section 2.
    "tulu": _turns(
        r"'<|system|>\n' + text + '\n'",
        r"'<|user|>\n' + text + '\n'",
        r"'<|assistant|>\n' + text + eos_token + '\n'",
        r"'<|assistant|>\n'",
    ),
    # Tunstall et al. 2023 (Zephyr, https://arxiv.org/abs/2310.16944): every turn ends with the end token.
    "zephyr": _turns(
        r"'<|system|>\n' + text + eos_token + '\n'",
        r"'<|user|>\n' + text + eos_token + '\n'",
        r"'<|assistant|>\n' + text + eos_token + '\n'",
        r"'<|assistant|>\n'",
    ),
    # Chiang et al. 2023, version 1.1.
    "vicuna": _turns(
        r"text + '\n\n'", r"'USER: ' + text + '\n'", r"'ASSISTANT: ' + text + eos_token + '\n'", r"'ASSISTANT: '"
    ),
    # Bai et al. 2022 (https://arxiv.org/abs/2204.05862).
    "anthropic": _turns(
        r"text",
        r"'\n\nHuman: ' + text",
        r"'\n\nAssistant: ' + text + eos_token",
        r"'\n\nAssistant: '",
    ),
}

_FOLDED = "(loop.previtem is defined and loop.previtem['role'] == 'system')"
TOKENS = {
    "chatml": (
        ("<|im_start|>", "<|im_end|>"),
        _turns(
            r"'<|im_start|>system\n' + text + '<|im_end|>\n'",
            r"'<|im_start|>user\n' + text + '<|im_end|>\n'",
            r"'<|im_start|>assistant\n' + text + '<|im_end|>\n'",
            r"'<|im_start|>assistant\n'",
        ),
    ),
    "llama3": (
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        _turns(
            r"'<|start_header_id|>system<|end_header_id|>\n\n' + text + '<|eot_id|>'",
            r"'<|start_header_id|>user<|end_header_id|>\n\n' + text + '<|eot_id|>'",
            r"'<|start_header_id|>assistant<|end_header_id|>\n\n' + text + '<|eot_id|>'",
            r"'<|start_header_id|>assistant<|end_header_id|>\n\n'",
        ),
    ),
    "gemma": (  # which has no system turn: its text stands before the user's
        ("<start_of_turn>", "<end_of_turn>"),
        _turns(
            r"'<start_of_turn>user\n' + text + '\n\n'",
            rf"('' if {_FOLDED} else '<start_of_turn>user\n') + text + '<end_of_turn>\n'",
            r"'<start_of_turn>model\n' + text + '<end_of_turn>\n'",
            r"'<start_of_turn>model\n'",
        ),
    ),
}
"""By name: (the tokens that it needs, the template)."""

NAMED = {**TEXT, **{name: template for name, (_, template) in TOKENS.items()}}


def fitted(tokenizer: Any, template: str, where: str) -> str:
    """A template as this tokenizer's models read it: one of `NAMED` begins with BOS where texts of the tokenizer do.

    Args:
        tokenizer: of the model.
        template: Jinja source.
        where: named in errors.

    Raises:
        ConfigError: a named template whose marks are no tokens here, or that needs an end token where there is none.
    """
    name = next((name for name, each in NAMED.items() if each == template), None)
    if name is None:
        return template
    vocabulary = tokenizer.get_added_vocab()
    missing = [token for token in (TOKENS[name][0] if name in TOKENS else ()) if token not in vocabulary]
    if missing or (name in TEXT and tokenizer.eos_token is None):
        lacks = f"the tokens {', '.join(missing)}" if missing else "an end token"
        raise ConfigError(
            f"the chat template {name} needs {lacks}, which the tokenizer does not have",
            where=where,
            effect="Turns would be marked by text that anyone may write.",
            remedy=f"use one of words alone: {', '.join(TEXT)}" if missing else "set tokenizer.eos_token",
        )
    ids = tokenizer("a").input_ids
    begins = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return "{{ bos_token }}" + template if begins else template
