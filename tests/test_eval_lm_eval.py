"""The lm-evaluation-harness adapter: where prompts are cut, and what the harness gets back."""

import abc
import copy
import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT, TEXT
from engines import Oracle, oracle
from tokenizers.processors import TemplateProcessing

import octavo
from octavo.config import MEMORY_END, MEMORY_START
from octavo.engine.base import Batch, Prompt, Sampling
from octavo.errors import EvaluationError, MissingExtraError, PromptTooLongError
from octavo.prompt import PromptEncoder
from octavo_evals.harness import lm_eval as adapter
from octavo_evals.harness.flat import split
from octavo_evals.methods import make_method
from octavo_evals.parts import cut
from octavo_evals.reading import read
from octavo_evals.task import DataFiles, Item

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic numbers for calm-otter is: 4830571."
NIAH = (
    "A special magic number is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the number afterwards.\n",
    f"{NOISE}\n{NEEDLE}\n{NOISE}",
    "\nWhat is the special magic number for calm-otter mentioned in the provided text?",
    "The special magic number for calm-otter mentioned in the provided text is",
)
VT = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
VT_ASKED = "\nQuestion: Find all variables that are assigned the value {} in the text above."
VT_ANSWER = (
    "Answer: According to the chain(s) of variable assignment in the text above, 5 variables are "
    "assgined the value {}, they are:"
)
QA = "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"  # noqa: E501
RULER = {
    "niah, one": ("".join(NIAH[:1]), NIAH[1], f"{NIAH[2]} {NIAH[3]}"),
    "niah, many": (
        "Some special magic uuids are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the uuids afterwards.\n",
        "One of the special magic uuids for a-b is: 5.\nOne of the special magic uuids for c is: 6",
        "\nWhat are all the special magic uuids for a-b, and c mentioned in the provided text? "
        "The special magic uuids for a-b, and c mentioned in the provided text are",
    ),
    "vt": (
        f"{VT} {NOISE}\n VAR ABC = 12345 {NOISE}\n{VT_ASKED.format(12345)} "
        f"{VT_ANSWER.format(12345)} ABC DEF GHI JKL MNO\n\n\n\n{VT}",
        f"{NOISE}\n VAR QWERT = 67890 {NOISE}\n VAR ASDFG = VAR QWERT  {NOISE}\n",
        f"{VT_ASKED.format(67890)} {VT_ANSWER.format(67890)}",
    ),
    "cwe": (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n",
        "1. owl 2. tide 3. owl 4. question: 5. owl",
        "\nQuestion: What are the 10 most common words in the above list?\n\n"
        "Answer: The top 10 words that appear most often in the list are:",
    ),
    "fwe": (
        "Read the following coded text and track the frequency of each coded word. Find the three "
        "most frequently appeared coded words. ",
        "... abcdef ... ... ghijkl abcdef ...",
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
        "three most frequently appeared words in the above coded text? Answer: According to the "
        "coded text above, the three most frequently appeared words are:",
    ),
    "qa": (
        f"{QA}The following are given documents.\n\n",
        "Document 1:\nIt has no question.\n\nDocument 2:\nQuestion: none.",
        f"\n\n{QA}Question: Who asked? Answer:",
    ),
}
"""Prompts as lm_eval 0.4.13 puts them together, in three."""


def asked(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def find_needle(text: str) -> list[str]:
    return ["4830571"] if NEEDLE in text else ["no idea"]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """As much of lm_eval as the adapter touches."""

    class LM(abc.ABC):
        def __init__(self) -> None:
            self.cached: list[tuple[str, Any, Any]] = []
            self.cache_hook = SimpleNamespace(add_partial=lambda *args: self.cached.append(args))

        @abc.abstractmethod
        def generate_until(self, requests: Any) -> Any: ...

        @abc.abstractmethod
        def loglikelihood(self, requests: Any) -> Any: ...

        @abc.abstractmethod
        def loglikelihood_rolling(self, requests: Any) -> Any: ...

    models: dict[str, type] = {}
    ran: list[list[str]] = []

    def register_model(name: str) -> Any:
        def decorate(kind: type) -> type:
            assert issubclass(kind, LM)
            assert name not in models
            models[name] = kind
            return kind

        return decorate

    contents: dict[str, dict[str, Any]] = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"LM": LM},
        "lm_eval.api.registry": {"register_model": register_model},
        "lm_eval.utils": {
            "simple_parse_args_string": lambda given: dict(p.split("=") for p in given.split(","))
        },
        "lm_eval.__main__": {"cli_evaluate": lambda: ran.append(sys.argv[1:])},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    adapter.register.cache_clear()
    yield SimpleNamespace(models=models, ran=ran)
    adapter.register.cache_clear()


