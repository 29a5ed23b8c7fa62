"""Sessions: turns reuse what was read, fold what is past, grow, and survive the disk."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TEXT

import octavo
from octavo.density import measure, spread
from octavo.engine.fake import FakeEngine
from octavo.errors import ContextError, InputError, PromptTooLongError
from octavo.session import Session

QUESTIONS = ("Who signed?", "And what of the lamp oil?", "When is the tide low?")


def ask_all(session: Session) -> list[octavo.Completion]:
    return [session.ask(question, max_new_tokens=12) for question in QUESTIONS]


def test_turns_answer_the_same_with_and_without_reuse(model: octavo.Model) -> None:
    model.forget()
    quick = ask_all(Session(model, TEXT))
    slow = ask_all(Session(model, TEXT, is_reusing=False))
    assert [one.text for one in quick] == [one.text for one in slow]
    assert [one.usage.prompt_tokens for one in quick] == [one.usage.prompt_tokens for one in slow]


def test_a_turn_reads_only_what_is_new(model: octavo.Model) -> None:
    model.forget()
    first, *later = ask_all(Session(model, TEXT))
    assert first.usage.cached_tokens == 0
    for before, now in zip([first, *later], later, strict=False):
        # The answer too, but for bytes of it that are no text and so cannot be said again.
        assert now.usage.cached_tokens >= before.usage.prompt_tokens - 1
        assert now.usage.prompt_tokens - now.usage.cached_tokens < 70


def test_two_conversations_keep_out_of_each_others_way(model: octavo.Model) -> None:
    model.forget()
    one, two = Session(model, TEXT), Session(model, TEXT[::-1])
    mixed = [session.ask(q, max_new_tokens=8) for q in QUESTIONS for session in (one, two)]
    model.forget()
    alone = [Session(model, text, is_reusing=False) for text in (TEXT, TEXT[::-1])]
    expected = [session.ask(q, max_new_tokens=8) for q in QUESTIONS for session in alone]
    assert [answer.text for answer in mixed] == [answer.text for answer in expected]
    assert all(answer.usage.cached_tokens for answer in mixed[2:])


def test_a_closed_stream_keeps_what_was_shown(model: octavo.Model) -> None:
    session = Session(model, TEXT)
    stream = session.stream(QUESTIONS[0], max_new_tokens=12)
    shown = next(stream)
    stream.close()
    assert [turn["content"] for turn in session.turns] == [QUESTIONS[0], shown]


def test_a_growing_log_costs_only_its_new_windows(
    model: octavo.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    encode: Callable[..., object] = model.engine.encode

    def counted(spans: list[list[int]], *args: object) -> object:
        read.extend(map(len, spans))
        return encode(spans, *args)

    monkeypatch.setattr(model.engine, "encode", counted)
    model.forget()
    session = Session(model, TEXT * 4)
    session.ask(QUESTIONS[0], max_new_tokens=4)
    whole = sum(read)
    read.clear()
    grown = session.append("Then the clerk signed. ")
    new = len(model.prompts.source("Then the clerk signed. ").ids)
    assert sum(read) <= new + model.config.encoder_window_size < whole
    fresh = model.compress(TEXT * 4 + "Then the clerk signed. ")
    assert (grown.latents - fresh.latents).abs().max() < 1e-5
    answer = session.ask(QUESTIONS[1], max_new_tokens=4)
    # The latents that did not change were not read again.
    assert answer.usage.cached_tokens > whole / 4 - model.config.encoder_window_size


def test_turns_past_the_budget_become_latents(model: octavo.Model) -> None:
    session = Session(model, TEXT, max_history=100)
    answers = [session.ask(f"{QUESTIONS[n % 3]} {n}", max_new_tokens=12) for n in range(12)]
    assert session.folded is not None
    said = (session.folded.text or "") + "".join(turn["content"] for turn in session.turns)
    assert said.startswith(f"User: {QUESTIONS[0]} 0\nAssistant: ")
    assert all(f"{QUESTIONS[n % 3]} {n}" in said for n in range(12))
    assert session.turns[0]["role"] == "user"
    raw = [len(model.prompts.text_ids(turn["content"])) for turn in session.turns[:-2]]
    assert sum(raw) <= 100
    assert answers[-1].usage.latents == len(model.compress(TEXT)) + len(session.folded)
    whole = model.compress(session.folded.text or "")
    assert (session.folded.latents - whole.latents).abs().max() < 1e-5
    unfolded = Session(model, TEXT, max_history=None)
    for n in range(12):
        unfolded.ask(f"{QUESTIONS[n % 3]} {n}", max_new_tokens=12)
    assert unfolded.folded is None
    assert len(unfolded.turns) == 24


def test_turns_make_room_before_a_prompt_is_too_long(model: octavo.Model) -> None:
    session = Session(model, max_history=None)
    many = model.engine.max_positions * 2 // 5
    for letter in "xy":
        session.ask(letter * many, max_new_tokens=4)
    assert session.folded is None
    session.ask("z" * many, max_new_tokens=4)
    assert session.folded is not None
    before = list(session.turns)
    with pytest.raises(PromptTooLongError):
        session.ask("w " * model.engine.max_positions, max_new_tokens=4)
    assert session.turns in (before, [])


def test_a_resumed_session_goes_on_as_if_never_left(model: octavo.Model, tmp_path: Path) -> None:
    session = Session(model, TEXT, max_history=60)
    for question in QUESTIONS * 2:
        session.ask(question, max_new_tokens=8)
    session.save(tmp_path / "talk")
    resumed = Session.load(model, tmp_path / "talk")
    model.forget()
    assert resumed.turns == session.turns
    assert (
        resumed.ask("Well?", max_new_tokens=8).text == session.ask("Well?", max_new_tokens=8).text
    )
    session.save(tmp_path / "talk")  # over the old one
    assert Session.load(model, tmp_path / "talk").turns == session.turns


@pytest.mark.parametrize(
    "change", [{"turns": [{"role": "user"}]}, {"format": "x"}, {"num_contexts": "1"}, {"turns": 3}]
)
def test_a_damaged_session_is_one_clear_error(
    model: octavo.Model, tmp_path: Path, change: dict[str, object]
) -> None:
    with pytest.raises(ContextError, match="no session"):
        Session.load(model, tmp_path)
    Session(model, TEXT).save(tmp_path / "talk")
    path = tmp_path / "talk" / "session.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ContextError, match="damaged"):
        Session.load(model, tmp_path / "talk")


# -- ratios ---------------------------------------------------------------------------------------

PLAIN = "All was quiet on the river that day, and nothing at all was written in the book. "
DENSE = " ".join(f"{n * 7919 % 100003}-{chr(65 + n % 26)}{n * 31 % 97}" for n in range(90))


@pytest.fixture(scope="module")
def ratios_model(fake_model: octavo.Model) -> octavo.Model:
    config = replace(fake_model.config, compression_ratio=8, encoder_window_size=64)
    engine = FakeEngine(
        config, octavo.Extension(ratios=(2, 4, 16)), "ratios",
        stop_ids=fake_model.engine.stop_ids, control_ids=frozenset(),
    )  # fmt: skip
    return octavo.Model(engine, fake_model.prompts)


def test_each_span_has_its_own_ratio(ratios_model: octavo.Model) -> None:
    session = Session(ratios_model, [(TEXT, 4), (PLAIN, 16)])
    assert [context.ratio for context in session.contexts] == [4, 16]
    answer = session.ask("Who?")
    assert answer.usage.latents == sum(map(len, session.contexts))


def test_a_budget_is_spent_where_the_text_is_dense(ratios_model: octavo.Model) -> None:
    text = PLAIN * 60 + DENSE + PLAIN * 60
    tokens = len(ratios_model.prompts.source(text).ids)
    budget = tokens // 6
    session = Session(ratios_model, text, budget=budget)
    assert sum(map(len, session.contexts)) <= budget
    assert "".join(context.text or "" for context in session.contexts) == text
    finest = min(context.ratio for context in session.contexts)
    read = [context.text or "" for context in session.contexts if context.ratio == finest]
    assert DENSE[500:600] in "".join(read)
    assert sum(map(len, read)) < len(text) / 4
    more = Session(ratios_model, text, budget=2 * budget)
    assert budget < sum(map(len, more.contexts)) <= 2 * budget


def test_density_covers_the_text_and_counts_its_tokens(model: octavo.Model) -> None:
    text = PLAIN * 20 + DENSE
    stretches = measure(text, model.prompts, tokens=64)
    assert stretches[0].start == 0
    assert stretches[-1].stop == len(text)
    assert [one.stop for one in stretches[:-1]] == [one.start for one in stretches[1:]]
    assert sum(one.num_tokens for one in stretches) == len(model.prompts.source(text).ids)
    assert stretches[-2].density > 3 * stretches[10].density


def test_a_budget_that_cannot_be_kept_is_refused(ratios_model: octavo.Model) -> None:
    with pytest.raises(ContextError, match="the budget is 3"):
        spread([TEXT], ratios_model.prompts, ratios_model.ratios, 3)
    with pytest.raises(InputError, match="empty"):
        measure("", ratios_model.prompts)
