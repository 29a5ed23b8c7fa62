"""The server as its clients see it: chat, streams, contexts, files, responses, compaction, keys."""

import base64
import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import CHECKPOINT, TEXT
from servers import http_get, http_post, serving, upstream, wait_for

import octavo
from octavo.errors import ConfigError
from octavo.serve.app import check_host
from octavo.serve.backends.remote import RemoteBackend
from octavo.serve.backends.tools import CallReader
from octavo.serve.limits import Keys, Limits
from octavo.serve.requests import CompressPolicy

LONG = TEXT * 4
ASKED: Any = [{"role": "user", "content": "Who signed?"}]


OPENED: list[openai.OpenAI | httpx.Client] = []


@pytest.fixture(autouse=True)
def _hang_up() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def client_of(url: str) -> openai.OpenAI:
    made = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    OPENED.append(made)
    return made


def http_of(url: str, key: str = "none") -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    made = httpx.Client(base_url=url, headers=headers, timeout=60)
    OPENED.append(made)
    return made


@pytest.fixture(scope="module")
def url(fake_model: octavo.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(fake_model, tmp_path_factory.mktemp("serve")) as address:
        yield address


@pytest.fixture(scope="module")
def local(model: octavo.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(model, tmp_path_factory.mktemp("local")) as address:
        yield address


@pytest.fixture(scope="module")
def locked(fake_model: octavo.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(fake_model, tmp_path_factory.mktemp("locked"), keys=True) as address:
        yield address


@pytest.fixture(scope="module")
def endless() -> octavo.Model:
    """A model that no token stops: its answers are as long as they may be."""
    made = octavo.load(CHECKPOINT, device="cpu")
    made.engine.stop_ids = ()
    return made


def events_of(response: httpx.Response) -> list[Any]:
    lines = [line for line in response.text.split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


# -- chat and completions --------------------------------------------------------------------------


def test_the_server_says_what_the_model_says(local: str, model: octavo.Model) -> None:
    said = client_of(local).chat.completions.create(
        model=model.name, messages=ASKED, max_completion_tokens=9
    )
    wanted = model.generate("Who signed?", max_new_tokens=9)
    assert said.choices[0].message.content == wanted.text
    assert said.usage is not None
    assert said.usage.prompt_tokens == wanted.usage.prompt_tokens
    assert said.usage.completion_tokens == wanted.usage.completion_tokens
    assert said.choices[0].finish_reason == wanted.finish_reason


def test_a_stream_holds_what_the_whole_answer_does(local: str, model: octavo.Model) -> None:
    client = client_of(local)
    whole = client.chat.completions.create(model=model.name, messages=ASKED, max_tokens=9)
    chunks = list(
        client.chat.completions.create(
            model=model.name, messages=ASKED, max_tokens=9, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    said = [chunk for chunk in chunks if chunk.choices]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in said)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].delta.role for c in said] == ["assistant"] + [None] * (len(said) - 1)
    ends = [chunk.choices[0].finish_reason for chunk in said]
    assert ends == [None] * (len(said) - 1) + [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in said)


def test_the_clients_own_stream_helper_understands_several_answers(local: str) -> None:
    with client_of(local).chat.completions.stream(
        model="", messages=ASKED, n=3, max_tokens=5, seed=1, temperature=1.0
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.current_completion_snapshot
    assert "content.done" in kinds
    assert [choice.index for choice in final.choices] == [0, 1, 2]


def test_answers_have_seeds_of_their_own_and_come_again(local: str) -> None:
    def asked() -> list[str | None]:
        made = client_of(local).chat.completions.create(
            model="", messages=ASKED, n=3, max_tokens=8, seed=5, temperature=1.5
        )
        return [choice.message.content for choice in made.choices]

    first = asked()
    assert asked() == first
    assert len(set(first)) > 1


def test_logprobs_have_the_shape_that_clients_read(local: str) -> None:
    made = client_of(local).chat.completions.create(
        model="", messages=ASKED, max_tokens=3, logprobs=True, top_logprobs=2
    )
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    for entry in logprobs.content:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].token == entry.token
    legacy = client_of(local).completions.create(model="", prompt="Row", max_tokens=3, logprobs=1)
    assert legacy.choices[0].logprobs is not None
    assert len(legacy.choices[0].logprobs.tokens or []) == 3


def test_a_stop_string_ends_an_answer_and_is_not_in_it(local: str, model: octavo.Model) -> None:
    whole = model.generate("Who signed?", max_new_tokens=12).text
    stop = whole[2:4]
    chunks = client_of(local).chat.completions.create(
        model="", messages=ASKED, max_tokens=12, stop=[stop], stream=True
    )
    said = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert said == whole.split(stop)[0]


def test_many_clients_get_the_answers_of_one(local: str, model: octavo.Model) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def asked(number: int) -> str | None:
        made = client_of(local).chat.completions.create(
            model="", messages=[{"role": "user", "content": f"Row {number % 5}?"}], max_tokens=6
        )
        return made.choices[0].message.content

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(asked, range(24)))
    wanted = [model.generate(f"Row {n}?", max_new_tokens=6).text for n in range(5)]
    assert found == [wanted[number % 5] for number in range(24)]


ODD: list[Any] = [
    [{"role": "developer", "content": "Be brief."}, *ASKED],
    [*ASKED, {"role": "system", "content": "Late."}],
    [{"role": "user", "content": [{"type": "text", "text": "Who?"}], "name": "x", "extra": 1}],
    [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "done"}]},
    ],
    [*ASKED, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, *ASKED],
]  # fmt: skip


