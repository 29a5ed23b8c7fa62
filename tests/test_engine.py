"""What every engine promises to those who drive it, and how the local one keeps its promises."""

import gc
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT, TEXT
from transformers import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import octavo
from octavo.engine import CHAT, Prompt, Sampling, attention
from octavo.engine.choose import Chooser
from octavo.engine.local import LocalEngine
from octavo.engine.lock import SharedLock
from octavo.errors import ConfigError, PromptError
from octavo.nn.cache import as_keyword

LONG = TEXT * 4
QUESTIONS = ["Who?", "What was sealed, and by whom? Say it all, in order.", "Row 7?", "Where to?"]


@pytest.fixture(params=["model", "fake_model"])
def any_model(request: pytest.FixtureRequest) -> octavo.Model:
    """Every engine passes every test of this file that asks for it."""
    found: octavo.Model = request.getfixturevalue(request.param)
    return found


def prompt_of(model: octavo.Model, question: str, text: str | None = LONG) -> Prompt:
    """Return a question about the latents of a text."""
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if text is not None:
        content.insert(0, {"type": "memory", "context": model.compress(text)})
    encoded = model.prompts.encode_messages([{"role": "user", "content": content}])
    latents = [span.context.latents for span in encoded.spans]
    return Prompt(
        input_ids=encoded.input_ids,
        latents=torch.cat(latents) if latents else None,
        prefix_length=encoded.prefix_length,
    )


def answers(model: octavo.Model, prompts: list[Prompt], sampling: Sampling) -> list[list[int]]:
    """Return the tokens of every row."""
    rows: list[list[int]] = [[] for _ in prompts]
    for tokens in model.engine.start(prompts, sampling):
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                row.append(token)
    return rows


# -- the contract --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_new_tokens=9), Sampling(max_new_tokens=9, temperature=1.3, top_k=9, seed=4)],
    ids=["greedy", "drawn"],
)
def test_rows_of_any_contexts_answer_in_a_batch_as_they_do_alone(
    any_model: octavo.Model, sampling: Sampling
) -> None:
    prompts = [
        prompt_of(any_model, QUESTIONS[0]),
        prompt_of(any_model, QUESTIONS[1], TEXT[:90]),
        prompt_of(any_model, QUESTIONS[2], None),
        prompt_of(any_model, QUESTIONS[3]),
        prompt_of(any_model, QUESTIONS[0], TEXT[30:200]),
    ]
    alone = [answers(any_model, [prompt], sampling)[0] for prompt in prompts]
    any_model.engine.forget()
    assert answers(any_model, prompts, sampling) == alone
    assert answers(any_model, prompts[::-1], sampling) == alone[::-1]  # prefixes are kept now


def test_each_row_has_a_seed_of_its_own(any_model: octavo.Model) -> None:
    prompts = [prompt_of(any_model, "Who?")] * 3
    sampling = Sampling(max_new_tokens=8, temperature=2.0, seed=(1, 2, 1))
    first, second, third = answers(any_model, prompts, sampling)
    assert first == third != second


def test_seeds_are_as_many_as_questions(any_model: octavo.Model) -> None:
    with pytest.raises(ConfigError, match="2 seeds were given for 1 questions"):
        any_model.generate("Who?", sampling=Sampling(temperature=1.0, seed=(1, 2)))


def test_a_dropped_row_ends_and_the_others_go_on(any_model: octavo.Model) -> None:
    prompts = [prompt_of(any_model, question) for question in QUESTIONS]
    whole = answers(any_model, prompts, Sampling(max_new_tokens=8))
    batch = any_model.engine.start(prompts, Sampling(max_new_tokens=8))
    rows: list[list[int]] = [[] for _ in prompts]
    for step, tokens in enumerate(batch):
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                row.append(token)
        if step == 1:
            batch.drop(1)
        if step == 3:
            batch.drop(0)
    assert rows[1] == whole[1][:2]
    assert rows[0] == whole[0][:4]
    assert rows[2:] == whole[2:]


