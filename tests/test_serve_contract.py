"""What clients of OpenAI's protocol do, and what a server must say to it: one test a habit.

Each habit broke some client on some server; the model here is scripted, so that every test decides
what is said.
"""

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from conftest import TEXT
from servers import http_get, http_post, serving, upstream, wait_for

import octavo
from octavo.engine.fake import ScriptedEngine
from octavo.serve.backends.remote import RemoteBackend
from octavo.serve.backends.tools import ThoughtReader
from octavo.serve.limits import Limits

ASKED: Any = [{"role": "user", "content": "Who signed?"}]
LOOK: Any = {
    "type": "function",
    "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}},
}
CALL = '<tool_call>{"name": "look", "arguments": {"at": 1}}</tool_call>'
Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def url(fake_model: octavo.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(fake_model, tmp_path_factory.mktemp("contract")) as address:
        yield address


@pytest.fixture
def saying(fake_model: octavo.Model, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Serve a model that says the given lines, one an answer."""
    opened = []

    def serve(*lines: str, **limits: Any) -> str:
        prompts = fake_model.prompts
        engine = ScriptedEngine(
            fake_model.config, fake_model.extension, "scripted",
            script=[prompts.text_ids(line) for line in lines],
            stop_ids=fake_model.engine.stop_ids, control_ids=frozenset(), max_positions=100_000,
        )  # fmt: skip
        server = serving(octavo.Model(engine, prompts), tmp_path / str(len(opened)), **limits)
        opened.append(server)
        (tmp_path / str(len(opened) - 1)).mkdir()
        return server.__enter__()

    yield serve
    for server in opened:
        server.__exit__(None, None, None)


def post(url: str, path: str = "/chat/completions", **body: Any) -> httpx.Response:
    if path == "/chat/completions":
        body = {"messages": ASKED, **body}
    return httpx.post(f"{url}{path}", json=body, timeout=60)


def chunks(made: httpx.Response) -> list[Any]:
    assert made.status_code == 200, made.text
    lines = [line for line in made.text.split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def text_of(found: list[Any]) -> str:
    deltas = [chunk["choices"][0]["delta"] for chunk in found if chunk["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


# -- chat: chunks ----------------------------------------------------------------------------------


def test_choices_are_empty_in_the_usage_chunk_alone(url: str) -> None:
    plain = chunks(post(url, stream=True, max_tokens=4))
    assert all(len(chunk["choices"]) == 1 for chunk in plain)
    assert all("usage" not in chunk for chunk in plain)
    counted = chunks(post(url, stream=True, max_tokens=4, stream_options={"include_usage": True}))
    assert [len(chunk["choices"]) for chunk in counted] == [1] * (len(counted) - 1) + [0]


def test_exactly_one_chunk_says_why_an_answer_ended(url: str) -> None:
    found = chunks(post(url, stream=True, max_tokens=3))
    assert [c["choices"][0]["finish_reason"] for c in found] == [None] * (len(found) - 1) + [
        "length"
    ]
    assert post(url, stream=True, max_tokens=3).text.endswith("data: [DONE]\n\n")


def test_the_role_stands_in_the_first_delta_alone(url: str) -> None:
    deltas = [c["choices"][0]["delta"] for c in chunks(post(url, stream=True, max_tokens=3))]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert all("role" not in delta for delta in deltas[1:])


def test_tool_calls_have_an_index_and_their_name_at_once(saying: Any) -> None:
    found = chunks(post(saying(f"{CALL}\n{CALL}"), stream=True, tools=[LOOK]))
    calls = [call for chunk in found for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert [call["index"] for call in calls] == [0, 1]
    assert [call["function"]["name"] for call in calls] == ["look", "look"]
    assert len({call["id"] for call in calls}) == 2
    assert json.loads(calls[0]["function"]["arguments"]) == {"at": 1}
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_annotations_are_there_though_empty(url: str) -> None:
    assert post(url, max_tokens=2).json()["choices"][0]["message"]["annotations"] == []


def test_comments_keep_an_idle_stream_open_unless_switched_off(
    fake_model: octavo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.serve.wire.HEARTBEAT_SECONDS", 0.05)
    encode = fake_model.engine.start

    def slow(*given: Any) -> Any:
        time.sleep(0.4)
        return encode(*given)

    monkeypatch.setattr(fake_model.engine, "start", slow)
    for heartbeat in (True, False):
        (folder := tmp_path / str(heartbeat)).mkdir()
        with serving(fake_model, folder, heartbeat=heartbeat) as url:
            said = post(url, stream=True, max_tokens=2).text
        assert (": still at work" in said) == heartbeat


def test_a_failing_stream_says_so_and_pretends_no_end(
    fake_model: octavo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> Any:
        raise RuntimeError("no memory is left")

    monkeypatch.setattr(fake_model.engine, "start", fail)
    with serving(fake_model, tmp_path) as url:
        said = post(url, stream=True)
        last = chunks(said)[-1]
        assert last["error"]["type"] == "server_error"
        assert '"finish_reason":"stop"' not in said.text
        assert "[DONE]" not in said.text
        events = chunks(post(url, "/responses", input="Who?", stream=True))
        assert events[-1]["type"] == "response.failed"
        assert events[-1]["response"]["status"] == "failed"
        assert post(url).status_code == 500


def test_a_stop_string_that_comes_in_pieces_is_never_shown(saying: Any) -> None:
    url = saying("The tide is high END of it", "The tide is high EN", "The tide END")
    assert text_of(chunks(post(url, stream=True, stop=["END"]))) == "The tide is high "
    assert text_of(chunks(post(url, stream=True, stop=["END"]))) == "The tide is high EN"
    assert post(url, stop="END").json()["choices"][0]["message"]["content"] == "The tide "


def test_letters_of_several_bytes_are_never_cut(saying: Any) -> None:
    line = "Ahoj 👩‍🚀 — 漢字 на берегу"
    url = saying(line, line)
    found = chunks(post(url, stream=True))
    assert text_of(found) == line
    made = post(url, logprobs=True, top_logprobs=1)
    assert "\ufffd" not in json.dumps([*found, made.json()], ensure_ascii=False)
    entries = made.json()["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == line


# -- chat: requests --------------------------------------------------------------------------------


def test_a_browser_asks_first_without_a_key(fake_model: octavo.Model, tmp_path: Path) -> None:
    with serving(fake_model, tmp_path, keys=True) as url:
        asked = {
            "origin": "https://app.example", "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        }  # fmt: skip
        allowed = httpx.options(f"{url}/chat/completions", headers=asked)
        assert allowed.status_code == 200
        names = allowed.headers["access-control-allow-headers"].lower()
        assert "authorization" in names
        assert "x-stainless-lang" in names
        assert post(url).status_code == 401


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_contents_may_be_lists_in_any_role(url: str, role: str) -> None:
    part = [{"type": "text", "text": "one two three four five six"}]
    long = post(url, messages=[{"role": role, "content": part}, *ASKED], max_tokens=1)
    short = post(url, messages=ASKED, max_tokens=1)
    assert long.status_code == 200, long.text
    read = [made.json()["usage"]["prompt_tokens"] for made in (long, short)]
    assert read[0] >= read[1] + 6


@pytest.mark.parametrize("content", [{}, {"content": None}])
def test_a_turn_of_calls_needs_no_content(url: str, content: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turns = [
        *ASKED,
        {"role": "assistant", "tool_calls": [call], **content},
        {"role": "tool", "tool_call_id": "c", "content": "crates"},
    ]
    assert post(url, messages=turns, max_tokens=1).status_code == 200


def test_late_system_messages_come_to_the_front(url: str) -> None:
    late = [*ASKED, {"role": "developer", "content": "Be brief."}]
    early = [{"role": "system", "content": "Be brief."}, *ASKED]
    said = [post(url, messages=turns, max_tokens=8).json()["choices"][0] for turns in (late, early)]
    assert said[0] == said[1]


def test_fields_that_nobody_here_knows_are_ignored(url: str) -> None:
    turns = [{**ASKED[0], "weight": 1, "cache_control": {"type": "ephemeral"}}]
    made = post(
        url, messages=turns, max_tokens=1, store=True, metadata={"a": "b"},
        client_metadata={"c": 1}, service_tier="auto", parallel_tool_calls=True, user="me",
    )  # fmt: skip
    assert made.status_code == 200


def test_both_names_of_the_longest_answer_are_known(url: str) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        assert post(url, **{name: 2}).json()["usage"]["completion_tokens"] == 2


def test_no_tools_are_no_tools(url: str) -> None:
    said = [post(url, max_tokens=8, **more).json()["choices"] for more in ({}, {"tools": []})]
    assert said[0] == said[1]


def test_a_format_that_cannot_be_kept_is_refused(url: str) -> None:
    for kind in ("json_object", "json_schema"):
        made = post(url, response_format={"type": kind, "json_schema": {"name": "x"}})
        assert made.status_code == 400
        assert made.json()["error"]["param"] == "response_format"
    assert post(url, response_format={"type": "text"}, max_tokens=1).status_code == 200


@pytest.mark.parametrize("is_stream", [True, False])
def test_too_long_a_prompt_is_refused_before_the_stream(url: str, is_stream: bool) -> None:
    turns = [{"role": "user", "content": "tide " * 9000}]
    made = post(url, messages=turns, stream=is_stream)
    assert made.status_code == 400
    assert made.headers["content-type"] == "application/json"
    assert made.json()["error"]["code"] == "context_length_exceeded"


def test_thoughts_stand_apart_under_both_names(saying: Any) -> None:
    said = "<think>\nThe note says so.\n</think>\n\nMara Oduya."
    url = saying(said, said, said)
    message = post(url).json()["choices"][0]["message"]
    assert message["content"] == "Mara Oduya."
    assert message["reasoning_content"] == message["reasoning"] == "\nThe note says so.\n"
    found = chunks(post(url, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in found]
    assert text_of(found) == "Mara Oduya."
    assert "".join(d.get("reasoning_content", "") for d in deltas) == message["reasoning"]
    done = chunks(post(url, "/responses", input="Who?", stream=True))[-1]["response"]
    assert [item["type"] for item in done["output"]] == ["reasoning", "message"]
    assert done["output"][0]["content"][0]["text"] == message["reasoning"]


def test_thoughts_are_found_however_an_answer_is_cut() -> None:
    for whole, wanted in {
        " <think>a <b</think>\n\nc</think>": ("a <b", "c</think>"),
        "a <think>b</think>": ("", "a <think>b</think>"),
        "<think>a": ("a", ""),
        "<thin": ("", "<thin"),
        "<think>a</thi": ("a</thi", ""),
    }.items():
        for size in (1, 2, 5, len(whole)):
            reader = ThoughtReader(is_thinking=False)
            pieces = [reader.push(whole[at : at + size]) for at in range(0, len(whole), size)]
            pieces.append(reader.push("", is_last=True))
            found = tuple("".join(piece[which] for piece in pieces) for which in (0, 1))
            assert (found[0], found[1].lstrip()) == wanted
    reader = ThoughtReader(is_thinking=True)
    assert reader.push("so</think>yes", is_last=True) == ("so", "yes")


def test_files_are_read_or_refused_in_words(url: str) -> None:
    data = base64.b64encode(TEXT.encode()).decode()
    for file, status in (
        ({"filename": "a.txt", "file_data": data}, 200),
        ({"filename": "a.txt", "file_data": "no base64!"}, 400),
        ({"filename": "a.pdf", "file_data": data}, 400),
        ({"file_url": "https://x.example/a"}, 400),
        ({"file_id": "file_none"}, 404),
        ({}, 400),
    ):
        turns = [{"role": "user", "content": [{"type": "file", "file": file}]}]
        made = post(url, messages=turns, max_tokens=1)
        assert made.status_code == status, made.text
        if status != 200:
            assert len(made.json()["error"]["message"]) > 20


def test_a_client_that_leaves_is_noticed_without_a_stream(url: str) -> None:
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps({"messages": ASKED}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    for _ in range(5):
        with socket.create_connection((host, int(port))) as link:
            link.sendall(head.encode() + body)
    wait_for(url, "octavo_jobs 0.0")


# -- responses -------------------------------------------------------------------------------------


def test_a_stream_of_a_response_always_ends_with_one_terminal_event(saying: Any) -> None:
    for line in ("Mara.", CALL, ""):
        found = chunks(post(saying(line), "/responses", input="Who?", stream=True, tools=[LOOK]))
        kinds = [event["type"] for event in found]
        assert kinds[-1] == "response.completed"
        assert sum(kind in ("response.completed", "response.failed") for kind in kinds) == 1
        added = [e["output_index"] for e in found if e["type"] == "response.output_item.added"]
        done = [e["output_index"] for e in found if e["type"] == "response.output_item.done"]
        assert added == done == list(range(len(found[-1]["response"]["output"])))


def test_streamed_and_final_items_have_the_same_ids(saying: Any) -> None:
    found = chunks(
        post(saying(f"Well. {CALL}"), "/responses", input="?", stream=True, tools=[LOOK])
    )
    final = [item["id"] for item in found[-1]["response"]["output"]]
    for kind in ("response.output_item.added", "response.output_item.done"):
        assert [event["item"]["id"] for event in found if event["type"] == kind] == final
    for event in found:
        if "item_id" in event:
            assert event["item_id"] == final[event["output_index"]]


def test_items_come_back_without_ids_and_with_lists(url: str) -> None:
    items = [
        {"role": "user", "content": "Who?"},
        {"type": "message", "role": "assistant",
         "content": [{"type": "output_text", "text": "Mara."}]},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c",
         "output": [{"type": "input_text", "text": "three crates"}]},
        {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "kept elsewhere"},
        {"role": "user", "content": [{"type": "input_text", "text": "And?"}]},
    ]  # fmt: skip
    made = post(url, "/responses", input=items, max_output_tokens=2)
    assert made.status_code == 200, made.text
    kept = http_get(f"{url}/responses/{made.json()['id']}/input_items?order=asc").json()["data"]
    assert kept[4]["encrypted_content"] == "kept elsewhere"


def test_tools_that_are_no_functions_are_let_pass(url: str) -> None:
    tools = [
        {"type": "web_search"},
        {"type": "custom", "name": "shell"},
        {"type": "namespace", "name": "n", "tools": []},
        {"type": "function", "name": "look", "parameters": {"type": "object"}},
    ]
    made = post(url, "/responses", input="Who?", tools=tools, max_output_tokens=2)
    assert made.status_code == 200, made.text


def test_a_continued_response_reads_what_was_said_but_not_old_instructions(url: str) -> None:
    def asked(**body: Any) -> Any:
        return post(url, "/responses", max_output_tokens=4, **body).json()

    first = asked(input="Who signed?", instructions="Speak like a pirate, always, in every answer.")
    second = asked(input="And?", previous_response_id=first["id"])
    said = first["output"][0]["content"][0]["text"]
    turns = [*ASKED, {"role": "assistant", "content": said}, {"role": "user", "content": "And?"}]
    plain = post(url, messages=turns, max_tokens=4).json()
    assert second["usage"]["input_tokens"] == plain["usage"]["prompt_tokens"]
    assert second["output"][0]["content"][0]["text"] == plain["choices"][0]["message"]["content"]


def test_what_was_not_stored_cannot_be_continued(url: str) -> None:
    made = post(url, "/responses", input="Who?", store=False, max_output_tokens=2).json()
    for id in (made["id"], "resp_none"):
        again = post(url, "/responses", input="And?", previous_response_id=id)
        assert again.status_code == 400
        assert again.json()["error"]["code"] == "previous_response_not_found"


def test_stored_responses_are_bounded(
    fake_model: octavo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.serve import database

    monkeypatch.setitem(database.MAX_ROWS, "response", 3)
    with serving(fake_model, tmp_path) as url:
        ids = [
            post(url, "/responses", input=f"{n}?", max_output_tokens=1).json()["id"]
            for n in range(5)
        ]
        found = [http_get(f"{url}/responses/{id}").status_code for id in ids]
    assert found == [404, 404, 200, 200, 200]


def test_an_item_may_be_named_by_its_id(url: str) -> None:
    first = post(url, "/responses", input="Who?", max_output_tokens=4).json()
    named = [{"type": "item_reference", "id": first["output"][0]["id"]}, *ASKED]
    whole = [first["output"][0], *ASKED]
    read = [
        post(url, "/responses", input=items, max_output_tokens=1).json()["usage"]["input_tokens"]
        for items in (named, whole)
    ]
    assert read[0] == read[1]
    gone = post(url, "/responses", input=[{"type": "item_reference", "id": "msg_none"}, *ASKED])
    assert gone.status_code == 400
    assert "msg_none" in gone.json()["error"]["message"]


def test_cancelling_what_has_ended_changes_nothing(url: str) -> None:
    made = post(url, "/responses", input="Who?", max_output_tokens=2).json()
    again = http_post(f"{url}/responses/{made['id']}/cancel")
    assert again.status_code == 200
    assert again.json() == made
    assert post(url, "/responses", input="Who?", background=True).status_code == 400


def test_packed_bodies_are_unpacked(url: str) -> None:
    body = zstandard.ZstdCompressor().compress(json.dumps({"input": "Who?"}).encode())
    headers = {"content-encoding": "zstd", "content-type": "application/json"}
    assert http_post(f"{url}/responses", content=body, headers=headers).status_code == 200


def test_a_web_socket_is_refused_so_that_clients_post(url: str) -> None:
    headers = {
        "connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
        "sec-websocket-key": base64.b64encode(b"0123456789abcdef").decode(),
    }  # fmt: skip
    made = http_get(f"{url}/responses", headers=headers)
    assert made.status_code in (404, 405, 426)
    assert made.json()["error"]["message"]


def test_models_are_listed_under_both_names(url: str) -> None:
    found = http_get(f"{url}/models").json()
    assert found["data"] == found["models"]
    assert [one["id"] for one in found["data"]][1] == "octavo-agent"
    for one in found["data"]:
        assert http_get(f"{url}/models/{one['id']}").json() == one


def test_calls_of_a_server_further_on_are_put_together(tmp_path: Path) -> None:
    with upstream(calls=True) as (far, _):
        backend = RemoteBackend(far, Limits())
        with serving(None, tmp_path, backend=backend) as url:
            body = {"input": "Who?", "tools": [LOOK], "stream": True}
            done = chunks(post(url, "/responses", **body))[-1]["response"]
            assert [item["type"] for item in done["output"]] == ["reasoning", "function_call"]
            assert done["output"][1]["arguments"] == '{"at": 1}'
            message = post(url, tools=[LOOK]).json()["choices"][0]["message"]
            assert message["reasoning_content"] == "Let me look."
            assert message["tool_calls"][0]["function"]["arguments"] == '{"at": 1}'


# -- the agent as a model --------------------------------------------------------------------------


def test_the_agent_answers_as_a_model_and_cites_its_passages(saying: Any) -> None:
    url = saying("Mara Oduya", "Mara Oduya", "Mara Oduya")
    filler = "\n\n".join(f"Row {n} of the ledger says that nothing was due." for n in range(150))
    text = f"{filler}\n\nThe lamp oil was signed for by Mara Oduya.\n\n{filler}"
    made = http_post(f"{url}/contexts", json={"text": text}).json()
    part = {"type": "context", "context_id": made["id"]}
    asked = [part, {"type": "text", "text": "Who signed for the lamp oil?"}]
    body: Any = {"model": "octavo-agent", "messages": [{"role": "user", "content": asked}]}
    found = post(url, **body).json()
    message = found["choices"][0]["message"]
    assert message["content"] == "Mara Oduya"
    best = message["citations"][0]
    assert best["holds_answer"]
    assert text[best["start"] : best["end"]] == best["text"]
    assert "Read passages" in message["reasoning_content"]
    assert found["usage"]["prompt_tokens"] < found["usage"]["compression"]["source_tokens"] / 2
    streamed = chunks(post(url, **body, stream=True))
    assert text_of(streamed) == "Mara Oduya"
    cited = [c["choices"][0]["delta"].get("citations") for c in streamed]
    assert [one for one in cited if one] == [message["citations"]]
    assert post(url, **body, stop=[" Odu"]).json()["choices"][0]["message"]["content"] == "Mara"


def test_an_agent_whose_client_leaves_stops_with_its_round(
    fake_model: octavo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, goes_on = threading.Event(), threading.Event()
    start = fake_model.engine.start
    asked: list[int] = []

    def slow(prompts: Any, sampling: Any) -> Any:
        asked.append(len(prompts))
        has_begun.set()
        goes_on.wait(30)
        return start(prompts, sampling)

    monkeypatch.setattr(fake_model.engine, "start", slow)
    document = {"type": "text", "text": TEXT * 8, "memory": True}
    turns = [{"role": "user", "content": [document, {"type": "text", "text": "Who signed?"}]}]
    with serving(fake_model, tmp_path) as url:
        body = {"model": "octavo-agent", "messages": turns, "stream": True}
        with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=60) as answer:
            pieces = answer.iter_raw()  # let go of, it would hang up
            next(pieces)
            assert has_begun.wait(30)
        wait_for(url, "octavo_jobs 0.0")
        goes_on.set()
        assert post(url, max_tokens=2).status_code == 200
    assert len(asked) == 2  # the agent's one round, and the chat after it


def test_the_agent_says_what_it_needs(url: str) -> None:
    document = {"type": "text", "text": TEXT, "memory": True}
    whole = [{"role": "user", "content": [document, {"type": "text", "text": "Who?"}]}]
    for body, word in (
        ({"messages": ASKED}, "reads documents"),
        ({"messages": whole, "n": 2}, "leave out tools"),
        ({"messages": whole, "tools": [LOOK]}, "leave out tools"),
        ({"messages": [{"role": "user", "content": [document]}]}, "question is empty"),
    ):
        made = post(url, model="octavo-agent", **body)
        assert made.status_code == 400
        assert re.search(word, made.json()["error"]["message"])
    made = post(url, "/completions", model="octavo-agent", prompt="Row")
    assert made.status_code == 400
    found = post(url, "/responses", model="octavo-agent", input=[{"role": "user", "content": [
        {"type": "input_text", "text": TEXT, "memory": True},
        {"type": "input_text", "text": "Who signed?"}]}])  # fmt: skip
    assert found.status_code == 200, found.text
    assert found.json()["output"][-1]["citations"]
