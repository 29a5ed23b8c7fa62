"""Ask a letter folded at 2x, find passages of a book chapter, and count what folding saves."""

import argparse
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import octavo
from octavo.ask.index import PassageIndex
from octavo.ask.passages import cut_passages
from octavo.errors import OctavoError
from octavo.text import visible

EXAMPLES = Path(__file__).parents[1] / "examples"
LETTER = EXAMPLES / "boiler-letter.txt"
LETTER_QUESTIONS = (
    "Who will install the boiler?",
    "When will the boiler be installed?",
    "What does the new boiler cost?",
    "How long does the work take?",
)
CHAPTER = EXAMPLES / "king-solomons-mines-14.txt"
CHAPTER_TITLE = "King Solomon's Mines, chapter XIV (H. Rider Haggard, 1885)"
CHAPTER_QUESTIONS = ("Who sat with Twala in front of his hut?", "Whose son did Sir Henry slay?")


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", action="store_true", help="answer from the raw letter too")
    parser.add_argument("--ratio", type=int, default=16, help="at which the chapter is folded")
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
    """Load the model and show its three sides."""
    warnings.simplefilter("ignore")
    say("Loading the model (fetches 93 MB of base weights on first use) ...")
    model = octavo.load(options.model, base=options.base, progress=progress)
    answer_letter(model, options.raw)
    find_passages()
    compare(model, options.ratio)


def answer_letter(model: octavo.Model, raw: bool) -> None:
    """Ask a short text at the ratio that the model is good at."""
    text = LETTER.read_text(encoding="utf-8")
    letter = model.compress(text, ratio=min(model.ratios))
    say(
        f"\n1. A letter, folded: {letter.source_tokens:,} tokens -> {len(letter):,} latents "
        f"({letter.ratio}x). The decoder reads these alone.\n"
    )
    for question in LETTER_QUESTIONS:
        say(f"  > {question}\n    {short_answer(model, question, letter)}")
        if raw:
            say(f"    (raw text: {short_answer(model, question, text, raw=True)})")


def short_answer(model: octavo.Model, question: str, context: Any, **options: Any) -> str:
    """Return the first line of an answer."""
    text = model.generate(question, context=context, max_new_tokens=24, **options).text
    return visible(text.strip().split("\n")[0])


def find_passages() -> None:
    """Show where a long text speaks of what is asked: what a small model should not guess at."""
    text = CHAPTER.read_text(encoding="utf-8")
    passages = cut_passages(text)
    index = PassageIndex.build(text, passages)
    say(f"\n2. {CHAPTER_TITLE}: {len(passages)} passages, each with its place.")
    for question in CHAPTER_QUESTIONS:
        say(f"\n  > {question}")
        for hit in index.search(question, 1):
            words = " ".join(text[hit.passage.start : hit.passage.end].split())
            place = f"line {hit.passage.line}"
            say(textwrap.fill(f"{place}: {words}", 96, initial_indent="    ",
                              subsequent_indent="    "))  # fmt: skip


def compare(model: octavo.Model, ratio: int) -> None:
    """Fold half the chapter, and print what was held and how long it took beside raw text."""
    text = CHAPTER.read_text(encoding="utf-8")
    text = text[: text.index("\n\n", len(text) // 2)]  # the whole, raw, takes a CPU a minute
    book = model.compress(text, ratio, on_tokens=lambda n, of: progress("compressing", n, of))
    say(
        f"\n3. The first half of it folded at {ratio}x, {book.source_tokens:,} tokens -> "
        f"{len(book):,} latents, beside its raw text: time and memory, with the same decoder."
    )
    if words := model.extension.limits.get(str(ratio)):
        say(f"   ({model.name} at {ratio}x {words}; the published 4B checkpoints read well there.)")
    rows = [("", "latents", "raw text")]
    found: list[tuple[int, float, float, int]] = []
    for context, raw in ((book, False), (text, True)):
        model.engine.forget()
        first, again = (
            model.generate(question, context=context, raw=raw, max_new_tokens=1)
            for question in CHAPTER_QUESTIONS
        )
        once = first.timings.ttft_seconds + (0.0 if raw else book.compress_seconds)
        positions = first.usage.prompt_tokens
        found.append((positions, once, again.timings.ttft_seconds, model.engine.kept_bytes))
    folded, plain = found
    rows += [
        ("prompt positions", f"{folded[0]:,}", f"{plain[0]:,}"),
        ("first answer begins after", f"{folded[1]:.2f} s", f"{plain[1]:.2f} s"),
        ("  of which compressing", f"{book.compress_seconds:.2f} s", "-"),
        ("next answer begins after", f"{folded[2]:.2f} s", f"{plain[2]:.2f} s"),
        ("KV cache kept between them", size(folded[3]), size(plain[3])),
        ("latents themselves", size(book.num_bytes), "-"),
    ]
    say("")
    for name, latents, of_raw in rows:
        say(f"  {name:<32}{latents:>12}{of_raw:>12}")


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
    """Print at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
