"""lm-evaluation-harness on an octavo model: `--model octavo`, for any method of reading a context.

    scripts/lm-eval run --model octavo --model_args ratio=8,method=octavo --tasks niah_single_1
        --metadata '{"max_seq_lengths": [4096]}' --limit 20

The harness (lm_eval 0.4.13, https://github.com/EleutherAI/lm-evaluation-harness) gives each prompt
as one string; `flat.py` says where it is cut: at memory tags that a task file of one's own writes
(`--include_path`), by the templates of the harness's RULER tasks, or as `compress=` says. With
`--apply_chat_template` the same rules cut the last user message.

Control tokens in prompts are live, as with the harness's own models, and nothing is cut off: a
prompt that does not fit the decoder is an error. Answers are greedy. `loglikelihood` compresses the
context and scores the continuation; `loglikelihood_rolling` has no question and no context, and
scores the raw text whatever the method.
"""

import contextlib
import functools
import json
import logging
import sys
import types
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers.utils.logging import tqdm

import octavo
from octavo.config import MEMORY_END, MEMORY_START
from octavo.engine.base import Prompt
from octavo.errors import EvaluationError, MissingExtraError, OctavoError
from octavo.model import Model
from octavo.prompt import PLAIN_TEMPLATE
from octavo.weights.layout import resolve
from octavo_evals.harness.flat import Compress, split
from octavo_evals.methods import choose, make_method
from octavo_evals.parts import Parts, cut, other_context
from octavo_evals.reading import Held, Unserved, read
from octavo_evals.task import DataFiles, Item, Reply

NEW_TOKENS = 256
"""Of an answer whose task names no limit: `default_max_gen_toks` of `lm_eval/models/utils.py`."""
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NO_CUDA = "cuda:0"
"""The harness's default device, whatever the machine has (`lm_eval/config/evaluate_config.py`)."""

_log = logging.getLogger(__name__)


