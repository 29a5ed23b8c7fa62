"""Cut training examples with memory spans out of plain text and question-answer records.

Example number i is a pure function of the seed, the stage and i: nothing has to be saved to resume,
and a resumed run sees exactly what an uninterrupted one would have seen. Spans are kept as text
and tokenised by the encoder's tokenizer, so one data set serves every ratio. Only text outside
spans is scored; tags and slots never are (paper §4.1).
"""

import glob
import io
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.config import resolve_ratio
from octavo.errors import MissingExtraError, OctavoError, TrainingError
from octavo.prompt import PromptEncoder
from octavo.train.config import DataSection

IGNORED = -100
"""The label of a position that is not scored, as Hugging Face has it."""

MIN_CHARS = 200
"""Shorter documents make no prose examples."""
MAX_ATTEMPTS = 1000
"""Draws before an example is given up: a run must not die of a mixture rich in short texts."""

REPEAT_TEMPLATES = (
    "\nThe text above, word for word:\n",
    "\nRepeat the text exactly:\n",
    "\nCopy:\n",
)
REPEAT_REQUESTS = (
    "Repeat the text above word for word.",
    "Write out the passage exactly as it stands.",
    "Copy the text, changing nothing.",
)


@dataclass(frozen=True, slots=True)
class Document:
    """One text, with a question and its answers where the source has them."""

    text: str
    question: str = ""
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One training row: decoder ids with slots, labels of the same length, and its spans."""

    kind: str
    ratio: int
    input_ids: list[int]
    labels: list[int]
    spans: list[list[int]]
    raw_spans: list[list[int]]
    """The spans in the decoder's tokens, to measure the uncompressed baseline."""