def test_rows_that_join_and_leave_a_running_batch_answer_as_they_do_alone(
    any_model: octavo.Model,
) -> None:
    """Three dozen rows of their own lengths and settings, in an order that chance gives."""
    draw = random.Random(7)
    texts = [LONG, TEXT[:90], None, TEXT[30:200]]
    asked = [
        (
            prompt_of(any_model, draw.choice(QUESTIONS), draw.choice(texts)),
            Sampling(
                max_new_tokens=draw.randrange(1, 9),
                temperature=draw.choice([0.0, 1.4]),
                seed=number,
            ),
        )
        for number in range(36)
    ]
    alone = [answers(any_model, [prompt], sampling)[0] for prompt, sampling in asked]
    any_model.engine.forget()
    found: list[list[int]] = [[] for _ in asked]
    waiting = list(range(1, len(asked)))
    batch, at = any_model.engine.start([asked[0][0]], asked[0][1]), {0: 0}
    dropped: dict[int, int] = {}
    while at:
        while waiting and draw.random() < 0.6:
            number = waiting.pop(0)
            row = batch.join(*asked[number])
            assert row not in at
            at[row] = number
        tokens = next(batch, None)  # type: ignore[call-overload]
        for row, number in list(at.items()):
            if tokens is None or tokens[row] is None:
                del at[row]
                continue
            found[number].append(tokens[row])
            if len(at) > 1 and draw.random() < 0.05:
                dropped[number] = len(found[number])
                batch.drop(row)
                del at[row]
        if not at and waiting:  # all ended at once
            number = waiting.pop(0)
            batch, at = any_model.engine.start([asked[number][0]], asked[number][1]), {0: number}
    batch.close()
    assert found == [row[: dropped.get(n, len(row))] for n, row in enumerate(alone)]
    assert dropped


def test_the_second_row_of_a_context_reads_only_its_question(any_model: octavo.Model) -> None:
    first, second = (prompt_of(any_model, question) for question in QUESTIONS[:2])
    any_model.engine.forget()
    batch = any_model.engine.start([first], Sampling(max_new_tokens=4))
    next(batch)  # type: ignore[call-overload]
    row = batch.join(second, Sampling(max_new_tokens=4))
    next(batch)  # type: ignore[call-overload]
    is_local = isinstance(any_model.engine, LocalEngine)
    assert batch.reused[0] == 0
    assert batch.reused[row] == (second.prefix_length if is_local else 0)


def test_short_rows_do_not_pay_for_the_length_of_long_ones(model: octavo.Model) -> None:
    long, short = prompt_of(model, "Who?", LONG * 4), prompt_of(model, "Who?", None)
    batch: Any = model.engine.start([long, short, short, short], Sampling(max_new_tokens=3))
    next(batch)
    assert sorted(lane.rows for lane in batch._lanes) == [[0], [1, 2, 3]]


def test_alternatives_are_the_likeliest_tokens(model: octavo.Model) -> None:
    prompt = prompt_of(model, "Who?")
    asked = Sampling(max_new_tokens=3, logprobs=True, num_alternatives=4)
    batch = model.engine.start([prompt], asked)
    for (token,) in batch:
        best = batch.alternatives[0]
        assert len(best) == 4
        assert best[0] == (token, batch.logprobs[0])
        assert sorted(best, key=lambda pair: -pair[1]) == best


def test_a_closed_batch_yields_nothing_more(any_model: octavo.Model) -> None:
    batch = any_model.engine.start([prompt_of(any_model, "Who?")], Sampling())
    next(batch)  # type: ignore[call-overload]
    batch.close()
    batch.close()
    assert list(batch) == []
    assert list(any_model.engine.start([], Sampling())) == []


def test_logprobs_come_only_where_they_are_asked_for(any_model: octavo.Model) -> None:
    prompts = [prompt_of(any_model, question) for question in QUESTIONS[:2]]
    batch = any_model.engine.start(prompts, Sampling(max_new_tokens=4, logprobs=True))
    for tokens in batch:
        for token, logprob in zip(tokens, batch.logprobs, strict=True):
            assert (token is None) == (logprob is None)
            assert logprob is None or logprob <= 0


def test_a_target_needs_a_token(any_model: octavo.Model) -> None:
    with pytest.raises(PromptError, match="target is empty"):
        any_model.engine.score(prompt_of(any_model, "Who?"), [])


def test_what_is_kept_can_be_forgotten(any_model: octavo.Model) -> None:
    any_model.generate("Who?", context=LONG, max_new_tokens=1)
    any_model.forget()
    assert any_model.engine.kept_bytes == 0


