"""Turn text of users into tokens, and tokens into text as they come.

Text becomes ordinary tokens, never control tokens. Tokens become text in pieces that never show
half a character or half a stop string.
"""

import copy
import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from octavo.config import MEMORY_TOKENS
from octavo.errors import CheckpointError, PromptError

_ACTING = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    "|\r(?!\n)"
)
_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""What a byte that no token holds is called; a newline is one in many vocabularies."""


def sha256_of(text: str) -> str:
    """Return the hex sha256 of a text as UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def control_tokens(tokenizer: Any) -> dict[str, tuple[int, Any]]:
    """Return the id and settings of the added tokens that no text may become.

    These are the special ones, those that the chat template writes, and all in brackets. Other
    added tokens, such as words, runs of spaces and single bytes, are ordinary text.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    special = {*MEMORY_TOKENS, *tokenizer.all_special_tokens}
    return {
        token.content: (index, token)
        for index, token in tokenizer.added_tokens_decoder.items()
        if not _BYTE.fullmatch(token.content)
        and (
            token.special
            or token.content in special
            or (not token.content.isspace() and token.content in template)
            or (token.content[0] in "<[{" and token.content[-1] in ">]}")
        )
    }


def visible(text: str) -> str:
    """Return a text without what would act on a terminal: escapes, and marks of direction.

    Such characters, and bytes of file names that are no text, are written out as Python does.
    """
    return _ACTING.sub(lambda one: one[0].encode("unicode_escape").decode(), text)


class PlainText:
    """A tokenizer to which control tokens are ordinary characters."""

    def __init__(self, tokenizer: Any, whose: str) -> None:
        """Copy a fast tokenizer; costs a tenth of a second for a large vocabulary."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise CheckpointError(
                f"the {whose}'s tokenizer is not a fast one; save it with a tokenizer.json"
            )
        control = control_tokens(tokenizer)
        self._first = _plain(backend, control)
        self._later = self._first
        if any(_begins_with_space(self._first)):
            self._later = _plain(backend, control)
            for part in _begins_with_space(self._later):
                part.prepend_scheme = "never"
        self._refused = {index for index, _ in control.values()} - {tokenizer.unk_token_id}

    def encode(self, text: str, *, is_start: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text and the characters of each; `is_start` of the whole input.

        Raises `PromptError` for half a surrogate pair.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text holds half a surrogate pair ({text[error.start]!r} at character "
                f"{error.start:,}), which no tokenizer reads; take it out or write the whole pair"
            ) from error
        return self._encode(text, is_start)

    def _encode(self, text: str, is_start: bool) -> tuple[list[int], list[tuple[int, int]]]:
        tokenizer = self._first if is_start else self._later
        if not tokenizer.encode_special_tokens:  # lost where an object is copied or pickled
            tokenizer.encode_special_tokens = True
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids, offsets = encoding.ids, encoding.offsets
        if self._refused.isdisjoint(ids):
            return ids, offsets
        # A vocabulary may itself hold a control token's characters: cut within each of them.
        found = [span for index, span in zip(ids, offsets, strict=True) if index in self._refused]
        cuts = sorted({start + 1 for start, stop in found if stop - start > 1})
        if not cuts:
            kept = [one for one in zip(ids, offsets, strict=True) if one[0] not in self._refused]
            return [index for index, _ in kept], [span for _, span in kept]
        ids, offsets = [], []
        for start, stop in pairwise([0, *cuts, len(text)]):
            more, spans = self._encode(text[start:stop], is_start and not start)
            ids += more
            offsets += [(start + a, start + b) for a, b in spans]
        return ids, offsets


def _plain(backend: Any, control: Iterable[str]) -> Any:
    """Copy a tokenizer, so that it can read control tokens as text."""
    from tokenizers import AddedToken

    copied = copy.deepcopy(backend)
    copied.no_padding()
    copied.no_truncation()
    copied.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in control])
    copied.encode_special_tokens = True
    return copied


def _begins_with_space(backend: Any) -> list[Any]:
    """Return the parts of a tokenizer that put a space before the first word of a text."""
    from tokenizers import pre_tokenizers

    whole: Any = backend.pre_tokenizer
    is_sequence = type(whole) is pre_tokenizers.Sequence
    parts: list[Any] = list(whole) if is_sequence else [whole]
    return [part for part in parts if getattr(part, "prepend_scheme", None) == "first"]


class TextStream:
    """The text of one answer, growing token by token."""

    def __init__(
        self, tokenizer: Any, stops: Sequence[str] = (), shows_control: bool = False
    ) -> None:
        """Decode with `tokenizer`; the first of `stops` to appear ends the text before it.

        Control tokens are left out of the text unless it `shows_control`.
        """
        self._hides_control = not shows_control
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._settled, self._window = 0, 0  # ids before `_settled` are text; `_window` starts anew
        self._decoded = ""
        self._shown = 0
        self.num_tokens = 0
        self.is_finished = False
        self.was_stopped = False

    @property
    def text(self) -> str:
        """What has been shown so far."""
        return self._decoded[: self._shown]

    def push(self, token: int) -> str:
        """Add a token and return the text that is now certain."""
        if self.is_finished:
            return ""
        self.num_tokens += 1
        self._ids.append(token)
        # Decode from a little before the new token: what came earlier is settled, and spaces
        # between tokens come out as they would in the whole.
        before = self._decode(self._ids[self._window : self._settled])
        after = self._decode(self._ids[self._window :])
        if len(after) > len(before) and not after.endswith("\ufffd"):
            self._decoded += after[len(before) :]
            self._window, self._settled = self._settled, len(self._ids)
        return self._show(is_last=False)

    def finish(self) -> str:
        """End the text and return what was held back."""
        if self.is_finished:
            return ""
        before = self._decode(self._ids[self._window : self._settled])
        self._decoded += self._decode(self._ids[self._window :])[len(before) :]
        self._settled = self._window = len(self._ids)
        return self._show(is_last=True)

    def _show(self, *, is_last: bool) -> str:
        """Return new text up to a stop string, holding back what could be the start of one."""
        limit = len(self._decoded)
        found = [at for stop in self._stops if (at := self._decoded.find(stop)) >= 0]
        if found:
            limit, self.is_finished, self.was_stopped = min(found), True, True
        elif is_last:
            self.is_finished = True
        else:
            limit -= max((overlap(self._decoded, stop) for stop in self._stops), default=0)
        piece = self._decoded[self._shown : limit]
        self._shown = max(self._shown, limit)
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=self._hides_control, clean_up_tokenization_spaces=False
        )
        return text


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """Return the UTF-8 bytes of a token, which may be part of a character alone."""
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    if "\ufffd" not in text:
        return text.encode()
    name = str(tokenizer.convert_ids_to_tokens(token))
    if _BYTE.fullmatch(name):
        return bytes([int(name[3:5], 16)])
    known = _byte_level()
    return bytes(known[one] for one in name) if known.keys() >= set(name) else text.encode()


@functools.cache
def _byte_level() -> dict[str, int]:
    """Return the byte of each character in vocabularies of GPT-2's kind.

    Printable bytes stand for themselves, the others for the characters from 256 on
    (https://github.com/openai/gpt-2, `bytes_to_unicode`).
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + at): b for at, b in enumerate(others)}


def overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` could begin `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
