"""How often the passages found hold the answer: a book's chapter, and octavo's own source tree.

    python benchmarks/passages.py OUT.jsonl [--answers]

Rows, one a question: `rank`, the first passage (of the chapter) or the first different file (of the
tree) that holds the answer, 0 for none among ten; `tokens`, about how many were shown up to three
passages. The questions were written by reading the text, before anything was ranked. With
`--answers`, the shipped model answers those of the chapter as `octavo ask` does and from the whole
raw text: `asked` and `raw` say what, whether a short form of the answer stands in it (`SHORT`), the
positions it read and the seconds that took (raw reads the chapter once).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import octavo
from octavo.ask.answer import answer_from
from octavo.ask.index import PassageIndex
from octavo.ask.passages import BUDGET, cut_passages, num_tokens
from octavo.ask.sources import TextSource, find_passages
from octavo.ingest import find_files, read_document

ROOT = Path(__file__).parent.parent
CHAPTER = ROOT / "examples" / "king-solomons-mines-14.txt"
OF_CHAPTER = {
    "How many men strong was Twala's force?": "forty thousand",
    "How many of the Greys remained on their feet after the battle?": "ninety-five",
    "What did Infadoos promise to those who survived?": "rewards of cattle",
    "Where was Good wounded?": "wounded in the leg",
    "What did Sir Henry shout as he struck?": "O-hoy",
    "Which regiment supported the Greys?": "known as the Buffaloes",
    "How deep was the tongue of grass land?": "four hundred",
    "What sort of cloak did Ignosi wear?": "leopard-skin",
    "Who sat with Twala in front of his hut?": "Gagool",
    "What would happen to the town if the defenders did not surrender before nightfall?": "burn",
    "What saved Good from the spear?": "chain armour had prevented",
    "Whose son did Sir Henry slay?": "Scragga my son",
    "What did Good still wear in his eye?": "eyeglass",
    "How long had Infadoos lived among warriors?": "a long life among warriors",
    "What was the second attacking regiment distinguished by?": "white plumes",
}
SHORT = {
    "What did Infadoos promise to those who survived?": "cattle",
    "Where was Good wounded?": "leg",
    "Which regiment supported the Greys?": "Buffaloes",
    "What saved Good from the spear?": "armour",
    "Whose son did Sir Henry slay?": "Twala",
    "How long had Infadoos lived among warriors?": "long life",
    "What was the second attacking regiment distinguished by?": "plumes",
}
OF_TREE = {
    "How are temporary files of killed processes removed?": "octavo/files.py",
    "Where are hidden states of a block averaged when pooling?": "octavo/nn/pooling.py",
    "Which tokens may no text of a user become?": "octavo/text.py",
    "How is the learning rate scheduled over the steps?": "octavo/train/loop.py",
    "Where are training examples packed into rows?": "octavo/data/packing.py",
    "How are latents scaled to int8?": "octavo/store/latents.py",
    "Which error is raised for a ratio the model does not serve?": "octavo/config.py",
    "What is the exit code of an interrupted command?": "octavo/cli/__init__.py",
    "How is the fingerprint of weights computed?": "octavo/weights/fingerprint.py",
    "Where are chat templates rendered in a sandbox?": "octavo/template.py",
    "How is the peak memory of a process measured?": "octavo/machine.py",
    "How are slots of the prompt filled with latents?": "octavo/nn/splice.py",
    "How is the confidence of an answer calibrated?": "octavo/confidence.py",
    "Where is the kernel lock between processes taken with flock?": "octavo/store/locks.py",
}


def source_of(path: Path) -> TextSource:
    """Index one file."""
    document = read_document(path)
    text = document.text
    index = PassageIndex.build(text, cut_passages(text, kind=document.kind))
    return TextSource(title=path.as_posix(), index=index, read=lambda: text)


def answers_of(model: octavo.Model, question: str, chapter: TextSource) -> dict[str, Any]:
    """Return what the model says from passages, and from the whole raw text."""
    wanted = SHORT.get(question, OF_CHAPTER[question]).casefold()
    found = find_passages(question, [chapter], BUDGET // 16)
    said = {}
    for way in ("asked", "raw"):
        started = time.perf_counter()
        if way == "asked":
            done = answer_from(model, question, found).completion
        else:
            done = model.generate(question, chapter.read(), raw=True, max_new_tokens=32)
        said[way] = {
            "text": done.text,
            "is_right": wanted in done.text.casefold(),
            "positions": done.usage.prompt_tokens,
            "seconds": round(time.perf_counter() - started, 2),
        }
    return said


def main() -> None:
    """Ask all questions, and print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--answers", action="store_true")
    asked = parser.parse_args()
    model = octavo.load(device="cpu", dtype="float32") if asked.answers else None
    rows: list[dict[str, Any]] = []
    chapter = [source_of(CHAPTER)]
    for question, answer in OF_CHAPTER.items():
        found = find_passages(question, chapter, 10)
        texts = [" ".join(one.text.split()) for one in found]
        rank = next((at for at, text in enumerate(texts, 1) if answer in text), 0)
        tokens = sum(map(num_tokens, texts[:3]))
        row = {"of": "chapter", "question": question, "rank": rank, "tokens": tokens}
        rows.append(row | (answers_of(model, question, chapter[0]) if model else {}))
    tree = [source_of(path) for path in find_files([ROOT / "src"])]
    for question, place in OF_TREE.items():
        found = find_passages(question, tree, 50)
        files = list(dict.fromkeys(one.title for one in found))[:10]
        rank = next((at for at, file in enumerate(files, 1) if file.endswith(place)), 0)
        tokens = sum(num_tokens(one.text) for one in found[:3])
        rows.append({"of": "source tree", "question": question, "rank": rank, "tokens": tokens})
    asked.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for of in ("chapter", "source tree"):
        ranks = [row["rank"] for row in rows if row["of"] == of]
        tokens = sum(row["tokens"] for row in rows if row["of"] == of) / len(ranks)
        counts = {k: sum(0 < rank <= k for rank in ranks) for k in (1, 3, 10)}
        for way in ("asked", "raw") if asked.answers and of == "chapter" else ():
            own = [row[way] for row in rows if row["of"] == of]
            right = sum(one["is_right"] for one in own)
            read = sum(one["positions"] for one in own) / len(own)
            print(f"{of}, {way}: {right} of {len(own)} right, {read:,.0f} positions a prompt")
        print(
            of, f"{len(ranks)} questions, about {tokens:.0f} tokens;", "held by the first", counts
        )


if __name__ == "__main__":
    main()