@pytest.mark.parametrize("each", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_many_threads_get_the_answers_of_one(any_model: octavo.Model, each: int) -> None:
    """Eight threads, some calls each, of every kind."""
    texts = [LONG, TEXT[:120], TEXT[60:260]]
    contexts = [any_model.compress(text) for text in texts]

    def call(number: int) -> Any:
        draw = random.Random(number)
        at, question = draw.randrange(3), draw.choice(QUESTIONS)
        options: dict[str, Any] = {"max_new_tokens": 3, "context": contexts[at]}
        kind = draw.randrange(5)
        if kind == 0:
            return "".join(any_model.stream(question, **options))
        if kind == 1:
            return [a.text for a in any_model.generate(QUESTIONS[:2], **options)]
        if kind == 2:
            return any_model.generate(question, raw=True, **options).text
        if kind == 3:
            return any_model.compress(texts[at]).latents.sum().item()
        return any_model.generate(question, temperature=1.5, seed=number, **options).text

    calls = range(8 * each)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(call, calls))
    assert together == [call(number) for number in calls]


# -- the local engine ----------------------------------------------------------------------------


def test_an_answer_goes_on_while_a_long_text_is_compressed(model: octavo.Model) -> None:
    ids = model.prompts.source(TEXT).ids * 150
    (alone,) = model.engine.encode([ids], 4)
    answer = model.generate("Who signed?", max_new_tokens=4).text
    passes: list[float] = []
    steps: list[float] = []
    has_begun = threading.Event()

    def note(_: int) -> None:
        passes.append(time.monotonic())
        time.sleep(0.05)  # as long as a pass of a large encoder takes
        has_begun.set()

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(model.engine.encode, [ids], 4, note)
        has_begun.wait(30)
        for _ in model.stream("Who signed?", max_new_tokens=4):
            steps.append(time.monotonic())
        assert torch.equal(work.result()[0], alone)
    assert model.generate("Who signed?", max_new_tokens=4).text == answer
    assert steps[-1] < passes[-1]


def test_whoever_stands_back_lets_those_who_wait_go_first() -> None:
    lock, order = SharedLock(), []

    def take_turns() -> None:
        for _ in range(3):
            with lock:
                order.append("other")
                time.sleep(0.002)

    with lock:
        thread = threading.Thread(target=take_turns)
        thread.start()
        while not lock._num_waiting:
            time.sleep(0.001)
        lock.stand_back(5.0)
        order.append("own")
    thread.join()
    assert order == ["other", "other", "other", "own"]
    with lock:
        lock.stand_back(1e9)  # nobody waits: it does not either


def test_scores_equal_those_of_one_plain_pass(model: octavo.Model) -> None:
    prompt = prompt_of(model, "Who?")
    target = model.prompts.text_ids(" Ines sealed it.")
    model.engine.forget()
    scores = [model.engine.score(prompt, target) for _ in range(2)]  # afresh, then behind a prefix
    ids = torch.tensor([[*prompt.input_ids, *target]])
    with torch.no_grad():
        logits = model.lclm(input_ids=ids, latents=prompt.latents).logits[0, :-1].float()
    logits = logits[-len(target) :]
    wanted = logits.log_softmax(-1)[range(len(target)), target]
    for one in scores:
        torch.testing.assert_close(torch.tensor(one.logprobs), wanted, atol=1e-4, rtol=1e-4)
        assert list(one.is_greedy) == [
            int(row.argmax()) == token for row, token in zip(logits, target, strict=True)
        ]


def test_logprobs_are_those_that_scoring_gives(model: octavo.Model) -> None:
    prompt = prompt_of(model, "Who?")
    batch = model.engine.start([prompt, prompt], Sampling(max_new_tokens=5, logprobs=True))
    tokens, logprobs = [], []
    for step in batch:
        tokens.append(step[0])
        logprobs.append(batch.logprobs[0])
    scores = model.engine.score(prompt, [t for t in tokens if t is not None])
    torch.testing.assert_close(
        torch.tensor(scores.logprobs), torch.tensor(logprobs), atol=1e-4, rtol=1e-4
    )
    assert all(scores.is_greedy)


def test_a_prompt_read_in_pieces_is_read_as_a_whole(model: octavo.Model) -> None:
    prompts = [prompt_of(model, q, t) for q in QUESTIONS for t in (LONG, None)]
    assert isinstance(model.engine, LocalEngine)
    pieces = LocalEngine(model.engine._checkpoint, torch.device("cpu"), prefill=7)
    sampling = Sampling(max_new_tokens=6)
    for prompt in prompts:
        (whole,) = answers(model, [prompt], sampling)
        assert [step[0] for step in pieces.start([prompt], sampling)] == whole
    rows = [list(row) for row in zip(*pieces.start(prompts, sampling), strict=True)]
    assert rows == [answers(model, [prompt], sampling)[0] for prompt in prompts]