@pytest.fixture
def make(harness: SimpleNamespace) -> Any:
    return adapter.register()


class Listener(Oracle):
    """Keeps the prompts it reads."""

    def __init__(self, like: octavo.Model) -> None:
        super().__init__(like, find_needle)
        self.heard: list[tuple[list[int], list[list[float]]]] = []

    def start(self, prompts: Sequence[Prompt], sampling: Sampling) -> Batch:
        (prompt,) = prompts
        latents = [] if prompt.latents is None else prompt.latents.tolist()
        self.heard.append((list(prompt.input_ids), latents))
        return super().start(prompts, sampling)


# --- where prompts are cut ---------------------------------------------------------------------


@pytest.mark.parametrize("name", RULER)
def test_a_ruler_prompt_is_cut_between_its_instruction_and_its_question(name: str) -> None:
    before, context, after = RULER[name]
    found = split(before + context + after)
    assert found == (before, context, after)


def test_a_worked_example_is_not_compressed() -> None:
    assert "ABC DEF GHI JKL MNO" in split("".join(RULER["vt"]))[0]


@pytest.mark.parametrize("compress", ["auto", "all", "none"])
def test_tags_tell_what_to_compress_before_any_other_rule(compress: Any) -> None:
    inside = "".join(RULER["cwe"])
    found = split(f"Words: {MEMORY_START}{inside}{MEMORY_END}\n\nWhich?", compress)
    assert found == ("Words: ", inside, "\n\nWhich?")


@pytest.mark.parametrize(
    ("prompt", "counts"),
    [
        (f"{MEMORY_START}a{MEMORY_END}b{MEMORY_START}c{MEMORY_END}d", "2 .* and 2 "),
        (f"{MEMORY_START}a", "1 .* and 0 "),
        (f"a{MEMORY_END}b{MEMORY_START}c", "1 .* and 1 "),
        (f"{MEMORY_START}{MEMORY_END}b", "1 .* and 1 "),
    ],
)
def test_tags_that_are_not_one_pair_around_a_text_are_refused(prompt: str, counts: str) -> None:
    with pytest.raises(EvaluationError, match=counts + ".*one of each around some text"):
        split(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "Question: What is 2 + 2?\nAnswer:",
        NIAH[0] + NIAH[1],  # no question
        NIAH[2] + NIAH[0],  # the question comes first
        NIAH[0] + NIAH[1] + RULER["cwe"][2],  # instruction and question of different tasks
    ],
)
def test_a_prompt_that_no_rule_fits_is_refused_with_the_ways_out(prompt: str) -> None:
    with pytest.raises(EvaluationError, match="compress=all, or method=raw,compress=none"):
        split(prompt)


def test_a_whole_prompt_may_be_compressed_or_none_of_it() -> None:
    prompt = "".join(NIAH)
    assert split(prompt, "all") == ("", prompt, "")
    assert split(prompt, "none") == (prompt, "", "")
    assert split("", "all") == split("", "auto") == ("", "", "")


# --- answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "answer"),
    [("octavo", "4830571"), ("raw", "4830571"), ("none", "no idea"), ("identity", None)],
)
def test_methods_read_a_flat_prompt_as_they_read_items(
    make: Any, fake_model: octavo.Model, method: str, answer: str | None
) -> None:
    if answer is None:
        with pytest.raises(octavo.ConfigError, match="no torch module"):
            ask(make(oracle(fake_model, find_needle), method=method))
        return
    assert ask(make(oracle(fake_model, find_needle), method=method, ratio=4)) == [f" {answer}"]


