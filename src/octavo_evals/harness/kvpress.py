"""KV-cache compression on the same decoder and the same items: NVIDIA's kvpress.

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

from octavo.engine.base import Prompt, Sampling, TargetScores
from octavo.errors import EvaluationError, MissingExtraError
from octavo.model import Model
from octavo.nn.cache import as_keyword, bytes_of
from octavo_evals.parts import Parts
from octavo_evals.reading import Held, Unserved, check_fits
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
        self._positions = len(ids)
        with torch.no_grad(), press(decoder):
            # By keyword: KVzip looks for input_ids there.
            decoder.model(
                input_ids=torch.tensor([list(ids)], device=decoder.device),
                **as_keyword(self._cache),
            )
        self._lengths = [layer.keys.shape[2] for layer in self._cache.layers]
        self.kept_positions = max(self._lengths)
        self.kept_bytes = bytes_of(self._cache)

    def start(self, prompts: Sequence[Prompt], sampling: Sampling) -> Generator[list[int]]:
        """Yield the most likely tokens behind one prompt; the cache is cut back afterwards."""
        (prompt,) = prompts
        ids, position = list(prompt.input_ids[self._positions :]), self._positions
        try:
            for _ in range(sampling.max_new_tokens):
                token = int(self._read(ids, position, 1)[-1].argmax())
                if token in sampling.stop_ids:
                    return
                yield [token]
                position += len(ids)
                ids = [token]
        finally:
            self._cut()

    def score(self, prompt: Prompt, target: Sequence[int]) -> TargetScores:
        """Return how likely each token of a target is behind a prompt."""
        try:
            ids = [*prompt.input_ids[self._positions :], *target]
            logits_PV = self._read(ids, self._positions, len(target) + 1)[:-1].float()
        finally:
            self._cut()
        target_P = torch.tensor(list(target), device=logits_PV.device)
        logprobs_P = logits_PV.log_softmax(-1).gather(1, target_P[:, None])[:, 0]
        return TargetScores(
            logprobs=tuple(logprobs_P.tolist()),
            is_greedy=tuple((logits_PV.argmax(-1) == target_P).tolist()),
        )

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
        prefix = [*parts.head, *parts.context]
        ids = [*prefix, *parts.tail]
        seen = len(prefix) + (parts.num_question if self.sees_question else 0)
        pressed = ids[: min(seen, len(ids) - 1)]  # what is left to be read is at least one
        if self.name.startswith("snapkv") and len(pressed) <= SNAPKV_WINDOW:
            raise Unserved(
                f"SnapKV needs more than {SNAPKV_WINDOW} tokens, the prompt has {len(pressed)}"
            )
        check_fits(self._model, len(pressed), 1)
        started = time.perf_counter()
        cache = PressedCache(self._decoder, pressed, self._press)
        seconds = time.perf_counter() - started
        return Held(answerer=cache, prefix=prefix, compress_seconds=seconds)


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