@pytest.mark.parametrize("messages", ODD)
def test_messages_as_agents_send_them_are_answered(url: str, messages: Any) -> None:
    body = {
        "messages": messages, "tools": [], "store": True, "metadata": {"a": 1}, "stop": None,
        "client_metadata": {}, "max_completion_tokens": 4, "response_format": {"type": "text"},
    }  # fmt: skip
    made = http_post(f"{url}/chat/completions", json=body)
    assert made.status_code == 200, made.text
    assert made.json()["choices"][0]["message"]["annotations"] == []
    assert made.headers["x-request-id"]


REFUSED: list[Any] = [
    ({"messages": []}, 400, None),
    ({"messages": ASKED, "model": "gpt-0"}, 404, "model_not_found"),
    ({"messages": ASKED, "max_tokens": 10**9}, 400, "context_length_exceeded"),
    ({"messages": ASKED, "response_format": {"type": "json_object"}}, 400, "unsupported_parameter"),
    ({"messages": ASKED, "tool_choice": "required"}, 400, "unsupported_parameter"),
    ({"messages": ASKED, "logit_bias": {"1": 2}}, 400, "unsupported_parameter"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
     "unsupported_content"),
    ({"messages": [{"role": "user", "content": [{"type": "context", "context_id": "x"}]}]}, 404,
     "context_not_found"),
    ({"messages": ASKED, "temperature": 9}, 400, None),
    ({"messages": ASKED, "ratio": 5}, 400, None),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, None),
    ({"messages": [{"role": "user", "content": "tide " * 9000}], "stream": True}, 400,
     "context_length_exceeded"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code"), REFUSED)
def test_what_cannot_be_answered_is_refused_in_the_form_clients_read(
    url: str, body: Any, status: int, code: str | None
) -> None:
    headers = {"content-type": "application/json"}
    made = http_post(f"{url}/chat/completions", content=json.dumps(body), headers=headers)
    assert made.status_code == status, made.text
    error = made.json()["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/chat/completions", b"{", 400),
        ("/chat/completions", b'{"messages": "\xff"}', 400),
        ("/chat/completions", b"[" * 100_000, 400),
        ("/nothing", b"{}", 404),
        ("/models", b"{}", 405),
    ],
)
def test_bodies_that_are_no_requests_are_refused(
    url: str, path: str, content: bytes, status: int
) -> None:
    headers = {"content-type": "application/json"}
    made = http_post(f"{url}{path}", content=content, headers=headers)
    assert made.status_code == status
    assert made.json()["error"]["message"]


def test_packed_bodies_are_read_and_bounded(url: str) -> None:
    import zstandard

    body = json.dumps({"messages": ASKED, "max_tokens": 2}).encode()
    packed = {"gzip": gzip.compress(body), "zstd": zstandard.ZstdCompressor().compress(body)}
    for coding, content in packed.items():
        headers = {"content-encoding": coding, "content-type": "application/json"}
        made = http_post(f"{url}/chat/completions", content=content, headers=headers)
        assert made.status_code == 200, made.text
    bomb = zstandard.ZstdCompressor().compress(bytes(200 << 20))
    headers = {"content-encoding": "zstd", "content-type": "application/json"}
    made = http_post(f"{url}/chat/completions", content=bomb, headers=headers)
    assert made.status_code == 413
    headers = {"content-encoding": "br"}
    assert http_post(f"{url}/responses", content=body, headers=headers).status_code == 415