def positions_read(model: octavo.Model) -> Iterator[list[int]]:
    """Collect the rows times positions of every pass through the decoder."""
    read: list[int] = []
    handle = model.lclm.decoder.register_forward_pre_hook(
        lambda _, args, given: read.append(given["inputs_embeds"].shape[:2].numel()),
        with_kwargs=True,
    )
    try:
        yield read
    finally:
        handle.remove()


@pytest.fixture
def read(model: octavo.Model) -> Iterator[list[int]]:
    """The positions that the decoder reads during the test."""
    model.forget()
    yield from positions_read(model)


def test_raw_text_keeps_its_prefix_as_latents_do(model: octavo.Model, read: list[int]) -> None:
    model.generate("Who?", context=LONG, raw=True, max_new_tokens=1)
    first = sum(read)
    read.clear()
    second = model.generate("What was sealed?", context=LONG, raw=True, max_new_tokens=1)
    assert sum(read) < first / 4
    model.forget()
    afresh = model.generate("What was sealed?", context=LONG, raw=True, max_new_tokens=1)
    assert afresh.text == second.text


def test_a_batch_reads_what_its_questions_share_once(model: octavo.Model, read: list[int]) -> None:
    context = model.compress(LONG)
    model.generate("Who?", context=context, max_new_tokens=1)
    one = sum(read)
    read.clear()
    model.generate(QUESTIONS * 2, context=context, max_new_tokens=1)
    asked = max(len(model.prompts.text_ids(question)) for question in QUESTIONS) + 30
    assert sum(read) < 8 * asked
    read.clear()
    model.forget()
    model.generate(QUESTIONS * 2, context=context, max_new_tokens=1)
    assert sum(read) < one + 8 * asked


