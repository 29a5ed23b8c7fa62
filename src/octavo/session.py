"""A conversation about contexts: what was read stays read, and what is long past becomes latents.

    user       <contexts> <earlier turns, folded>  first turn that is still text
    assistant  …
    user       the question          <- only this is read, where nothing above changed

The engine keeps the KV cache of the whole conversation, so a turn reads what is new in it. Past
`max_history` tokens the older half of the turns is folded into latents; a context that grows, as a
log does, is encoded and read again from its last window on.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack, cast

from octavo.completion import Completion, Stream
from octavo.context import CompressedContext
from octavo.density import spread
from octavo.errors import ContextError, PromptTooLongError
from octavo.files import new_folder, write_text
from octavo.generate import ContextLike, Options, list_contexts
from octavo.model import Model

MAX_HISTORY = 1024
"""Tokens of earlier turns that stay text."""
FORMAT = "octavo-session"
FORMAT_VERSION = 1
_EARLIER = "\n\nEarlier in this conversation:\n"
_FILE = "session.json"
_MAX_BYTES = 1 << 28

Contexts = ContextLike | Sequence[tuple[str, int]]


class Session:
    """Several turns about the same contexts. For one thread at a time."""

    def __init__(
        self,
        model: Model,
        context: Contexts = None,
        *,
        ratio: int | None = None,
        budget: int | None = None,
        max_history: int | None = MAX_HISTORY,
        is_reusing: bool = True,
    ) -> None:
        """Begin a conversation about contexts, texts, or `(text, ratio)` pairs.

        Texts are compressed at `ratio`, or, given a `budget` of latents, each stretch at the ratio
        that its density asks for (`density.py`). `max_history=None` folds no turn. Without
        `is_reusing` every turn reads all anew: the slow twin.
        """
        self.model, self.max_history, self.is_reusing = model, max_history, is_reusing
        self.contexts = _compressed(model, context, ratio, budget)
        """What it is about; `append` makes one grow."""
        self.turns: list[dict[str, str]] = []
        """Turns that are text yet, as messages."""
        self.folded: CompressedContext | None = None
        """All turns before."""
        self._ratio = ratio

    def ask(self, question: str, **options: Unpack[Options]) -> Completion:
        """Say something and return the answer; both become a part of the conversation.

        Takes the options of `Model.generate`, but `messages`. Raises `PromptTooLongError` where
        contexts and question alone do not fit the decoder; nothing is then added.
        """
        stream = self.stream(question, **options)
        for _ in stream:
            pass
        assert stream.completion is not None
        return stream.completion

    def stream(self, question: str, **options: Unpack[Options]) -> Stream:
        """Yield the answer in pieces; what was shown of one that is closed early is kept as it."""
        return Stream(self._pieces(question, options))

    def append(self, text: str, *, at: int = -1) -> CompressedContext:
        """Let a context grow, by default the last; only windows that change are encoded."""
        if not self.contexts:
            self.contexts.append(self.model.compress(text, self._ratio))
        else:
            self.contexts[at] = self.model.extend(self.contexts[at], text)
        return self.contexts[at]

    def save(self, folder: str | Path) -> None:
        """Write the conversation with its contexts to a folder, whole or not at all."""
        contexts = [*self.contexts, *([self.folded] if self.folded is not None else [])]
        about = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "turns": self.turns,
            "num_contexts": len(self.contexts), "is_folded": self.folded is not None,
            "max_history": self.max_history, "ratio": self._ratio,
        }  # fmt: skip
        with new_folder(Path(folder)) as temporary:
            for number, context in enumerate(contexts):
                context.save(temporary / f"{number}.safetensors")
            write_text(temporary / _FILE, json.dumps(about, ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, model: Model, folder: str | Path) -> "Session":
        """Go on with a saved conversation.

        Raises `ContextError` for a folder that holds none, or one of another compressor.
        """
        path = Path(folder) / _FILE
        if not path.is_file():
            raise ContextError(f"no session at {folder}; give a folder that Session.save wrote")
        try:
            about = json.loads(path.read_bytes()[:_MAX_BYTES])
            if about["format"] != FORMAT or about["format_version"] != FORMAT_VERSION:
                raise ValueError("it is of another kind or version")
            number, is_folded = about["num_contexts"], about["is_folded"]
            turns, settings = about["turns"], (about["max_history"], about["ratio"])
            sound = [isinstance(number, int), isinstance(is_folded, bool), isinstance(turns, list)]
            sound += [set(turn) == {"role", "content"} for turn in turns]
            sound += [isinstance(text, str) for turn in turns for text in turn.values()]
            sound += [one is None or type(one) is int for one in settings]
            if not all(sound):
                raise ValueError("a value has the wrong type")
        except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
            raise ContextError(f"{path} is damaged ({error}); begin a new session") from error
        session = cls(model, max_history=settings[0])
        session._ratio, session.turns = settings[1], turns
        found = [
            model.load_context(Path(folder) / f"{one}.safetensors")
            for one in range(number + is_folded)
        ]
        session.folded = found.pop() if is_folded else None
        session.contexts = found
        return session

    # -- turns -----------------------------------------------------------------------------------

    def _pieces(self, question: str, options: Options) -> Iterator[str | Completion]:
        """Yield the pieces of an answer and its account, and remember both sides."""
        asked = {"role": "user", "content": question}
        self._fold_past(self.max_history)
        shown, stream = "", self._start(asked, options)
        try:
            try:
                first = next(stream, None)
            except PromptTooLongError:  # earlier turns make room first
                if not self.turns:
                    raise
                self._fold_past(0)
                stream = self._start(asked, options)
                first = next(stream, None)
            while first is not None:
                shown += first
                yield first
                first = next(stream, None)
        finally:
            stream.close()
            if shown or stream.completion is not None:
                self.turns += [asked, {"role": "assistant", "content": shown}]
        assert stream.completion is not None
        yield stream.completion

    def _start(self, asked: dict[str, str], options: Options) -> Stream:
        given: Options = {"is_turn": self.is_reusing, **options}
        given["messages"] = self._messages(asked)
        return self.model.stream(None, **given)

    def _messages(self, asked: dict[str, str]) -> list[dict[str, Any]]:
        """Return the conversation with its contexts in the first turn."""
        turns: list[dict[str, Any]] = [*self.turns, asked]
        parts: list[dict[str, Any]] = [{"type": "memory", "context": c} for c in self.contexts]
        if self.folded is not None:
            parts.append({"type": "text", "text": _EARLIER})
            parts.append({"type": "memory", "context": self.folded})
        if parts:
            said = {"type": "text", "text": "\n\n" + turns[0]["content"]}
            turns[0] = {"role": "user", "content": [*parts, said]}
        return turns

    def _fold_past(self, most: int | None) -> None:
        """Fold the older turns once all of them take more than `most` tokens.

        Half of that stays, so that a turn that folds, and has to be read anew, is rare.
        """
        if most is None:
            return
        sizes = [len(self.model.prompts.text_ids(turn["content"])) for turn in self.turns]
        if sum(sizes) <= most:
            return
        count = 0
        while count < len(sizes) and sum(sizes[count:]) > most // 2:
            count += 2  # a question and its answer
        old, self.turns = self.turns[:count], self.turns[count:]
        text = "".join(f"{turn['role'].capitalize()}: {turn['content']}\n" for turn in old)
        if self.folded is None:
            self.folded = self.model.compress(text, self._ratio)
        else:
            self.folded = self.model.extend(self.folded, text)


def _compressed(
    model: Model, context: Contexts, ratio: int | None, budget: int | None
) -> list[CompressedContext]:
    """Compress what is text yet: all at one ratio, each at its own, or within a budget."""
    given = [context] if isinstance(context, str | CompressedContext) else list(context or ())
    pairs = [one for one in given if isinstance(one, tuple)]
    if pairs and len(pairs) == len(given):
        return [model.compress(text, own) for text, own in pairs]
    found = list_contexts(cast(ContextLike, given))
    if budget is None:
        return [model.compress(one, ratio) if isinstance(one, str) else one for one in found]
    taken = sum(one.num_latents for one in found if isinstance(one, CompressedContext))
    texts = [one for one in found if isinstance(one, str)]
    parts = iter(spread(texts, model.prompts, model.ratios, budget - taken) if texts else ())
    made: list[CompressedContext] = []
    for one in found:
        if isinstance(one, CompressedContext):
            made.append(one)
        else:
            made += [model.compress(piece, own) for piece, own in next(parts)]
    return made