def test_a_client_that_vanishes_frees_its_row(endless: octavo.Model, tmp_path: Path) -> None:
    with serving(endless, tmp_path) as url:
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        for is_stream in (True, False):
            asked = {"messages": ASKED, "max_tokens": 4000, "temperature": 2, "stream": is_stream}
            body = json.dumps(asked).encode()
            with socket.create_connection((host, int(port))) as link:
                head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n"
                head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                link.sendall(head.encode() + body)
                wait_for(url, "octavo_rows 1.0")
            wait_for(url, "octavo_rows 0.0")
            wait_for(url, "octavo_jobs 0.0")


def test_a_full_queue_says_when_to_come_again(endless: octavo.Model, tmp_path: Path) -> None:
    with serving(endless, tmp_path, max_waiting=1) as url:
        client = client_of(url)
        running = client.chat.completions.create(
            model="", messages=ASKED, max_tokens=4000, temperature=2, stream=True
        )
        next(iter(running))
        with pytest.raises(openai.RateLimitError) as refusal:
            client.chat.completions.create(model="", messages=ASKED)
        assert refusal.value.response.headers["retry-after"] == "1"
        running.close()
        wait_for(url, "octavo_jobs 0.0")
        client.chat.completions.create(model="", messages=ASKED, max_tokens=1)


def test_calls_are_found_in_text_however_it_is_cut() -> None:
    call = '{"name": "look", "arguments": {"at": 1}}'
    said = f"Well. <tool_call>{call}</tool_call> <tool_call>no</tool_call> a < b <tool_"
    for size in (1, 3, 7, len(said)):
        reader, text, calls = CallReader(), "", []
        for at in range(0, len(said), size):
            more, found = reader.push(said[at : at + size])
            text, calls = text + more, calls + found
        text += reader.push("", is_last=True)[0]
        assert text == "Well.  <tool_call>no</tool_call> a < b <tool_"
        assert [(c["index"], c["function"]["name"]) for c in calls] == [(0, "look")]
        assert json.loads(calls[0]["function"]["arguments"]) == {"at": 1}


# -- documents, contexts and files -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ("yes", "memory is 'yes', expected true"),
        (1, "memory is 1, expected true"),
        ({"ration": 4}, "memory is {'ration': 4}, expected true"),
        ({"ratio": 7}, "ratio 7 is not served"),
        ({"ratio": "4"}, "a part's ratio is '4'"),
    ],
)
def test_a_document_is_never_read_raw_because_its_mark_is_odd(
    local: str, memory: Any, words: str
) -> None:
    part = {"type": "text", "text": LONG, "memory": memory}
    made = http_post(
        f"{local}/chat/completions", json={"messages": [{"role": "user", "content": [part]}]}
    )
    assert made.status_code == 400
    assert words in made.json()["error"]["message"]


def test_documents_are_read_as_latents_and_usage_says_so(local: str, model: octavo.Model) -> None:
    wanted = model.generate("Who signed?", context=LONG, max_new_tokens=6)
    data = base64.b64encode(LONG.encode()).decode()
    made = http_post(f"{local}/contexts", json={"text": LONG, "name": "ferry"}).json()
    assert made["latents"] == wanted.usage.latents
    documents: list[Any] = [
        {"type": "text", "text": LONG, "memory": True},
        {"type": "text", "text": LONG, "memory": True, "ratio": 4},
        {"type": "text", "text": LONG, "memory": {"ratio": 4}},
        {"type": "text", "text": LONG, "memory": {}},
        {"type": "file", "file": {"file_data": data, "filename": "a.txt"}},
        {"type": "file", "file": {"file_data": f"data:text/plain;base64,{data}"}},
        {"type": "context", "context_id": made["id"]},
    ]
    for document in documents:
        question = {"type": "text", "text": "\n\nWho signed?"}
        said = client_of(local).chat.completions.create(
            model="", max_tokens=6, messages=[{"role": "user", "content": [document, question]}]
        )
        assert said.choices[0].message.content == wanted.text
        usage: Any = said.usage
        assert usage.compression["latents"] == wanted.usage.latents
        assert usage.prompt_tokens == wanted.usage.prompt_tokens
        if document is not documents[0]:
            assert usage.prompt_tokens_details.cached_tokens > wanted.usage.latents


