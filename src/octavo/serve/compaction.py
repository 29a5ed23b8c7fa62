"""A conversation folded into one item: its text, sealed, which the decoder then reads as latents.

The blob holds the text itself, deflated and encrypted (AES-GCM), not latents: it is a hundred times
smaller, and folding it again together with what came later loses nothing twice. It is bound to this
server's key and to the model whose encoder reads it.
"""

import base64
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from octavo.errors import ConfigError
from octavo.files import write_file
from octavo.serve.wire import RequestError, new_id
from octavo.text import sha256_of

MARK = "octavo1."
MAX_TEXT_BYTES = 64 << 20
_NONCE_BYTES = 12


class Seal:
    """Encrypts and opens histories; the key lives in a file, so that blobs outlive restarts."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Read the key, or make one."""
        if not path.exists():
            write_file(path, lambda temporary: temporary.write_bytes(os.urandom(32)))
            path.chmod(0o600)
        key = path.read_bytes()
        if len(key) != 32:
            raise ConfigError(f"{path} has {len(key)} bytes, expected 32; remove it for a new key")
        self._cipher, self._model = AESGCM(key), fingerprint

    def close(self, text: str, covered: Sequence[str], owner: str) -> dict[str, Any]:
        """Return the compaction item of a conversation; `covered` are digests of its items."""
        nonce = os.urandom(_NONCE_BYTES)
        packed = zlib.compress(json.dumps({"text": text, "covered": list(covered)}).encode(), 9)
        sealed = nonce + self._cipher.encrypt(nonce, packed, self._bound(owner))
        model = self._model[:16]
        blob = f"{MARK}{model}.{base64.urlsafe_b64encode(sealed).decode()}"
        return {"type": "compaction", "id": new_id("cmp"), "encrypted_content": blob}

    def open(self, blob: Any, owner: str) -> tuple[str, set[str]]:
        """Return the text of a conversation, and digests of the items that it holds."""
        if not isinstance(blob, str) or not blob.startswith(MARK):
            raise _refusal("was not made by this server")
        model, _, sealed = blob.removeprefix(MARK).partition(".")
        if model != self._model[:16]:
            raise _refusal("was made for another model")
        try:
            raw = base64.urlsafe_b64decode(sealed.encode())
            packed = self._cipher.decrypt(
                raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], self._bound(owner)
            )
        except (InvalidTag, ValueError) as error:
            raise _refusal("was made with another key, or was changed") from error
        found = json.loads(zlib.decompressobj().decompress(packed, MAX_TEXT_BYTES))
        return found["text"], set(found["covered"])

    def _bound(self, owner: str) -> bytes:
        return json.dumps([self._model, owner]).encode()


def _refusal(why: str) -> RequestError:
    return RequestError(
        f"the encrypted_content {why}; start again from the conversation's own items",
        code="invalid_encrypted_content", param="input",
    )  # fmt: skip


def digest(message: dict[str, Any]) -> str:
    """Return what tells whether a compacted conversation already holds a message."""
    return sha256_of(json.dumps([message.get("role"), plain_text(message)]))[:24]


def plain_text(message: dict[str, Any]) -> str:
    """Return what a message says, its calls and its documents included."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        pieces = [
            part["context"].text or "" if "context" in part else part["text"] for part in content
        ]
        content = "\n".join(pieces)
    calls = [json.dumps(call["function"]) for call in message.get("tool_calls", ())]
    return "\n".join([content, *calls] if calls else [content])


def written_down(messages: Sequence[dict[str, Any]]) -> str:
    """Return a conversation as one text."""
    return "".join(f"{message['role']}: {plain_text(message)}\n\n" for message in messages)
