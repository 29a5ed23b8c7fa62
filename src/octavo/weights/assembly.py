"""Make a new LCLM out of any two Hugging Face models.

The encoder may be the first layers of the decoder itself: same tokenizer, and features close to
what the decoder expects. A fresh adapter starts at the scale of the decoder's token embeddings, so
that the first latents are neither too small nor too large to read.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging as transformers_logging

from octavo.config import MEMORY_TOKENS, Extension, ModelConfig
from octavo.errors import CheckpointError, ConfigError
from octavo.nn import LCLM, LCLMConfig
from octavo.nn.body import find_layers, headless
from octavo.progress import Progress
from octavo.weights.base import BASE_NAME, ensure_base
from octavo.weights.selfcheck import check

PINNED_BASE = f"octavo:{BASE_NAME}"
"""How checkpoints name the pinned base model."""
UNTRUSTED: dict[str, Any] = {"trust_remote_code": False}
"""For every library that opens a checkpoint: code in it is never run, nor asked about."""
RESIDUAL_ADAPTER_SCALE = 0.1
"""A fresh adapter adds little to the order-preserving sum. A starting value, unmeasured."""


def load_base(name: str, base: Path | None = None, progress: Progress | None = None) -> str:
    """Return a local folder or hub id for a base model's name, fetching the pinned one."""
    if not name.startswith("octavo:"):
        return name
    if name not in (PINNED_BASE, "octavo:smollm2"):
        raise CheckpointError(f"unknown base {name!r}; this octavo pins {PINNED_BASE}: upgrade")
    return str(ensure_base(base, progress))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing progress bars of its own: a library does not draw."""
    logger = transformers_logging
    if not logger.is_progress_bar_enabled():
        yield
        return
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.enable_progress_bar()


def first_layers(body: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """Return a copy of a headless model that keeps its first layers and its final norm."""
    owner, name = find_layers(body)
    layers: Any = getattr(owner, name)
    if not 1 <= num_layers <= len(layers):
        raise ConfigError(f"encoder_layers is {num_layers}, but the model has {len(layers)} layers")
    setattr(owner, name, layers[:num_layers])
    try:  # in one go, so that all parts go on sharing one config
        shortened = copy.deepcopy(body)
    finally:
        setattr(owner, name, layers)
    config = shortened.config
    config.num_hidden_layers = num_layers
    for key, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == len(layers):
            setattr(config, key, value[:num_layers])
    return shortened


@torch.no_grad()
def _check_can_be_rebuilt(body: PreTrainedModel) -> None:
    """Refuse a shortened model that would be another one if it were saved and loaded."""
    kind, ids = body.config.model_type, torch.arange(8, device=body.device)[None]
    try:
        with torch.device("meta"):
            again = type(body)(copy.deepcopy(body.config)).eval()
        again.load_state_dict(body.state_dict(), assign=True)
        for name, buffer in body.named_buffers():  # those that no file holds
            owner, _, last = name.rpartition(".")
            setattr(again.get_submodule(owner), last, buffer)
        got, wanted = (m(input_ids=ids, use_cache=False).last_hidden_state for m in (again, body))
        is_same = torch.allclose(got, wanted, rtol=1e-3, atol=1e-3)
    except Exception:  # of every kind, by architecture
        is_same = False
    if not is_same:
        raise ConfigError(
            f"a {kind} cut to its first {body.config.num_hidden_layers} layers would be another "
            "model once saved and loaded; leave encoder_layers out, or use another encoder"
        )


def assemble_parts(
    encoder: str | Path | PreTrainedModel,
    decoder: str | Path | PreTrainedModel,
    config: ModelConfig,
    *,
    extension: Extension | None = None,
    encoder_layers: int | None = None,
    encoder_tokenizer: Any = None,
    decoder_tokenizer: Any = None,
    dtype: torch.dtype = torch.float32,
    base: Path | None = None,
    closed: Mapping[str, str] | None = None,
) -> tuple[LCLM, Any, Any]:
    """Return a new `(LCLM, decoder tokenizer, encoder tokenizer)` with a fresh adapter.

    `encoder` and `decoder` are folders, hub ids, or models; models need their tokenizers given,
    and become part of the LCLM, cast to `dtype`. The memory tokens are added to the decoder's
    tokenizer, and its embedding grows to hold them. Raises `ConfigError` for models that cannot
    work, after trying them on a few tokens; `closed` is what that found of the same parts before,
    and spares it.
    """
    extension = extension or Extension(rotary="exact")
    decoder_model, decoder_tokenizer = _load(decoder, decoder_tokenizer, dtype, base, head=True)
    encoder_model, encoder_tokenizer = _load(encoder, encoder_tokenizer, dtype, base, head=False)
    if encoder_layers is not None:
        encoder_model = first_layers(encoder_model, encoder_layers)
        _check_can_be_rebuilt(encoder_model.eval())
    elif set(encoder_model.parameters()) & set(decoder_model.parameters()):
        encoder_model = copy.deepcopy(encoder_model)  # one object was given as both halves
    is_same = _words(encoder_tokenizer) == _words(decoder_tokenizer)
    if extension.residual == "sum" and not is_same:
        raise ConfigError(
            "residual 'sum' needs encoder and decoder to share a tokenizer, but theirs differ; "
            "use residual 'none'"
        )
    known_ids = set(decoder_tokenizer.get_vocab().values())
    decoder_tokenizer = _with_memory_tokens(decoder_tokenizer)
    new = sorted(set(decoder_tokenizer.get_vocab().values()) - known_ids)
    make_room(decoder_model, len(decoder_tokenizer), new)
    lclm = build(
        encoder_model, decoder_model, encoder_tokenizer, decoder_tokenizer, config, extension
    )
    lclm.adapter.to(dtype)
    _match_scale(lclm)
    if closed is None:
        check(lclm, (decoder_tokenizer, encoder_tokenizer), is_fresh=True)
    else:
        for door, message in closed.items():
            lclm.close(door, message)
    return lclm, decoder_tokenizer, encoder_tokenizer


def load_tokenizers(encoder: str, decoder: str, base: Path | None = None) -> tuple[Any, Any]:
    """Return the `(decoder, encoder)` tokenizers of an LCLM yet to be assembled; no weights."""
    found = []
    for source in (decoder, encoder):
        try:
            found.append(AutoTokenizer.from_pretrained(load_base(source, base), **UNTRUSTED))
        except (OSError, ValueError) as error:
            raise _cannot_load(source, error) from error
    return _with_memory_tokens(found[0]), found[1]


def _with_memory_tokens(tokenizer: Any) -> Any:
    """Return a copy of a decoder's tokenizer that knows the memory tokens."""
    tokenizer = copy.deepcopy(tokenizer)
    # The list is replaced by what is given, so the tokenizer's own further tokens go in again.
    own: Any = getattr(tokenizer, "extra_special_tokens", None)
    own = own or getattr(tokenizer, "additional_special_tokens", [])
    # As they are: a token that is given by its text alone forgets that it takes spaces with it.
    known = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    kept = [known.get(str(one), one) for one in own if str(one) not in MEMORY_TOKENS]
    tokenizer.add_special_tokens({"additional_special_tokens": [*kept, *MEMORY_TOKENS]})
    return tokenizer


