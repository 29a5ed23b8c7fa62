"""Fold a public-domain chapter into latents, ask three questions, and account for all of it."""

import argparse
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import octavo
from octavo.errors import OctavoError

CHAPTER = Path(__file__).parents[1] / "examples" / "king-solomons-mines-14.txt"
TITLE = "King Solomon's Mines, chapter XIV (H. Rider Haggard, 1885)"
QUESTIONS = (
    "What is this chapter about?",
    "Who leads the regiment of the Greys?",
    "What happens to Twala in the end?",
)
CAN_AND_CANNOT = """\
What to expect: smol is a 135M-parameter decoder whose compressor was trained on one CPU core in two
and a half hours. At 4x its latents carry most words of a passage, at 16x some of them (the README
has what was measured); digits and names often come out wrong, and a decoder of this size answers
questions about 8,000 tokens poorly even from the raw text: see for yourself with --raw. The same
commands serve the published 4B checkpoints."""


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", action="store_true", help="answer from the uncompressed text too")
    parser.add_argument("--ratio", type=int, default=16, help="source tokens per latent")
    parser.add_argument("--model", help="a checkpoint folder or hub id; default: the shipped smol")
    parser.add_argument("--base", type=Path, help="a copy of the base model, without a network")
    options = parser.parse_args()
    try:
        run(options)
    except OctavoError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(options: Any) -> None:
    """Load, compress, ask, compare."""
    warnings.simplefilter("ignore")
    say("Loading the model (fetches 93 MB of base weights on first use) ...")
    model = octavo.load(options.model, base=options.base, progress=progress)
    text = CHAPTER.read_text(encoding="utf-8")
    book = model.compress(
        text, ratio=options.ratio, on_tokens=lambda n, of: progress("compressing", n, of)
    )
    say(
        f"\n{TITLE}\n{book.source_tokens:,} tokens -> {len(book):,} latents ({book.ratio}x) "
        f"in {book.compress_seconds:.1f} s\n"
    )
    first = None
    for question in QUESTIONS:
        answer = ask(model, question, context=book)
        first = first or answer
    raw_first = None
    for question in QUESTIONS if options.raw else QUESTIONS[:1]:
        say("\nFrom the raw text, with the same decoder:" if raw_first is None else "")
        answer = ask(model, question, context=text, raw=True)
        raw_first = raw_first or answer
    assert first is not None
    assert raw_first is not None
    account(model, book, first, raw_first)
    say("\n" + CAN_AND_CANNOT)


def ask(model: octavo.Model, question: str, **options: Any) -> octavo.Completion:
    """Stream one answer to the terminal."""
    say(f"> {question}")
    stream = model.stream(question, max_new_tokens=48, **options)
    for piece in stream:
        sys.stdout.write(piece)
        sys.stdout.flush()
    assert stream.completion is not None
    timings = stream.completion.timings
    say(f"\n  [first token after {timings.ttft_seconds:.2f} s]")
    return stream.completion


def account(model: Any, book: Any, first: octavo.Completion, raw: octavo.Completion) -> None:
    """Print what was held and how long it took; only the raw cache is reckoned, by positions."""
    again = model.generate(QUESTIONS[1], context=book, max_new_tokens=1)
    once = book.compress_seconds + first.timings.ttft_seconds
    unfolded = raw.timings.ttft_seconds
    # The engine keeps the cache of everything up to the last latent; the raw prompt needs as much
    # for each of its positions.
    kept = model.engine.kept_bytes
    of_raw = kept * raw.usage.prompt_tokens / first.usage.prompt_tokens
    rows = [
        ("", "latents", "raw text"),
        ("prompt positions", f"{first.usage.prompt_tokens:,}", f"{raw.usage.prompt_tokens:,}"),
        ("first answer begins after", f"{once:.2f} s", f"{unfolded:.2f} s"),
        ("  of which compressing", f"{book.compress_seconds:.2f} s", "-"),
        ("next answer begins after", f"{again.timings.ttft_seconds:.2f} s", f"{unfolded:.2f} s"),
        ("KV cache held", size(kept), size(of_raw)),
        ("latents themselves", size(book.num_bytes), "-"),
    ]
    say("")
    for name, latents, of_raw_text in rows:
        say(f"  {name:<32}{latents:>12}{of_raw_text:>12}")


def size(count: float) -> str:
    """Show bytes as people read them."""
    return f"{count / 1e6:.1f} MB"


def progress(what: str, done: int, total: int) -> None:
    """Draw one line of progress on a terminal."""
    if sys.stderr.isatty() and total:
        end = "\r" if done < total else "\n"
        sys.stderr.write(f"  {what}: {100 * done // total:3d} %{end}")
        sys.stderr.flush()


def say(text: str) -> None:
    """Print wrapped text."""
    lines = text.split("\n")
    wrapped = [textwrap.fill(line, 100) if len(line) > 100 else line for line in lines]
    sys.stdout.write("\n".join(wrapped) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
