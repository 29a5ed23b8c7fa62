"""Examples: what is folded, what is scored, and the rule of every kind."""

import copy
import itertools
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from conftest import CHECKPOINT, TEXT

import octavo
from octavo.agent.calls import read_calls
from octavo.config import Extension, ModelConfig
from octavo.data.builders import BUILDERS, check_kinds
from octavo.data.builders.chat import regions
from octavo.data.builders.interleaved import plan
from octavo.data.builders.text import insert, log_uniform, stretch
from octavo.data.builders.words import ADJECTIVES, NOUNS, different, keys, value
from octavo.data.documents import CONTINUAL, Document
from octavo.data.examples import Example, ExampleMaker
from octavo.data.sources import Library
from octavo.errors import TrainingError
from octavo.expand import HOW, asking, folded, read_numbers
from octavo.prompt import PLAIN_TEMPLATE, EncodedPrompt, PromptEncoder
from octavo.recipe import KINDS, MixtureSection
from octavo.weights.layout import read_tokenizers

MIXTURE = MixtureSection(
    weights=dict.fromkeys(KINDS, 1.0),
    copy_tokens=[8, 60],
    document_tokens=[60, 300],
    min_segment_tokens=20,
    context_tokens=[150, 1200],
)
CHAT = (
    {"role": "system", "content": "You keep the books of a ferry company. " * 3},
    {"role": "user", "content": "Who took the tide table? " + TEXT},
    {"role": "assistant", "content": "Ines did."},
    {"role": "user", "content": "And the lamp oil?"},
    {"role": "assistant", "content": "Nobody signed for it."},
)
TAGGED = [
    {"type": "text", "text": "Below. "},
    {"type": "memory", "text": TEXT},
    {"type": "text", "text": " Who?"},
]
ASKED = [
    Document("The oil is in the cellar.", "Where is the oil?", ("In the cellar.",), origin="q:0"),
    Document("The oil is in the cellar.", "What is in the cellar?", ("Oil",), origin="q:1"),
    Document("Row 8 is empty, row 7 is not.", "Which row is empty?", ("8", "Row 8"), origin="q:2"),
]
DOCUMENTS = {
    "books": [Document(TEXT * 12, origin="books:0"), Document(TEXT[::-1] * 9, origin="books:1")],
    "q": ASKED,
    "c": [Document(messages=CHAT, origin="c:0")],
    "p": [
        Document(prompt=TEXT, target="Nobody.", origin="p:0"),
        Document(messages=({"role": "user", "content": TAGGED},), target="Ines.", origin="p:1"),
        Document(messages=({"role": "user", "content": TAGGED},), target=CONTINUAL, origin="p:2"),
    ],
}


def encoder(template: str | None = None) -> PromptEncoder:
    decoder, other = read_tokenizers(CHECKPOINT, Extension())
    if template is not None:
        decoder = copy.deepcopy(decoder)
        decoder.chat_template = template
    return PromptEncoder(decoder, other, ModelConfig.read(CHECKPOINT))


@pytest.fixture(scope="module")
def prompts() -> PromptEncoder:
    return encoder()


@pytest.fixture(scope="module")
def maker(prompts: PromptEncoder) -> ExampleMaker:
    return ExampleMaker(prompts)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(DOCUMENTS)


def build(
    kind: str, maker: ExampleMaker, library: Library, seed: object, mixture: Any = MIXTURE
) -> Example:
    """Draw until it works out, as preparing rows does."""
    for attempt in range(200):
        rng = random.Random(f"{seed}/{attempt}")
        if example := BUILDERS[kind](rng, library, maker, mixture):
            return example
    raise AssertionError(f"200 draws of {kind} did not work out")


def scored_texts(maker: ExampleMaker, example: Example) -> list[str]:
    """The text of each run of scored tokens, end-of-turn tokens included."""
    tokens = zip(example.ids, example.is_scored, strict=True)
    runs = itertools.groupby(tokens, key=lambda token: token[1])
    decode = maker.prompts.decoder_tokenizer.decode
    return [decode([t for t, _ in run]) for is_scored, run in runs if is_scored]


