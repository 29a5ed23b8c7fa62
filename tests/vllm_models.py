"""Checkpoints and engines for the tests of vLLM, which run in the environment that it pins."""

import gc
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from conftest import WIRE

import octavo
from octavo.engine.base import Prompt, Sampling
from octavo.prompt import EncodedPrompt

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, where it can be counted
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # for `apply_model`, with functions of these tests
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
BLOCK = 128
"""Positions of a KV block on a CPU: what the prefix cache finds again comes in these."""


def widen(case: str, target: Path) -> Path:
    """Copy a golden checkpoint with heads that vLLM's CPU attention has."""
    script = Path(__file__).parents[1] / "scripts" / "widen_heads.py"
    spec = importlib.util.spec_from_file_location("widen_heads", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.widen(WIRE / case / "checkpoint", target)
    return target


@contextmanager
def engine(folder: Path, **options: Any) -> Iterator[Any]:
    """Yield vLLM's offline engine for a checkpoint, in this process, and let go of it after."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    os.environ.update(ENVIRONMENT)
    llm = LLM(
        str(folder),
        **{
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 2048,
            "max_num_seqs": 8,
            "num_gpu_blocks_override": 64,
            "disable_log_stats": False,
            **options,
        },
    )
    try:
        yield llm
    finally:
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def sampling(count: int = 12) -> Any:
    """Return vLLM's settings for the most likely tokens."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)


def answer(llm: Any, content: Any, count: int = 12) -> Any:
    """Return vLLM's output for one chat whose user says `content`."""
    messages = content if isinstance(content, list) and "role" in content[0] else None
    messages = messages or [{"role": "user", "content": content}]
    return llm.chat(messages, sampling(count), use_tqdm=False)[0]


def ids_of(output: Any) -> list[int]:
    """Return the tokens of an answer."""
    return list(output.outputs[0].token_ids)


def windows_encoded(llm: Any) -> int:
    """Return how many windows the engine has encoded so far."""
    (count,) = llm.apply_model(lambda model: type(model).num_encoded)
    return int(count)


def expected_ids(model: octavo.Model, encoded: EncodedPrompt, count: int = 12) -> list[int]:
    """Return octavo's own greedy tokens for a prompt, on its local engine."""
    latents = [
        model.engine.encode([span.source_ids], model.config.compression_ratio)[0]
        if span.context is None
        else span.context.latents
        for span in encoded.spans
    ]
    prompt = Prompt(input_ids=encoded.input_ids, latents=torch.cat(latents) if latents else None)
    steps = model.engine.start([prompt], Sampling(max_new_tokens=count, stop_ids=(-1,)))
    return [tokens[0] for tokens in steps]


def asked(
    model: octavo.Model, documents: Sequence[tuple[str, int]], question: str
) -> EncodedPrompt:
    """Return octavo's own prompt for documents, each with its ratio, and a question."""
    parts: list[Any] = [
        {"type": "memory", "context": model.compress(text, ratio)} for text, ratio in documents
    ]
    content = [*parts, {"type": "text", "text": question}]
    return model.prompts.encode_messages([{"role": "user", "content": content}])


def parts(documents: Sequence[tuple[str, int | None]], question: str) -> list[dict[str, Any]]:
    """Return the same as content parts of a request."""
    return [
        *(
            {"type": "text", "text": text, "memory": {"ratio": ratio} if ratio else True}
            for text, ratio in documents
        ),
        {"type": "text", "text": question},
    ]
