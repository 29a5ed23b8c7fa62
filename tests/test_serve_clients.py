"""Clients of others, unmodified: `llm` on the command line, LangChain, an agent of sixty turns."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import TEXT
from servers import serving

import octavo
from octavo.serve.requests import CompressPolicy


@pytest.mark.slow
def test_llm_on_the_command_line_answers_and_streams(model: octavo.Model, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    with serving(model, tmp_path / "store") as url:
        known = {"model_id": "folded", "model_name": model.name, "api_base": url}
        (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([known]))
        for extra in ([], ["--no-stream"]):
            done = subprocess.run(
                [sys.executable, "-m", "llm", "-m", "folded", "Who signed?",
                 "-o", "max_tokens", "9", "-o", "temperature", "0", *extra],
                env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            wanted = model.generate("Who signed?", max_new_tokens=9).text
            assert done.stdout.removesuffix("\n") == wanted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_langchain_answers_streams_and_counts(model: octavo.Model, tmp_path: Path) -> None:
    chat_models = pytest.importorskip("langchain_openai")
    with serving(model, tmp_path / "store") as url:
        chat = chat_models.ChatOpenAI(
            model=model.name, base_url=url, api_key="none", temperature=0, max_tokens=9,
            max_retries=0, stream_usage=True,
        )  # fmt: skip
        wanted = model.generate("Who signed?", max_new_tokens=9)
        said = chat.invoke("Who signed?")
        assert said.content == wanted.text
        assert said.usage_metadata["input_tokens"] == wanted.usage.prompt_tokens
        pieces = list(chat.stream("Who signed?"))
        assert "".join(piece.content for piece in pieces) == wanted.text
        with pytest.raises(openai.NotFoundError):
            chat_models.ChatOpenAI(
                model="nosuch", base_url=url, api_key="none", max_retries=0
            ).invoke("Who?")


@pytest.mark.slow
def test_an_agent_of_sixty_turns_fits_by_the_servers_policy(
    tmp_path: Path,
) -> None:
    fake_model = octavo.load(engine="fake")
    policy = CompressPolicy(over_tokens=200, ratio=16, roles=["tool"])
    client_options: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 120}
    history: list[Any] = [{"role": "user", "content": "Find who signed."}]
    room = fake_model.engine.max_positions
    with (
        serving(fake_model, tmp_path, policy=policy) as url,
        openai.OpenAI(base_url=url, **client_options) as client,
    ):
        for turn in range(60):
            call = {"name": "read", "arguments": json.dumps({"page": turn})}
            history += [
                {"role": "assistant", "content": None, "tool_calls": [
                    {"id": f"call_{turn}", "type": "function", "function": call}
                ]},
                {"role": "tool", "tool_call_id": f"call_{turn}", "content": f"{turn}: {TEXT * 6}"},
            ]  # fmt: skip
            said = client.chat.completions.create(
                model=fake_model.name, messages=history, max_tokens=8
            )
        compression = said.usage.model_extra["compression"]  # type: ignore[union-attr]
        whole = said.usage.prompt_tokens + compression["saved_tokens"]  # type: ignore[union-attr]
        assert compression["folded_messages"] == 60
        assert said.usage.prompt_tokens < room < whole  # type: ignore[union-attr]