def ask(tested: Any, **keywords: Any) -> list[str]:
    prompt = f"{NIAH[0]}{NIAH[1]}{NIAH[2]} {NIAH[3]}"
    answers: list[str] = tested.generate_until([asked(prompt, keywords)], disable_tqdm=True)
    return answers


def test_questions_about_one_context_compress_it_once(make: Any, fake_model: octavo.Model) -> None:
    model = oracle(fake_model, find_needle)
    tested = make(model)
    prompts = [f"{NIAH[0]}{NIAH[1]}{NIAH[2]} {begun}" for begun in ("It is", "I say")]
    tested.generate_until([asked(p, {}) for p in prompts], disable_tqdm=True)
    assert model.engine.num_encoded == 1
    other = prompts[0].replace("4830571", "1111111")
    tested.generate_until([asked(other, {}), asked(prompts[0], {})], disable_tqdm=True)
    assert model.engine.num_encoded == 3


def test_an_answer_ends_at_a_stop_string_and_at_its_limit(
    make: Any, fake_model: octavo.Model
) -> None:
    tested = make(oracle(fake_model, lambda text: ["one", "two", "three"]), method="raw")
    assert ask(tested) == [" one, two, three"]
    assert ask(tested, until=["three", ", t"]) == [" one"]
    assert ask(tested, until=", th") == [" one, two"]
    short = ask(tested, until=[], max_gen_toks=3)[0]
    assert short == fake_model.prompts.decoder_tokenizer.decode(
        fake_model.prompts.text_ids(" one, two, three")[:3]
    )
    assert ask(tested, max_new_tokens=3) == [short]
    limited = make(oracle(fake_model, lambda text: ["one", "two"]), method="raw", max_gen_toks=3)
    assert ask(limited) == [short]


def test_the_harness_can_store_every_answer(make: Any, model: octavo.Model) -> None:
    tested = make(model, ratio=4)
    prompt, keywords = "".join(NIAH), {"max_gen_toks": 2}
    answers = tested.generate_until([asked(prompt, keywords)], disable_tqdm=True)
    scores = tested.loglikelihood([asked(prompt, " 4")], disable_tqdm=True)
    rolling = tested.loglikelihood_rolling([asked("a text")], disable_tqdm=True)
    assert tested.cached == [
        ("generate_until", (prompt, keywords), answers[0]),
        ("loglikelihood", (prompt, " 4"), scores[0]),
        ("loglikelihood_rolling", ("a text",), rolling[0]),
    ]


def test_sampling_and_prompts_that_do_not_fit_are_refused(
    make: Any, fake_model: octavo.Model
) -> None:
    tested = make(oracle(fake_model, find_needle, max_positions=300), ratio=4)
    assert ask(tested, do_sample=False, temperature=0.7, max_gen_toks=8) == [" 4830571"]
    with pytest.raises(EvaluationError, match=r"samples at temperature 0.7.*do_sample=False"):
        ask(tested, do_sample=True, temperature=0.7)
    with pytest.raises(PromptTooLongError, match="has 300"):
        ask(make(oracle(fake_model, find_needle, max_positions=300), method="raw"))


def test_the_shuffled_control_reads_another_requests_context(
    make: Any, fake_model: octavo.Model
) -> None:
    tested = make(oracle(fake_model, find_needle), method="shuffled", ratio=4)
    with_needle = f"{NIAH[0]}{NIAH[1]}{NIAH[2]} {NIAH[3]}"
    without = with_needle.replace(NEEDLE, NOISE)
    answers = tested.generate_until([asked(with_needle, {}), asked(without, {})], disable_tqdm=True)
    assert answers[0] == " no idea"
    assert "483057" in answers[1] or answers[1] == " 4830571"
    with pytest.raises(EvaluationError, match="raise --limit"):
        ask(tested)