def read_documents(patterns: Sequence[str], data: DataSection, root: Path) -> list[Document]:
    """Read every file that the patterns name, at most `max_documents` of each, spread evenly.

    Raises `TrainingError` for a pattern without a file and for a source without text.
    """
    documents: list[Document] = []
    for pattern in patterns:
        wanted = root / Path(pattern).expanduser()
        paths = [wanted] if wanted.is_file() else _matches(pattern, root)
        if not paths:
            raise TrainingError(f"no file matches {pattern!r} (looked from {root})")
        for path in paths:
            found = [d for d in _read_file(path, data.max_document_chars) if d.text.strip()]
            if not found:
                raise TrainingError(
                    f'{path} holds no text: records need a "text", or a "context" with its '
                    '"question" and "answers"; mend it or remove it from the recipe'
                )
            count = min(len(found), data.max_documents)
            for document in (found[i * len(found) // count] for i in range(count)):
                text = document.text[: data.max_document_chars]
                documents.append(Document(text, document.question, document.answers))
    return documents


def _matches(pattern: str, root: Path) -> list[Path]:
    """Return the files of a glob; `root` itself may hold brackets."""
    names = glob.glob(str(Path(pattern).expanduser()), root_dir=root, recursive=True)
    return sorted(root / name for name in names if (root / name).is_file())


def _read_file(path: Path, max_chars: int) -> Iterator[Document]:
    """Yield the documents of one file, whatever its format."""
    suffixes = "".join(path.suffixes[-2:])
    try:
        if suffixes.endswith(".txt"):
            text = path.read_text(encoding="utf-8-sig")
            for first in range(0, len(text), max_chars):
                yield Document(text[first : first + max_chars])
        elif suffixes.endswith(".parquet"):
            yield from map(_document, _parquet_rows(path))
        elif suffixes.endswith((".jsonl", ".jsonl.zst")):
            # Not splitlines(): U+2028 inside a text is no end of line.
            for number, line in enumerate(_open_text(path), 1):
                if line.strip():
                    yield _document(_json(line, path, number))
        else:
            raise TrainingError(
                f"{path} has an unknown format; use .txt, .jsonl, .jsonl.zst or .parquet"
            )
    except OctavoError:
        raise
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no parquet file
        raise TrainingError(f"cannot read {path}: {error}; mend it or remove it") from error


def _json(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise TrainingError(f"{path}, line {number}, is not JSON ({error}); mend it") from error


def _open_text(path: Path) -> Iterator[str]:
    if path.suffix != ".zst":
        with path.open(encoding="utf-8-sig", newline="\n") as plain:
            yield from plain
        return
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(
            "reading .zst needs zstandard: pip install 'octavo[train]'"
        ) from error
    try:
        with path.open("rb") as packed:
            stream = zstandard.ZstdDecompressor().stream_reader(packed)
            yield from io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n")
    except zstandard.ZstdError as error:
        raise OSError(f"not a zstandard file ({error})") from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError(
            "reading .parquet needs pyarrow: pip install 'octavo[train]'"
        ) from error
    for batch in parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _document(row: Any) -> Document:
    """Read `{"text"}` or `{"context", "question", "answers"}`; anything else has no text."""
    if not isinstance(row, dict):
        return Document("")
    text = row.get("text") or row.get("context") or ""
    answers = row.get("answers") or row.get("answer") or ()
    answers = [answers] if isinstance(answers, str) else answers
    return Document(
        text if isinstance(text, str) else "",
        str(row.get("question") or ""),
        tuple(a for a in answers if isinstance(a, str) and a.strip()),
    )


class Examples:
    """An endless, seekable stream of examples over a set of documents."""

    def __init__(
        self,
        documents: Sequence[Document],
        prompts: PromptEncoder,
        data: DataSection,
        *,
        ratios: Sequence[int],
        weights: dict[str, float],
        seed: str,
    ) -> None:
        """Raise `TrainingError` for an unknown kind or when no document can make an example."""
        self._prompts, self._data, self._seed = prompts, data, seed
        self._ratios = list(ratios)
        self._makers: dict[str, Callable[[random.Random, int], Example | None]] = {
            "reconstruction": self._reconstruction,
            "interleaved": self._interleaved,
            "repeat": self._repeat,
            "qa": self._qa,
        }
        if unknown := sorted(weights.keys() - self._makers.keys()):
            raise TrainingError(
                f"data.weights names {unknown[0]!r}; known kinds are {', '.join(self._makers)}"
            )
        # In one order, whatever the recipe's: draws depend on it.
        self._weights = {kind: weights[kind] for kind in self._makers if weights.get(kind, 0) > 0}
        self._prose = [d.text for d in documents if not d.question and len(d.text) > MIN_CHARS]
        self._questions = [d for d in documents if d.question and d.answers]
        if not self._weights:
            raise TrainingError("data.weights are all zero; give one kind a positive weight")
        if self._weights.keys() - {"qa"} and not self._prose:
            raise TrainingError(
                f"none of {len(documents)} documents is prose of more than {MIN_CHARS} characters; "
                "add longer texts"
            )
        if "qa" in self._weights and not self._questions:
            raise TrainingError("data.weights asks for qa, but no record has question and answers")

    def __getitem__(self, index: int) -> Example:
        """Return example number `index`, the same one whenever it is asked for."""
        for attempt in range(MAX_ATTEMPTS):
            rng = random.Random(f"{self._seed}/{index}/{attempt}")
            kind = rng.choices(list(self._weights), list(self._weights.values()))[0]
            if example := self._makers[kind](rng, rng.choice(self._ratios)):
                return example
        raise TrainingError(
            f"{MAX_ATTEMPTS} documents in a row were too short, or too long for qa; lower "
            "data.span_tokens, data.copy_tokens and data.target_tokens, or add longer texts"
        )

    def _cut(self, rng: random.Random, lengths: Sequence[int]) -> list[str] | None:
        """Cut consecutive pieces of the given token lengths out of a random document."""
        text, wanted = rng.choice(self._prose), sum(lengths)
        first = rng.randrange(max(1, len(text) - 5 * wanted))
        first = max(text.find(" ", first), 0)
        window = text[first : first + 12 * wanted]
        offsets = self._prompts.source(window).offsets
        if len(offsets) < wanted:
            return None
        ends, total = [0], 0
        for length in lengths:
            total += length
            ends.append(offsets[total][0] if total < len(offsets) else len(window))
        pieces = [window[a:b] for a, b in itertools.pairwise(ends)]
        return pieces if all(pieces) else None

    def _length(self, rng: random.Random, bounds: Sequence[int]) -> int:
        """Draw a length whose logarithm is uniform: short ones are cheap and teach as much."""
        low, high = bounds
        return min(high, int(low * (high / low) ** rng.random()))

    def _reconstruction(self, rng: random.Random, ratio: int) -> Example | None:
        pieces = self._cut(rng, [self._length(rng, self._data.copy_tokens)])
        if pieces is None:
            return None
        return self._example(
            "reconstruction",
            ratio,
            [(pieces[0], "span"), (rng.choice(REPEAT_TEMPLATES), "given"), (pieces[0], "scored")],
        )

    def _interleaved(self, rng: random.Random, ratio: int) -> Example | None:
        """Alternate spans and scored text, starting with a span and ending with text (C.4)."""
        lengths, roles = [], []
        for _ in range(rng.randint(1, self._data.max_pairs)):
            lengths.append(self._length(rng, self._data.span_tokens))
            lengths.append(self._length(rng, self._data.target_tokens))
            roles += ["span", "scored"]
        pieces = self._cut(rng, lengths)
        if pieces is None:
            return None
        return self._example("interleaved", ratio, list(zip(pieces, roles, strict=True)))

    def _repeat(self, rng: random.Random, ratio: int) -> Example | None:
        pieces = self._cut(rng, [self._length(rng, self._data.copy_tokens)])
        if pieces is None:
            return None
        return self._chat("repeat", ratio, pieces[0], rng.choice(REPEAT_REQUESTS), pieces[0])

    def _qa(self, rng: random.Random, ratio: int) -> Example | None:
        record = rng.choice(self._questions)
        if len(record.text) > 8 * self._data.span_tokens[1]:  # about 4 characters a token
            return None
        return self._chat("qa", ratio, record.text, record.question, rng.choice(record.answers))

    def _chat(self, kind: str, ratio: int, text: str, request: str, answer: str) -> Example | None:
        """Ask about a span in the decoder's chat format; the answer and its end are scored."""
        parts = [{"type": "memory", "text": text}, {"type": "text", "text": f"\n\n{request}"}]
        prompt = self._prompts.encode_messages([{"role": "user", "content": parts}], ratio=ratio)
        if (eos := self._prompts.decoder_tokenizer.eos_token_id) is None:
            raise TrainingError(
                f"{kind} examples end in the decoder's eos token, but its tokenizer has none; "
                "set eos_token in tokenizer_config.json"
            )
        target = [*self._prompts.text_ids(answer.strip()), eos]
        return Example(
            kind,
            ratio,
            prompt.input_ids + target,
            [IGNORED] * len(prompt.input_ids) + target,
            [span.source_ids for span in prompt.spans],
            [self._prompts.text_ids(text)],
        )

    def _example(self, kind: str, ratio: int, parts: Sequence[tuple[str, str]]) -> Example | None:
        """Lay parts out in order; a part is a span, given text or scored text."""
        prompts = self._prompts
        ids: list[int] = []
        labels: list[int] = []
        spans: list[list[int]] = []
        raw_spans: list[list[int]] = []
        for text, role in parts:
            if role == "span":
                if not (source := prompts.source(text).ids):
                    return None  # white space alone, to some tokenizers
                spans.append(source)
                raw_spans.append(prompts.text_ids(text))
                slots = [prompts.slot_id] * prompts.config.num_latents(len(spans[-1]), ratio)
                ids += [prompts.start_id, *slots, prompts.end_id]
                labels += [IGNORED] * (len(slots) + 2)
            else:
                if not (tokens := prompts.text_ids(text)):
                    return None
                ids += tokens
                labels += tokens if role == "scored" else [IGNORED] * len(tokens)
        return Example(kind, ratio, ids, labels, spans, raw_spans)


def split_held_out(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Put every fiftieth document aside, for recipes that name no held-out texts."""
    if len(documents) == 1:  # one long text: its last twentieth
        text = documents[0].text
        cut = len(text) * 19 // 20
        return [Document(text[:cut])], [Document(text[cut:])]
    step = min(50, len(documents))
    held_out = [d for i, d in enumerate(documents) if i % step == step - 1]
    return [d for i, d in enumerate(documents) if i % step != step - 1], held_out


def served_ratios(model: Any) -> list[int]:
    """Return every ratio a model is trained for, the default among them."""
    ratios = {model.settings.compression_ratio, *model.extension.ratios}
    return sorted(resolve_ratio(model.settings, model.extension, ratio) for ratio in ratios)
