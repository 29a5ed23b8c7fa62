"""LongBench v1: 21 tasks over long documents, in English, Chinese and code.

Source: github.com/THUDM/LongBench, arXiv 2308.14508. Templates, limits and scorers are the
original's (`assets/longbench/tasks.json`). What differs: the context alone is cut from the middle,
not the whole prompt; the answer is cut at `samsum`'s line end even where it is the first token.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from octavo_evals import metrics
from octavo_evals.task import Item, Metrics, Reply, Request, Task, read_asset
from octavo_evals.tasks.fit import fit_item

DEFINITIONS: dict[str, dict[str, Any]] = json.loads(read_asset("longbench/tasks.json"))["tasks"]
"""Every task's template, most new tokens and scorer."""
EXPECTED = '{"input": …, "context": …, "answers": […], "all_classes": […] or null}'

BARE = frozenset({"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"})
"""Few-shot and code prompts are continued, not answered: no chat template (pred.py, c5ea10b)."""
FIRST_LINE = frozenset({"trec", "triviaqa", "samsum", "lsht"})
"""Only the first line of these answers counts (eval.py, commit 072a5a7)."""
CLASSES = frozenset({"trec", "lsht"})

SCORERS: dict[str, tuple[str, Callable[[str, str], float]]] = {
    "word_f1": ("F1", metrics.word_f1),
    "chinese_f1": ("F1", metrics.chinese_f1),
    "rouge_l": ("ROUGE-L", metrics.rouge_l),
    "chinese_rouge_l": ("ROUGE-L", metrics.chinese_rouge_l),
    "number_share": ("accuracy", metrics.number_share),
    "code_similarity": ("similarity", metrics.code_similarity),
}


def score_answer(
    task: str, answer: str, references: Sequence[str], classes: Sequence[str]
) -> float:
    """Return the score of the best reference by a task's own rule; `classes` are for trec, lsht."""
    if task in FIRST_LINE:
        answer = answer.lstrip("\n").split("\n")[0]
    if task in CLASSES:
        return metrics.best(
            lambda said, label: metrics.class_match(said, label, classes), answer, references
        )
    return metrics.best(SCORERS[DEFINITIONS[task]["scorer"]][1], answer, references)


class LongBench(Task):
    """One of the 21 tasks.

    Its records come from `--data longbench.TASK=PATH`, or from `--data longbench=PLACE`: a folder
    that holds TASK.jsonl for each, as the original's archive does, or `hf:DATASET:SPLIT` with a
    config for each.
    """

    def __init__(self, task: str) -> None:
        """Take the task's name in LongBench, like `2wikimqa`."""
        self.task = task
        self.name = f"longbench/{task}"
        definition = DEFINITIONS[task]
        self.before, self.after = definition["template"].split("{context}")
        self.max_new_tokens: int = definition["max_new_tokens"]
        self.metric = "accuracy" if task in CLASSES else SCORERS[definition["scorer"]][0]

    def make(self, request: Request) -> Iterator[Item]:
        """Yield the records' items in the file's order, contexts cut to fit the decoder."""
        for record in request.data.read(f"longbench.{self.task}", EXPECTED):
            about: dict[str, Any] = {}
            if self.task in CLASSES:
                about["classes"] = list(record.texts("all_classes"))
            if isinstance(record.fields.get("_id"), str):
                about["record"] = record.text("_id")
            item = Item(
                id=record.id,
                before=self.before,
                context=record.text("context"),
                after=self.after.replace("{input}", record.text("input")),
                references=record.texts("answers"),
                max_new_tokens=self.max_new_tokens,
                stop=("\n",) if self.task == "samsum" else (),
                is_chat=self.task not in BARE,
                about=about,
            )
            yield fit_item(request, item)

    def score(self, item: Item, reply: Reply) -> Metrics:
        """Score the answer by the task's own rule."""
        classes = item.about.get("classes", ())
        return {"score": score_answer(self.task, reply.text, item.references, classes)}


TASKS = tuple(map(LongBench, DEFINITIONS))
