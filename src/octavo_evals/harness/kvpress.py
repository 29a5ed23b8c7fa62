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
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

from octavo.errors import EvaluationError, MissingExtraError
from octavo.model import Model
from octavo.nn.cache import as_keyword
from octavo_evals.parts import Parts
from octavo_evals.reading import (
    Answer,
    Held,
    Reading,
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
        cache = DynamicCache()
        with torch.no_grad(), self._press(self._decoder):
            # By keyword: KVzip looks for input_ids there.
            self._decoder.model(
                input_ids=torch.tensor([ids], device=self._decoder.device), **as_keyword(cache)
            )
        return Held(state=(cache, len(ids)), compress_seconds=time.perf_counter() - started)

    def reply(self, held: Held, parts: Parts) -> Reading:
        """Read the question behind the pressed cache, answer, and cut the cache back."""
        cache, position = held.state
        _, rest = self._split(parts)
        num_prompt = position + len(rest)
        room = len(parts.target) or parts.item.max_new_tokens
        check_fits(self._model, num_prompt, room)
        lengths = [layer.keys.shape[2] for layer in cache.layers]
        cache_bytes = _bytes(cache)
        try:
            with torch.no_grad():
                if parts.target:
                    ids = [*rest, *parts.target]
                    logits = self._read(cache, ids, position, len(parts.target) + 1)
                    reply = reply_to_target(logits[:-1].float(), parts.target)
                    return Reading(reply=reply, prompt_tokens=num_prompt, cache_bytes=cache_bytes)
                return self._answer(cache, rest, position, parts, num_prompt, cache_bytes)
        finally:
            for layer, length in zip(cache.layers, lengths, strict=True):
                layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]

    def _answer(
        self,
        cache: Any,
        ids: list[int],
        position: int,
        parts: Parts,
        num_prompt: int,
        cache_bytes: int,
    ) -> Reading:
        answer = Answer(self._model, parts)
        for _ in range(parts.item.max_new_tokens):
            token = int(self._read(cache, ids, position, 1)[-1].argmax())
            if token in self._model.engine.stop_ids:
                answer.push(None)
                break
            answer.push(token)
            if answer.is_finished:
                break
            position += len(ids)
            ids = [token]
        return answer.reading(num_prompt, cache_bytes)

    def _read(self, cache: Any, ids: list[int], position: int, keep: int) -> torch.Tensor:
        """Return the logits `TV` of the last `keep` of some ids at their true positions."""
        device = self._decoder.device
        output = self._decoder(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.arange(position, position + len(ids), device=device)[None],
            logits_to_keep=keep,
            **as_keyword(cache),
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _split(self, parts: Parts) -> tuple[list[int], list[int]]:
        """Return what is read and pressed, and what is read behind it, at least one id."""
        seen = parts.num_question if self.sees_question else 0
        ids = [*parts.head, *parts.context, *parts.tail]
        pressed = min(len(parts.head) + len(parts.context) + seen, len(ids) - 1)
        return ids[:pressed], ids[pressed:]


def _bytes(cache: Any) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    )


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
