"""Requests become decoder ids and encoder windows, before vLLM counts or cuts anything.

    {"type": "text", "text": DOCUMENT, "memory": true}                 a chat part, read as latents
    {"type": "text", "text": DOCUMENT, "memory": {"ratio": 16}}        at another ratio of the model
    {"type": "file", "file": {"file_data": "data:…;base64,…"}}         OpenAI's own, read as latents

octavo's own prompts are used (`octavo.prompt`), so a chat has the ids it has on every engine, and
tags and control tokens in texts are ordinary characters. They are live in `/v1/completions`, which
takes prompts as their template's author wrote them, and in chats that say they are `trusted`.
"""

import asyncio
import base64
import copy
import hashlib
import re
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from vllm.exceptions import VLLMValidationError
from vllm.renderers.chat_utils import parse_chat_messages
from vllm.renderers.hf import HfRenderer

from octavo.config import MEMORY_TOKENS, Extension, ModelConfig, resolve_ratio
from octavo.errors import (
    ContextError,
    InputError,
    OctavoError,
    PromptError,
    PromptTooLongError,
)
from octavo.generate import CHARACTERS_A_TOKEN
from octavo.prompt import EncodedPrompt, PromptEncoder, asks_for_latents
from octavo.weights.layout import open_tokenizer
from octavo_vllm.config import whole_folder
from octavo_vllm.processor import MODALITY, count_latents, count_tokens, cut_items
from octavo_vllm.usage import count

