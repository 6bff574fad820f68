"""Conversations to token ids and back, such that text can never forge the structure of a conversation.

A chat template turns messages into one string, control tokens included, and tokenising that string would turn a
`<|im_end|>` that a user typed into the real one. So the template is rendered with a random nonce in place of each
message: that tells which characters are scaffold (the template's) and which are content. The string is tokenised as a
whole, as the model was trained on it; where that yields a control token that the scaffold does not hold, it is
tokenised piece by piece instead, the contents with their control tokens split into ordinary text.
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

from alignkit.data.beside_text import marked, refuse_unseen, strings_in
from alignkit.data.control_tokens import ControlSafe
from alignkit.data.known_prompts import KnownPrompts
from alignkit.data.template import (
    MAX_TEMPLATE,
    Piece,
    common_length,
    fold_system,
    pieces_of,
    probe_end,
    probe_system,
    refuse_answer,
    render,
    turns_of,
    without_oldest,
)
from alignkit.errors import DataError
from alignkit.groups import Message

logger = logging.getLogger("alignkit.data")

_FINGERPRINTS: dict[tuple[bytes, str], str] = {}

Turns = Sequence[Mapping[str, Any] | Message]
Train = Literal["last", "all", "response"]

FOLDED = "the chat template has no system role: the system text was put before the first user turn"
FORGED = "control tokens written inside messages were kept as text"
SHORTENED = "the oldest turns of a prompt were left out to make it fit"
DOUBLE_BOS = "the chat template writes two BOS: one was left out"
CUT = (
    "the chat template shows earlier answers otherwise than given (their thoughts are left out): read as it writes them"
)
OPENED = "responses that begin with what the generation prompt ends with (such as <think>) were learned without it"
UNENDED = "cut responses are scored by a reward model from elsewhere up to their last token, without the template's end"


class TooLongError(DataError):
    """A prompt that does not fit, whatever may be left out of it."""


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
        end_of_turn_id: what closes a response: the special or added token that the template puts after an assistant
            turn, else the tokenizer's EOS.
        end_ids: all ids that end a response, `end_of_turn_id` first.
        pad_id: the tokenizer's padding id, else `end_of_turn_id`; always masked, never told from the mask.
        positions: tokens of the longest row that the model has positions for; None: they do not run out.
        whole: whether conversations are read as the template writes them, answer and all (see `encode_whole`).
        unread_id: the id that is not read at the end of a whole conversation, or None.
        notes: how often something worth knowing happened (a system turn folded, control tokens kept as text …).

    Raises:
        DataError: no chat template, one that fails or drops content, or no token that could end a response.
    """

    def __init__(self, tokenizer: Any, *, template: str | None = None, extra_end_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.notes: Counter[str] = Counter()
        self.positions: int | None = None
        self.whole, self.unread_id = False, None
        self._known = KnownPrompts()
        self.template = _checked_template(tokenizer, template)
        self._nonce = f"Ak{secrets.token_hex(8)}Z"
        self._safe = ControlSafe(tokenizer, self.template)
        self._folds_system = not probe_system(tokenizer, self.template, self._nonce)
        safe = self._safe
        marks = [text for i, text in safe.control.items() if i not in safe.special]
        probed = probe_end(tokenizer, self.template, self._nonce, safe.special.values(), marks)
        self._response_lead, self._opening, self._around = probed.lead, probed.opening, probed.words
        ending = probed.closing
        end = tokenizer.eos_token_id if ending is None else tokenizer.convert_tokens_to_ids(ending)
        if end is None:
            raise DataError("the tokenizer has no token that ends a response", remedy="set tokenizer.eos_token")
        self.end_of_turn_id = int(end)
        ends = [end, tokenizer.eos_token_id, *extra_end_ids]
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys(int(i) for i in ends if i is not None))
        safe.guard(self.end_ids)
        pad = tokenizer.pad_token_id
        if pad is None:
            pad = end if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self.pad_id = int(pad)
        self._reads_clock = "strftime_now" in self.template
        if self._reads_clock:
            self.note("the chat template reads the clock: the same prompt has other ids on another day")

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(len(self.tokenizer), max(self.tokenizer.get_vocab().values()) + 1)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids that only the template may write."""
        return frozenset(self._safe.control)

    def id_beside_ends(self) -> int:
        """An id to pad with that stands at no response's end: the tokenizer's own, else that of another token."""
        tokenizer = self.tokenizer
        named = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *sorted(self._safe.special)]
        return next(i for i in (*named, *range(len(self.end_ids) + 1)) if i is not None and i not in self.end_ids)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over vocabulary, merges, special tokens and template: equal where the ids would be."""
        tokenizer = self.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        text = "" if backend is None else backend.to_str()
        special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
        parts = [sorted(self._safe.special.items()), special, self.template]
        known = hashlib.sha256(text.encode()).digest(), json.dumps(parts)
        if backend is None or known not in _FINGERPRINTS:  # a run loads the same tokenizer many times
            merges = json.loads(text)["model"].get("merges") if text else None
            whole = json.dumps([sorted(tokenizer.get_vocab().items()), merges, *parts], separators=(",", ":"))
            _FINGERPRINTS[known] = hashlib.sha256(whole.encode()).hexdigest()[:16]
        return _FINGERPRINTS[known]

    def note(self, text: str) -> None:
        """Count something worth knowing, and log it the first time."""
        if not self.notes[text]:
            logger.warning("%s", text)
        self.notes[text] += 1

    def control_text(self, text: str) -> list[str]:
        """The control tokens that are written out in `text` (where they stay text)."""
        return self._safe.pattern.findall(text)

    def encode_prompt(self, messages: Turns, max_tokens: int | None = None) -> list[int]:
        """The conversation through the chat template, with the generation prompt and one BOS at most.

        Args:
            messages: the conversation.
            max_tokens: leave out the oldest exchanges until it fits; the system turn, the first exchange (the
                instruction and its answer) and the last turn stay.

        Raises:
            TooLongError: what must stay does not fit.
            DataError: the template refuses or changes the conversation.
        """
        return self.encode_trained_prompt(messages, "last", max_tokens)[0]

    def encode_response(self, text: str, ended: bool = True) -> list[int]:
        """The ids of a response [T], closed by the end-of-turn token so that the model learns to stop.

        Args:
            text: of the response.
            ended: whether it is whole; one that was cut off is not closed.

        Raises:
            DataError: text that is not valid Unicode.
        """
        lead = self._response_lead if text and not text[0].isspace() else ""
        return [*self._safe.content(lead + text), *([self.end_of_turn_id] if ended else [])]

    def after_opening(self, text: str) -> str:
        """A response without what the generation prompt ends with already (`<think>`), where it begins with that."""
        mark = self._opening.strip()
        if not mark or not text.lstrip().startswith(mark):
            return text
        self.note(OPENED)
        return text.lstrip().removeprefix(mark).removeprefix(self._opening.partition(mark)[2])

    def encode_whole(
        self,
        messages: Turns,
        responses: Sequence[str],
        ended: Sequence[bool],
        max_tokens: int | None = None,
        fields: Sequence[str | None] | None = None,
    ) -> tuple[list[int], list[list[int]]]:
        """Conversations with their answers in the ids that `apply_chat_template` gives for them, which classifiers from
        elsewhere were trained on: nothing is asked for at the end, and what the template writes around an answer, or
        after it, is there. An answer that was cut ends with its last token.

        Args:
            messages: the conversation before the responses.
            responses: K texts.
            ended: of each whether it is whole.
            max_tokens: as in `encode_prompt`.
            fields: of each response what it has beside its text, as `Message.fields`.

        Returns:
            (ids that all begin with, K lists that go on from there); `unread_id` stands at no end.

        Raises:
            TooLongError: as `encode_prompt`.
            DataError: the template refuses or changes the conversation, or shows nothing of an answer that was cut.
        """
        turns, prompt, _ = self._fitting(turns_of(messages), "response", max_tokens)
        own = fields or [None] * len(responses)
        each = zip(responses, ended, own, strict=True)
        wholes = [self._encode_answer(turns, text, end, fields) for text, end, fields in each]
        if not wholes:
            return prompt, []
        shared = min(*(common_length(wholes[0], ids) for ids in wholes), len(prompt), min(map(len, wholes)) - 1)
        return wholes[0][:shared], [ids[shared:] for ids in wholes]

    def _encode_answer(
        self, turns: list[dict[str, Any]], text: str, ended: bool, fields: str | None = None
    ) -> list[int]:
        answered = [*turns, *turns_of([Message("assistant", text, fields=fields)])]
        pieces = self._pieces(answered, set(), generation_prompt=False)
        if not ended:
            self.note(UNENDED)
            shown = [place for place, piece in enumerate(pieces) if piece.owner == len(turns)]
            if not shown:
                raise DataError("the chat template shows nothing of a response that was cut", remedy="sample it longer")
            pieces = pieces[: shown[-1] + 1]
        ids = [i for i, _, _ in self._safe.encode(pieces, _answers(answered), spans=False)]
        while len(ids) > 1 and ids[-1] == self.unread_id:
            ids.pop()
        return ids

    def encode_answer(self, messages: Turns, response: Message, ended: bool = True) -> list[int]:
        """The ids of a response [T] that has more than its text (calls of tools, thoughts), as the template writes it
        after the generation prompt; closed as by `encode_response`.

        Args:
            messages: the conversation before the response.
            response: with its fields.
            ended: whether it is whole.

        Raises:
            DataError: the template does not show what it has, or does not begin it with the generation prompt.
        """
        turns, answer = turns_of(messages), turns_of([response])[0]
        if self._folds_system and turns and turns[0]["role"] == "system":
            turns = fold_system(turns)
        self._check_fields([*turns, answer], {len(turns)})
        if forged := self.control_text(response.content):
            raise DataError(f"the text beside a call of a tool holds the control tokens {forged}", remedy="change it")
        before = render(self.tokenizer, self.template, turns)
        whole = render(self.tokenizer, self.template, [*turns, answer], generation_prompt=False)
        if not whole.startswith(before):
            what = "the chat template does not write an answer with calls or thoughts after its generation prompt"
            raise DataError(what, effect="It cannot be told which tokens the model would write.", remedy="drop the row")
        text, end = whole[len(before) :], self.tokenizer.convert_ids_to_tokens(self.end_of_turn_id)
        text = text[: text.rindex(end)] if end in text else text.rstrip()
        return [*self._safe.scaffold(text), *([self.end_of_turn_id] if ended else [])]

    def _check_fields(self, turns: list[dict[str, Any]], thoughts: set[int]) -> None:
        """Refuse what turns have beside their texts where the template does not show it, or it could forge a token."""
        if not any(turn["fields"].keys() - {"weight"} for turn in turns):
            return
        forged = sorted({t for turn in turns for s in strings_in(turn["fields"]) for t in self.control_text(s)})
        if forged:
            what = f"tool calls, schemas or thoughts hold the control tokens {forged}"
            raise DataError(what, effect="They would become real ones.", remedy="change the text, or drop the row")
        masked, marks = marked(turns, self._nonce, thoughts)
        refuse_unseen(render(self.tokenizer, self.template, masked, generation_prompt=False), marks)

    def encode_text(self, text: str) -> list[int]:
        """The ids of plain text [T], without turns and without an end: what a pretraining mix is made of. With the BOS
        that the tokenizer puts before a text by itself.

        Raises:
            DataError: text that is not valid Unicode.
        """
        ids = self._safe.content(text, first=True)
        return [self.tokenizer.bos_token_id, *ids] if self._safe.adds_bos else ids

    def encode_conversation(
        self, messages: Turns, response: str, train: Train = "last", max_tokens: int | None = None
    ) -> Encoded:
        """A prompt, which of its tokens are learned from, and the response.

        Args:
            messages: the conversation before the response.
            response: the text of the last assistant turn.
            train: "all" marks every assistant turn of the prompt (its content and its end-of-turn token), "last" only
                those whose `trained` is true, "response" none: what a method compares is what the policy sampled.
            max_tokens: as in `encode_prompt`.
        """
        ids, trained = self.encode_trained_prompt(messages, train, max_tokens)
        return Encoded(ids, trained, self.encode_response(self.after_opening(response)))

    def encode_trained_prompt(
        self, messages: Turns, train: Train = "last", max_tokens: int | None = None
    ) -> tuple[list[int], list[bool] | None]:
        """As `encode_prompt`, with the mask [P] of the tokens that are learned from (None: no token).

        A prompt that was encoded before is remembered, unless the template reads the clock.
        """
        turns = turns_of(messages)
        if train == "response" and not any(turn["trained"] for turn in turns):
            train = "last"  # the same, and known from sampling
        said = ((turn["role"], turn["content"], turn["trained"], _key(turn["fields"])) for turn in turns)
        asked = (tuple(said), train, max_tokens)
        known = self._known.find(asked)
        if known is not None:
            for text in known.notes:
                self.note(text)
            return known.copies()
        before = Counter(self.notes)
        _, ids, trained = self._fitting(turns, train, max_tokens)
        if not self._reads_clock:
            self._known.keep(asked, ids, trained, list((self.notes - before).elements()))
        return ids, trained

    def _fitting(
        self, turns: list[dict[str, Any]], train: Train, max_tokens: int | None
    ) -> tuple[list[dict[str, Any]], list[int], list[bool] | None]:
        """The turns that fit, their ids and which of them are learned."""
        if self._folds_system and turns and turns[0]["role"] == "system":
            turns = fold_system(turns)
            self.note(FOLDED)
        while True:
            ids, trained = self._encode_turns(turns, train)
            if max_tokens is None or len(ids) <= max_tokens:
                return turns, ids, trained
            shorter = without_oldest(turns)
            if shorter is None:
                raise TooLongError(
                    f"the prompt has {len(ids)} tokens where {max_tokens} are allowed",
                    effect="No turn can be left out: the system turn, the first exchange and the last turn stay.",
                    remedy="raise the limit or shorten the prompt",
                )
            turns = shorter
            self.note(SHORTENED)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of response ids: one end id at the end is dropped, nothing else is skipped or cleaned."""
        numbers = [int(i) for i in ids]
        if numbers and numbers[-1] in self.end_ids:
            numbers.pop()
        return self.tokenizer.decode(numbers, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _encode_turns(self, turns: list[dict[str, Any]], train: Train) -> tuple[list[int], list[bool] | None]:
        answers = _answers(turns)
        learned = {
            i
            for i in answers
            if (train == "all" and turns[i]["fields"].get("weight") != 0) or (train == "last" and turns[i]["trained"])
        }
        pieces = self._pieces(turns, learned)
        tokens = self._safe.encode(pieces, answers, spans=bool(learned))
        spans = self._learned_spans(pieces, learned, turns) if learned else []
        marked = [(i, any(begin < stop and end > start for start, stop in spans)) for i, begin, end in tokens]
        marked = self._one_bos(marked)
        return [i for i, _ in marked], [mark for _, mark in marked] if learned else None

    def _pieces(self, turns: list[dict[str, Any]], learned: set[int], generation_prompt: bool = True) -> list[Piece]:
        """Scaffold and contents; an answer that is not learned may be shown otherwise than given.

        Raises:
            DataError: the template shows an answer otherwise that is to be learned, or with special tokens of its own.
        """
        answers = _answers(turns)
        self._check_fields(turns, learned | (set() if generation_prompt else {len(turns) - 1}))
        bare = () if generation_prompt else (False,)
        pieces = pieces_of(self.tokenizer, self.template, turns, self._nonce, *bare)
        if generation_prompt:
            refuse_answer(pieces, len(turns) - 1, self._around)
        if any(self.control_text(turn["content"]) for turn in turns):
            self.note(FORGED)
        shown = dict.fromkeys(answers, "") | {piece.owner: piece.text for piece in pieces if piece.owner in answers}
        rewritten = [i for i in sorted(answers) if shown[i].strip() != turns[i]["content"].strip()]
        for i in rewritten:
            written = [text for text in self._safe.special.values() if text in shown[i]]
            if i in learned or any(text not in turns[i]["content"] for text in written):
                raise DataError(
                    f"the chat template rewrites message {i}, an answer that is to be learned"
                    if i in learned
                    else f"the chat template writes {written} into the answer that is message {i}",
                    effect="What the model would see is not what the data say.",
                    remedy="learn the last answer of each row (a row for each), take the thoughts out of earlier ones, "
                    "or give another template: run.policy(…, chat_template=…)",
                )
        if any(i < len(turns) - 1 or generation_prompt for i in rewritten):
            self.note(CUT)
        return pieces

    def _one_bos(self, tokens: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
        """The template's BOS or the tokenizer's, never both, never one that neither writes."""
        bos = self.tokenizer.bos_token_id
        first = [i for i, _ in tokens[:2]]
        if bos is not None and first == [bos, bos]:
            self.note(DOUBLE_BOS)
            return tokens[1:]
        return [(bos, False), *tokens] if self._safe.adds_bos and first[:1] != [bos] else tokens

    def _learned_spans(
        self, pieces: list[Piece], learned: set[int], turns: list[dict[str, Any]]
    ) -> list[tuple[int, int]]:
        """The characters [begin, end) of each learned turn, its end-of-turn token included."""
        end = self.tokenizer.convert_ids_to_tokens(self.end_of_turn_id)
        closing = re.compile(r"\s*" + re.escape(end))
        text = "".join(piece.text for piece in pieces)
        spans, where = [], 0
        for piece in pieces:
            after = where + len(piece.text)
            if piece.owner in learned and not turns[piece.owner]["fields"].keys() - {"weight"}:
                match = closing.match(text, after)
                spans.append((where, match.end() if match else after))
            where = after
        more = [i for i in learned if turns[i]["fields"].keys() - {"weight"}]
        return [*spans, *(self._span_with_fields(turns, i, text, end) for i in more)]

    def _span_with_fields(self, turns: list[dict[str, Any]], i: int, text: str, end: str) -> tuple[int, int]:
        """The characters of a turn that has more than its text: from the generation prompt before it to its end."""
        before = render(self.tokenizer, self.template, turns[:i])
        until = render(self.tokenizer, self.template, turns[: i + 1], generation_prompt=False)
        if not (until.startswith(before) and text.startswith(until.rstrip())):
            what = (
                f"the chat template writes message {i}, a call of a tool that is to be learned, otherwise in its place"
            )
            effect = "It cannot be told which tokens the model would write."
            raise DataError(what, effect=effect, remedy="learn the last answer of each row")
        stop = until.rfind(end, len(before))
        return len(before), len(until.rstrip()) if stop < 0 else stop + len(end)


def _key(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True) if fields else ""


def _answers(turns: Sequence[Mapping[str, Any]]) -> set[int]:
    return {i for i, turn in enumerate(turns) if turn["role"] == "assistant"}


def _checked_template(tokenizer: Any, template: str | None) -> str:
    if template is None:
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            named = getattr(tokenizer, "chat_template", None)
            what = f"chat templates by the names {sorted(named)} and no default" if named else "no chat template"
            raise DataError(
                f"the tokenizer has {what}",
                where=str(getattr(tokenizer, "name_or_path", "")),
                remedy='use an instruct model, or give a template: run.policy(…, chat_template="tulu")',
            ) from error
    if len(template.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE:
        raise DataError(f"the chat template is longer than {MAX_TEMPLATE} bytes", remedy="give a shorter template")
    return template