class HarnessModel:
    """All that the harness asks of a model, short of its base class; see `register`."""

    cache_hook: Any  # the base class sets it

    def __init__(
        self, pretrained: str | Path | Model | None = None, *, method: str = "octavo",
        ratio: int | None = None, compress: Compress = "auto", max_length: int | None = None,
        max_gen_toks: int = NEW_TOKENS, device: str | None = None, dtype: str | None = None,
        base: str | None = None, revision: str | None = None,
        engine: Literal["local", "fake"] = "local", tokenizer: str | None = None,
        batch_size: int | str = 1, max_batch_size: int | None = None, **unknown: Any,
    ) -> None:  # fmt: skip
        """Load the model; the keywords are the keys of `--model_args`.

        `pretrained`, `device`, `dtype`, `base`, `revision` and `engine` are those of `octavo.load`;
        a loaded model will do. `method` is one of `octavo eval`, and `ratio` by default the
        model's own. `max_length` bounds the windows of `loglikelihood_rolling`. `tokenizer` is for
        RULER's generators, and batch sizes have no effect: requests are read one by one.
        """
        super().__init__()
        if unknown:
            raise EvaluationError(
                f"unknown model argument {', '.join(sorted(unknown))}; known: pretrained, method, "
                "ratio, compress, max_length, max_gen_toks, device, dtype, base, revision"
            )
        if compress not in get_args(Compress):
            raise EvaluationError(
                f"compress={compress!r}, expected one of {', '.join(get_args(Compress))}"
            )
        if max_length is not None and max_length < 2:
            raise EvaluationError(f"max_length is {max_length}, expected at least 2 tokens")
        if compress == "none" and method != "raw":
            raise EvaluationError(
                f"compress=none leaves {method} nothing to work on; give method=raw with it"
            )
        if not isinstance(pretrained, Model):
            pretrained = octavo.load(
                pretrained, device, dtype, engine, revision, base=base, progress=None
            )
        self.model = pretrained
        self.compress, self.max_gen_toks = compress, max_gen_toks
        positions = self.model.engine.max_positions
        self.max_length = min(max_length or positions, positions)
        ((name, own_ratio),) = choose([method], [ratio or self.model.config.compression_ratio])
        self._method = make_method(name, own_ratio, self.model, DataFiles())
        self._held: tuple[object, Held] | None = None

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> "HarnessModel":
        """Make a model of `ratio=8,method=octavo` and the command line's own options."""
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "HarnessModel":
        """Make a model of its arguments, which win over the command line's own options."""
        given = {name: one for name, one in (additional_config or {}).items() if one is not None}
        if given.get("device") == _NO_CUDA and not torch.cuda.is_available():
            _log.info("no CUDA device here: %s is left to octavo to choose", _NO_CUDA)
            del given["device"]
        return cls(**{**given, **arg_dict})

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer prompts greedily, each `(context, generation keywords)`."""
        asked = (request.args[:2] for request in requests)
        items = [self._item(text, **self._options(how)) for text, how in asked]
        found = (reply.text for reply in self._read(items))
        return self._collect("generate_until", requests, found, disable_tqdm)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return log-likelihoods of continuations, and whether greedy decoding would give them.

        White space at a context's end is scored with the continuation, as the harness's own models
        do it; the two are tokenised apart.
        """
        items = []
        for request in requests:
            context, continuation = request.args[:2]
            prompt = context.rstrip()
            items.append(self._item(prompt, target=context[len(prompt) :] + continuation))
        found = ((-sum(one.token_nats), all(one.token_hits)) for one in self._read(items))
        return self._collect("loglikelihood", requests, found, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of whole texts, read raw whatever the method.

        A text longer than the decoder is read in windows; each token is predicted once, and the
        last ones with as much before them as fits.
        """
        found = (sum(self._logprobs(*request.args)) for request in requests)
        return self._collect("loglikelihood_rolling", requests, found, disable_tqdm)

    def _collect(
        self, kind: str, requests: Sequence[Any], results: Iterable[Any], disable_tqdm: bool
    ) -> list[Any]:
        """Return the results as they are made, each offered to the harness's cache."""
        found = []
        bar = tqdm(requests, desc="octavo", disable=disable_tqdm)
        for request, result in zip(bar, results, strict=True):
            self.cache_hook.add_partial(kind, request.args, result)
            found.append(result)
        return found

    def _logprobs(self, text: str) -> Iterator[float]:
        """Yield the log-probability of every token of a text."""
        # Empty but for its target, a prompt holds one token, for the first to follow.
        parts = cut(self.model.prompts, Item(id="", context="", is_chat=False, target=text))
        ids, done = [*parts.head[-1:], *parts.target], 1
        while done < len(ids):
            start = max(0, min(done - 1, len(ids) - self.max_length))
            stop = min(start + self.max_length, len(ids))
            prompt = Prompt(input_ids=ids[start:done], latents=None)
            yield from self.model.engine.score(prompt, ids[done:stop]).logprobs
            done = stop

    def _options(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Return an item's fields for generation keywords."""
        until = keywords.get("until") or []
        limits = [keywords[name] for name in _LIMITS if keywords.get(name) is not None]
        if keywords.get("do_sample") is not False and float(keywords.get("temperature") or 0) > 0:
            raise EvaluationError(
                f"the task samples at temperature {keywords['temperature']}, but methods are "
                "compared by their greedy answers; give --gen_kwargs do_sample=False,temperature=0"
            )
        return {
            "max_new_tokens": int(limits[0] if limits else self.max_gen_toks),
            "stop": (until,) if isinstance(until, str) else tuple(until),
        }

    def _item(self, prompt: str, **fields: Any) -> Item:
        before, context, after = split(prompt, self.compress)
        return Item(id="", before=before, context=context, after=after, is_chat=False, **fields)

    def _read(self, items: Sequence[Item]) -> Iterator[Reply]:
        """Yield the method's reply to each item."""
        contexts = [item.context for item in items]
        for at, item in enumerate(items):
            parts = self._parts(item, other_context(contexts, at))
            yield read(self.model, self._hold(parts), parts).reply

    def _hold(self, parts: Parts) -> Held:
        """Return an item's context as the method holds it; neighbours share one."""
        if not parts.item.context:
            return Held(answerer=self.model.engine, prefix=parts.head)
        key = (parts.head, parts.context, parts.other_context)
        if self._held is None or self._held[0] != key or self._method.sees_question:
            try:
                self._held = (key, self._method.hold(parts))
            except Unserved as reason:
                why = f"{self._method.name} cannot serve a prompt: {reason}"
                raise EvaluationError(why) from reason
        return self._held[1]

    def _parts(self, item: Item, other: str) -> Parts:
        """Cut an item into ids, control tokens outside its context being live."""
        prompts = self.model.prompts
        parts = cut(prompts, item, other)
        leading = prompts.encode_text("").input_ids  # what the tokenizer puts before any text
        head = prompts.encode_text(item.before).input_ids
        if leading and head[: 2 * len(leading)] == 2 * leading:
            head = head[len(leading) :]  # the chat template has put it there already
        tail = prompts.encode_text(item.after).input_ids[len(leading) :]
        if not head and not tail:
            return parts
        return replace(parts, head=tuple(head), tail=tuple(tail), num_question=len(tail))

    @property
    def tokenizer_name(self) -> str:
        """Name stored prompts: those of other models and rules have other names."""
        return f"{self.model.name}-{self.model.fingerprint}-{self.compress}".replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template that `apply_chat_template` uses; None if it is not asked for."""
        if isinstance(chat_template, str):
            raise EvaluationError(
                f"there is no choice of chat templates, but {chat_template!r} was asked for; give "
                "--apply_chat_template without a name"
            )
        return self._template if chat_template else None

    @property
    def _template(self) -> str:
        tokenizer = self.model.prompts.decoder_tokenizer
        return getattr(tokenizer, "chat_template", None) or PLAIN_TEMPLATE

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render messages, with tags around what the last user message has to compress.

        Without `add_generation_prompt` the last message is an answer begun, to be continued.
        """
        messages = [dict(message) for message in chat_history]
        users = [message for message in messages if message["role"] == "user"]
        if self.compress == "all" and len(users) > 1:
            raise EvaluationError(
                f"compress=all compresses one user message, but there are {len(users)}; give "
                "--fewshot_as_multiturn false or --num_fewshot 0"
            )
        if users:
            before, context, after = split(users[-1]["content"], self.compress)
            if context:
                users[-1]["content"] = f"{before}{MEMORY_START}{context}{MEMORY_END}{after}"
        rendered: str = self.model.prompts.decoder_tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            chat_template=self._template,
        )
        return rendered

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness stores with its results."""
        return {
            "octavo_version": octavo.__version__,
            "octavo_model": self.model.name,
            "octavo_fingerprint": self.model.fingerprint,
            "octavo_method": self._method.name,
            "octavo_ratio": self._method.ratio,
            "octavo_compress": self.compress,
        }


@functools.cache
def register() -> type[HarnessModel]:
    """Make `--model octavo` known to the harness in this process, and return its class.

    Raises `MissingExtraError` without lm_eval.
    """
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise MissingExtraError(
            "the harness adapter needs lm_eval: pip install 'octavo[lm-eval]'"
        ) from error
    made = types.new_class("Octavo", (HarnessModel, LM), exec_body=lambda body: body.update(
        __module__=__name__, __doc__=HarnessModel.__doc__
    ))  # fmt: skip
    registered: type[HarnessModel] = register_model("octavo")(made)
    return registered


def with_tokenizer(args: Sequence[str]) -> list[str]:
    """Return a command line that names the decoder's tokenizer to tasks that make their prompts.

    The harness would look for it in the folder that `pretrained` names, where octavo's models have
    none; a `tokenizer` of one's own, in `--model_args` or `--metadata`, is left alone.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", "-M")
    parser.add_argument("--model_args", "-a", nargs="+", action="extend", default=[])
    parser.add_argument("--metadata", nargs="+", action="extend", default=[])
    known, _ = parser.parse_known_args(args)
    given = {**_pairs(known.model_args), **_pairs(known.metadata)}
    if known.model != "octavo" or "tokenizer" in given:
        return list(args)
    folder = resolve(given.get("pretrained"), given.get("revision")) / "decoder"
    return [*args, "--metadata", json.dumps({"tokenizer": str(folder)})]


def _pairs(values: Sequence[str]) -> dict[str, Any]:
    """Read `a=1,b=2` and JSON objects, as the harness does."""
    pairs: dict[str, Any] = {}
    for value in values:
        if value.lstrip().startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):  # the harness will say so
                pairs.update(json.loads(value))
        else:
            pairs.update(part.partition("=")[::2] for part in value.split(",") if part)
    return pairs


def main() -> None:
    """Run the harness's own command line with `--model octavo` in its table."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        sys.argv[1:] = with_tokenizer(sys.argv[1:])
        cli_evaluate()
    except OctavoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