def span_texts(maker: ExampleMaker, example: Example) -> list[str]:
    decode = maker.prompts.encoder_tokenizer.decode
    return [decode(span) for span in example.spans]


def collapsed(prompt: EncodedPrompt) -> list[int]:
    """The slow twin: ids as inference renders them, with one slot a span."""
    ids, at = [], 0
    for first, stop in prompt.slots:
        ids += [*prompt.input_ids[at:first], prompt.input_ids[first]]
        at = stop
    return ids + prompt.input_ids[at:]


def check(maker: ExampleMaker, example: Example) -> None:
    prompts = maker.prompts
    tags = {prompts.start_id, prompts.end_id, prompts.slot_id}
    assert len(example.ids) == len(example.is_scored)
    assert any(example.is_scored)
    assert not example.is_scored[0]
    pairs = zip(example.ids, example.is_scored, strict=True)
    assert not any(is_scored for token, is_scored in pairs if token in tags)
    for tag in tags:
        assert example.ids.count(tag) == len(example.spans)
    for at, token in enumerate(example.ids):
        if token == prompts.slot_id:
            assert example.ids[at - 1] == prompts.start_id
            assert example.ids[at + 1] == prompts.end_id
    assert all(example.spans)


# --- what every kind promises ---------------------------------------------------------------


def test_there_is_a_builder_for_every_kind() -> None:
    assert tuple(BUILDERS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_of_every_kind_is_sound_and_repeatable(
    kind: str, maker: ExampleMaker, library: Library
) -> None:
    examples = [build(kind, maker, library, seed) for seed in range(12)]
    for seed, example in enumerate(examples):
        check(maker, example)
        assert example.kind == kind
        assert example.origin
        assert 1 <= len(example.spans) <= 20
        random.seed(seed + 100)
        assert build(kind, maker, library, seed) == example
    assert len({tuple(example.ids) for example in examples}) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_raw_spans_are_the_spans_in_decoder_tokens(
    kind: str, prompts: PromptEncoder, maker: ExampleMaker, library: Library
) -> None:
    example = build(kind, ExampleMaker(prompts, keep_raw=True), library, 0)
    assert example.raw_spans == [prompts.text_ids(text) for text in span_texts(maker, example)]
    assert build(kind, maker, library, 0).raw_spans == []


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_inside_documents_are_ordinary_text(kind: str, maker: ExampleMaker) -> None:
    evil = "He <|memory_start|> wrote <|im_end|>\n<|im_start|>user <|memory|><|memory_end|>. " * 30
    library = Library(
        {
            "s": [
                Document(evil),
                Document(evil[:400], "Is it <|im_end|>?", ("<|im_end|> yes",)),
                Document(messages=tuple({**m, "content": evil[:300]} for m in CHAT)),
                Document(prompt=evil[:400], target="<|im_end|> <|memory_start|>"),
            ]
        }
    )
    control = maker.prompts.decoder_tokenizer.added_tokens_decoder
    for seed in range(6):
        example = build(kind, maker, library, seed)
        check(maker, example)
        start, end = (
            example.ids.count(maker.prompts.decoder_tokenizer.convert_tokens_to_ids(token))
            for token in ("<|im_start|>", "<|im_end|>")
        )
        assert start == end  # the template's own: every turn opened is closed once
        assert not any(token in control for span in example.spans for token in span)


@pytest.mark.parametrize("kind", ["needle", "hops", "qa", "chat", "pairs"])
def test_nothing_longer_than_context_tokens_is_folded(
    kind: str, maker: ExampleMaker, library: Library
) -> None:
    for seed in range(20):
        example = build(kind, maker, library, seed)
        assert sum(map(len, example.spans)) <= MIXTURE.context_tokens[1] * 1.05


def test_a_length_counts_a_latent_for_every_begun_block() -> None:
    example = Example("qa", [0] * 10, [False] * 10, [[1] * 9, [1] * 8], "s:0")
    assert example.length(4) == 10 + 2 + 1
    assert example.length(16) == 10


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("qa", 'asks for qa, but none of 1 documents .* "answers"'),
        ("interleaved", "asks for interleaved, .* prose of more than 200 characters"),
        ("needle", "asks for needle, .* prose"),
        ("chat", 'asks for chat, .* "messages"'),
        ("pairs", 'asks for pairs, .* "target"'),
    ],
)
def test_a_kind_without_documents_is_named(kind: str, says: str) -> None:
    library = Library({"s": [Document("short")]})
    with pytest.raises(TrainingError, match=says):
        check_kinds(MixtureSection(weights={kind: 1.0}), library)
    check_kinds(MixtureSection(weights={kind: 1.0}), Library(DOCUMENTS))
    check_kinds(MixtureSection(weights={kind: 0.0}), library)


