r"""Turn messages or a raw string with memory spans into decoder ids, slots and source tokens.

    messages:  [{"role": "user", "content": [{"type": "memory", "text": "…long…"},
                                             {"type": "text", "text": "Who signed?"}]}]
    ids:       <|im_start|> user \n <|memory_start|> <|memory|> … <|memory|> <|memory_end|> Who …
    slots:                                           [5,         …        21)

The prompt is cut at control tokens and spans, each run of ordinary text is tokenised once, and ids
are put between: linear in the prompt, and exact. Text from users is data: a tag or a chat control
token inside it becomes ordinary characters, unless the caller says the prompt is `trusted`.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.config import MEMORY, MEMORY_END, MEMORY_START, MEMORY_TOKENS, ModelConfig
from octavo.errors import CheckpointError, PromptError

Message = Mapping[str, Any]


PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}"
"""For decoders that were never taught to chat."""


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
        self._control = {
            token.content: index for index, token in decoder_tokenizer.added_tokens_decoder.items()
        }
        if missing := [token for token in MEMORY_TOKENS if token not in self._control]:
            raise CheckpointError(
                f"the decoder's tokenizer lacks {', '.join(missing)}; use the tokenizer files that "
                "belong to the checkpoint, not those of its base model"
            )
        self.start_id, self.end_id, self.slot_id = (self._control[tag] for tag in MEMORY_TOKENS)
        longest_first = sorted(self._control, key=len, reverse=True)
        self._control_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._plain_decoder = _without_control_tokens(decoder_tokenizer, "decoder")
        self.plain_encoder = _without_control_tokens(encoder_tokenizer, "encoder")
        """The encoder's tokenizer as spans are read by: none of its control tokens in text."""

    def source(self, text: str) -> Source:
        """Tokenise a span's text for the encoder; control tokens in it are ordinary characters."""
        encoding = self.plain_encoder.encode(text, add_special_tokens=False)
        return Source(encoding.ids, encoding.offsets)

    def text_ids(self, text: str) -> list[int]:
        """Tokenise ordinary text for the decoder; control tokens in it are ordinary characters."""
        ids: list[int] = self._plain_decoder.encode(text, add_special_tokens=False).ids
        return ids

    def encode_messages(
        self,
        messages: Sequence[Message],
        *,
        ratio: int | None = None,
        trusted: bool = False,
        add_generation_prompt: bool = True,
    ) -> EncodedPrompt:
        """Render messages with the decoder's chat template and encode the result.

        A message's content is a string, or a list of parts `{"type": "text", "text": …}` and
        `{"type": "memory", "text": …}` or `{"type": "memory", "context": …}`. A text part with
        `"shared": True` is a raw context, which other questions share. With `trusted`, tags and
        control tokens inside strings are live: for template authors only. A decoder without a chat
        template reads the contents line by line.
        """
        guard, mark, cut = _unused_characters(messages, 3)
        inserts: list[Any] = []
        guarded = [
            self._guarded_message(message, guard, mark, cut, inserts, trusted)
            for message in _checked(messages)
        ]
        rendered = self.decoder_tokenizer.apply_chat_template(
            guarded,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            chat_template=getattr(self.decoder_tokenizer, "chat_template", None) or PLAIN_TEMPLATE,
        )
        return self._encode(rendered, ratio, guard, mark, cut, inserts)

    def encode_text(self, prompt: str, *, ratio: int | None = None) -> EncodedPrompt:
        """Encode a whole prompt as its template's author wrote it: tags and control tokens live."""
        guard, mark, cut = _unused_characters(prompt, 3)
        return self._encode(prompt, ratio, guard, mark, cut, [], is_whole_prompt=True)

    def _guarded_message(
        self,
        message: Message,
        guard: str,
        mark: str,
        cut: str,
        inserts: list[Any],
        trusted: bool,
    ) -> dict[str, Any]:
        """Break control tokens in a message's strings, and set its memory parts aside."""
        if self._control_pattern.search(message["role"]):
            raise PromptError(
                f"the role {message['role']!r} holds a control token; use a plain word"
            )
        guarded = {}
        for name, value in message.items():
            if name == "content" and isinstance(value, Sequence) and not isinstance(value, str):
                texts = [self._part(part, guard, mark, cut, inserts, trusted) for part in value]
                guarded[name] = "".join(texts)
            else:
                guarded[name] = value if trusted or name == "role" else self._guard(value, guard)
        return guarded

    def _part(
        self, part: Any, guard: str, mark: str, cut: str, inserts: list[Any], trusted: bool
    ) -> str:
        """Return the text of one content part; a memory part becomes a span with a reference."""
        if isinstance(part, Mapping) and isinstance(text := part.get("text", ""), str):
            if part.get("type") == "text" and "text" in part:
                said = text if trusted else str(self._guard(text, guard))
                return said + cut if part.get("shared") else said
            if part.get("type") == "memory" and ("text" in part or "context" in part):
                inserts.append(part.get("context", text))
                return f"{MEMORY_START}{mark}{len(inserts) - 1}{mark}{MEMORY_END}"
        raise PromptError(
            f"a content part is {_shorten(part)}, expected "
            '{"type": "text", "text": …} or {"type": "memory", "text" or "context": …}'
        )

    def _guard(self, value: Any, guard: str) -> Any:
        """Break control tokens in every string below `value`."""
        if isinstance(value, str):
            return self._control_pattern.sub(lambda m: m[0][0] + guard + m[0][1:], value)
        if isinstance(value, Mapping):
            return {name: self._guard(item, guard) for name, item in value.items()}
        if isinstance(value, Sequence):
            return [self._guard(item, guard) for item in value]
        return value

    def _encode(
        self,
        rendered: str,
        ratio: int | None,
        guard: str,
        mark: str,
        cut: str,
        inserts: Sequence[Any],
        *,
        is_whole_prompt: bool = False,
    ) -> EncodedPrompt:
        """Cut the rendered prompt at control tokens and tokenise what lies between."""
        ids = self._leading_ids() if is_whole_prompt else []
        raw_prefix = 0
        slots: list[tuple[int, int]] = []
        spans: list[Span] = []
        pieces = iter(self._control_pattern.split(rendered))
        for piece in pieces:
            if piece == MEMORY_START:
                span = self._span(pieces, ratio, guard, mark, inserts)
                ids.append(self.start_id)
                slots.append((len(ids), len(ids) + span.num_latents))
                spans.append(span)
                ids += [self.slot_id] * span.num_latents
                ids.append(self.end_id)
            elif piece in (MEMORY_END, MEMORY):
                raise PromptError(
                    f"the prompt has {piece} outside a span; open one with {MEMORY_START}, "
                    "or pass the text as a message, where tags are ordinary characters"
                )
            elif piece in self._control:
                ids.append(self._control[piece])
            elif piece:
                piece = piece.replace(guard, "")
                if cut in piece:  # a token over the cut belongs to what follows
                    stop = len(piece[: piece.rindex(cut)].replace(cut, ""))
                    piece = piece.replace(cut, "")
                    offsets = self._plain_decoder.encode(piece, add_special_tokens=False).offsets
                    raw_prefix = len(ids) + bisect_right(offsets, stop, key=lambda span: span[1])
                ids += self.text_ids(piece)
        shown = re.sub(f"{mark}[0-9]+{mark}", "", rendered).replace(guard, "").replace(cut, "")
        return EncodedPrompt(
            input_ids=ids,
            slots=slots,
            spans=spans,
            rendered=shown,
            raw_prefix_length=raw_prefix,
        )

    def _span(
        self, pieces: Any, ratio: int | None, guard: str, mark: str, inserts: Sequence[Any]
    ) -> Span:
        """Read a span's content up to its end tag."""
        parts = []
        for piece in pieces:
            if piece == MEMORY_END:
                break
            if piece in (MEMORY_START, MEMORY):
                raise PromptError(
                    f"the prompt has {piece} inside a span; spans do not nest: close the first one "
                    f"with {MEMORY_END}"
                )
            parts.append(piece)
        else:
            raise PromptError(f"the prompt opens a span and never closes it; add {MEMORY_END}")
        text = "".join(parts).replace(guard, "")
        content: Any = text
        if text.startswith(mark) and text.endswith(mark):
            content = inserts[int(text.strip(mark))]
        if isinstance(content, str):
            source = self.source(content)
            if not source.ids:
                raise PromptError("a memory span is empty; give it text or leave it out")
            return Span(self.config.num_latents(len(source.ids), ratio), source_ids=source.ids)
        return Span(content.num_latents, context=content)

    def _leading_ids(self) -> list[int]:
        """Return what the decoder's tokenizer puts before any text, such as a BOS token."""
        bos = self.decoder_tokenizer.bos_token_id
        added: list[int] = self.decoder_tokenizer("")["input_ids"]
        return [bos] if bos is not None and added[:1] == [bos] else []


def _without_control_tokens(tokenizer: Any, whose: str) -> Any:
    """Return a copy of the tokenizer to which every control token is ordinary text."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"the {whose}'s tokenizer is not a fast one; save it with a tokenizer.json"
        )
    settings = json.loads(backend.to_str())
    settings.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(settings))


def _unused_characters(value: Any, count: int) -> list[str]:
    """Return private-use characters that occur nowhere in the strings below `value`."""
    used: set[str] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            used.update(item)
        elif isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, Sequence):
            waiting.extend(item)
    return [c for c in map(chr, range(0xE000, 0xF8FF)) if c not in used][:count]


def _checked(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise PromptError(f"messages are {_shorten(messages)}, expected a non-empty list")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise PromptError(
                f'a message is {_shorten(message)}, expected {{"role": …, "content": …}}'
            )
    return messages


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
