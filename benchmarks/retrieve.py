"""Questions and needles for a compressor: SQuAD answers (F1) and four needle tasks of RULER.

Every item is answered from latents at every ratio, from the raw text and from nothing, greedily, by
the same decoder. `niah_single_1..3` and `niah_multikey_1` follow RULER's templates and haystacks
(https://github.com/NVIDIA/RULER, scripts/data/synthetic/niah.py), its answer prefix in the
assistant's turn included; keys are adjective-noun pairs of our own list. A needle counts when its
value occurs in the answer, case apart (string_match_all); `similarity` says how near a wrong value
came (difflib's ratio; two random 7-digit numbers have 0.29). Writes one JSON row per item and
reading, and prints means with 95% bootstrap intervals and the retention.

    python benchmarks/retrieve.py --squad squad.jsonl.zst --essays essays.jsonl.zst -o ROWS.jsonl
"""

import argparse
import collections
import difflib
import json
import random
import re
import string
import sys
import uuid
from pathlib import Path
from typing import Any

import torch

import octavo
from octavo.engine.base import Prompt, Sampling
from octavo.train.config import DataSection, SourceSection
from octavo.train.sources import read_source

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ADJECTIVES = "aback abrupt ashamed brisk calm damp eager faint gaunt handsome idle jolly".split()
NOUNS = (
    "anchor basket candle dresser engine feather garden hammer island jacket kettle ladder".split()
)
TASKS = ("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1")
ROOM = {"squad": 32}
"""New tokens an answer may have. A uuid takes about 40 here; RULER grants 128."""
NEEDLE_ROOM = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--squad", type=Path)
    parser.add_argument("--essays", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--items", type=int, default=50, help="SQuAD questions")
    parser.add_argument("--needles", type=int, default=10, help="items per needle task and length")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--ratios", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    model = octavo.load(options.model, dtype=options.dtype)
    items: list[dict[str, Any]] = []
    if options.squad:
        items += squad(options.squad, options.items)
    if options.essays:
        for length in options.lengths:
            for task in TASKS:
                essays = texts_of(options.essays)
                items += [needle(model, task, length, i, essays) for i in range(options.needles)]
    with options.output.open("w", encoding="utf-8") as file:
        for item in items:
            for reading in [*options.ratios, "raw", "none"]:
                answer = ask(model, item, reading)
                score = {
                    **{key: item[key] for key in ("task", "length", "index")},
                    "reading": reading,
                    "answer": answer,
                    "score": score_of(item, answer),
                    "similarity": similarity_of(item, answer),
                    "fingerprint": model.fingerprint,
                }
                file.write(json.dumps(score) + "\n")
            file.flush()
    summarise(options.output)


def texts_of(path: Path) -> list[Any]:
    """Return the documents of a file."""
    source = SourceSection(files=[str(path)], max_documents=100_000)
    return [d for d in read_source("texts", source, DataSection(), Path.cwd())]


def squad(path: Path, count: int) -> list[dict[str, Any]]:
    """Return questions spread evenly over the file."""
    records = [d for d in texts_of(path) if d.question and d.answers]
    chosen = [records[i * len(records) // count] for i in range(count)]
    return [
        {
            "task": "squad",
            "length": 0,
            "index": index,
            "before": "",
            "context": record.text,
            "after": f"\n\nAnswer with a few words of the text: {record.question}",
            "prefix": "",
            "references": list(record.answers),
        }
        for index, record in enumerate(chosen)
    ]


def needle(
    model: octavo.Model, task: str, length: int, index: int, essays: list[Any]
) -> dict[str, Any]:
    """Return one needle item whose context has about `length` tokens."""
    rng = random.Random(f"{task}/{length}/{index}")
    kind = "uuids" if task == "niah_single_3" else "numbers"
    keys = [f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}" for _ in range(4)]
    keys = list(dict.fromkeys(keys)) if task == "niah_multikey_1" else keys[:1]

    def value() -> str:
        if kind == "uuids":
            return str(uuid.UUID(int=rng.getrandbits(128), version=4))
        return str(rng.randrange(1_000_000, 10_000_000))

    values = [value() for _ in keys]
    needles = [
        f"One of the special magic {kind} for {key} is: {found}."
        for key, found in zip(keys, values, strict=True)
    ]
    is_noise = task == "niah_single_1"
    if is_noise:
        pieces = [NOISE] * length
    else:
        whole = " ".join(" ".join(d.text.split()) for d in essays)
        first = rng.randrange(len(whole) // 2)
        pieces = re.split(r"(?<=[.!?]) ", whole[first : first + 6 * length])[1:]
    joint = "\n" if is_noise else " "
    budget = length - len(model.prompts.source(joint.join(needles)).ids) - 64
    starts = model.prompts.source(joint.join(pieces[:length])).offsets
    cut = starts[min(budget, len(starts) - 1)][0]
    pieces = (
        joint.join(pieces[:length])[:cut].split("\n")
        if is_noise
        else re.split(r"(?<=[.!?]) ", joint.join(pieces[:length])[:cut])
    )
    for text in needles:
        pieces.insert(rng.randrange(len(pieces) + 1), text)
    one = kind.removesuffix("s")
    before = (
        f"A special magic {one} is hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {one} afterwards.\n"
    )
    return {
        "task": task,
        "length": length,
        "index": index,
        "before": before,
        "context": joint.join(pieces),
        "after": f"\nWhat is the special magic {one} for {keys[0]} mentioned in the provided text?",
        "prefix": f" The special magic {one} for {keys[0]} mentioned in the provided text is",
        "references": [values[0]],
    }


def ask(model: octavo.Model, item: dict[str, Any], reading: int | str) -> str:
    """Answer one item from latents at a ratio, from the raw text, or from nothing."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": item["before"]}]
    if isinstance(reading, int):
        parts.append({"type": "memory", "text": item["context"]})
    elif reading == "raw":
        parts.append({"type": "text", "text": item["context"]})
    parts.append({"type": "text", "text": item["after"]})
    ratio = reading if isinstance(reading, int) else None
    encoded = model.prompts.encode_messages([{"role": "user", "content": parts}], ratio=ratio)
    latents = None
    if encoded.spans:
        assert ratio is not None
        spans = [span.source_ids for span in encoded.spans]
        latents = torch.cat(model.engine.encode(spans, ratio))
    ids = [*encoded.input_ids, *model.prompts.text_ids(item["prefix"])]
    sampling = Sampling(
        max_new_tokens=ROOM.get(item["task"], NEEDLE_ROOM), stop_ids=model.engine.stop_ids
    )
    tokens = [
        t[0] for t in model.engine.generate([Prompt(input_ids=ids, latents=latents)], sampling)
    ]
    text: str = model.prompts.decoder_tokenizer.decode(
        [token for token in tokens if token is not None], skip_special_tokens=True
    )
    return text


def score_of(item: dict[str, Any], answer: str) -> float:
    """Return F1 for SQuAD (best over its references), else whether the value was said."""
    if item["task"] == "squad":
        return max(f1(answer, reference) for reference in item["references"])
    return float(all(reference.lower() in answer.lower() for reference in item["references"]))


def similarity_of(item: dict[str, Any], answer: str) -> float:
    """Return how much of a needle's value the first number or uuid of the answer has, 0 to 1."""
    said = re.search(r"[0-9a-f-]{3,}", answer.lower())
    value = item["references"][0].lower()
    return difflib.SequenceMatcher(None, said[0] if said else "", value, autojunk=False).ratio()


def f1(answer: str, reference: str) -> float:
    """Return the word F1 of SQuAD v1.1 (arXiv 1606.05250, its evaluation script's rules)."""
    ours, theirs = words_of(answer), words_of(reference)
    shared = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


def words_of(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def summarise(path: Path) -> None:
    """Print means, intervals and retention by task, length and reading."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    groups: dict[tuple[str, int], dict[Any, dict[int, float]]] = {}
    for row in rows:
        group = groups.setdefault((row["task"], row["length"]), {})
        group.setdefault(row["reading"], {})[row["index"]] = row["score"]
    for (task, length), readings in groups.items():
        for reading, scores in readings.items():
            values = list(scores.values())
            rng = random.Random(0)
            draws = sorted(
                sum(rng.choices(values, k=len(values))) / len(values) for _ in range(1000)
            )
            mean, low, high = sum(values) / len(values), draws[25], draws[975]
            line = f"{task:<16} {length:>5} {reading!s:>5}  {mean:.3f} [{low:.3f}, {high:.3f}]"
            raw, none = (
                sum(readings[name].values()) / len(readings[name]) for name in ("raw", "none")
            )
            if isinstance(reading, int) and raw > none:
                line += f"  retention {(mean - none) / (raw - none):.0%}"
            if task != "squad":
                near = [
                    r["similarity"]
                    for r in rows
                    if (r["task"], r["length"], r["reading"]) == (task, length, reading)
                ]
                line += f"  similarity {sum(near) / len(near):.2f}"
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