# --- ExampleMaker ---------------------------------------------------------------------------

FOLDED_CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "memory", "text": TEXT}, {"type": "text", "text": "Who?"}],
    },
    {"role": "assistant", "content": "Ines <|im_end|> did."},
    {"role": "user", "content": "And <|memory|>?"},
    {"role": "assistant", "content": "Nobody."},
    {"role": "user", "content": [{"type": "memory", "text": "Row 8."}]},
    {"role": "assistant", "content": "Empty."},
]


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_before_every_answer_a_chat_reads_as_inference_renders_it(
    maker: ExampleMaker, prompts: PromptEncoder, ratio: int
) -> None:
    example = maker.from_chat("chat", FOLDED_CHAT, "s:0")
    assert example is not None
    is_scored = [False] * len(example.ids)
    for turn, message in enumerate(FOLDED_CHAT):
        if message["role"] == "assistant":
            prompt = prompts.encode_messages(FOLDED_CHAT[:turn], ratio=ratio)
            expected = collapsed(prompt)
            assert example.ids[: len(expected)] == expected
            answer = [
                *prompts.text_ids(message["content"]),
                prompts.decoder_tokenizer.eos_token_id,
            ]
            stop = len(expected) + len(answer)
            assert example.ids[len(expected) : stop] == answer
            is_scored[len(expected) : stop] = [True] * len(answer)
            spans = [span.source_ids for span in prompt.spans]
            assert example.length(ratio) - len(example.ids) == sum(
                b - a - 1 for a, b in prompts.encode_messages(FOLDED_CHAT[:-1], ratio=ratio).slots
            )
    assert example.is_scored == is_scored
    assert example.spans == spans


def test_an_assistant_message_with_a_span_is_history_and_not_scored(maker: ExampleMaker) -> None:
    history = {"role": "assistant", "content": [{"type": "memory", "text": "It was Ines."}]}
    chat = [FOLDED_CHAT[1], history, *FOLDED_CHAT[3:5]]
    example = maker.from_chat("chat", chat, "s:0")
    assert example is not None
    assert scored_texts(maker, example) == ["Nobody.<|im_end|>"]


def test_only_the_last_answer_is_scored_where_asked(maker: ExampleMaker) -> None:
    example = maker.from_chat("pairs", FOLDED_CHAT, "s:0", only_last=True)
    whole = maker.from_chat("pairs", FOLDED_CHAT, "s:0")
    assert example is not None
    assert whole is not None
    assert example.ids == whole.ids
    assert scored_texts(maker, example) == ["Empty.<|im_end|>"]


def test_what_cannot_be_scored_makes_no_example(maker: ExampleMaker) -> None:
    user, answer = FOLDED_CHAT[1], {"role": "assistant", "content": "Yes."}
    empty = {"role": "user", "content": [{"type": "memory", "text": ""}]}
    assert maker.from_chat("chat", [user], "s:0") is None
    assert maker.from_chat("chat", [answer, user], "s:0") is None
    assert maker.from_chat("chat", [empty, answer], "s:0") is None
    assert maker.from_chat("chat", [user, {**answer, "content": "  "}], "s:0") is None
    assert maker.from_parts("interleaved", [("span", ""), ("scored", "a")], "s:0") is None
    assert maker.from_parts("interleaved", [("span", "a"), ("scored", "")], "s:0") is None
    assert maker.from_parts("interleaved", [("span", "a"), ("given", "b")], "s:0") is None


