"""KV-cache compression as a rival: with a press that does nothing, and with kvpress itself."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from presses import last_quarter, nothing

import octavo
from octavo.errors import EvaluationError
from octavo_evals.harness import kvpress
from octavo_evals.harness.kvpress import Press
from octavo_evals.methods import make_method
from octavo_evals.parts import Parts, cut
from octavo_evals.reading import Outcome, Unserved, read
from octavo_evals.task import DataFiles, Item

ROOT = Path(__file__).parents[1]
STORY = "The mill stood by the river and the miller had three sons. " * 6


def parts_of(model: octavo.Model, **fields: Any) -> Parts:
    item = Item(
        id="0", **{"context": STORY, "after": "What had he?", "max_new_tokens": 8, **fields}
    )
    return cut(model.prompts, item)


def ask(
    model: octavo.Model, press: Callable[[Any], Any], parts: Parts, name: str = "knorm"
) -> Outcome:
    method = Press(name, model, 4, press)
    return read(model, method.hold(parts), parts)


def raw(model: octavo.Model, parts: Parts) -> Outcome:
    method = make_method("raw", None, model, DataFiles())
    return read(model, method.hold(parts), parts)


@pytest.mark.parametrize("name", ["knorm", "snapkv-question"])
def test_a_press_that_does_nothing_answers_as_the_raw_text(model: octavo.Model, name: str) -> None:
    target = {"target": " three sons of a miller", "is_chat": False}
    for fields in ({}, target, {**target, "after": ""}):
        parts = parts_of(model, **fields)
        pressed, plain = ask(model, nothing, parts, name), raw(model, parts)
        assert pressed.reply.text == plain.reply.text
        assert pressed.reply.token_hits == plain.reply.token_hits
        assert pressed.reply.token_nats == pytest.approx(plain.reply.token_nats, abs=1e-5)
        assert pressed.prompt_tokens == plain.prompt_tokens
        assert bool(fields) == bool(pressed.reply.token_nats)


def test_what_a_press_leaves_is_counted_and_read_at_true_positions(model: octavo.Model) -> None:
    parts = parts_of(model, target=" three", is_chat=False)
    reading = ask(model, last_quarter, parts)
    whole = ask(model, nothing, parts)
    assert whole.cache_bytes is not None
    assert reading.cache_bytes == whole.cache_bytes // len(parts.context) * (
        len(parts.context) // 4
    )

    # The slow twin: one pass over everything, the question blind to what was thrown away.
    ids = [*parts.head, *parts.context, *parts.tail, *parts.target]
    context, length = len(parts.head) + len(parts.context), len(ids)
    dropped = context - context // 4
    mask = torch.full((length, length), float("-inf")).triu(1)
    mask[context:, :dropped] = float("-inf")
    with torch.inference_mode():
        output = model.lclm.decoder(torch.tensor([ids]), attention_mask=mask[None, None])
    logits = output.logits[0, -1 - len(parts.target) : -1]
    expected = torch.nn.functional.cross_entropy(
        logits, torch.tensor(parts.target), reduction="none"
    )
    assert reading.reply.token_nats == pytest.approx(expected.tolist(), abs=1e-4)
    assert reading.reply.token_nats != pytest.approx(whole.reply.token_nats, abs=1e-3)


def test_a_second_question_finds_the_cache_as_the_first_did(model: octavo.Model) -> None:
    first, second = parts_of(model), parts_of(model, after="Where stood the mill?")
    method = Press("knorm", model, 4, last_quarter)
    held = method.hold(first)
    read(model, held, first)
    again, fresh = read(model, held, second), ask(model, last_quarter, second)
    assert again.reply == fresh.reply
    assert again.cache_bytes == fresh.cache_bytes


def test_snapkv_says_which_context_is_too_short_for_it(model: octavo.Model) -> None:
    short = parts_of(model, context="a b", after="?")
    if len(short.head) + len(short.context) > kvpress.SNAPKV_WINDOW:
        short = parts_of(model, context="a", after="?", is_chat=False)
    with pytest.raises(Unserved, match="SnapKV needs more than 64 tokens"):
        ask(model, nothing, short, "snapkv")


def test_a_ratio_becomes_the_part_that_kvpress_removes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(SnapKVPress=lambda compression_ratio: compression_ratio)
    monkeypatch.setitem(sys.modules, "kvpress", fake)
    assert [kvpress.press_for("snapkv", ratio) for ratio in (4, 8, 16)] == [0.75, 0.875, 0.9375]


def test_fast_kvzip_needs_gates_for_this_decoder(
    model: octavo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(FastKVzipPress=lambda compression_ratio: SimpleNamespace())
    monkeypatch.setitem(sys.modules, "kvpress", fake)
    gates = SimpleNamespace(FastKVzipGate=None)
    monkeypatch.setitem(sys.modules, "kvpress.presses", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "kvpress.presses.fastkvzip_press", gates)
    with pytest.raises(EvaluationError, match=r"--data fast-kvzip\.gates="):
        make_method("fast-kvzip", 4, model, DataFiles())
    for content in ({"module": []}, {"other": 1}):
        torch.save(content, tmp_path / "gates.pt")
        data = DataFiles([f"fast-kvzip.gates={tmp_path}/gates.pt"])
        with pytest.raises(EvaluationError, match="gates"):
            make_method("fast-kvzip", 4, model, data)


@pytest.mark.slow
def test_kvpress_itself_leaves_what_its_ratio_says(tmp_path: Path) -> None:
    python = ROOT / ".venv-kvpress" / "bin" / "python"
    if not python.is_file():
        pytest.skip("no .venv-kvpress here; scripts/kvpress-env makes it")
    (tmp_path / "text.txt").write_text(" ".join(f"{STORY} {n}" for n in range(40)))
    methods = ["snapkv@4", "expected-attention@4", "kvzip@4", "snapkv-question@4"]
    methods += ["streaming-llm@4", "knorm@4", "tova@4"]
    line = [sys.executable, "-m", "octavo", "eval", "perplexity", "--length", "400", "--limit", "1"]
    line += [part for name in ["raw", *methods] for part in ("--method", name)]
    line += ["--data", f"text={tmp_path}/text.txt", "-o", str(tmp_path / "rows")]
    done = subprocess.run(
        [*line, "--python", str(python), "--device", "cpu"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "rows" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["method"]: row for row in map(json.loads, lines)}
    assert len(rows) == 8
    a_position = rows["kvzip"]["cache_bytes"] / rows["kvzip"]["prompt_tokens"]
    for name, row in rows.items():
        assert 0 < row["metrics"]["nats"] < 12
        if name in ("raw", "kvzip"):
            continue
        kept = row["cache_bytes"] / a_position
        assert kept == pytest.approx(row["prompt_tokens"] / 4, abs=8), name
    assert rows["kvzip"]["is_masked"]
