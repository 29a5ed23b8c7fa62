"""Measure `octavo serve` under load: streaming chats side by side, and the second question's TTFT.

    octavo serve --engine fake --queue 400 --rows 200 &
    python benchmarks/serving.py load --clients 200 --seconds 120 --out benchmarks/serving.jsonl
    python benchmarks/serving.py second --file examples/king-solomons-mines-14.txt --out ...

One JSON row a run: command, machine, counts, p50 and p99 of the time to the first token.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import httpx

WORDS = "Who signed for the lamp oil, and what does row seven list?"


async def one_chat(http: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, float, Any]:
    """Return the status, the seconds to the first text, and the usage."""
    started, first, usage = time.perf_counter(), 0.0, None
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return answer.status_code, 0.0, None
        is_ended = False
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return 599, 0.0, None
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                first = first or (choice["delta"].get("content") and time.perf_counter()) or 0.0
                is_ended = is_ended or choice["finish_reason"] is not None
    return (200 if is_ended else 598), (first or time.perf_counter()) - started, usage


def resident_bytes(pid: int) -> int:
    """Return what a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def load(options: argparse.Namespace) -> dict[str, Any]:
    """Let clients ask again and again."""
    statuses: dict[int, int] = {}
    waits: list[float] = []
    memory: list[int] = []
    end = time.monotonic() + options.seconds

    async def client(number: int, http: httpx.AsyncClient) -> None:
        turn = 0
        while time.monotonic() < end:
            turn += 1
            body = {
                "messages": [{"role": "user", "content": f"{WORDS} {number}.{turn}"}],
                "stream": True, "max_tokens": options.max_tokens,
            }  # fmt: skip
            status, wait, _ = await one_chat(http, body)
            statuses[status] = statuses.get(status, 0) + 1
            if status == 200:
                waits.append(wait)
            elif status == 429:
                await asyncio.sleep(1)

    async def watch() -> None:
        while time.monotonic() < end:
            if options.pid:
                memory.append(resident_bytes(options.pid))
            await asyncio.sleep(min(5, options.seconds / 4))

    bounds = httpx.Limits(max_connections=options.clients)
    async with httpx.AsyncClient(base_url=options.url, limits=bounds, timeout=600) as http:
        await asyncio.gather(watch(), *(client(n, http) for n in range(options.clients)))
    cuts = statistics.quantiles(waits, n=100)
    return {
        "clients": options.clients, "seconds": options.seconds, "max_tokens": options.max_tokens,
        "statuses": statuses, "ttft_p50": cuts[49], "ttft_p99": cuts[98], "memory_bytes": memory,
    }  # fmt: skip


async def second(options: argparse.Namespace) -> dict[str, Any]:
    """Ask twice about one document."""
    document = {
        "type": "text", "text": options.file.read_text(encoding="utf-8"), "memory": True,
        "ratio": options.ratio,
    }  # fmt: skip
    rows = []
    async with httpx.AsyncClient(base_url=options.url, timeout=600) as http:
        for question in ("Who tells the story?", "What happens in the end?", "Who is Twala?"):
            said = {"type": "text", "text": "\n\n" + question}
            body = {
                "messages": [{"role": "user", "content": [document, said]}], "stream": True,
                "max_tokens": 4, "stream_options": {"include_usage": True},
            }  # fmt: skip
            status, wait, usage = await one_chat(http, body)
            rows.append({"status": status, "ttft": wait, "usage": usage})
    return {"questions": rows, "first_over_second": rows[0]["ttft"] / rows[1]["ttft"]}


def main() -> None:
    """Measure, and add the row to a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["load", "second"])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--ratio", type=int, default=16)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--pid", type=int, help="the server's process, to watch its memory")
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = asyncio.run(load(options) if options.what == "load" else second(options))
    machine = {"cores": os.cpu_count(), "cpu": platform.processor() or platform.machine()}
    row = {"what": options.what, "note": options.note, "machine": machine, **found}
    with options.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
