"""A folded text and a request to write it out again; the copy is scored.

The paper trains on such texts throughout, under 100 prompt templates per source (arXiv 2606.09659,
Tables 2 and 3); the templates below are our own. Two thirds are plain texts, with words after the
span or around it; one third are chats, in which the end of the turn is scored too.
"""

import random
from typing import Any

from octavo.data.builders.text import passage
from octavo.data.examples import Example, ExampleMaker, Part
from octavo.data.sources import Library
from octavo.recipe import MixtureSection

CHATS = 1 / 3
REQUEST_FIRST = 0.25
"""How often a chat's request stands before the span."""

PLAIN = (
    ("", "\nThe text above, word for word:\n"),
    ("", "\nRepeat the text exactly:\n"),
    ("", "\nCopy:\n"),
    ("", "\n\nAgain:\n\n"),
    ("", "\n\nThe same text once more:\n"),
    ("", "\n---\nOriginal text:\n"),
    ("", "\n\nUnpacked:\n"),
    ("", "\nIn full:\n"),
    ("", "\n\nWritten out in full, this reads:\n"),
    ("", "\n\nVerbatim: "),
    ("", "\nTranscript:\n"),
    ("", " = "),
    ("", "\n=>\n"),
    ("", "\n\nHere it is again, unchanged:\n"),
    ("", "\nWhat was just said, letter by letter:\n"),
    ("", "\n\n## Decompressed\n\n"),
    ("", "\n\nThis passage says exactly:\n"),
    ("", "\n\nExpanded to plain words:\n"),
    ("", "\nFrom memory:\n"),
    ("", "\n\nThe passage, restored:\n"),
    ("", "\nThe full wording is as follows.\n"),
    ("", "\n\nWithout a change:\n"),
    ("", "\nQuote: "),
    ("", "\n\nReading it aloud, one hears:\n"),
    ("", "\n[end of input]\n[output]\n"),
    ("", "\nEcho: "),
    ("Text: ", "\nCopy: "),
    ("Compressed: ", "\nPlain: "),
    ("Input:\n", "\n\nOutput:\n"),
    ("Remember this: ", "\nRecall: "),
    ("The following will be repeated.\n\n", "\n\n"),
    ("First version:\n", "\nSecond version, identical to the first:\n"),
    ("A passage follows.\n", "\nThe passage again:\n"),
    ("<source>\n", "\n</source>\n<copy>\n"),
    ("Take this down.\n", "\nRead it back.\n"),
    ("Original: ", "\nDuplicate: "),
    ("Summary of zero loss: ", "\nThe text behind it: "),
    ("Message received: ", "\nMessage forwarded: "),
    ("Page 1\n\n", "\n\nPage 2, a reprint of page 1\n\n"),
    ("Encoded record:\n", "\nDecoded record:\n"),
    ("Dictation: ", "\nWhat the clerk wrote: "),
    ("Given:\n", "\nReproduced:\n"),
    ("In short form: ", "\nIn long form: "),
    ("Note to self: ", "\nThe note said: "),
)
"""What stands before the span, and between it and the copy."""

REQUESTS = (
    "Repeat the text above word for word.",
    "Write out the passage exactly as it stands.",
    "Copy the text, changing nothing.",
    "Please reproduce the passage in full.",
    "What does the text say? Quote all of it.",
    "Give me the text back, unchanged.",
    "Say it again, every word.",
    "Transcribe the passage.",
    "Can you write the whole text down for me?",
    "Recite the passage.",
    "I need the exact wording. Please write it out.",
    "Print the text verbatim.",
    "Restore the original text.",
    "Decompress this.",
    "Unfold the text into plain words.",
    "Output the passage exactly, punctuation included.",
    "Type the text out, leaving nothing away.",
    "Return the text as it was given.",
    "Echo the passage.",
    "Please quote the passage in its entirety.",
    "Show me the full text.",
    "Read this back to me.",
    "Write down what you were just given, letter for letter.",
    "Make a faithful copy.",
    "Reproduce it from the first word to the last.",
    "Could you repeat that exactly?",
    "Expand this to the original words.",
    "Spell the passage out in full, with no comment.",
    "Duplicate the text.",
    "What is the exact content of the passage?",
    "Do not summarise: give the complete text.",
    "No paraphrase, please. The text itself.",
    "Let me see the passage in its own words.",
    "Recall the text without mistakes.",
    "Write the same text again.",
    "Copy this out by hand, so to speak.",
    "Give the passage word by word.",
    "I lost the original. What did it say, exactly?",
    "State the text in full.",
    "Reconstruct the passage.",
    "Turn this back into text.",
    "Render the passage literally.",
    "Your task is to repeat the passage without any change.",
    "Tell me precisely what is written here.",
)
"""What a user asks for in a chat."""


def build(
    rng: random.Random, library: Library, maker: ExampleMaker, mixture: MixtureSection
) -> Example | None:
    """Fold a passage of `copy_tokens`, and ask for it back."""
    document = library.prose(rng)
    text = passage(rng, maker.prompts, document.text, mixture.copy_tokens)
    if not text:
        return None
    if rng.random() < CHATS:
        request = rng.choice(REQUESTS)
        span = {"type": "memory", "text": text}
        content = [span, {"type": "text", "text": f"\n\n{request}"}]
        if rng.random() < REQUEST_FIRST:
            content = [{"type": "text", "text": f"{request}\n\n"}, span]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": text},
        ]
        return maker.from_chat("reconstruction", messages, document.origin)
    before, after = rng.choice(PLAIN)
    parts: list[Part] = [("span", text), ("given", after), ("scored", text)]
    if before:
        parts.insert(0, ("given", before))
    return maker.from_parts("reconstruction", parts, document.origin)
