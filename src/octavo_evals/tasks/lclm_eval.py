r"""The LCLM paper's own evaluation rows: prompts with the context between memory tags.

    {"prompt": "<|im_start|>user\n…<|memory_start|>CONTEXT<|memory_end|>…<|im_end|>\n…",
     "category": "memwrap/ruler/niah_single_1_4096",
     "extra_info": {"ground_truth": {"answers": ["…"]}, "scoring_function": "…"}}

Source: the dataset `latent-context/lclm-eval` (configs ruler, gsm8k, longhealth5, longbench; split
test), as its card in github.com/LeonLixyz/LCLM (commit 9e85723) describes it; give it as
`--data lclm_eval=hf:latent-context/lclm-eval:ruler:test`, or rows of that form from a file. A
prompt may also be a list of messages.

What differs: the chat markup is taken off and the tested decoder's own put on; a system turn opens
the user's turn. Only RULER's scorers are published. Other rows are scored by their category:
LongBench's tasks by LongBench's rules, GSM8K by the last number, LongHealth by the chosen letter
or the option's words; trec and lsht by whether the label occurs, where the row does not name the
other classes. `about` says which.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from octavo.config import MEMORY_END, MEMORY_START
from octavo_evals import metrics
from octavo_evals.task import Item, Metrics, Record, Reply, Request, Task
from octavo_evals.tasks.choices import chosen_letter
from octavo_evals.tasks.gsm8k import find_results
from octavo_evals.tasks.longbench import CLASSES, DEFINITIONS, score_answer
from octavo_evals.tasks.ruler import find_references

EXPECTED = (
    f'{{"prompt": a text or messages with one {MEMORY_START}…{MEMORY_END}, "category": …, '
    '"extra_info": {"ground_truth": {"answers": […]}, "scoring_function": …}}'
)
TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n?|\Z)", re.DOTALL)
RULER_TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
"""Most new tokens of RULER's task families (NVIDIA/RULER, scripts/data/synthetic/constants.py)."""
REASONING_TOKENS = 512
"""For GSM8K's rows; not published. The prompt holds no worked example, so answers reason freely."""
CHOICE_TOKENS = 64
"""For LongHealth's rows; not published. The paper lets the model give its choice at once."""