def test_a_chat_prompt_is_read_as_octavos_own_evaluation_reads_it(
    make: Any, fake_model: octavo.Model
) -> None:
    listener = Listener(fake_model)
    model = octavo.Model(listener, fake_model.prompts)
    tested = make(model, ratio=4)
    rendered = tested.apply_chat_template(
        [
            {"role": "user", "content": "".join(NIAH[:3])},
            {"role": "assistant", "content": NIAH[3]},
        ],
        add_generation_prompt=False,
    )
    assert f"{MEMORY_START}{NIAH[1]}{MEMORY_END}" in rendered
    answers = tested.generate_until([asked(rendered, {"max_gen_toks": 8})], disable_tqdm=True)
    item = Item(id="0", before=NIAH[0], context=NIAH[1], after=NIAH[2], prefix=NIAH[3])
    method, parts = make_method("octavo", 4, model, DataFiles()), cut(model.prompts, item)
    read(model, method.hold(parts), parts)
    assert answers == [" 4830571"]
    assert listener.heard[0] == listener.heard[1]


def test_a_prompt_begins_with_one_bos_whoever_puts_it_there(
    make: Any, fake_model: octavo.Model
) -> None:
    tokenizer = copy.deepcopy(fake_model.prompts.decoder_tokenizer)
    bos, first = "<|endoftext|>", tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, first)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    listener = Listener(fake_model)
    prompts = PromptEncoder(tokenizer, tokenizer, fake_model.config)
    tested = make(octavo.Model(listener, prompts), ratio=4)
    flat = "".join(NIAH)
    chat = tested.apply_chat_template([{"role": "user", "content": flat}])
    assert chat.startswith(bos)
    tested.generate_until([asked(flat, {}), asked(chat, {})], disable_tqdm=True)
    for ids, _ in listener.heard:
        assert ids[0] == first
        assert ids.count(first) == 1


def test_chat_rules_follow_compress(make: Any, fake_model: octavo.Model) -> None:
    user = {"role": "user", "content": "Say it."}
    rendered = make(fake_model, compress="all").apply_chat_template([user])
    assert f"{MEMORY_START}Say it.{MEMORY_END}" in rendered
    assert rendered.endswith("<|im_start|>assistant\n")
    tested = make(fake_model, compress="none", method="raw")
    assert MEMORY_START not in tested.apply_chat_template([user])
    with pytest.raises(EvaluationError, match="compress=all, or"):
        make(fake_model).apply_chat_template([user])
    answer = {"role": "assistant", "content": "It."}
    with pytest.raises(EvaluationError, match=r"there are 2.*fewshot_as_multiturn"):
        make(fake_model, compress="all").apply_chat_template([user, answer, user])


def test_the_chat_template_is_the_decoders_and_has_no_name(
    make: Any, fake_model: octavo.Model
) -> None:
    tested = make(fake_model)
    assert tested.chat_template() is None
    assert tested.chat_template(True) == fake_model.prompts.decoder_tokenizer.chat_template
    with pytest.raises(EvaluationError, match="'rag' was asked for"):
        tested.chat_template("rag")


def test_stored_prompts_of_other_models_and_rules_have_other_names(
    make: Any, fake_model: octavo.Model
) -> None:
    names = {make(fake_model, compress=rule).tokenizer_name for rule in ("auto", "all")}
    assert len(names) == 2
    assert all(fake_model.fingerprint in name and "/" not in name for name in names)


# --- likelihoods, against slow twins -----------------------------------------------------------


def slow_nats(
    model: octavo.Model, ids: Sequence[int], target: Sequence[int], latents: Any = None
) -> list[tuple[float, bool]]:
    """Read everything anew for every token."""
    found = []
    for at, token in enumerate(target):
        row = torch.tensor([[*ids, *target[:at]]])
        with torch.inference_mode():
            output = model.lclm.decoder(inputs_embeds=model.lclm.embed(row, latents))
        logits = output.logits[0, -1].float()
        found.append((-logits.log_softmax(-1)[token].item(), bool(logits.argmax() == token)))
    return found