def build(
    encoder: PreTrainedModel,
    decoder: PreTrainedModel,
    encoder_tokenizer: Any,
    decoder_tokenizer: Any,
    config: ModelConfig,
    extension: Extension,
) -> LCLM:
    """Join two loaded models into an LCLM whose ids come from their tokenizers, by name."""
    pad = encoder_tokenizer.pad_token_id
    if pad is None:
        pad = encoder_tokenizer.eos_token_id
    if pad is None and config.pooling == "eos":
        raise CheckpointError("the encoder's tokenizer has no pad token, which 'eos' pooling reads")
    lclm_config = LCLMConfig(
        # Copies: transformers resets the attention implementation of the configs nested in another.
        text_config=copy.deepcopy(decoder.config),
        encoder_config=copy.deepcopy(encoder.config),
        model_config=config.to_dict(),
        extension=extension.to_dict(),
        memory_token_ids=[decoder_tokenizer.convert_tokens_to_ids(t) for t in MEMORY_TOKENS],
        encoder_pad_token_id=pad or 0,
    )
    return LCLM(lclm_config, encoder=encoder, decoder=decoder)


def add_lora(
    lclm: LCLM,
    rank: int,
    alpha: int,
    encoder_rank: int | None = None,
    *,
    encoder: str,
    decoder: str,
    encoder_layers: int | None = None,
) -> None:
    """Put LoRA factors on every linear layer of both halves, and train the memory tokens' rows.

    `encoder`, `decoder` and `encoder_layers` say what the halves were assembled from: a checkpoint
    of factors has to name what they build on.
    """
    is_pinned = encoder.startswith("octavo:") and decoder.startswith("octavo:")
    lclm.extension = replace(
        lclm.extension, base=PINNED_BASE if is_pinned else None, encoder_layers=encoder_layers
    )
    rows = lclm.decoder.get_input_embeddings()
    table = next(n for n, m in lclm.decoder.named_modules() if m is rows).rpartition(".")[2]
    ids_1T = torch.tensor([lclm.config.memory_token_ids], device=lclm.device)
    lclm.decoder = _with_factors(
        lclm.decoder,
        lambda model: model(inputs_embeds=lclm.embed_tokens(ids_1T), use_cache=False),
        r=rank,
        lora_alpha=alpha,
        task_type="CAUSAL_LM",
        trainable_token_indices={table: list(lclm.config.memory_token_ids)},
    )
    of_encoder = encoder_rank or rank
    lclm.encoder.body = _with_factors(
        lclm.encoder.body,
        lambda model: model(input_ids=torch.zeros_like(ids_1T), use_cache=False),
        r=of_encoder,
        lora_alpha=alpha * of_encoder // rank,
    )
    for half, name in ((lclm.decoder, decoder), (lclm.encoder.body, encoder)):
        named = PINNED_BASE if name.startswith("octavo:") else name
        half.peft_config["default"].base_model_name_or_path = named