NUM_THREADS = 4
"""Requests read at once: one long document must not keep the others waiting."""
KEPT_TOKENS = 1 << 24
"""Source tokens kept, 64 MiB, so that the next question does not tokenise its document again."""
OPTIONS = ("chat_template", "tokenize", "return_dict", "ratio", "trusted", "continue_final_message")
"""What vLLM and we understand among the template's arguments; the rest is the template's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedDocument:
    """A text to be read as latents."""

    ids: np.ndarray
    ratio: int

    @property
    def num_latents(self) -> int:
        """How many slots it takes."""
        return -(-len(self.ids) // self.ratio)


@contextmanager
def _bad_request() -> Iterator[None]:
    """Let vLLM answer 400 with our words."""
    try:
        yield
    except OctavoError as error:
        raise VLLMValidationError(str(error)) from error


class MemoryRenderer(HfRenderer):
    """vLLM's renderer of chats and prompts, with documents in them."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        """Load both tokenizers of the checkpoint."""
        super().__init__(config, tokenizer)
        model = config.model_config
        self._settings = ModelConfig(**model.hf_config.model_config)
        self._extension = Extension.from_dict(model.hf_config.extension)
        folder = whole_folder(model.model, model.revision)
        halves = [open_tokenizer(folder / p) for p in _TOKENIZERS]
        self._prompts = PromptEncoder(halves[0], halves[1], self._settings)
        self._prompts_of = lru_cache(8)(self._with_template)
        self._kept: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._num_kept = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="octavo")
        self._resources.callback(self._pool.shutdown, wait=False)

    def _with_template(self, template: str | None) -> PromptEncoder:
        """Return the encoder of prompts for another chat template than the checkpoint's."""
        if template is None:
            return self._prompts
        tokenizer = copy.copy(self._prompts.decoder_tokenizer)
        tokenizer.chat_template = template
        return PromptEncoder(tokenizer, self._prompts.encoder_tokenizer, self._settings)

    # -- chats -----------------------------------------------------------------------------------

    def render_messages(self, messages: list[Any], params: Any) -> tuple[list[Any], Any]:
        """Return the conversation and its prompt."""
        if _has_embeds(messages):
            return super().render_messages(messages, params)
        with _bad_request():
            return self._render(messages, params)

    async def render_messages_async(self, messages: list[Any], params: Any) -> tuple[Any, Any]:
        """Return the conversation and its prompt, without holding up other requests."""
        if _has_embeds(messages):
            return await super().render_messages_async(messages, params)
        loop = asyncio.get_running_loop()
        with _bad_request():
            return await loop.run_in_executor(self._pool, self._render, messages, params)

    def _render(self, messages: Sequence[Any], params: Any) -> tuple[list[Any], dict[str, Any]]:
        given = params.get_apply_chat_template_kwargs()
        if given.get("continue_final_message"):
            raise PromptError("continue_final_message is not served; end with a user's message")
        ratio = resolve_ratio(self._settings, self._extension, given.get("ratio"))
        documents: dict[str, ServedDocument] = {}
        lifted = [self._lift(message, ratio, documents) for message in messages]
        conversation, _, _ = parse_chat_messages(lifted, self.model_config, content_format="openai")
        encoded = self._prompts_of(given.get("chat_template")).encode_messages(
            [_laid_back(message, documents) for message in conversation],
            ratio=ratio,
            trusted=given.get("trusted") is True,
            add_generation_prompt=given.pop("add_generation_prompt", True),
            template={k: v for k, v in given.items() if v is not None and k not in OPTIONS},
        )
        return conversation, self._prompt(encoded, ratio)

    def _lift(self, message: Any, ratio: int, documents: dict[str, ServedDocument]) -> Any:
        """Return a message with a name, which nobody can guess, in place of each document."""
        content = message.get("content")
        if not isinstance(content, Sequence) or isinstance(content, str):
            return message
        parts = []
        for part in content:
            if (text := _document_text(part)) is not None:
                _, asked = asks_for_latents(part)
                name = f"octavo-{uuid.uuid4().hex}"
                documents[name] = self._document(text, ratio if asked is None else asked)
                part = {"type": "text", "text": name}
            parts.append(part)
        return {**message, "content": parts}

    def _document(self, text: str, ratio: Any) -> ServedDocument:
        """Tokenise a document, refusing early what is empty or hopelessly long."""
        ratio = resolve_ratio(self._settings, self._extension, ratio)
        limit = self.model_config.max_model_len
        head = text[: CHARACTERS_A_TOKEN * limit * ratio]
        made = ServedDocument(ids=self._source_ids(head), ratio=ratio)
        if made.num_latents <= limit and len(head) < len(text):
            made, head = ServedDocument(ids=self._source_ids(text), ratio=ratio), text
        if not len(made.ids):
            raise InputError("a document is empty; give it text or leave it out")
        if made.num_latents > limit:
            more = "more than " if len(head) < len(text) else ""
            served = sorted({self._settings.compression_ratio, *self._extension.ratios})
            raise ContextError(
                f"a document has {more}{len(made.ids):,} tokens, which at ratio {ratio} makes "
                f"{more}{made.num_latents:,} latents, but max_model_len is {limit:,}; split the "
                f"document, or choose a higher ratio ({', '.join(map(str, served))})"
            )
        return made

    def _source_ids(self, text: str) -> np.ndarray:
        """Return the encoder's tokens of a text, those found before if it was read lately."""
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return found
        ids = np.asarray(self._prompts.source(text).ids, np.int32)
        with self._lock:
            self._num_kept += len(ids) - len(self._kept.pop(key, ()))
            self._kept[key] = ids
            while self._num_kept > KEPT_TOKENS:
                self._num_kept -= len(self._kept.popitem(last=False)[1])
        return ids

    def _prompt(self, encoded: EncodedPrompt, ratio: int) -> dict[str, Any]:
        """Return ids with one slot per window, and the windows, as vLLM's processor takes them."""
        limit = self.model_config.max_model_len
        if len(encoded.input_ids) > limit:
            latents = sum(span.num_latents for span in encoded.spans)
            raise PromptTooLongError(
                f"the prompt takes {len(encoded.input_ids):,} positions, {latents:,} of them "
                f"latents, but max_model_len is {limit:,}; shorten it, or choose a higher ratio"
            )
        ids: list[int] = []
        items: list[Mapping[str, Any]] = []
        at = 0
        for (start, stop), span in zip(encoded.slots, encoded.spans, strict=True):
            made = span.context or ServedDocument(
                ids=np.asarray(span.source_ids, np.int32), ratio=ratio
            )
            cut = cut_items(made.ids, self._settings, made.ratio)
            ids += [*encoded.input_ids[at:start], *[self._prompts.slot_id] * len(cut)]
            items += cut
            at = stop
        ids += encoded.input_ids[at:]
        data = {"multi_modal_data": {MODALITY: items}} if items else {}
        return {"prompt_token_ids": ids, **data}

    # -- prompts ---------------------------------------------------------------------------------

    def tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        """Return a prompt's ids; tags in its text become windows."""
        with _bad_request():
            prompt = self._checked(self._expanded(prompt), params)
        return super().tokenize_prompt(prompt, params)

    async def tokenize_prompt_async(self, prompt: Any, params: Any) -> Any:
        """Return a prompt's ids, without holding up other requests."""
        loop = asyncio.get_running_loop()
        with _bad_request():
            expanded = await loop.run_in_executor(self._pool, self._expanded, prompt)
            prompt = self._checked(expanded, params)
        items = (prompt.get("multi_modal_data") or {}).get(MODALITY, ())
        count(sum(map(count_tokens, items)), sum(map(count_latents, items)))
        return await super().tokenize_prompt_async(prompt, params)

    def _expanded(self, prompt: Any) -> Any:
        text = prompt.get("prompt")
        is_text = isinstance(text, str) and "prompt_token_ids" not in prompt
        if not is_text or not any(tag in text for tag in MEMORY_TOKENS):
            return prompt
        encoded = self._prompts.encode_text(text)
        rest = {name: value for name, value in prompt.items() if name != "prompt"}
        return {**rest, **self._prompt(encoded, self._settings.compression_ratio)}

    def _checked(self, prompt: Any, params: Any) -> Any:
        """Refuse what would lose a document without a word."""
        has_memory = bool((prompt.get("multi_modal_data") or {}).get(MODALITY))
        if has_memory and params.truncate_prompt_tokens is not None:
            raise PromptError("a prompt with documents cannot be cut; drop truncate_prompt_tokens")
        if not has_memory and self._prompts.slot_id in (prompt.get("prompt_token_ids") or ()):
            raise PromptError(
                "the prompt has memory slots, but no document to fill them; send text"
            )
        return prompt


