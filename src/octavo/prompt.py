r"""Turn messages or a raw string with memory spans into decoder ids, slots and source tokens.

    messages:  [{"role": "user", "content": [{"type": "memory", "text": "…long…"},
                                             {"type": "text", "text": "Who signed?"}]}]
    ids:       <|im_start|> user \n <|memory_start|> <|memory|> … <|memory|> <|memory_end|> Who …
    slots:                                           [5,         …        21)

The template renders strings that know who wrote them (`template.py`). The result is cut at the
control tokens that the template's author wrote and at spans; each run between is tokenised once,
without control tokens: linear in the prompt, and exact. Text from users is data, however it is
split or nested, unless the caller says the prompt is `trusted`.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.config import MEMORY_END, MEMORY_START, MEMORY_TOKENS, ModelConfig
from octavo.errors import CheckpointError, PromptError
from octavo.template import AUTHOR, PLACE, Written, authored, joined, render, writers_of
from octavo.text import PlainText, control_tokens

Message = Mapping[str, Any]


PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"
"""For decoders that were never taught to chat."""
ROLES = frozenset(
    "system developer user assistant tool function ipython observation model document".split()
)
"""Who speaks is the template's business where it is one of these, and a user's text elsewhere."""
_FIRST_PLACE = 0xF0000
_CUT = Written("\0", PLACE)
"""Stands where a shared text ends."""


@dataclass(frozen=True, slots=True)
class Source:
    """The encoder's tokens of one text, with the characters each came from."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Span:
    """One memory span of a prompt: source tokens yet to be encoded, or a compressed context."""

    num_latents: int
    source_ids: list[int] = field(default_factory=list)
    context: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPrompt:
    """A prompt as the decoder reads it."""

    input_ids: list[int]
    slots: list[tuple[int, int]]
    """Per span, the positions `[start, stop)` of its slots."""
    spans: list[Span]
    rendered: str
    """The prompt after its chat template; contexts appear as empty spans."""

    raw_prefix_length: int = 0
    """Positions up to the end of the last text part that is marked as shared."""

    @property
    def prefix_length(self) -> int:
        """Positions up to the end of the last context: what another question shares."""
        return max(self.slots[-1][1] + 1 if self.slots else 0, self.raw_prefix_length)