def test_a_policy_folds_long_messages_and_leaves_the_question(
    model: octavo.Model, tmp_path: Path
) -> None:
    with serving(model, tmp_path, policy=CompressPolicy(over_tokens=300)) as url:
        messages = [
            {"role": "system", "content": LONG},
            {"role": "user", "content": f"{LONG}\n\nWho signed?"},
        ]
        body = {"messages": messages, "max_tokens": 2}
        usage = http_post(f"{url}/chat/completions", json=body).json()["usage"]
        assert usage["compression"]["folded_messages"] == 2
        assert usage["compression"]["saved_tokens"] > 0
        plain = http_post(f"{url}/chat/completions", json={"messages": ASKED, "max_tokens": 2})
        assert plain.json()["usage"]["compression"]["folded_messages"] == 0


@pytest.mark.slow
def test_an_agent_of_sixty_turns_never_outgrows_the_decoder(
    fake_model: octavo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_model.engine, "max_positions", 10_000)
    messages: list[Any] = [{"role": "system", "content": "You look things up."}, *ASKED]
    with serving(fake_model, tmp_path, policy=CompressPolicy(over_tokens=64)) as url:
        client = client_of(url)
        for number in range(60):
            function = {"name": "look", "arguments": json.dumps({"row": number})}
            call = {"id": f"c{number}", "type": "function", "function": function}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            told = f"{number}: {TEXT[:180]}"
            messages.append({"role": "tool", "tool_call_id": f"c{number}", "content": told})
            usage: Any = client.chat.completions.create(
                model="", messages=messages, max_tokens=2
            ).usage
    assert usage.compression["folded_messages"] == 60
    assert usage.compression["saved_tokens"] + usage.prompt_tokens > 12_000


def test_contexts_are_made_listed_expanded_grown_asked_and_deleted(local: str) -> None:
    http = http_of(local)
    files = [("file", ("a.txt", LONG)), ("file", ("b.md", f"# Tides\n\n{TEXT}"))]
    both = http.post("/contexts", files=files, data={"ratio": "4"}).json()["data"]
    assert [one["name"] for one in both] == ["a.txt", "b.md"]
    page = http.get("/contexts", params={"limit": 1}).json()
    assert page["has_more"]
    rest = http.get("/contexts", params={"after": page["last_id"]}).json()
    assert {one["id"] for one in rest["data"]} >= {both[0]["id"]} - {page["last_id"]}
    id = both[0]["id"]
    passages = http.get(f"/contexts/{id}/passages", params={"limit": 100}).json()["data"]
    assert "".join(one["text"] for one in passages) == LONG
    grown = http.post(f"/contexts/{id}/append", json={"text": " The end."}).json()
    assert grown["id"] != id
    assert grown["source_tokens"] > both[0]["source_tokens"]
    body = {"question": "who signed for the lamp oil?", "context_ids": [id], "max_tokens": 4}
    answer = http.post("/contexts/ask", json=body).json()
    best = answer["passages"][0]
    assert LONG[best["start"] : best["end"]] == best["text"]
    assert "lamp oil" in best["text"]
    assert http.delete(f"/contexts/{id}").json()["deleted"]
    assert http.get(f"/contexts/{id}").status_code == 404


def test_files_are_kept_and_read_by_their_ids(local: str) -> None:
    client = client_of(local)
    made = client.files.create(file=("log.txt", LONG.encode()), purpose="user_data")
    assert client.files.content(made.id).read() == LONG.encode()
    assert made.id in [one.id for one in client.files.list()]
    part: Any = {"type": "file", "file": {"file_id": made.id}}
    said: Any = client.chat.completions.create(
        model="", messages=[{"role": "user", "content": [part]}], max_tokens=2
    )
    assert said.usage.compression["latents"] > 0
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match=r"binary|UTF-8"):
        client.files.create(file=("log.txt", b"\0\1"), purpose="user_data")


# -- responses and compaction ----------------------------------------------------------------------


