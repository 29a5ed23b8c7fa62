"""What an agent skims: contexts cut into numbered parts, each with its latents and its place."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from octavo.ask.index import PassageIndex, search_all
from octavo.ask.passages import Passage, cut_passages
from octavo.context import CompressedContext
from octavo.errors import ContextError, InputError
from octavo.expand import EXPANDED, folded, in_full
from octavo.model import Model


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A passage of one of the contexts, under the number that a model calls it by."""

    number: int
    """From 1."""
    context: int
    """Which context, from 0."""
    passage: Passage
    text: str
    num_tokens: int
    """The decoder's tokens of its text."""


class FoldedDocument:
    """Contexts as one row of parts. Texts are compressed when their latents are first shown."""

    def __init__(
        self,
        model: Model,
        contexts: Sequence[CompressedContext | str],
        *,
        part_tokens: int,
        ratio: int | None = None,
    ) -> None:
        """Cut contexts into parts of about `part_tokens`; raises for one without text."""
        self._model, self._given, self._ratio = model, list(contexts), ratio
        self.texts: list[str] = []
        self._passages: list[list[Passage]] = []
        self.parts: list[Part] = []
        for which, context in enumerate(self._given):
            text = context if isinstance(context, str) else context.text
            if text is None:
                raise ContextError(
                    "an agent reads passages of the text, which this context did not keep; "
                    "compress it with keep_text=True"
                )
            if not text.strip():
                raise InputError("a context is empty; give a text with something in it")
            if isinstance(context, CompressedContext):
                context.check_made_by(model.fingerprint, model.name)
            self.texts.append(text)
            self._passages.append(cut_passages(text, max_tokens=part_tokens))
            for passage in self._passages[-1]:
                piece = text[passage.start : passage.end]
                if piece.strip():
                    self.parts.append(
                        Part(
                            number=len(self.parts) + 1,
                            context=which,
                            passage=passage,
                            text=piece,
                            num_tokens=len(model.prompts.text_ids(piece)),
                        )
                    )
        if not self.parts:
            raise InputError("there is no context to read; give a text, a file or a context")

    @property
    def num_tokens(self) -> int:
        """The decoder's tokens of all parts."""
        return sum(part.num_tokens for part in self.parts)

    def search(self, question: str, k: int) -> list[int]:
        """Return the numbers of the `k` parts that promise most, or fewer, the best first."""
        hits = search_all(self._indexes, question, k)
        numbers = {(part.context, part.passage.index): part.number for part in self.parts}
        found = (numbers.get((which, hit.passage.index)) for which, hit in hits)
        return [number for number in found if number is not None]

    @cached_property
    def _indexes(self) -> list[PassageIndex]:
        """One index a context."""
        return [
            PassageIndex.build(text, passages)
            for text, passages in zip(self.texts, self._passages, strict=True)
        ]

    @cached_property
    def latents(self) -> list[CompressedContext | None]:
        """The latents of each part: the blocks that begin in it; None where none does."""
        model, found = self._model, []
        contexts = [
            model.compress(one, self._ratio) if isinstance(one, str) else one for one in self._given
        ]
        for which, context in enumerate(contexts):
            starts, at = context.offsets[:, 0].tolist(), 0
            for part in (one for one in self.parts if one.context == which):
                first = at
                while at < len(starts) and starts[at] < part.passage.end:
                    at += 1
                found.append(context[first:at] if at > first else None)
        return found

    def folded(self, in_place: Collection[int] = ()) -> list[dict[str, Any]]:
        """Return the content of a turn that shows all parts folded, or some in full in place."""
        shown: list[Mapping[str, Any] | str | None] = []
        for part, latents in zip(self.parts, self.latents, strict=True):
            memory = None if latents is None else {"type": "memory", "context": latents}
            shown.append(part.text if part.number in in_place else memory)
        return folded(shown)

    def raw(self, numbers: Collection[int]) -> str:
        """Return parts as they stand in the texts, in document order, gaps as empty lines."""
        pieces: list[str] = []
        before = None
        for part in (self.parts[number - 1] for number in sorted(set(numbers))):
            is_next = before is not None and (before.number, before.context) == (
                part.number - 1,
                part.context,
            )
            pieces += [part.text] if is_next or before is None else ["\n\n", part.text]
            before = part
        return "".join(pieces).strip()

    def numbered(self, numbers: Collection[int]) -> str:
        """Return parts in full under their numbers, in document order."""
        return in_full([(n, self.parts[n - 1].text) for n in sorted(set(numbers))])

    def appended(self, numbers: Collection[int]) -> list[dict[str, Any]]:
        """Return the content that shows parts in full after the folded document."""
        return [{"type": "text", "text": f"\n\n{EXPANDED}{self.numbered(numbers)}"}]