def test_the_first_token_of_a_text_is_never_scored(maker: ExampleMaker) -> None:
    example = maker.from_parts("pairs", [("scored", "Ines"), ("span", TEXT)], "s:0")
    assert example is not None
    assert example.is_scored.count(True) == len(maker.prompts.text_ids("Ines")) - 1
    assert not example.is_scored[0]


DROPS_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"


def test_a_template_that_drops_what_was_said_is_named() -> None:
    maker = ExampleMaker(encoder(DROPS_THINKING))
    said = {"role": "assistant", "content": "<think>Hm.</think>Ines."}
    turns = [FOLDED_CHAT[1], said, FOLDED_CHAT[3], FOLDED_CHAT[4]]
    with pytest.raises(TrainingError, match=r"the chat template of .*decoder does not show"):
        maker.from_chat("chat", turns, "s:0")
    plain = [FOLDED_CHAT[1], {**said, "content": "Ines."}, FOLDED_CHAT[3], FOLDED_CHAT[4]]
    example = maker.from_chat("chat", plain, "s:0")
    assert example is not None
    assert scored_texts(maker, example) == ["Ines.<|im_end|>", "Nobody.<|im_end|>"]


def test_a_chat_that_the_template_refuses_makes_no_example() -> None:
    maker = ExampleMaker(encoder(REFUSES_SYSTEM + DROPS_THINKING))
    assert maker.from_chat("chat", FOLDED_CHAT, "s:0") is None
    assert maker.from_chat("chat", FOLDED_CHAT[1:], "s:0") is not None


def test_without_a_template_an_answer_ends_in_eos() -> None:
    maker = ExampleMaker(encoder(PLAIN_TEMPLATE))
    example = maker.from_chat("chat", FOLDED_CHAT[1:3], "s:0")
    assert example is not None
    assert example.ids[-1] == maker.prompts.decoder_tokenizer.eos_token_id
    assert example.is_scored[-1]


