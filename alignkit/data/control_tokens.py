"""Tokenising text in which some characters may be control tokens (the template's) and all others must not be."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any

from alignkit.data.template import Piece
from alignkit.errors import DataError

Token = tuple[int, int, int]
"""(id, begin, end): a token and the characters of the rendered conversation that it stands for."""


class ControlSafe:
    """A tokenizer that makes control tokens out of a template's scaffold, and of nothing else.

    Control tokens are the special tokens, and those added tokens that the template itself writes (`<think>`).

    Args:
        tokenizer: a transformers tokenizer.
        template: the source of its chat template.

    Attributes:
        special: id -> text of the special tokens.
        control: id -> text of all control tokens.
        pattern: matches the text of any control token.
        adds_bos: whether the tokenizer puts a BOS before a text by itself.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self.tokenizer = tokenizer
        added = {i: token for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        all_special = set(tokenizer.all_special_ids)
        # Unknown characters do yield <unk>: it is no control token unless it serves another purpose too.
        unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        texts = {i: token.content for i, token in added.items() if i not in unknown}
        self.special = {i: text for i, text in texts.items() if added[i].special or i in all_special}
        self.control = {i: text for i, text in texts.items() if i in self.special or text in template}
        self._id_of = {text: i for i, text in self.control.items()}
        self.pattern = _any_of(self.control.values())
        self._loose = _any_of(text for i, text in self.control.items() if i not in self.special)
        self._ends, self._closing = frozenset[int](), _any_of([])
        self._added = {i: token.content for i, token in added.items()}
        bos = tokenizer.bos_token_id
        self.adds_bos = bos is not None and list(tokenizer("x")["input_ids"])[:1] == [bos]
        self._adds_space = tokenizer.convert_ids_to_tokens(self._split_ids("x"))[:1] == ["▁x"]

    def guard(self, ends: Iterable[int]) -> None:
        """Tell which tokens end a response: nobody's text makes one of them, special or not, a model's neither.

        Args:
            ends: their ids.
        """
        self.control |= {i: self._added[i] for i in ends if i in self._added}
        self._id_of = {text: i for i, text in self.control.items()}
        self.pattern = _any_of(self.control.values())
        self._loose = _any_of(text for i, text in self.control.items() if i not in self.special)
        self._ends = frozenset(i for i in ends if i in self._added)
        self._closing = _any_of(self._added[i] for i in self._ends if i not in self.special)

    def encode(self, pieces: list[Piece], model_wrote: set[int], spans: bool) -> list[Token]:
        """Ids of a rendered conversation, as the tokenizer gives them for the whole where no content forges a token.

        Args:
            pieces: scaffold and contents.
            model_wrote: the owners of pieces that a model wrote: there only special tokens are split into text.
            spans: whether the characters of each token are wanted; without, they mean nothing.

        Raises:
            DataError: no valid Unicode, or a tokenizer that makes control tokens of plain text.
        """
        if self.tokenizer.is_fast or not spans:
            tokens = self._whole("".join(piece.text for piece in pieces), spans)
            scaffold = [t for piece in pieces if piece.owner is None for t in self.pattern.findall(piece.text)]
            if [self.control[i] for i, _, _ in tokens if i in self.control] == scaffold:
                return tokens
        return self._by_piece(pieces, model_wrote)

    def content(self, text: str, first: bool = False, model_wrote: bool = True) -> list[int]:
        """Ids of text [T] without control tokens.

        Args:
            text: anything a person or a model wrote.
            first: whether nothing stands before it.
            model_wrote: split only special tokens into text, not the marks (`<think>`) that a model may write.
        """
        loose = self._closing if model_wrote else self._loose
        cuts = [match.start() + 1 for match in loose.finditer(text)]
        ids: list[int] = []
        for begin, end in itertools.pairwise([0, *cuts, len(text)]):
            ids += self._plain(text[begin:end], first and begin == 0)
        never = {*self.special, *self._ends} if model_wrote else self.control
        forged = sorted({self.control[i] for i in ids if i in never})
        if forged:
            raise DataError(f"the tokenizer makes the control tokens {forged} of plain text", remedy="change the text")
        return ids

    def scaffold(self, text: str) -> list[int]:
        """Ids of a template's own text [T] inside a conversation: the control tokens that it names are real ones."""
        ids: list[int] = []
        for part in filter(None, re.split(f"({self.pattern.pattern})", text)):
            ids += [self._id_of[part]] if part in self._id_of else self.content(part)
        return ids

    def _whole(self, text: str, spans: bool) -> list[Token]:
        out = self._call(text, return_offsets_mapping=spans)
        offsets = out["offset_mapping"] if spans else [(0, 0)] * len(out["input_ids"])
        return [(i, begin, max(end, begin + 1)) for i, (begin, end) in zip(out["input_ids"], offsets, strict=True)]

    def _by_piece(self, pieces: list[Piece], model_wrote: set[int]) -> list[Token]:
        tokens: list[Token] = []
        where = 0
        for piece in pieces:
            scaffold = piece.owner is None
            parts = re.split(f"({self.pattern.pattern})", piece.text) if scaffold else [piece.text]
            for part in filter(None, parts):
                if scaffold and part in self._id_of:
                    ids = [self._id_of[part]]
                else:
                    ids = self.content(part, not tokens, piece.owner in model_wrote)
                tokens += [(i, where, where + len(part)) for i in ids]
                where += len(part)
        return tokens

    def _plain(self, text: str, first: bool) -> list[int]:
        """Ids with special tokens split, and without the space that some tokenizers put before the first word."""
        if text and not first and self._adds_space:
            anchor, ids = self._split_ids("\n"), self._split_ids("\n" + text)
            if ids[: len(anchor)] == anchor:
                return ids[len(anchor) :]
        return self._split_ids(text) if text else []

    def _split_ids(self, text: str) -> list[int]:
        return list(self._call(text, split_special_tokens=True)["input_ids"])

    def _call(self, text: str, **options: Any) -> Any:
        try:
            return self.tokenizer(text, add_special_tokens=False, verbose=False, **options)
        except (TypeError, UnicodeError) as error:
            raise DataError(f"text that cannot be tokenised ({error})", remedy="remove its lone surrogates") from error


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the texts, the longest first; of none, nothing."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)")