def likelihood(model: octavo.Model, *args: Any) -> tuple[float, bool]:
    found = slow_nats(model, *args)
    return -sum(nats for nats, _ in found), all(hit for _, hit in found)


TAGGED = f"Read: {MEMORY_START}{TEXT}{MEMORY_END}\n\nWho copied the tide table?"


@pytest.mark.parametrize("method", ["octavo", "raw", "none"])
def test_a_continuation_is_as_likely_as_a_slow_reading_finds_it(
    make: Any, model: octavo.Model, method: str
) -> None:
    text_ids = model.prompts.text_ids
    head, tail = text_ids("Read: "), text_ids("\n\nWho copied the tide table?")
    latents = model.compress(TEXT, ratio=4).latents
    slots = [model.prompts.slot_id] * len(latents)
    middle = {
        "octavo": [model.prompts.start_id, *slots, model.prompts.end_id],
        "raw": text_ids(TEXT),
        "none": [],
    }[method]
    tested = make(model, method=method, ratio=4)
    continuations = [" Ines", " The clerk did."]
    scores = tested.loglikelihood([asked(TAGGED, one) for one in continuations], disable_tqdm=True)
    for continuation, (score, is_greedy) in zip(continuations, scores, strict=True):
        wanted = likelihood(
            model,
            [*head, *middle, *tail],
            text_ids(continuation),
            latents if method == "octavo" else None,
        )
        assert score == pytest.approx(wanted[0], rel=1e-4)
        assert is_greedy is wanted[1]


def test_what_greedy_decoding_says_is_told_to_be_greedy(make: Any, model: octavo.Model) -> None:
    tested = make(model, ratio=4)
    (answer,) = tested.generate_until([asked(TAGGED, {"max_gen_toks": 1})], disable_tqdm=True)
    assert model.prompts.text_ids(answer), "the golden model says nothing here"
    scores = tested.loglikelihood([asked(TAGGED, answer), asked(TAGGED, " Ines")], True)
    assert [is_greedy for _, is_greedy in scores] == [True, False]
    assert scores[0][0] > scores[1][0]


def test_white_space_at_the_end_of_a_context_belongs_to_the_continuation(
    make: Any, model: octavo.Model
) -> None:
    tested = make(model, ratio=4)
    plain, moved = tested.loglikelihood(
        [asked(TAGGED, " Ines"), asked(f"{TAGGED} ", "Ines")], disable_tqdm=True
    )
    assert moved == plain


@pytest.mark.parametrize("method", ["octavo", "none"])
def test_an_empty_prompt_has_nothing_to_compress(
    make: Any, model: octavo.Model, method: str
) -> None:
    tested = make(model, method=method, ratio=4)
    ((score, _),) = tested.loglikelihood([asked("", "Ines")], disable_tqdm=True)
    first = first_id(model)
    assert score == pytest.approx(likelihood(model, [first], model.prompts.text_ids("Ines"))[0])


def first_id(model: octavo.Model) -> int:
    tokenizer = model.prompts.decoder_tokenizer
    found = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None]
    return int(found[0])


@pytest.mark.parametrize("max_length", [2, 7, 16, 4096])
def test_a_whole_text_is_scored_in_windows_each_token_once(
    make: Any, model: octavo.Model, max_length: int
) -> None:
    ids = [first_id(model), *model.prompts.text_ids(TEXT[:120])]
    total, at = 0.0, 1
    while at < len(ids):  # the last window reaches back as far as it can
        stop = min(len(ids), at + max_length - 1)
        total -= sum(nats for nats, _ in slow_nats(model, ids[max(0, stop - max_length) : at],
                                                   ids[at:stop]))  # fmt: skip
        at = stop
    tested = make(model, max_length=max_length)
    (score,) = tested.loglikelihood_rolling([asked(TEXT[:120])], disable_tqdm=True)
    assert score == pytest.approx(total, rel=1e-4)
    assert tested.loglikelihood_rolling([asked("")], disable_tqdm=True) == [0]


