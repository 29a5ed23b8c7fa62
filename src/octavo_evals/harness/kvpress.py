"""KV-cache compression as a rival: NVIDIA's kvpress over the same decoder and the same items.

The decoder reads the raw context, a press throws most of the KV cache away, and the question is
read behind what is left, at its true position, as kvpress's own pipeline does it (kvpress 0.5.5,
https://github.com/NVIDIA/kvpress). kvpress pins its own transformers: it runs in an environment of
its own (`scripts/kvpress-env`, `octavo eval --python`), and rows meet in files.

octavo's ratio is context tokens per position that is left; kvpress counts the part removed.
"""

import importlib
import pickle
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from octavo.errors import EvaluationError, MissingExtraError
from octavo.model import Model
from octavo.nn.cache import as_keyword, bytes_of
from octavo_evals.parts import Parts
from octavo_evals.reading import (
    Answer,
    Held,
    Outcome,
    Unserved,
    check_fits,
    reply_to_target,
)
from octavo_evals.task import DataFiles

SNAPKV_WINDOW = 64
"""SnapKVPress.window_size: it cannot compress a context no longer than this."""

_MASKED = frozenset({"kvzip", "fast-kvzip"})
_CLASSES = {
    "snapkv": "SnapKVPress",
    "snapkv-question": "SnapKVPress",
    "expected-attention": "ExpectedAttentionPress",
    "kvzip": "KVzipPress",
    "fast-kvzip": "FastKVzipPress",
    "streaming-llm": "StreamingLLMPress",
    "knorm": "KnormPress",
    "tova": "TOVAPress",
}


class PressedCache:
    """A context as a press left its KV cache, ready for questions at their true positions."""

    def __init__(self, decoder: Any, ids: Sequence[int], press: Any) -> None:
        """Let the decoder read the context in one pass, as presses want it, and thin the cache."""
        self._decoder, self._cache = decoder, DynamicCache()
        self.positions = len(ids)
        with torch.no_grad(), press(decoder):
            # By keyword: KVzip looks for input_ids there.
            decoder.model(
                input_ids=torch.tensor([list(ids)], device=decoder.device),
                **as_keyword(self._cache),
            )
        self._lengths = [layer.keys.shape[2] for layer in self._cache.layers]
        self.kept_positions = max(self._lengths)
        self.kept_bytes = bytes_of(self._cache)

    def answer(self, question: Sequence[int], max_new_tokens: int) -> Generator[int]:
        """Yield the likeliest tokens behind a question; the cache is cut back afterwards."""
        ids, position = list(question), self.positions
        try:
            for _ in range(max_new_tokens):
                token = int(self._read(ids, position, 1)[-1].argmax())
                yield token
                position += len(ids)
                ids = [token]
        finally:
            self._cut()

    def score(self, question: Sequence[int], target: Sequence[int]) -> torch.Tensor:
        """Return the logits `PV` that precede each token of a target behind a question."""
        try:
            ids = [*question, *target]
            return self._read(ids, self.positions, len(target) + 1)[:-1].float()
        finally:
            self._cut()

    def _read(self, ids: list[int], position: int, keep: int) -> torch.Tensor:
        """Return the logits `TV` of the last `keep` of some ids."""
        device = self._decoder.device
        with torch.no_grad():
            output = self._decoder(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.arange(position, position + len(ids), device=device)[None],
                logits_to_keep=keep,
                **as_keyword(self._cache),
            )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _cut(self) -> None:
        for layer, length in zip(self._cache.layers, self._lengths, strict=True):
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