class PromptEncoder:
    """Tokenise prompts for the decoder and spans for the encoder, without ever mixing the two."""

    def __init__(self, decoder_tokenizer: Any, encoder_tokenizer: Any, config: ModelConfig) -> None:
        """Raise `CheckpointError` when the decoder's tokenizer lacks the memory tokens."""
        self.config = config
        self.decoder_tokenizer = decoder_tokenizer
        self.encoder_tokenizer = encoder_tokenizer
        self._control = control_tokens(decoder_tokenizer)
        if missing := [token for token in MEMORY_TOKENS if token not in self._control]:
            raise CheckpointError(
                f"the decoder's tokenizer lacks {', '.join(missing)}; use the tokenizer files that "
                "belong to the checkpoint, not those of its base model"
            )
        self.start_id, self.end_id, self.slot_id = (self._control[tag][0] for tag in MEMORY_TOKENS)
        longest_first = sorted(self._control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._plain_decoder = PlainText(decoder_tokenizer, "decoder")
        self._plain_encoder = PlainText(encoder_tokenizer, "encoder")

    def source(self, text: str) -> Source:
        """Tokenise a span's text for the encoder; control tokens in it are ordinary characters."""
        return Source(*self._plain_encoder.encode(text, is_start=True))

    def text_ids(self, text: str, *, is_start: bool = False) -> list[int]:
        """Tokenise ordinary text for the decoder; control tokens in it are ordinary characters.

        Some tokenizers put a space before the text at the start of a prompt.
        """
        return self._plain_decoder.encode(text, is_start=is_start)[0]

    def encode_messages(
        self,
        messages: Sequence[Message],
        *,
        ratio: int | None = None,
        trusted: bool = False,
        add_generation_prompt: bool = True,
        template: Mapping[str, Any] | None = None,
    ) -> EncodedPrompt:
        """Render messages with the decoder's chat template and encode the result.

        A message's content is a string, or a list of parts `{"type": "text", "text": …}` and
        `{"type": "memory", "text": …}` or `{"type": "memory", "context": …}`. A text part with
        `"shared": True` is a raw context, which other questions share. With `trusted`, tags and
        control tokens inside strings are live: for template authors only. `template` holds what
        else the chat template reads, as `tools`, `documents` or `enable_thinking`. A decoder
        without a chat template reads the contents line by line. Raises `PromptError` for what the
        template refuses.
        """
        inserts: list[Any] = []
        given = {
            "tools": None,
            "documents": None,
            **authored(dict(self.decoder_tokenizer.special_tokens_map)),
            **(template or {}),
            "messages": [self._read(message, inserts, trusted) for message in _checked(messages)],
            "add_generation_prompt": add_generation_prompt,
        }
        source = self._template(bool(given["tools"]))
        ids = [] if source else self._leading_ids()
        return self._encode(render(source or PLAIN_TEMPLATE, given), ratio, inserts, ids)

    def encode_text(self, prompt: str, *, ratio: int | None = None) -> EncodedPrompt:
        """Encode a whole prompt as its template's author wrote it: tags and control tokens live."""
        return self._encode(Written(prompt, AUTHOR), ratio, [], self._leading_ids())

    def _template(self, has_tools: bool) -> str | None:
        """Return the decoder's chat template: one with tools may stand beside the default one."""
        found = getattr(self.decoder_tokenizer, "chat_template", None)
        if isinstance(found, Mapping):
            found = found.get("tool_use" if has_tools else "", found.get("default"))
        return found or None

    def _read(self, message: Message, inserts: list[Any], trusted: bool) -> dict[str, Any]:
        """Return a message as the template reads it, its memory parts set aside."""
        if self._control_pattern.search(message["role"]):
            raise PromptError(
                f"the role {message['role']!r} holds a control token; use a plain word"
            )
        read = dict(authored(message) if trusted else message)
        if read["role"] in ROLES:
            read["role"] = authored(read["role"])
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            read["content"] = joined([self._part(part, inserts, trusted) for part in content])
        return read

    def _part(self, part: Any, inserts: list[Any], trusted: bool) -> str:
        """Return the text of one content part; a memory part becomes a span with a reference."""
        if isinstance(part, Mapping) and isinstance(text := part.get("text", ""), str):
            if part.get("type") == "text" and "text" in part:
                said = str(authored(text) if trusted else text)
                return said + _CUT if part.get("shared") else said
            if part.get("type") == "memory" and ("text" in part or "context" in part):
                inserts.append(part.get("context", text))
                place = Written(chr(_FIRST_PLACE + len(inserts) - 1), PLACE)
                return joined([authored(MEMORY_START), place, authored(MEMORY_END)])
        raise PromptError(
            f"a content part is {_shorten(part)}, expected "
            '{"type": "text", "text": …} or {"type": "memory", "text" or "context": …}'
        )

    def _encode(
        self, rendered: Written, ratio: int | None, inserts: Sequence[Any], ids: list[int]
    ) -> EncodedPrompt:
        """Cut the rendered prompt at control tokens and tokenise what lies between."""
        raw_prefix, num_leading = 0, len(ids)
        slots: list[tuple[int, int]] = []
        spans: list[Span] = []
        pieces = self._pieces(rendered)
        for piece, token in pieces:
            if token == self.start_id:
                span = self._span(pieces, ratio, inserts)
                slots.append((len(ids) + 1, len(ids) + 1 + span.num_latents))
                spans.append(span)
                ids += [self.start_id, *[self.slot_id] * span.num_latents, self.end_id]
            elif token in (self.end_id, self.slot_id):
                raise PromptError(
                    f"the prompt has {piece} outside a span; open one with {MEMORY_START}, "
                    "or pass the text as a message, where tags are ordinary characters"
                )
            elif token is not None:
                ids.append(token)
            else:
                stop = len(_without_places(piece[: writers_of(piece).rfind(PLACE) + 1]))
                found, offsets = self._plain_decoder.encode(
                    _without_places(piece), is_start=len(ids) == num_leading
                )
                if stop:  # a token over the cut belongs to what follows
                    raw_prefix = len(ids) + bisect_right(offsets, stop, key=lambda span: span[1])
                ids += found
        if len(spans) < len(inserts):
            raise PromptError(
                "the decoder's chat template drops or changes the text of a memory part; give it "
                "in a message that the template shows as it is"
            )
        return EncodedPrompt(
            input_ids=ids,
            slots=slots,
            spans=spans,
            rendered=_without_places(rendered),
            raw_prefix_length=raw_prefix,
        )

    def _pieces(self, rendered: Written) -> Iterator[tuple[Written, int | None]]:
        """Yield the control tokens that the author wrote, with their ids, and the runs between."""
        runs = re.finditer(f"({AUTHOR}+)|[^{AUTHOR}]+", rendered.writers)
        whole = str.__getitem__  # without the writers
        live = "".join(
            whole(rendered, slice(*run.span())) if run[1] else "\0" * len(run[0]) for run in runs
        )
        at, strips = 0, False
        for match in (*self._control_pattern.finditer(live), None):
            piece = rendered[at : match.start() if match else None]
            piece = piece.lstrip() if strips else piece
            token, settings = self._control[match[0]] if match else (None, None)
            piece = piece.rstrip() if settings and settings.lstrip else piece
            if piece:
                yield piece, None
            if match:
                yield rendered[match.start() : match.end()], token
                at, strips = match.end(), bool(settings and settings.rstrip)

    def _span(
        self,
        pieces: Iterator[tuple[Written, int | None]],
        ratio: int | None,
        inserts: Sequence[Any],
    ) -> Span:
        """Read a span's content up to its end tag."""
        parts = []
        for piece, token in pieces:
            if token == self.end_id:
                break
            if token in (self.start_id, self.slot_id):
                raise PromptError(
                    f"the prompt has {piece} inside a span; spans do not nest: close the first one "
                    f"with {MEMORY_END}"
                )
            parts.append(piece)
        else:
            raise PromptError(f"the prompt opens a span and never closes it; add {MEMORY_END}")
        text = joined(parts)
        content: Any = text
        if text.writers == PLACE:
            content = inserts[ord(text) - _FIRST_PLACE]
        if isinstance(content, str):
            source = self.source(str.__str__(content))
            if not source.ids:
                raise PromptError("a memory span is empty; give it text or leave it out")
            return Span(self.config.num_latents(len(source.ids), ratio), source_ids=source.ids)
        return Span(content.num_latents, context=content)

    def _leading_ids(self) -> list[int]:
        """Return what the decoder's tokenizer puts before any text, such as a BOS token."""
        bos = self.decoder_tokenizer.bos_token_id
        added: list[int] = self.decoder_tokenizer("")["input_ids"]
        return [bos] if bos is not None and added[:1] == [bos] else []


def asks_for_latents(part: Mapping[str, Any]) -> tuple[bool, Any]:
    """Return whether a part of a request is to be read as latents, and the ratio it asks for.

    It is where `memory` is true or an object, which may hold a `ratio` as the part may; a file or
    a memory part is, unless it says false. Raises `PromptError` for any other value.
    """
    memory = part.get("memory")
    if memory is None:
        memory = part.get("type") in ("file", "input_file", "memory")
    if isinstance(memory, Mapping) and not memory.keys() - {"ratio"}:
        return True, memory.get("ratio", part.get("ratio"))
    if not isinstance(memory, bool):
        raise PromptError(f'memory is {_shorten(memory)}, expected true or {{"ratio": 16}}')
    return memory, part.get("ratio")


def _without_places(text: Written) -> str:
    """Return a text as an ordinary string, without what only holds a place in it."""
    if PLACE in text.writers:
        text = joined(
            text[run.start() : run.end()] for run in re.finditer(f"[^{PLACE}]+", text.writers)
        )
    return "".join(text)


def _checked(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise PromptError(f"messages are {_shorten(messages)}, expected a non-empty list")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise PromptError(
                f'a message is {_shorten(message)}, expected {{"role": …, "content": …}}'
            )
        if message.get("content") is None and not message.get("tool_calls"):
            raise PromptError(f"a message is {_shorten(message)}, without content or tool_calls")
    return messages


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