def _with_factors(model: Any, read: Callable[[Any], Any], **options: Any) -> Any:
    """Put LoRA factors on all linear layers of a model, or say why its architecture takes none.

    `read` makes the model read something. A layer that it does not call, using its weights in some
    other way, gets no factors, for they would do nothing until they are merged.
    """
    from peft import LoraConfig, get_peft_model

    called: dict[str, bool] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            last = name.rpartition(".")[2]
            called.setdefault(last, False)

            def note(_: Any, __: Any, output: Any, last: str = last) -> None:
                called[last] |= isinstance(output, torch.Tensor)

            hooks.append(layer.register_forward_hook(note))
    try:
        with torch.no_grad():
            read(model)
            for hook in hooks:
                hook.remove()
            unused = sorted(name for name, is_called in called.items() if not is_called)
            config = LoraConfig(
                target_modules="all-linear",
                exclude_modules=unused or None,
                lora_dropout=0.0,
                bias="none",
                **options,
            )
            adapted = get_peft_model(model, config)
            read(adapted)
        return adapted
    except Exception as error:  # peft's own, of every kind, by architecture
        raise ConfigError(
            f"a {model.config.model_type} takes no LoRA factors on all its linear layers "
            f"({str(error).split('. ')[0][:200]}); train its whole weights instead"
        ) from error


def _words(tokenizer: Any) -> dict[str, int]:
    """Return a tokenizer's vocabulary without the memory tokens, which a decoder may have."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return {word: index for word, index in vocabulary.items() if word not in MEMORY_TOKENS}


def _load(
    source: str | Path | PreTrainedModel,
    tokenizer: Any,
    dtype: torch.dtype,
    base: Path | None,
    *,
    head: bool,
) -> tuple[PreTrainedModel, Any]:
    if isinstance(source, nn.Module):
        if tokenizer is None:
            raise ConfigError("a model object needs its tokenizer: pass encoder_/decoder_tokenizer")
        model: Any = source if head else headless(source)
        if not getattr(model, "is_quantized", False):
            model.to(dtype)
            model.config.dtype = dtype
        return model, tokenizer
    folder = load_base(str(source), base)
    kind = AutoModelForCausalLM if head else AutoModel
    try:
        with quiet():
            model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, **UNTRUSTED)
        return model, tokenizer or AutoTokenizer.from_pretrained(folder, **UNTRUSTED)
    except (OSError, ValueError) as error:
        raise _cannot_load(source, error) from error


def _cannot_load(source: Any, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [""])[0][:200]
    return CheckpointError(f"cannot load {source} ({reason}); give a folder or hub id")


@torch.no_grad()
def make_room(decoder: Any, vocabulary: int, new_ids: Sequence[int]) -> None:
    """Grow input and output rows where they lack some; those of new tokens start as their mean.

    The mean of the output layer's own rows is no likelier than the average token. Many models have
    spare rows that were never trained: there new tokens start at the mean too.
    """
    size = decoder.get_input_embeddings().weight.shape[0]
    if size < vocabulary:
        # Drawing whole tables anew, as resizing does too, takes as long as reading them.
        decoder._init_weights = lambda module: None
        try:
            with init.no_init_weights():
                decoder.resize_token_embeddings(vocabulary, mean_resizing=False)
        finally:
            del decoder._init_weights
    head = decoder.get_output_embeddings()
    for values in (decoder.get_input_embeddings().weight, head.weight, head.bias):
        if values is not None:
            mean = values[:size].float().mean(0).to(values.dtype)
            values[[*range(size, len(values)), *new_ids]] = mean


@torch.no_grad()
def _match_scale(lclm: LCLM) -> None:
    """Scale the adapter's last layer so that latents start as long as what the decoder reads."""
    table: torch.Tensor = lclm.decoder.get_input_embeddings().weight
    ids = torch.arange(len(table), device=table.device)
    norms = [lclm.embed_tokens(some).float().norm(dim=-1) for some in ids.split(4096)]
    wanted = torch.cat(norms).mean()
    if lclm.residual is not None:
        wanted = wanted * RESIDUAL_ADAPTER_SCALE
    generator = torch.Generator().manual_seed(0)
    weight = lclm.adapter.fc1.weight
    sample = torch.randn(256, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    hidden = nn.functional.gelu(lclm.adapter.fc1(lclm.adapter.norm(sample)))
    lclm.adapter.fc2.weight *= wanted / lclm.adapter.fc2(hidden).float().norm(dim=-1).mean()