def test_responses_are_streamed_kept_continued_and_deleted(local: str) -> None:
    client = client_of(local)
    with client.responses.stream(model="", input="Who signed?", max_output_tokens=5) as stream:
        kinds = [event.type for event in stream]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-1] in ("response.completed", "response.incomplete")
    first = client.responses.create(model="", input="Who signed?", max_output_tokens=5)
    kept = client.responses.retrieve(first.id)
    assert kept.output_text == first.output_text
    second = client.responses.create(
        model="", input="And?", previous_response_id=first.id, max_output_tokens=5
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    items = list(client.responses.input_items.list(second.id))
    assert len(items) == 3
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as refusal:
        client.responses.create(model="", input="And?", previous_response_id=first.id)
    assert refusal.value.code == "previous_response_not_found"


HISTORY: Any = [
    {"role": "user", "content": "What does the note say?"},
    {"role": "assistant", "content": LONG},
]


def test_a_compacted_conversation_goes_on_from_latents(local: str) -> None:
    client = client_of(local)
    folded = client.responses.compact(model="", input=HISTORY)
    assert [item.type for item in folded.output] == ["message", "compaction"]
    again: Any = [item.model_dump(warnings=False) for item in folded.output]
    made: Any = client.responses.create(model="", input=[*again, *ASKED], max_output_tokens=4)
    plain: Any = client.responses.create(model="", input=[*HISTORY, *ASKED], max_output_tokens=4)
    assert made.usage.compression["latents"] > 0
    assert made.usage.input_tokens < plain.usage.input_tokens / 2
    changed = again[-1]["encrypted_content"][:-8] + "AAAAAAA="
    foreign = [changed, "gAAAA", again[-1]["encrypted_content"].replace("octavo1.", "octavo1.0")]
    for blob in foreign:
        item: Any = {"type": "compaction", "encrypted_content": blob}
        with pytest.raises(openai.BadRequestError) as refusal:
            client.responses.create(model="", input=[item, *ASKED])
        assert refusal.value.code == "invalid_encrypted_content"


def test_a_conversation_past_its_threshold_folds_itself(local: str) -> None:
    settings: Any = [{"type": "compaction", "compact_threshold": 400}]
    body = {"input": [*HISTORY, *ASKED], "context_management": settings, "stream": True}
    found = events_of(http_post(f"{local}/responses", json={**body, "max_output_tokens": 3}))
    done = found[-1]["response"]
    assert [item["type"] for item in done["output"]] == ["compaction", "message"]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    added = [event["item"]["id"] for event in found if event["type"].endswith("item.added")]
    assert added == [item["id"] for item in done["output"]]
    more = {"input": "And then?", "previous_response_id": done["id"], "max_output_tokens": 3}
    usage = http_post(f"{local}/responses", json=more).json()["usage"]
    assert usage["compression"]["latents"] > 0
    trigger = [*HISTORY, {"type": "compaction_trigger"}]
    made = http_post(f"{local}/responses", json={"input": trigger}).json()
    assert [item["type"] for item in made["output"]] == ["compaction"]


# -- keys ------------------------------------------------------------------------------------------


def test_a_key_is_needed_and_its_scopes_bound_it(locked: str) -> None:
    for key, status in (("wrong", 401), ("sk-reader", 403), ("sk-ada", 200)):
        headers = {"authorization": f"Bearer {key}"}
        assert http_get(f"{locked}/contexts", headers=headers).status_code == status
    assert http_get(f"{locked}/models").status_code == 401
    assert http_get(locked.removesuffix("v1") + "health").status_code == 200
    preflight = httpx.options(
        f"{locked}/chat/completions",
        headers={
            "origin": "https://app.example", "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, x-stainless-os",
        },
    )  # fmt: skip
    assert preflight.status_code == 200
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]


