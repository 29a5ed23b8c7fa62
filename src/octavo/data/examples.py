r"""One training example: decoder tokens, which of them are scored, and the spans to compress.

    parts   [("span", "…long…"), ("given", "\nAgain:\n"), ("scored", "…long…")]
    ids     start slot end   \n A g a i n : \n   … l o n g …
    scored    -    -    -    - - - - - - - -     x x x x x x

Every span is `start, slot, end` with ONE slot: an example does not depend on the ratio, which
belongs to the row it is packed into. Text is data: tags and control tokens inside it are ordinary
characters.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.errors import TemplateError, TrainingError
from octavo.prompt import EncodedPrompt, Message, PromptEncoder

IGNORED = -100
"""The label of a position that is not scored, as Hugging Face has it."""

Part = tuple[Literal["span", "given", "scored"], str]
"""A piece of text and its role: compressed, read as it is, or read and learned."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training text or dialogue, whatever the ratio it will be read at."""

    kind: str
    ids: list[int]
    """Decoder tokens; a span is `start, slot, end`, with one slot."""
    is_scored: list[bool]
    """As long as `ids`; never the first token, nor a tag, nor a slot."""
    spans: list[list[int]]
    """Encoder tokens of each span, in the order of the slots; none is empty."""
    origin: str
    """Where it came from, for logs: `SOURCE:document number`."""
    raw_spans: list[list[int]] = field(default_factory=list)
    """The spans in decoder tokens, to measure reading them uncompressed; empty where not kept."""

    def length(self, ratio: int) -> int:
        """Return the decoder positions it takes at a ratio."""
        return len(self.ids) + sum(-(-len(span) // ratio) - 1 for span in self.spans)


@dataclass(frozen=True, slots=True)
class _SpanText:
    """A span's text, tokenised once; it takes the one slot that stands for all of its latents."""

    text: str
    source_ids: list[int]

    @property
    def num_latents(self) -> int:
        return 1


class ExampleMaker:
    """Tokenise texts and chats into examples, exactly as inference tokenises them."""

    def __init__(self, prompts: PromptEncoder, *, keep_raw: bool = False) -> None:
        """With `keep_raw`, spans are kept in decoder tokens too."""
        self.prompts = prompts
        self.keep_raw = keep_raw

    def from_parts(self, kind: str, parts: Sequence[Part], origin: str) -> Example | None:
        """Lay parts out in order, without a chat template.

        None when a part tokenises to nothing, as white space alone does to some tokenizers.
        """
        prompts = self.prompts
        ids: list[int] = []
        is_scored: list[bool] = []
        spans: list[_SpanText] = []
        for role, text in parts:
            if role == "span":
                span = _SpanText(text, prompts.source(text).ids)
                if not span.source_ids:
                    return None
                spans.append(span)
                tokens = [prompts.start_id, prompts.slot_id, prompts.end_id]
            elif not (tokens := prompts.text_ids(text)):
                return None
            ids += tokens
            is_scored += [role == "scored"] * len(tokens)
        return self._example(kind, ids, is_scored, spans, origin)

    def from_chat(
        self, kind: str, messages: Sequence[Message], origin: str, *, only_last: bool = False
    ) -> Example | None:
        """Render a chat with the decoder's template and score what the assistant says in it.

        Scored are the text of every assistant message and the end-of-turn token after it; an
        assistant message with a memory part is history, and not scored; with `only_last`, all but
        the last are. Surrounding white space of
        assistant texts is dropped. What follows the last scored turn is left out. None when a span
        or an answer tokenises to nothing, when no turn is to be scored, when the template refuses
        the order of the roles, or when an answer's tokens merge with what stands before it.
        Raises `TrainingError` for a template that shows an earlier answer otherwise than as it was
        given: what is learned there would never be read again.
        """
        texts: list[_SpanText] = []
        prepared = [self._prepared(message, texts) for message in messages]
        turns = [k for k, message in enumerate(prepared) if _is_answer(message)]
        if not turns or turns[0] == 0 or not all(span.source_ids for span in texts):
            return None
        answers = {k: self.prompts.text_ids(prepared[k]["content"]) for k in turns}
        if not all(answers.values()):
            return None
        *earlier, last = turns[-1:] if only_last else turns
        try:
            whole = self.prompts.encode_messages(prepared[:last])
            prefixes = {k: self.prompts.encode_messages(prepared[:k]) for k in earlier}
        except TemplateError:
            return None
        ids = [*whole.input_ids, *answers[last], self._end_id]
        is_scored = [False] * len(whole.input_ids) + [True] * (len(answers[last]) + 1)
        for k in earlier:
            first = self._first_of_answer(prefixes[k], prepared[k]["content"], answers[k], whole)
            if first is None:
                return None
            stop = first + len(answers[k])
            stop += ids[stop] == self._end_id
            is_scored[first:stop] = [True] * (stop - first)
        spans = [span.context for span in whole.spans]
        return self._example(kind, ids, is_scored, spans, origin)

    def _example(
        self,
        kind: str,
        ids: list[int],
        is_scored: list[bool],
        spans: Sequence[_SpanText],
        origin: str,
    ) -> Example | None:
        """Put an example together; None when nothing is left to score."""
        is_scored[:1] = [False] * len(is_scored[:1])  # nothing stands before it to predict it
        if not any(is_scored):
            return None
        raw = [self.prompts.text_ids(span.text) for span in spans] if self.keep_raw else []
        return Example(kind, ids, is_scored, [s.source_ids for s in spans], origin, raw)

    def _prepared(self, message: Message, texts: list[_SpanText]) -> dict[str, Any]:
        """Tokenise the spans of a message once; a content without spans becomes one string."""
        content = message["content"]
        if not isinstance(content, str):
            parts = []
            for part in content:
                if part["type"] == "memory":
                    span = _SpanText(part["text"], self.prompts.source(part["text"]).ids)
                    texts.append(span)
                    parts.append({"type": "memory", "context": span})
                else:
                    parts.append({"type": "text", "text": part["text"]})
            if any(part["type"] == "memory" for part in parts):
                return {**message, "content": parts}
            content = "".join(str(part["text"]) for part in parts)
        return {
            **message,
            "content": content.strip() if message["role"] == "assistant" else content,
        }

    def _first_of_answer(
        self, prefix: EncodedPrompt, answer: str, answer_ids: list[int], whole: EncodedPrompt
    ) -> int | None:
        """Return where an earlier answer begins in the whole, or None if its tokens merged."""
        if not whole.rendered.startswith(prefix.rendered + answer):
            name = getattr(self.prompts.decoder_tokenizer, "name_or_path", "") or "the decoder"
            raise TrainingError(
                f"the chat template of {name} does not show an earlier answer as it was given "
                f"({answer[:40]!r}); train on single turns, take out what the template drops, such "
                "as thinking, or use a template that only ever appends"
            )
        first = len(prefix.input_ids)
        expected = [*prefix.input_ids, *answer_ids]
        return first if whole.input_ids[: len(expected)] == expected else None

    @functools.cached_property
    def _end_id(self) -> int:
        """The token that ends a turn: what the template closes one with, or else eos."""
        tokenizer = self.prompts.decoder_tokenizer
        question = {"role": "user", "content": "a"}
        before = self.prompts.encode_messages([question])
        after = self.prompts.encode_messages(
            [question, {"role": "assistant", "content": "b"}], add_generation_prompt=False
        )
        closing = after.input_ids[len(before.input_ids) :]
        control = [token for token in closing if token in tokenizer.added_tokens_decoder]
        if control:
            return int(control[-1])
        if tokenizer.eos_token_id is None:
            raise TrainingError(
                "answers end in the decoder's eos token, but its tokenizer has none; set eos_token "
                "in tokenizer_config.json"
            )
        return int(tokenizer.eos_token_id)


def _is_answer(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and isinstance(message["content"], str)