class Press:
    """One press at one ratio."""

    def __init__(self, name: str, model: Model, ratio: int, press: Any) -> None:
        """Make the decoder ready to be pressed."""
        self.name, self.ratio = name, ratio
        self.sees_question = name == "snapkv-question"
        self.is_masked = name in _MASKED
        self._model, self._press = model, press
        self._decoder: Any = model.lclm.decoder
        if name == "kvzip":  # it asks the model's folder for its tokenizer
            folder = tempfile.mkdtemp(prefix="octavo-tokenizer-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            model.prompts.decoder_tokenizer.save_pretrained(folder)
            self._decoder.config.name_or_path = folder

    def hold(self, parts: Parts) -> Held:
        """Prefill the context and press its cache."""
        ids, _ = self._split(parts)
        if self.name.startswith("snapkv") and len(ids) <= SNAPKV_WINDOW:
            raise Unserved(
                f"SnapKV needs more than {SNAPKV_WINDOW} tokens, the prompt has {len(ids)}"
            )
        check_fits(self._model, len(ids), 1)
        started = time.perf_counter()
        cache = PressedCache(self._decoder, ids, self._press)
        return Held(state=cache, compress_seconds=time.perf_counter() - started)

    def reply(self, held: Held, parts: Parts) -> Outcome:
        """Read the question behind the pressed cache and answer it."""
        cache: PressedCache = held.state
        _, rest = self._split(parts)
        num_prompt = cache.positions + len(rest)
        check_fits(self._model, num_prompt, len(parts.target) or parts.item.max_new_tokens)
        if parts.target:
            reply = reply_to_target(cache.score(rest, parts.target), parts.target)
            return Outcome(reply=reply, prompt_tokens=num_prompt, cache_bytes=cache.kept_bytes)
        answer = Answer(self._model, parts)
        for token in cache.answer(rest, parts.item.max_new_tokens):
            is_end = token in self._model.engine.stop_ids
            answer.push(None if is_end else token)
            if is_end or answer.is_finished:
                break
        return answer.outcome(num_prompt, cache.kept_bytes)

    def _split(self, parts: Parts) -> tuple[list[int], list[int]]:
        """Return what is read and pressed, and what is read behind it, at least one id."""
        seen = parts.num_question if self.sees_question else 0
        ids = [*parts.head, *parts.context, *parts.tail]
        pressed = min(len(parts.head) + len(parts.context) + seen, len(ids) - 1)
        return ids[:pressed], ids[pressed:]


def press_for(name: str, ratio: int) -> Any:
    """Return a press that leaves one position of `ratio`.

    Raises `MissingExtraError` where kvpress is not installed.
    """
    try:
        import kvpress
    except ImportError as error:
        raise MissingExtraError(
            f"{name} needs kvpress, which pins its own transformers: make an environment with "
            "scripts/kvpress-env and pass --python .venv-kvpress/bin/python"
        ) from error
    make: Callable[..., Any] = getattr(kvpress, _CLASSES[name])
    return make(compression_ratio=1 - 1 / ratio)


def make(name: str, model: Model, ratio: int | None, data: DataFiles) -> Press:
    """Make the method of that name."""
    assert ratio is not None
    press = press_for(name, ratio)
    if name == "fast-kvzip":
        press.gates = _gates(model, data)
    return Press(name, model, ratio, press)


def _gates(model: Model, data: DataFiles) -> list[torch.nn.Module]:
    """Load Fast KVzip's gates, one per layer, from a file as its authors release them.

    It holds a list of state dicts under `module` (https://huggingface.co/Jang-Hyun/Fast-KVzip).
    """
    if (place := data.places.get("fast-kvzip.gates")) is None:
        raise EvaluationError(
            "fast-kvzip needs gates trained for this very decoder: give --data "
            "fast-kvzip.gates=FILE.pt; without them use kvzip, which needs none"
        )
    gate = importlib.import_module("kvpress.presses.fastkvzip_press").FastKVzipGate
    config, device = model.lclm.decoder.config, model.lclm.decoder.device
    try:
        states = torch.load(place, map_location="cpu", weights_only=True)["module"]
        gates = []
        for index, state in enumerate(states):
            queries, width = state["q_proj.weight"].shape
            keys, inner = len(state["k_proj.weight"]), state["q_norm.weight"].shape[-1]
            sink = state["k_base"].shape[2]
            kind = state["q_proj.weight"].dtype
            gates.append(gate(index, width, keys // inner, queries // keys, kind, inner, sink))
            gates[-1].load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise EvaluationError(f"{place} holds no gates of Fast KVzip: {error}") from error
    if len(gates) != config.num_hidden_layers:
        raise EvaluationError(
            f"{place} has gates for {len(gates)} layers, the decoder has {config.num_hidden_layers}"
        )
    return [one.to(device) for one in gates]