class LclmEval(Task):
    """Rows of any of the four configs, each scored by its own rule."""

    name = "lclm_eval"
    metric = "per row"

    def make(self, request: Request) -> Iterator[Item]:
        """Yield the rows' items in the file's order."""
        return map(_item, request.data.read(self.name, EXPECTED))

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Score the answer by the rule that `about` names."""
        rule, answer, wanted = item.about["rule"], reply.text, item.references
        if rule == "match_all":
            return {"score": fmean(find_references(answer, wanted))}
        if rule == "match_part":
            return {"score": float(any(find_references(answer, wanted)))}
        if rule == "gsm8k":
            found = find_results(answer, wanted)
            return {"score": found["flexible"], "strict": found["score"]}
        if rule == "choice":
            return {"score": metrics.best(_choice, answer, wanted)}
        task, classes = rule.removeprefix("longbench/"), item.about.get("classes", ())
        return {"score": score_answer(task, answer, wanted, classes)}


def _choice(answer: str, reference: str) -> float:
    """Return whether an answer chose the option given by its letter or by its words."""
    if re.fullmatch(r"[A-F]", reference.strip()):
        alone = re.match(r"\s*[(*\"']*([A-F])\b", answer)
        chosen = chosen_letter(answer) or (alone[1] if alone else None)
        return float(chosen == reference.strip())
    wanted = " ".join(metrics.squad_words(reference))
    return float(f" {wanted} " in f" {' '.join(metrics.squad_words(answer))} ")


def _item(row: Record) -> Item:
    extra = row.fields.get("extra_info") or {}
    if isinstance(extra, str):
        try:
            extra = json.loads(extra)
        except json.JSONDecodeError as error:
            raise row.refuse(f"has an 'extra_info' that is not JSON ({error})") from error
    if not isinstance(extra, Mapping):
        raise row.refuse("has an 'extra_info' that is no object")
    before, context, after, prefix = _split(row)
    category = str(row.fields.get("category") or "")
    rule, max_new_tokens = _rule(row, category, str(extra.get("scoring_function") or ""))
    about: dict[str, Any] = {"category": category, "rule": rule}
    classes = extra.get("all_classes")
    if rule.removeprefix("longbench/") in CLASSES:
        if isinstance(classes, list) and classes:
            about["classes"] = [str(name) for name in classes]
        else:  # without the names of the other classes there is only the label to look for
            about["rule"] = "match_part"
    return Item(
        id=row.id,
        before=before,
        context=context,
        after=after,
        prefix=prefix,
        references=_references(row, extra),
        max_new_tokens=max_new_tokens,
        about=about,
    )


def _split(row: Record) -> tuple[str, str, str, str]:
    """Return what is before, within and after the span, and how the answer begins."""
    turns = _turns(row)
    prefix = turns.pop()[1] if turns and turns[-1][0] == "assistant" else ""
    roles = [role for role, _ in turns]
    if roles not in (["user"], ["system", "user"]):
        raise row.refuse(f"has the turns {', '.join(roles) or 'of nobody'}, not one user's")
    before, *spans = turns[-1][1].split(MEMORY_START)
    if len(spans) != 1 or spans[0].count(MEMORY_END) != 1 or MEMORY_END in before:
        raise row.refuse(f"has {len(spans)} spans in its user's turn, not one")
    context, after = spans[0].split(MEMORY_END)
    system = "".join(f"{text}\n\n" for role, text in turns if role == "system")
    return system + before, context, after, prefix


def _turns(row: Record) -> list[tuple[str, str]]:
    """Return roles and texts of a prompt, which is a text with chat markup or messages."""
    prompt = row.fields.get("prompt")
    if isinstance(prompt, str):
        return [(match[1], match[2]) for match in TURN.finditer(prompt)] or [("user", prompt)]
    try:
        turns = [(message["role"], message["content"]) for message in prompt or ()]
    except (KeyError, TypeError):
        turns = []
    if not turns or not all(isinstance(part, str) for turn in turns for part in turn):
        raise row.refuse("has no 'prompt' that is a text or messages of role and content")
    return turns


def _references(row: Record, extra: Mapping[str, Any]) -> tuple[str, ...]:
    truth = extra.get("ground_truth")
    places = (
        truth.get("answers") if isinstance(truth, Mapping) else truth,
        *(where.get(key) for where in (extra, row.fields) for key in ("answers", "answer")),
    )
    for found in places:
        if isinstance(found, str | int | float):
            return (str(found),)
        if isinstance(found, Sequence) and found:
            return tuple(str(answer) for answer in found)
    raise row.refuse("has no answers")


def _rule(row: Record, category: str, declared: str) -> tuple[str, int]:
    """Return how a row is scored, and how long its answer may be."""
    task = re.sub(r"_\d+$", "", category.rsplit("/", 1)[-1])
    family = task.split("_")[0]
    tokens = RULER_TOKENS.get(family, max(RULER_TOKENS.values()))
    if "string_match_all" in declared:
        return "match_all", tokens
    if "string_match_part" in declared:
        return "match_part", tokens
    if task in DEFINITIONS:
        return f"longbench/{task}", DEFINITIONS[task]["max_new_tokens"]
    if "gsm8k" in category.lower():
        return "gsm8k", REASONING_TOKENS
    if "longhealth" in category.lower():
        return "choice", CHOICE_TOKENS
    if family in RULER_TOKENS:
        return "match_part" if family == "qa" else "match_all", tokens
    raise row.refuse(
        f"has the category {category!r} and the scoring function {declared!r}, "
        "neither of which says how to score it"
    )


TASKS = (LclmEval(),)