def test_no_key_reaches_what_another_one_made(locked: str) -> None:
    ada, bob = http_of(locked, "sk-ada"), http_of(locked, "sk-bob")
    context = ada.post("/contexts", json={"text": LONG}).json()["id"]
    file = ada.post("/files", files={"file": ("a.txt", TEXT)}, data={"purpose": "x"}).json()["id"]
    response = ada.post("/responses", json={"input": "Who?", "max_output_tokens": 2}).json()["id"]
    blob = ada.post("/responses/compact", json={"input": HISTORY}).json()["output"][-1]
    part = {"type": "context", "context_id": context}
    filed = {"type": "file", "file": {"file_id": file}}
    verbs: list[tuple[str, str, Any]] = [
        ("GET", f"/contexts/{context}", None),
        ("DELETE", f"/contexts/{context}", None),
        ("GET", f"/contexts/{context}/passages", None),
        ("POST", f"/contexts/{context}/append", {"text": "x"}),
        ("POST", "/contexts/ask", {"question": "Who?", "context_ids": [context]}),
        ("POST", "/chat/completions", {"messages": [{"role": "user", "content": [part]}]}),
        ("POST", "/chat/completions", {"messages": [{"role": "user", "content": [filed]}]}),
        ("GET", f"/files/{file}", None),
        ("GET", f"/files/{file}/content", None),
        ("DELETE", f"/files/{file}", None),
        ("GET", f"/responses/{response}", None),
        ("GET", f"/responses/{response}/input_items", None),
        ("POST", f"/responses/{response}/cancel", None),
        ("DELETE", f"/responses/{response}", None),
        ("POST", "/responses", {"input": "And?", "previous_response_id": response}),
        ("POST", "/responses", {"input": [blob, *ASKED]}),
    ]
    for verb, path, body in verbs:
        refused = bob.request(verb, path, json=body)
        assert refused.status_code in (400, 404), (verb, path, refused.text)
    assert bob.get("/contexts").json()["data"] == []
    assert bob.get("/files").json()["data"] == []
    assert ada.get(f"/contexts/{context}").status_code == 200
    # The same text of another key is that key's own, and outlives this one's.
    assert bob.post("/contexts", json={"text": LONG}).json()["id"] == context
    assert ada.delete(f"/contexts/{context}").json()["deleted"]
    assert bob.get(f"/contexts/{context}").status_code == 200


def test_a_server_without_keys_answers_this_machine_alone(url: str) -> None:
    with pytest.raises(ConfigError, match="--api-key-file"):
        check_host("0.0.0.0", None)
    check_host("::1", None)
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
        assert http_get(f"{url}/models", headers=headers).status_code == 403
    assert http_get(f"{url}/models", headers={"origin": "http://localhost:3"}).status_code == 200


def test_a_key_file_that_is_wrong_is_refused(tmp_path: Path) -> None:
    for text in ("", "[[key]]", '[[key]]\nname = "a"\nkey = "b"\nscopes = ["all"]', "key = 1"):
        (tmp_path / "keys.toml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"cannot be used|has no key"):
            Keys(tmp_path / "keys.toml")


# -- another server behind -------------------------------------------------------------------------


def test_a_server_further_on_gets_documents_and_answers_through_us(tmp_path: Path) -> None:
    with upstream() as (far, sent):
        backend = RemoteBackend(far, Limits())
        with serving(None, tmp_path, backend=backend) as url:
            client = client_of(url)
            assert [one.id for one in client.models.list()] == ["far"]
            made = http_post(f"{url}/contexts", json={"text": LONG}).json()
            part: Any = {"type": "context", "context_id": made["id"]}
            question: Any = {"type": "text", "text": "How many?"}
            asked: Any = [{"role": "user", "content": [part, question]}]
            said = client.chat.completions.create(model="far", messages=asked)
            assert said.choices[0].message.content == "three crates"
            assert said.usage is not None
            assert said.usage.prompt_tokens_details is not None
            assert said.usage.prompt_tokens_details.cached_tokens == 4
            assert sent[-1]["messages"][0]["content"][0] == {
                "type": "text", "text": LONG, "memory": True,
            }  # fmt: skip
            part = {"type": "text", "text": LONG, "memory": True, "ratio": 8}
            body = {"messages": [{"role": "user", "content": [part]}], "ratio": 16}
            usage = http_post(f"{url}/chat/completions", json=body).json()["usage"]
            assert sent[-1]["messages"][0]["content"][0]["memory"] == {"ratio": 8}
            assert sent[-1]["chat_template_kwargs"] == {"ratio": 16}
            assert usage["compression"]["source_tokens"] == 30
            assert usage["compression"]["latents"] == 7
            folded = client.responses.compact(model="far", input=HISTORY)
            again: Any = [folded.output[-1].model_dump(), *ASKED]
            assert client.responses.create(model="far", input=again).output_text == "three crates"
            parts = sent[-1]["messages"][0]["content"]
            assert [part.get("memory") for part in parts] == [True, None, None]
            with pytest.raises(openai.BadRequestError) as refusal:
                client.chat.completions.create(model="far", messages=asked, max_tokens=99)
            assert refusal.value.code == "context_length_exceeded"
    with pytest.raises(ConfigError, match="no model answers"):
        RemoteBackend(far, Limits())
