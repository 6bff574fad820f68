"""Conversations to token ids and back, such that text can never forge the structure of a conversation.

A chat template turns messages into one string, control tokens included, and tokenising that string would turn a
`<|im_end|>` that a user typed into the real one. So the template is rendered with a random nonce in place of each message;
that tells which characters are scaffold (the template's) and which are content. The string is then tokenised as a whole, as
the model was trained on it, and where that yields a control token the scaffold does not hold, piece by piece instead, the
contents with their control tokens split into ordinary text.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from alignkit.data.rendering import MAX_TEMPLATE, Piece, fold_system, pieces_of, render, turns_of, without_oldest
from alignkit.errors import DataError
from alignkit.types import Message

logger = logging.getLogger("alignkit.data")

Turns = Sequence[Mapping[str, Any] | Message]
Train = Literal["last", "all"]
_Tokens = list[tuple[int, int, int]]
"""(id, start, end): a token and the characters of the rendered conversation that it stands for."""


@dataclass(frozen=True)
class Encoded:
    """One conversation and its response in ids.

    Args:
        prompt_ids: [P] up to and including the generation prompt.
        prompt_trained: [P] which tokens of the prompt are learned from, or None: none of them.
        response_ids: [T] the response with its end-of-turn token.
    """

    prompt_ids: list[int]
    prompt_trained: list[bool] | None
    response_ids: list[int]


class ChatFormat:
    """A tokenizer and its chat template, as the one way from messages to ids.

    Args:
        tokenizer: a transformers tokenizer.
        template: a Jinja chat template to use instead of the tokenizer's own.
        extra_end_ids: further ids that end a response (a model's `generation_config.eos_token_id`).

    Attributes:
        notes: how often something worth knowing happened (a system turn folded, control tokens written as text …).

    Raises:
        DataError: no chat template, one that fails or drops content, or no token that could end a response.
    """

    def __init__(self, tokenizer: Any, *, template: str | None = None, extra_end_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.notes: Counter[str] = Counter()
        self.template = template or _template_of(tokenizer)
        self._nonce = f"Ak{secrets.token_hex(8)}Z"
        added = tokenizer.added_tokens_decoder
        self._special = {i: t.content for i, t in added.items() if t.special or i in tokenizer.all_special_ids}
        # Non-special added tokens ("<think>", "<tool_call>") are control tokens where the template writes them itself.
        mine = {i: t.content for i, t in added.items() if t.content.strip() and t.content in self.template}
        self._control = {i: c for i, c in {**mine, **self._special}.items() if i not in self._unknown_only()}
        self._control_pattern = _any_of(self._control.values())
        self._loose_pattern = _any_of(c for i, c in self._control.items() if i not in self._special)
        self._adds_bos = self._tokenizer_adds_bos()
        self._adds_space = tokenizer.convert_ids_to_tokens(self._text_ids("x"))[:1] == ["▁x"]
        self._folds_system = self._probe_template()
        self.end_of_turn_id, self._response_lead = self._probe_response()
        ends = [self.end_of_turn_id, tokenizer.eos_token_id, *extra_end_ids]
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys(int(i) for i in ends if i is not None))
        self.pad_id: int = int(self.end_of_turn_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        if "strftime_now" in self.template:
            self.note("the chat template reads the clock: the same prompt has other ids on another day")

    # ---- public -------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(len(self.tokenizer), max(self.tokenizer.get_vocab().values()) + 1)

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids that only the template may write."""
        return frozenset(self._control)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over vocabulary, merges, special tokens and template: equal for formats with equal ids."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        merges = json.loads(backend.to_str())["model"].get("merges") if backend is not None else None
        special = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.unk_token_id]
        content = [sorted(self.tokenizer.get_vocab().items()), merges, sorted(self._special.items()), special]
        text = json.dumps([*content, self.template], ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def note(self, text: str) -> None:
        """Count something worth knowing; logged the first time."""
        if not self.notes[text]:
            logger.warning("%s", text)
        self.notes[text] += 1

    def control_text(self, text: str) -> list[str]:
        """The control tokens written out in `text` (they stay text)."""
        return self._control_pattern.findall(text)

    def encode_prompt(self, messages: Turns, max_tokens: int | None = None) -> list[int]:
        """The conversation through the chat template, with the generation prompt, one BOS at most.

        Args:
            messages: the conversation.
            max_tokens: drop the oldest exchanges until it fits; the system turn, the first exchange (the instruction and
                its answer) and the last turn stay.

        Raises:
            DataError: the template refuses or changes the conversation, or what must stay does not fit.
        """
        return self._encode(messages, "last", max_tokens)[0]

    def encode_response(self, text: str) -> list[int]:
        """The ids of a response [T], closed by the end-of-turn token so that the model learns to stop.

        Raises:
            DataError: text that is not valid Unicode.
        """
        lead = self._response_lead if text and not text[0].isspace() else ""
        ids = self._plain(lead + text, first=False)
        if not self._special.keys().isdisjoint(ids):  # an unknown-only id is not in _control
            ids = self._refuse_forged(ids)
        return [*ids, self.end_of_turn_id]

    def encode_conversation(
        self, messages: Turns, response: str, train: Train = "last", max_tokens: int | None = None
    ) -> Encoded:
        """A prompt, which of its tokens are learned from, and the response.

        Args:
            messages: the conversation before the response.
            response: the text of the last assistant turn.
            train: "all" marks every assistant turn of the prompt (its content and its end-of-turn token), "last" only
                those whose `trained` is true.
            max_tokens: as in `encode_prompt`.
        """
        ids, trained = self._encode(messages, train, max_tokens)
        return Encoded(ids, trained, self.encode_response(response))

    def encode_prompt_trained(
        self, messages: Turns, train: Train = "last", max_tokens: int | None = None
    ) -> tuple[list[int], list[bool] | None]:
        """As `encode_prompt`, with the mask [P] of its learned tokens (None: no token)."""
        return self._encode(messages, train, max_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of response ids: one end id at the end is dropped, nothing else is skipped or cleaned."""
        numbers = [int(i) for i in ids]
        if numbers and numbers[-1] in self.end_ids:
            numbers.pop()
        return self.tokenizer.decode(numbers, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    # ---- the prompt ---------------------------------------------------------------------------------------------

    def _encode(self, messages: Turns, train: Train, max_tokens: int | None) -> tuple[list[int], list[bool] | None]:
        turns = turns_of(messages)
        if self._folds_system and turns and turns[0]["role"] == "system":
            turns = fold_system(turns)
            self.note("the chat template has no system role: the system text was put before the first user turn")
        while True:
            ids, trained = self._encode_turns(turns, train)
            if max_tokens is None or len(ids) <= max_tokens:
                return ids, trained
            shorter = without_oldest(turns)
            if shorter is None:
                raise DataError(
                    f"the prompt has {len(ids)} tokens where {max_tokens} are allowed",
                    effect="No turn can be left out: the system turn, the first exchange and the last turn stay.",
                    remedy="raise max_prompt_tokens or shorten the prompt",
                )
            turns = shorter
            self.note("oldest turns of a prompt were left out to make it fit")

    def _encode_turns(self, turns: list[dict[str, Any]], train: Train) -> tuple[list[int], list[bool] | None]:
        pieces = pieces_of(self.tokenizer, self.template, turns, self._nonce)
        learned = {
            i for i, turn in enumerate(turns) if turn["role"] == "assistant" and (train == "all" or turn["trained"])
        }
        tokens = self._tokens(pieces, turns, bool(learned))
        if learned:
            spans = self._learned_spans(pieces, learned)
            trained = [any(start < stop and end > begin for begin, stop in spans) for _, start, end in tokens]
        ids = [token for token, _, _ in tokens]
        bos = self.tokenizer.bos_token_id
        extra = 0 if bos is None or ids[:1] == [bos] or not self._adds_bos else 1
        double = bos is not None and self._adds_bos and ids[:2] == [bos, bos]
        ids = ids[1:] if double else [bos] * extra + ids
        if double:
            self.note("the chat template writes two BOS: one was left out")
        if not learned:
            return ids, None
        return ids, trained[1:] if double else [False] * extra + trained

    def _tokens(self, pieces: list[Piece], turns: list[dict[str, Any]], spans: bool) -> _Tokens:
        """Tokenise the whole where no content forges a control token, else piece by piece."""
        text = "".join(piece.text for piece in pieces)
        whole = self._whole(text, spans) if self.tokenizer.is_fast or not spans else None
        scaffold = [
            found for piece in pieces if piece.owner is None for found in self._control_pattern.findall(piece.text)
        ]
        if whole is not None and [self._control[i] for i, _, _ in whole if i in self._control] == scaffold:
            return whole
        if any(piece.owner is not None and self.control_text(piece.text) for piece in pieces):
            self.note("control tokens written inside messages were kept as text")
        return self._by_piece(pieces, turns)

    def _whole(self, text: str, spans: bool) -> _Tokens:
        try:
            out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=spans, verbose=False)
        except (TypeError, UnicodeError) as error:
            raise _not_unicode(error) from error
        offsets = out["offset_mapping"] if spans else [(0, 0)] * len(out["input_ids"])
        return [
            (token, start, max(end, start + 1)) for token, (start, end) in zip(out["input_ids"], offsets, strict=True)
        ]

    def _by_piece(self, pieces: list[Piece], turns: list[dict[str, Any]]) -> _Tokens:
        tokens: _Tokens = []
        where = 0
        ids_of = {content: i for i, content in self._control.items()}
        for piece in pieces:
            parts = [piece.text]
            if piece.owner is None:
                parts = [part for part in re.split(f"({self._control_pattern.pattern})", piece.text) if part]
            for part in parts:
                if piece.owner is None and part in ids_of:
                    ids = [ids_of[part]]
                else:
                    loose = piece.owner is not None and turns[piece.owner]["role"] == "assistant"
                    ids = self._content(part, not tokens, loose)
                tokens += [(token, where, where + len(part)) for token in ids]
                where += len(part)
        return tokens

    def _content(self, text: str, first: bool, loose: bool) -> list[int]:
        """Ids of text without any control token; `loose` (what a model wrote) keeps the non-special ones."""
        cuts = [] if loose else [match.start() + 1 for match in self._loose_pattern.finditer(text)]
        bounds = [0, *cuts, len(text)]
        ids: list[int] = []
        for begin, end in zip(bounds, bounds[1:], strict=False):
            ids += self._plain(text[begin:end], first and begin == 0)
        forbidden = self._special if loose else self._control
        return ids if forbidden.keys().isdisjoint(ids) else self._refuse_forged(ids)

    def _learned_spans(self, pieces: list[Piece], learned: set[int]) -> list[tuple[int, int]]:
        """The characters [begin, end) of each learned turn, its end-of-turn token included."""
        end_text = self.tokenizer.convert_ids_to_tokens(self.end_of_turn_id)
        closing = re.compile(r"\s*" + re.escape(end_text))
        text = "".join(piece.text for piece in pieces)
        spans, where = [], 0
        for piece in pieces:
            after = where + len(piece.text)
            if piece.owner in learned:
                match = closing.match(text, after)
                spans.append((where, match.end() if match else after))
            where = after
        return spans

    # ---- tokenising ---------------------------------------------------------------------------------------------

    def _text_ids(self, text: str) -> list[int]:
        try:
            out = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        except (TypeError, UnicodeError) as error:
            raise _not_unicode(error) from error
        return list(out["input_ids"])

    def _plain(self, text: str, first: bool) -> list[int]:
        """Ids of text with special tokens split; without the space that some tokenizers put before the first word."""
        if text and not first and self._adds_space:
            anchor, ids = self._text_ids("\n"), self._text_ids("\n" + text)
            if ids[: len(anchor)] == anchor:
                return ids[len(anchor) :]
        return self._text_ids(text) if text else []

    def _refuse_forged(self, ids: list[int]) -> list[int]:
        found = sorted({self._control[i] for i in ids if i in self._control})
        if not found:
            return ids
        raise DataError(
            f"the tokenizer makes the control tokens {found} out of plain text", remedy="take them out of the text"
        )

    def _unknown_only(self) -> set[int]:
        """The id of <unk>, which unknown characters do yield, where it serves no other purpose."""
        tokenizer = self.tokenizer
        return {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}

    # ---- what the template does ---------------------------------------------------------------------------------

    def _tokenizer_adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and list(self.tokenizer("x")["input_ids"])[:1] == [bos]

    def _probe_template(self) -> bool:
        """Refuse a template that drops content; return whether a system turn must be folded into the user's."""
        user = {"role": "user", "content": "A user asks.", "trained": False}
        answer = {"role": "assistant", "content": "A model answers.", "trained": False}
        pieces_of(self.tokenizer, self.template, [user], self._nonce)
        try:
            pieces_of(self.tokenizer, self.template, [user, answer, user], self._nonce)
        except DataError as error:
            self.note(f"the chat template takes no conversations of several turns: {error.what}")
        try:
            pieces_of(self.tokenizer, self.template, [{**user, "role": "system"}, user], self._nonce)
        except DataError:
            return True
        return False

    def _probe_response(self) -> tuple[int, str]:
        """The token that closes an assistant turn, and the white space that the template puts before its text."""
        turns = [{"role": "user", "content": "A user asks."}, {"role": "assistant", "content": self._nonce}]
        ending, lead = None, ""
        try:
            before = render(self.tokenizer, self.template, turns[:1], generation_prompt=True)
            after = render(self.tokenizer, self.template, turns, generation_prompt=False)
        except DataError:
            before = after = ""
        start = after.find(self._nonce)
        if start >= 0:
            ending = self._control_pattern.match(after[start + len(self._nonce) :].lstrip())
            if after.startswith(before) and not after[len(before) : start].strip():
                lead = after[len(before) : start]
        if ending and ending.group() in self._special.values():
            return int(self.tokenizer.convert_tokens_to_ids(ending.group())), lead
        if self.tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no token that ends a response", remedy="set tokenizer.eos_token")
        return int(self.tokenizer.eos_token_id), lead


def _any_of(texts: Any) -> re.Pattern[str]:
    """A pattern that matches any of the texts, longest first; of none, nothing."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)")


def _not_unicode(error: Exception) -> DataError:
    return DataError(f"text that cannot be tokenised ({error})", remedy="remove lone surrogates from the text")


def _template_of(tokenizer: Any) -> str:
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise DataError(
            "the tokenizer has no chat template",
            where=str(getattr(tokenizer, "name_or_path", "")),
            remedy="use an instruct model, set tokenizer.chat_template, or give ChatFormat(tokenizer, template=…)",
        ) from error
    if len(template.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE:
        raise DataError(f"the chat template is longer than {MAX_TEMPLATE} bytes", remedy="give a shorter template")
    return template