# --- arguments, registration, command line -----------------------------------------------------


def test_the_harness_finds_the_model_and_makes_it_of_its_arguments(
    harness: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = adapter.register()
    assert adapter.register() is made
    assert harness.models == {"octavo": made}
    arguments = {"pretrained": str(CHECKPOINT), "engine": "fake", "ratio": 4, "method": "bm25@2"}
    line = {"batch_size": 1, "max_batch_size": None, "device": "cpu"}
    tested: Any = made.create_from_arg_obj(arguments, line)
    told = tested.get_model_info()
    assert (told["octavo_method"], told["octavo_ratio"]) == ("bm25", 2)
    assert told["octavo_fingerprint"] == tested.model.fingerprint
    by_string: Any = made.create_from_arg_string(f"pretrained={CHECKPOINT},engine=fake", line)
    assert by_string.get_model_info()["octavo_ratio"] == 4

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu: Any = made.create_from_arg_obj({"pretrained": str(CHECKPOINT)}, {"device": "cuda:0"})
    assert next(cpu.model.lclm.parameters()).device.type == "cpu"
    with pytest.raises(octavo.ConfigError, match="device 'warp'"):
        made.create_from_arg_obj(
            {"pretrained": str(CHECKPOINT), "device": "warp"}, {"device": "cuda:0"}
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compresion": "all"}, "unknown model argument compresion; known: pretrained, method"),
        ({"compress": "half"}, "compress='half', expected one of auto, all, none"),
        ({"compress": "none"}, "give method=raw with it"),
        ({"max_length": 1}, "max_length is 1, expected at least 2"),
        ({"method": "octvo"}, "did you mean octavo"),
    ],
)
def test_a_wrong_argument_is_refused(
    make: Any, fake_model: octavo.Model, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        make(fake_model, **arguments)


def test_without_the_harness_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    adapter.register.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'octavo\[lm-eval\]'"):
        adapter.register()
    with pytest.raises(SystemExit, match="error: the harness adapter needs lm_eval"):
        adapter.main()


def test_generators_are_told_where_the_decoders_tokenizer_lies(
    harness: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["run", "--model", "octavo", "--model_args", f"pretrained={CHECKPOINT},ratio=4"]
    lengths = ["--metadata", '{"max_seq_lengths": [1024]}']
    monkeypatch.setattr(sys, "argv", ["lm-eval", *run, *lengths])
    adapter.main()
    (told,) = harness.ran
    assert told[:-1] == [*run, *lengths, "--metadata"]
    assert json.loads(told[-1]) == {"tokenizer": str(CHECKPOINT / "decoder")}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(json.loads(told[-1])["tokenizer"])
    assert tokenizer("Who?").input_ids


@pytest.mark.parametrize(
    "args",
    [
        ["run", "--model", "hf", "--model_args", "pretrained=gpt2"],
        ["run", "--model", "octavo", "--metadata", "tokenizer=gpt2"],
        ["run", "-M", "octavo", "-a", '{"tokenizer": "gpt2"}'],
        ["ls", "tasks"],
        ["run", "--model", "hf", "--metadata", "{not JSON"],  # the harness says so itself
    ],
)
def test_other_command_lines_are_left_alone(args: list[str]) -> None:
    assert adapter.with_tokenizer(args) == args


# --- the harness itself ------------------------------------------------------------------------

CHOICES = """
task: crates
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "<|memory_start|>{{{{context}}}}<|memory_end|>\\n\\n{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


TWINS = """
import json, sys, warnings
warnings.simplefilter("ignore")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from octavo_evals.harness.lm_eval import register
folder, text = sys.argv[1:]
chat = "<|im_start|>user\\nWho?<|im_end|>\\n<|im_start|>assistant\\n"
asked = {
    "loglikelihood": [
        ("Low at", " 04:10"), ("Low at: ", "04:10"), ("", "Ines"), (chat, "Ines"),
        (text[:40], " 04"),
    ],
    "loglikelihood_rolling": [("",), (text[:9],), (text,), (3 * text,)],
    "generate_until": [
        (one, {"until": ["r"], "max_gen_toks": 12, "do_sample": False}) for one in ("Low at", chat)
    ],
}
raw = {"method": "raw", "compress": "none"}
models = [
    HFLM(pretrained=folder + "/decoder", device="cpu", dtype="float32", max_length=64),
    register()(folder, device="cpu", max_length=65, **raw),
]
told = [
    {
        kind: getattr(model, kind)([
            Instance(request_type=kind, doc={}, arguments=a, idx=0, metadata=("t", 0, 1))
            for a in args if a != ("",) or model is not models[0]
        ], disable_tqdm=True)
        for kind, args in asked.items()
    }
    for model in models
]
print(json.dumps(told))
"""
"""Asks the harness's own model and ours, which reads raw, about one decoder."""


def need_the_harness() -> None:
    wanted = ("lm_eval", "nltk", "scipy", "wonderwords")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'octavo[lm-eval]'")


@pytest.mark.slow
def test_a_raw_reading_has_the_numbers_of_the_harnesss_own_model() -> None:
    need_the_harness()
    done = subprocess.run(
        [sys.executable, "-c", TWINS, str(CHECKPOINT), TEXT],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    theirs, ours = json.loads(done.stdout.splitlines()[-1])
    assert ours["generate_until"] == theirs["generate_until"]
    # Asked for nothing, the harness's own model fails.
    assert ours["loglikelihood_rolling"] == pytest.approx(
        [0, *theirs["loglikelihood_rolling"]], rel=1e-5
    )
    for our, their in zip(ours["loglikelihood"], theirs["loglikelihood"], strict=True):
        assert our == [pytest.approx(their[0], rel=1e-5), their[1]]


@pytest.mark.slow
@pytest.mark.parametrize("chat", [[], ["--apply_chat_template"]])
def test_the_real_harness_runs_a_generator_and_a_tagged_task(
    tmp_path: Path, chat: list[str]
) -> None:
    need_the_harness()
    (tmp_path / "tasks").mkdir()
    # What the harness would fetch although these tasks do not use it.
    (tmp_path / "tokenizers" / "punkt_tab").mkdir(parents=True)
    data = tmp_path / "crates.jsonl"
    record = {"context": TEXT, "question": "How many?", "choices": ["two", "three"], "answer": 1}
    data.write_text(json.dumps(record) + "\n", encoding="utf-8")
    task = tmp_path / "tasks" / "crates.yaml"
    task.write_text(CHOICES.format(data=data), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable, "-m", "octavo_evals.harness.lm_eval", "run", "--model", "octavo",
            "--model_args", f"pretrained={CHECKPOINT},ratio=4", "--limit", "1",
            "--tasks", "niah_single_1,crates", "--include_path", str(tmp_path / "tasks"),
            "--metadata", '{"max_seq_lengths": [1024]}', "--gen_kwargs", "max_gen_toks=4",
            "--output_path", str(tmp_path / "out"), "--log_samples", *chat,
        ],
        env={**os.environ, "HF_HOME": str(tmp_path), "NLTK_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    told = json.loads(results.read_text(encoding="utf-8"))
    assert told["config"]["octavo_method"] == "octavo"
    assert set(told["results"]) == {"niah_single_1", "crates"}
    assert told["results"]["niah_single_1"]["1024,none"] in (0, 1)
    assert told["results"]["crates"]["acc,none"] in (0, 1)
    (samples,) = (tmp_path / "out").rglob("samples_niah_single_1_*.jsonl")
    sample = json.loads(samples.read_text(encoding="utf-8").splitlines()[0])
    prompt = sample["arguments"]["gen_args_0"]["arg_0"]
    assert (MEMORY_START in prompt) == bool(chat)
    assert prompt.endswith(sample["doc"]["gen_prefix"])
    before, context, after = split(prompt)
    (number,) = sample["doc"]["outputs"]
    assert number in context
    assert number not in before + after