_TOKENIZERS = ("decoder", "encoder")


def _has_embeds(messages: Sequence[Any]) -> bool:
    """Return whether a chat holds vLLM's own `prompt_embeds`, refusing documents beside them."""
    parts = [part for one in messages for part in _parts_of(one)]
    if not any(part.get("type") == "prompt_embeds" for part in parts):
        return False
    with _bad_request():
        if any(_is_document(part) for part in parts):
            raise PromptError("documents cannot stand beside prompt_embeds; send one or the other")
    return True


def _parts_of(message: Any) -> list[Mapping[str, Any]]:
    content = message.get("content")
    is_list = isinstance(content, Sequence) and not isinstance(content, str)
    return [part for part in content if isinstance(part, Mapping)] if is_list else []


def _is_document(part: Mapping[str, Any]) -> bool:
    is_memory, _ = asks_for_latents(part)
    return is_memory or part.get("type") in ("file", "input_file")  # vLLM reads no files itself


def _document_text(part: Any) -> str | None:
    """Return the text of a part that is to be read as latents, or None for any other part."""
    if not isinstance(part, Mapping) or not _is_document(part):
        return None
    if part.get("type") not in ("file", "input_file"):
        if not isinstance(text := part.get("text"), str):
            raise PromptError("a document has no text; only text can be read as latents")
        return text
    file = part.get("file") or part
    if not isinstance(data := file.get("file_data"), str):
        raise InputError("a file has no file_data; send its bytes there in base64")
    try:
        return base64.b64decode(data.rpartition(",")[2], validate=True).decode("utf-8")
    except ValueError as error:
        raise InputError(
            "a file is not text in UTF-8, sent in base64; extract its text first"
        ) from error


def _laid_back(message: Any, documents: Mapping[str, ServedDocument]) -> dict[str, Any]:
    """Return a message whose names of documents are memory parts again."""
    content = message.get("content")
    if content is None or not documents:
        return {**message, "content": content}
    names = re.compile(f"({'|'.join(documents)})")
    parts: list[Any] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if not isinstance(text := part.get("text"), str):
            parts.append(part)
            continue
        for piece in names.split(text):  # vLLM joins the parts of a tool's message
            found = documents.get(piece)
            memory = {"type": "memory", "context": found}
            parts.append(memory if found is not None else {"type": "text", "text": piece})
    return {**message, "content": parts}