def test_the_same_text_is_compressed_once(
    model: octavo.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.forget()
    encoded: list[int] = []
    real = model.engine.encode

    def encode(spans: Any, *args: Any) -> Any:
        encoded.extend(map(len, spans))
        return real(spans, *args)

    monkeypatch.setattr(model.engine, "encode", encode)
    inside = [{"role": "user", "content": [{"type": "memory", "text": LONG}]}]
    for _ in range(2):
        model.generate("Who?", context=LONG, max_new_tokens=1)
        model.generate(messages=inside, max_new_tokens=1)
    assert len(encoded) == 1
    model.generate("Who?", context=LONG + ".", max_new_tokens=1)
    assert len(encoded) == 2


def test_rows_that_met_a_stop_string_are_not_read_any_more(
    model: octavo.Model, read: list[int]
) -> None:
    context = model.compress(LONG)
    sampling = Sampling(max_new_tokens=9, temperature=1.5, seed=(1, 2, 3, 4))
    whole = [a.text for a in model.generate(QUESTIONS, context=context, sampling=sampling)]
    stop = whole[1][1:3]
    num_stopped = sum(stop in text for text in whole)
    assert 0 < num_stopped < len(whole)
    read.clear()
    cut = model.generate(QUESTIONS, context=context, sampling=sampling, stop=stop)
    for text, answer in zip(whole, cut, strict=True):
        assert answer.text == text.split(stop)[0]
    assert read[-1] == len(QUESTIONS) - num_stopped


def interrupted(model: octavo.Model, at_layer: int, error: BaseException) -> Any:
    """Make a layer of the decoder raise once it has done its work."""

    def interrupt(*_: Any) -> None:
        raise error

    return model.lclm.get_decoder().layers[at_layer].register_forward_hook(interrupt)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no memory")], ids=str)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize("is_warm", [False, True])
def test_a_question_after_an_interrupted_one_is_answered_right(
    error: BaseException, layer: int, step: int, is_warm: bool
) -> None:
    model = octavo.load(CHECKPOINT, device="cpu")
    context = model.compress(LONG)
    wanted = {q: model.generate(q, context=context, max_new_tokens=6).text for q in QUESTIONS}
    if not is_warm:
        model.forget()
    for raw in (False, True):
        stream = iter(model.stream("Who?", context=context, max_new_tokens=6, raw=raw))
        for _ in range(step):
            next(stream, None)
        handle = interrupted(model, layer, error)
        with pytest.raises(type(error)):
            list(stream)
        handle.remove()
    for question in QUESTIONS:
        assert model.generate(question, context=context, max_new_tokens=6).text == wanted[question]


@pytest.mark.slow
def test_abandoned_streams_change_no_answer_and_hold_no_memory(model: octavo.Model) -> None:
    context = model.compress(LONG)
    wanted = [model.generate(q, context=context, max_new_tokens=5).text for q in QUESTIONS]
    kept = model.engine.kept_bytes
    for number in range(200):
        stream = model.stream(QUESTIONS[number % 4], context=context, max_new_tokens=5)
        for _ in range(number % 3):
            next(stream, None)
        if number % 2:
            stream.close()
        del stream
    gc.collect()
    assert model.engine.kept_bytes == kept
    assert [model.generate(q, context=context, max_new_tokens=5).text for q in QUESTIONS] == wanted


def test_two_threads_over_one_stream_each_do_not_mix(model: octavo.Model) -> None:
    context = model.compress(LONG)
    wanted = [model.generate(q, context=context, max_new_tokens=8).text for q in QUESTIONS]
    found: dict[int, str] = {}

    def listen(index: int) -> None:
        found[index] = "".join(model.stream(QUESTIONS[index], context=context, max_new_tokens=8))

    threads = [threading.Thread(target=listen, args=(i,)) for i in range(len(QUESTIONS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(len(QUESTIONS))] == wanted


def test_the_growing_cache_equals_that_of_transformers(model: octavo.Model) -> None:
    from octavo.engine.cache import GrowingCache

    decoder, pieces = model.lclm.decoder, torch.randn(1, 90, 64).split([1, 50, 3, 36], 1)
    own, theirs = GrowingCache(), DynamicCache()
    with torch.inference_mode():
        for piece in pieces:
            a = decoder(inputs_embeds=piece, use_cache=True, **as_keyword(own)).logits
            b = decoder(inputs_embeds=piece, use_cache=True, **as_keyword(theirs)).logits
            torch.testing.assert_close(a, b)
        assert own.cut(40)
        assert not GrowingCache().cut(1)
        theirs.crop(-50)
        a = decoder(inputs_embeds=pieces[1], use_cache=True, **as_keyword(own)).logits
        b = decoder(inputs_embeds=pieces[1], use_cache=True, **as_keyword(theirs)).logits
    torch.testing.assert_close(a, b)
    for mine, other in zip(own.layers, theirs.layers, strict=True):
        torch.testing.assert_close(mine.keys, other.keys)
        torch.testing.assert_close(mine.values, other.values)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=1.8, top_p=0.6),
        Sampling(temperature=1.8, top_k=12),
        CHAT,
        Sampling(repetition_penalty=1.4),
    ],
    ids=lambda s: f"t{s.temperature}-p{s.top_p}-k{s.top_k}-r{s.repetition_penalty}",
)
def test_tokens_are_drawn_from_the_distribution_that_transformers_gives(
    sampling: Sampling,
) -> None:
    logits = torch.randn(60, generator=torch.Generator().manual_seed(1)) * 2
    before = [7, 9, 7]
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    wanted = processors(torch.tensor([before]), logits[None]).softmax(-1)[0]
    counts = torch.zeros(60)
    chooser = Chooser(sampling, 3, torch.device("cpu"))
    for _ in range(3000):
        chooser._chosen = list(before)
        counts[chooser(logits)] += 1
    if sampling.temperature == 0:
        assert counts[int(wanted.argmax())] == 3000
    else:
        assert not counts[wanted == 0].any()
        assert float((counts / 3000 - wanted).abs().max()) < 0.04


@pytest.mark.parametrize("mask", [None, [0, 0] + [1] * 38], ids=["plain", "filled-up"])
def test_the_engines_attention_equals_an_explicit_mask(
    model: octavo.Model, mask: list[int] | None
) -> None:
    decoder = model.lclm.decoder
    assert decoder.config._attn_implementation == attention.NAME
    twin = octavo.load(CHECKPOINT, device="cpu").lclm.decoder
    twin.set_attn_implementation("eager")
    ids = torch.randint(250, (2, 40))
    given = {} if mask is None else {"attention_mask": torch.tensor([mask, [1] * 40])}
    found = []
    for one in (decoder, twin):
        cache = DynamicCache()
        for start, stop in ((0, 20), (20, 33), (33, 40)):
            part = {name: value[:, :stop] for name, value in given.items()}
            with torch.inference_mode():
                output = one(ids[:, start:stop], use_cache=True, **as_keyword(cache), **part)
        found.append(output.logits[1])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_the_engines_attention_serves_caches_with_room_at_their_end(model: octavo.Model) -> None:
    ids = torch.randint(250, (1, 20))
    answers = [
        model.lclm.decoder.generate(ids, max_new_tokens=8, do_sample=False, **kind)
        for kind in ({}, {"cache_implementation": "static"})
    ]
    assert torch.equal(answers[0], answers[1])