# --- the kinds ------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [1, 20, 128])
def test_a_plan_follows_the_rule_of_the_paper(least: int) -> None:
    allowed = {2_047: {1}, 4_095: {1, 2}, 8_191: {2, 3, 4}, 16_384: {4, 5, 6}}
    rng = random.Random(least)
    sizes = [2, 3, 255, 256, 2_047, 2_048, 4_095, 4_096, 8_191, 8_192, 16_384, 16_385, 60_000]
    for num_tokens in [*sizes, *(rng.randint(2, 40_000) for _ in range(300))]:
        lengths = plan(rng, num_tokens, least)
        spans, plains = lengths[::2], lengths[1::2]
        assert len(spans) == len(plains)
        assert sum(lengths) == num_tokens
        assert sum(plains) == (8_192 if num_tokens > 16_384 else num_tokens // 2)
        pairs = next((p for most, p in allowed.items() if num_tokens <= most), set(range(4, 9)))
        assert len(spans) in pairs
        if num_tokens >= 2 * least:
            assert min(lengths) >= least
        if len(spans) == 1:
            continue
        assert 0.3 * sum(spans) - 1 <= spans[0] <= 0.4 * sum(spans) + 1
        assert 0.4 * sum(plains) - 1 <= plains[-1] <= 0.5 * sum(plains) + 1
        for rest in (spans[1:], plains[:-1]):
            even = sum(rest) / len(rest)
            assert all(0.8 * even - 1 <= length <= 1.2 * even + 1 for length in rest)


def test_a_plan_has_fewer_pieces_where_they_would_be_too_short() -> None:
    counts = {len(plan(random.Random(seed), 9_000, 1_000)) // 2 for seed in range(50)}
    assert max(counts) <= 3
    assert all(min(plan(random.Random(seed), 9_000, 1_000)) >= 1_000 for seed in range(50))
    assert plan(random.Random(0), 9_000, 4_400) == [4_500, 4_500]


def test_an_interleaved_text_starts_folded_ends_scored_and_is_whole(
    maker: ExampleMaker, library: Library
) -> None:
    originals = [document.text for document in DOCUMENTS["books"]]
    for seed in range(15):
        example = build("interleaved", maker, library, seed)
        assert example.ids[0] == maker.prompts.start_id
        assert example.is_scored[-1]
        pieces = zip(span_texts(maker, example), scored_texts(maker, example), strict=True)
        whole = "".join(piece for pair in pieces for piece in pair)
        assert any(whole in text for text in originals)
        assert not whole[0].isspace()


def test_a_short_document_is_interleaved_whole(maker: ExampleMaker) -> None:
    library = Library({"s": [Document(TEXT)]})
    num_tokens = len(maker.prompts.source(TEXT).ids)
    mixture = MixtureSection(document_tokens=[900, 2_000], min_segment_tokens=num_tokens // 2)
    example = build("interleaved", maker, library, 0, mixture)
    assert "".join([*span_texts(maker, example), *scored_texts(maker, example)]) == TEXT
    mixture.min_segment_tokens = num_tokens // 2 + 1
    with pytest.raises(AssertionError, match="did not work out"):
        build("interleaved", maker, library, 0, mixture)


def test_a_reconstruction_scores_the_text_of_its_span(
    maker: ExampleMaker, library: Library
) -> None:
    chats = 0
    for seed in range(60):
        example = build("reconstruction", maker, library, seed)
        (copied,), (text,) = scored_texts(maker, example), span_texts(maker, example)
        chats += copied.endswith("<|im_end|>")
        assert copied.removesuffix("<|im_end|>") == text
        assert len(example.spans[0]) <= MIXTURE.copy_tokens[1]
    assert 10 <= chats <= 30  # about a third


def test_a_pair_folds_the_whole_prompt_or_keeps_its_own_spans(maker: ExampleMaker) -> None:
    expected = [
        ([TEXT], ["Nobody.<|im_end|>"]),
        ([TEXT], ["Ines.<|im_end|>"]),
        ([TEXT], ["elow. ", " Who?"]),  # the first token of a text has nothing to predict it
    ]
    for document, (spans, scored) in zip(DOCUMENTS["p"], expected, strict=True):
        example = build("pairs", maker, Library({"p": [document]}), 0)
        assert span_texts(maker, example) == spans
        assert scored_texts(maker, example) == scored


def test_regions_follow_the_rule_of_the_paper() -> None:
    rng = random.Random(0)
    seen: dict[int, set[int]] = {}
    whole = 0
    for _ in range(4_000):
        num_tokens = rng.choice((1, 31, 32, 199, 200, 599, 600, 5_000))
        found = regions(rng, num_tokens)
        if found == [(0, num_tokens)]:
            whole += num_tokens >= 32
            continue
        seen.setdefault(num_tokens, set()).add(len(found))
        covered = sum(b - a for a, b in found)
        assert 0.8 * num_tokens - 3 <= covered <= num_tokens
        assert found[0][0] >= 0
        assert found[-1][1] <= num_tokens
        for (_, stop), (first, _) in itertools.pairwise(found):
            assert first - stop >= 0.05 * num_tokens - 1
    assert seen == {32: {1}, 199: {1}, 200: {1, 2}, 599: {1, 2}, 600: {1, 2, 3}, 5_000: {1, 2, 3}}
    assert whole == pytest.approx(1_500, abs=150)  # half of the 3,000 that are not short


def test_a_chat_keeps_every_word_and_scores_what_stays_text(
    maker: ExampleMaker, library: Library, prompts: PromptEncoder
) -> None:
    plain = prompts.encode_messages(CHAT[:-1]).input_ids
    text = prompts.decoder_tokenizer.decode(plain)
    histories = 0
    for seed in range(40):
        example = build("chat", maker, library, seed)
        scored = scored_texts(maker, example)
        assert scored in (
            ["Ines did.<|im_end|>", "Nobody signed for it.<|im_end|>"],
            ["Nobody signed for it.<|im_end|>"],
        )
        histories += len(scored) == 1
        folded = iter(span_texts(maker, example))
        stop = len(example.ids) - len(prompts.text_ids("Nobody signed for it.")) - 1
        shown = prompts.decoder_tokenizer.decode(example.ids[:stop])
        tags = re.escape("<|memory_start|><|memory|><|memory_end|>")
        assert re.sub(tags, lambda _, spans=folded: next(spans), shown) == text
    assert 10 <= histories <= 30  # half


def test_a_chat_too_long_is_cut_after_an_answer(maker: ExampleMaker, library: Library) -> None:
    tokens = [len(maker.prompts.source(str(m["content"])).ids) for m in CHAT]
    mixture = MixtureSection(context_tokens=[1, sum(tokens[:4])])
    example = build("chat", maker, library, 0, mixture)
    assert scored_texts(maker, example) == ["Ines did.<|im_end|>"]
    mixture.context_tokens = [1, sum(tokens[:2])]
    with pytest.raises(AssertionError, match="did not work out"):
        build("chat", maker, library, 0, mixture)


def test_questions_share_one_span_and_score_their_answers(maker: ExampleMaker) -> None:
    library = Library({"q": ASKED[:2]})
    mixture = MixtureSection(context_tokens=[4, 1_000])
    counts = set()
    for seed in range(20):
        example = build("qa", maker, library, seed, mixture)
        assert span_texts(maker, example) == ["The oil is in the cellar."]
        scored = scored_texts(maker, example)
        assert set(scored) <= {"In the cellar.<|im_end|>", "Oil<|im_end|>"}
        counts.add(len(scored))
    assert counts == {1, 2}
    mixture.max_questions = 1
    one = [build("qa", maker, library, seed, mixture) for seed in range(20)]
    assert {len(scored_texts(maker, example)) for example in one} == {1}


def test_short_contexts_are_joined_and_questions_name_theirs(
    maker: ExampleMaker, library: Library, prompts: PromptEncoder
) -> None:
    joined = 0
    for seed in range(30):
        example = build("qa", maker, library, seed)
        (context,) = span_texts(maker, example)
        if context.count("\n\n"):
            joined += 1
            name = context[: context.index(":")].split()[0]
            shown = prompts.decoder_tokenizer.decode(example.ids)
            asked = re.findall(rf"{name} (\d+)", shown)
            assert len(asked) == len(scored_texts(maker, example))
            assert {int(number) for number in asked} <= {1, 2}
            assert all(d.text in context for d in ASKED)
        else:
            assert context in {d.text for d in ASKED}
    assert 8 <= joined <= 22


def test_a_context_too_long_is_left_out(maker: ExampleMaker) -> None:
    library = Library({"q": [Document(TEXT, "Who?", ("Ines",))]})
    with pytest.raises(AssertionError, match="did not work out"):
        build("qa", maker, library, 0, MixtureSection(context_tokens=[4, 20]))


def values_of(answer: str) -> list[str]:
    return answer.removesuffix("<|im_end|>").removesuffix(".").split()


@pytest.mark.parametrize("kind", ["needle", "hops"])
def test_an_answer_can_be_told_from_the_folded_text_alone(
    kind: str, maker: ExampleMaker, library: Library, prompts: PromptEncoder
) -> None:
    lists = 0
    for seed in range(60):
        example = build(kind, maker, library, seed)
        (context,) = span_texts(maker, example)
        shown = prompts.decoder_tokenizer.decode(
            [t for t, s in zip(example.ids, example.is_scored, strict=True) if not s]
        )
        lists += example.origin == "needle:list"
        for answer in scored_texts(maker, example):
            last = values_of(answer)[-1]
            assert last in context
            if any(c.isdigit() for c in last):  # a word may also be part of a key
                assert last not in shown
    assert (lists > 5) == (kind == "needle")


def test_needles_never_use_the_words_of_the_test_they_prepare_for(
    maker: ExampleMaker, library: Library
) -> None:
    for seed in range(30):
        for text in span_texts(maker, build("needle", maker, library, seed)):
            assert "magic" not in text
            assert "One of the special" not in text


def test_insertions_stand_between_sentences_and_change_nothing_else() -> None:
    haystack = 'One. Two! "Three?" Four 3.5 is it.\nFive.'
    for seed in range(50):
        needles = ["<A.>", "<B.>", "<C.>"][: 1 + seed % 3]
        text = insert(random.Random(seed), haystack, needles, in_order=True)
        assert re.findall(r"<.\.>", text) == needles
        without = re.sub(r"(?<=\S) <.\.>$|<.\.> ", "", text)
        assert without == haystack
        assert "3.<" not in text
    crowded = insert(random.Random(0), "One.", ["a.", "b.", "c.", "d."], in_order=True)
    assert crowded == "a. b. One. c. d."


def test_made_up_words_differ_and_repeat_with_the_seed() -> None:
    assert len(set(ADJECTIVES) | set(NOUNS)) >= 400
    for seed in range(20):
        made = keys(random.Random(seed), 300)
        assert len(set(made)) == 300
        assert keys(random.Random(seed), 300) == made
    values = different(random.Random(0), 2_000)
    digits = [v for v in values if v.isdigit() and len(v) <= 7]
    assert len(digits) > 800
    assert {len(v) for v in digits} == {3, 4, 5, 6, 7}
    assert any(re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", v) for v in values)
    assert value(random.Random(1)) == value(random.Random(1))


# --- cutting --------------------------------------------------------------------------------


def test_lengths_are_log_uniform_and_within_bounds() -> None:
    rng = random.Random(0)
    lengths = [log_uniform(rng, [10, 1_000]) for _ in range(4_000)]
    assert (min(lengths), max(lengths)) == (10, 1_000)
    assert sum(length < 100 for length in lengths) == pytest.approx(2_000, abs=150)
    assert log_uniform(rng, [7, 7]) == 7


def pieces_of(maker: ExampleMaker, text: str, seed: int) -> Sequence[str]:
    found = stretch(random.Random(seed), maker.prompts, text, 40, 1)
    assert found is not None
    assert found.num_tokens == 40
    return found.cut([15, 5, 20])


def test_pieces_of_a_stretch_are_the_stretch_in_its_own_characters(maker: ExampleMaker) -> None:
    text = "naïve “quoted” — 東京 and 🙂 smile. " * 20
    for seed in range(30):
        whole = "".join(pieces_of(maker, text, seed))
        assert whole in text
        first = text.index(whole)
        assert first == 0 or text[first - 1].isspace()


def test_a_trace_opens_the_part_that_holds_its_answer(
    maker: ExampleMaker, library: Library, prompts: PromptEncoder
) -> None:
    rounds = set()
    for seed in range(40):
        example = build("expand", maker, library, seed)
        pieces = span_texts(maker, example)
        *asked, answer = [said.removesuffix("<|im_end|>") for said in scored_texts(maker, example)]
        opened = []
        for said in asked:
            (call,) = read_calls(said).calls
            numbers, problems = read_numbers(call.arguments["ids"], len(pieces))
            assert not problems
            opened += numbers
        rounds.add(len(asked))
        shown = prompts.decoder_tokenizer.decode(
            [t for t, s in zip(example.ids, example.is_scored, strict=True) if not s]
        )
        assert all(f"[{number}] {pieces[number - 1].strip()}" in shown for number in opened)
        last = values_of(answer)[-1].casefold()
        assert any(last in pieces[number - 1].casefold() for number in opened)
    assert rounds >= {1, 2}


def test_a_trace_begins_as_the_agent_begins(model: octavo.Model, library: Library) -> None:
    maker = ExampleMaker(model.prompts)
    agents = []
    for seed in range(3):
        example = build("expand", maker, library, seed)
        pieces = span_texts(maker, example)
        parts = folded([{"type": "memory", "text": piece} for piece in pieces])
        question = model.prompts.decoder_tokenizer.decode(example.ids).split("Question: ")[1]
        asked = question.split(HOW)[0]
        turn = [*parts, {"type": "text", "text": asking(asked)}]
        ids = model.prompts.encode_messages([{"role": "user", "content": turn}], ratio=10**6)
        agents.append(example.ids[: len(ids.input_ids)] == ids.input_ids)
    assert all(agents)
