"""A compressed context: the latents of one text, and where every one of them came from.

Shapes: K latents, D decoder width.

A context is compressed once and asked many times. It knows its ratio, its exact number of source
tokens, the characters behind every latent (so that a passage can be read back), the compressor that
made it and the text's sha256, and it lives in one safetensors file.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from octavo.errors import ContextError
from octavo.files import write_file
from octavo.text import sha256_of

FORMAT = "octavo-context"
FORMAT_VERSION = 2
"""1 had no checksum; such files are still read."""
_ABOUT = ("ratio", "fingerprint", "compressor_name", "text_sha256", "is_whole", "compress_seconds")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CompressedContext:
    """The latents of one text with their provenance. Immutable; every change makes a new one."""

    latents: Tensor
    """`KD`, in the width of the decoder they were made for."""
    ratio: int
    """Source tokens per latent; the last block of a text may hold fewer."""
    block_tokens: Tensor
    """`K`, source tokens behind each latent."""
    offsets: Tensor
    """`K2`, the characters `[start, stop)` of the text behind each latent."""
    fingerprint: str
    """Which compressor made it; no other may read it."""
    compressor_name: str
    text_sha256: str | None
    """Of the text as UTF-8; None for a joined context whose parts did not keep theirs."""
    text: str | None = None
    """The raw text, if it was kept."""
    is_whole: bool = True
    """Whether this is one text compressed from its first token on, which `Model.extend` needs."""
    compress_seconds: float = 0.0

    @property
    def num_latents(self) -> int:
        """How many slots it takes in a prompt."""
        return len(self.latents)

    @property
    def source_tokens(self) -> int:
        """How many source tokens it stands for, exactly."""
        return int(self.block_tokens.sum())

    @property
    def num_bytes(self) -> int:
        """The bytes its latents hold."""
        return self.latents.numel() * self.latents.element_size()

    def __len__(self) -> int:
        """Return the number of latents."""
        return len(self.latents)

    def passage(self, first: int, last: int | None = None) -> str:
        """Return the raw text behind latents `first..last` (one latent without `last`)."""
        if self.text is None:
            raise ContextError(
                "this context was kept without its text; compress with keep_text=True"
            )
        stop = first + 1 if last is None else last
        part = self[first:stop]
        return part.text or ""

    def __getitem__(self, blocks: slice) -> "CompressedContext":
        """Return the context of some consecutive blocks; it cannot grow."""
        if not isinstance(blocks, slice):
            raise ContextError(f"slice a context with [start:stop], not with {blocks!r}")
        first, stop, step = blocks.indices(len(self))
        if step != 1 or first >= stop:
            raise ContextError(
                f"the slice [{blocks.start}:{blocks.stop}:{blocks.step}] selects no run of the "
                f"{len(self)} latents; give start < stop without a step"
            )
        if (first, stop) == (0, len(self)):
            return self
        offsets = self.offsets[first:stop]
        start_char, stop_char = int(offsets[0, 0]), int(offsets[-1, 1])
        text = self.text[start_char:stop_char] if self.text is not None else None
        return replace(
            self,
            latents=self.latents[first:stop].clone(),
            block_tokens=self.block_tokens[first:stop].clone(),
            offsets=offsets - start_char,
            text=text,
            text_sha256=sha256_of(text) if text is not None else None,
            is_whole=False,
            compress_seconds=0.0,
        )

    @classmethod
    def join(cls, contexts: Iterable["CompressedContext"]) -> "CompressedContext":
        """Lay contexts of one compressor and one ratio end to end, as one span."""
        parts = list(contexts)
        if not parts:
            raise ContextError("nothing to join; give at least one context")
        first = parts[0]
        for part in parts[1:]:
            part.check_made_by(first.fingerprint, first.compressor_name)
            if part.ratio != first.ratio:
                raise ContextError(
                    f"cannot join contexts of ratios {first.ratio} and {part.ratio}; "
                    "compress them at one ratio"
                )
        texts = [part.text for part in parts]
        text = "".join(t for t in texts if t is not None) if None not in texts else None
        shift, shifted = 0, []
        for part in parts:
            shifted.append(part.offsets + shift)
            shift += int(part.offsets[-1, 1]) if part.text is None else len(part.text)
        return replace(
            first,
            latents=torch.cat([part.latents for part in parts]),
            block_tokens=torch.cat([part.block_tokens for part in parts]),
            offsets=torch.cat(shifted),
            text=text,
            text_sha256=sha256_of(text) if text is not None else None,
            is_whole=len(parts) == 1 and first.is_whole,
            compress_seconds=sum(part.compress_seconds for part in parts),
        )

    def growable_text(self) -> str:
        """Return the text that more can be appended to (`Model.extend`).

        Raises `ContextError` for a slice, a join, or a context that did not keep its text.
        """
        if not self.is_whole or self.text is None:
            reason = "is a slice or a join" if self.text is not None else "did not keep its text"
            raise ContextError(f"this context {reason}, so it cannot grow; compress the whole text")
        return self.text

    def check_made_by(self, fingerprint: str, name: str) -> None:
        """Refuse use with another compressor, saying which made it and which was to read it."""
        if self.fingerprint != fingerprint:
            raise ContextError(
                f"this context was compressed by {self.compressor_name} ({self.fingerprint}), and "
                f"{name} ({fingerprint}) cannot read its latents; compress the text again"
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; raises `ContextError` as `load` does."""
        self._check()
        tensors = {
            "latents": self.latents.detach().cpu().contiguous(),
            "block_tokens": self.block_tokens.to(torch.int32).contiguous(),
            "offsets": self.offsets.to(torch.int64).contiguous(),
        }
        if self.text is not None:
            encoded = bytearray(self.text.encode("utf-8"))
            tensors["text"] = torch.frombuffer(encoded, dtype=torch.uint8)
        about = {name: getattr(self, name) for name in _ABOUT}
        about |= {"checksum": _checksum(tensors, about), "format_version": FORMAT_VERSION}
        metadata = {"format": FORMAT, "context": json.dumps(about)}
        write_file(Path(path), lambda temporary: save_file(tensors, temporary, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path) -> "CompressedContext":
        """Read a context.

        Raises `ContextError` for a file that is missing, cut off, foreign or altered. Files of
        older versions have no checksum; they pass every other check.
        """
        path = Path(path)
        if not path.is_file():
            raise ContextError(f"no context at {path}; give a file that `octavo compress` wrote")
        try:
            raw = path.read_bytes()  # once, for another write may replace the file
            tensors = load(raw)
            header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
            metadata = header.get("__metadata__") or {}
        except Exception as error:  # a header may hold anything
            raise ContextError(
                f"{path} is damaged or no context ({error}); make it "
                "again, or compress it first (octavo compress) if it is a text"
            ) from error
        if metadata.get("format") != FORMAT:
            raise ContextError(
                f"{path} is a safetensors file but no context; compress a text first"
            )
        try:
            return cls._of_file(tensors, json.loads(metadata["context"]))
        except Exception as error:  # metadata may hold anything, nested without end
            reason = (
                error if isinstance(error, ContextError) else f"{type(error).__name__}: {error}"
            )
            raise ContextError(f"{path}: {reason}; make it again") from error

    @classmethod
    def _of_file(cls, tensors: dict[str, Tensor], about: dict[str, Any]) -> "CompressedContext":
        """Build a context of what a file holds, and compare it with its checksum."""
        version, checksum = about.pop("format_version"), about.pop("checksum", None)
        if type(version) is not int or version > FORMAT_VERSION:
            raise ContextError("it was written by a newer octavo (upgrade to read it)")
        if about.keys() != set(_ABOUT) or (version > 1) != isinstance(checksum, str):
            raise ContextError(f"its metadata has the fields {', '.join(sorted(about))[:200]}")
        if checksum is not None and checksum != _checksum(tensors, about):
            raise ContextError("it does not match its checksum")
        values: dict[str, Any] = {**tensors, **about}
        if "text" in values:
            values["text"] = values["text"].numpy().tobytes().decode("utf-8")
        context = cls(**values)
        context._check()
        return replace(context, block_tokens=context.block_tokens.long())

    def _check(self) -> None:
        """Raise `ContextError` for values that no compressor makes."""
        latents, counts, offsets = self.latents, self.block_tokens, self.offsets
        whole = counts[:-1] if self.is_whole else counts[:0]
        sound = {
            "ratio": type(self.ratio) is int and self.ratio > 0,
            "latents": latents.ndim == 2
            and latents.numel() > 0
            and latents.dtype in _DTYPES
            and bool(latents.isfinite().all()),
            "block_tokens": counts.dtype in (torch.int32, torch.int64)
            and counts.shape == latents.shape[:1]
            and bool(
                ((counts >= 1) & (counts <= self.ratio)).all() and (whole == self.ratio).all()
            ),
            "offsets": offsets.dtype == torch.int64
            and offsets.shape == (len(latents), 2)
            and bool((offsets.flatten().diff() >= 0).all() and offsets[0, 0] >= 0)
            and (self.text is None or int(offsets[-1, 1]) <= len(self.text)),
            "fingerprint": isinstance(self.fingerprint, str),
            "compressor_name": isinstance(self.compressor_name, str),
            "text_sha256": isinstance(self.text_sha256, str | None)
            and (self.text is None or sha256_of(self.text) == self.text_sha256),
            "is_whole": isinstance(self.is_whole, bool),
            "compress_seconds": isinstance(self.compress_seconds, int | float)
            and 0 <= self.compress_seconds < float("inf"),
        }
        if wrong := [name for name, is_sound in sound.items() if not is_sound]:
            raise ContextError(f"the {wrong[0]} of this context cannot be right")


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Return the hex sha256 of everything in a context, whatever the order in its file."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
