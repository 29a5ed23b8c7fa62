"""Find the parts of any Hugging Face model, none of which has one name everywhere."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from octavo.errors import ConfigError

POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length")
INPUT_SCALES = {"falcon_h1": "embedding_multiplier"}
"""Types that scale embeddings of ids they look up, but not embeddings they are given: by what."""


def headless(model: Any) -> Any:
    """Return a model without its output layer; one that has none is returned as it is."""
    if model.get_output_embeddings() is None:
        return model
    for part in (model.get_decoder(), model.base_model, *model.children()):
        if isinstance(part, PreTrainedModel) and part is not model:
            return part
    raise ConfigError(f"{type(model).__name__} has no headless model inside; give another one")


def find_layers(body: Any) -> tuple[nn.Module, str]:
    """Return the module that holds a headless model's list of layers, and the list's name in it."""
    total = body.config.get_text_config().num_hidden_layers
    for owner in body.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == total:
                return owner, name
    raise ConfigError(f"{type(body).__name__} has no list of {total} layers; give another model")


def layers_of(body: Any) -> Any:
    """Return a headless model's list of layers."""
    owner, name = find_layers(body)
    return getattr(owner, name)


def max_positions(body: Any) -> int | None:
    """Return how many positions a model can tell apart; None where its config sets no limit."""
    config = body.config.get_text_config()
    found = [value for key in POSITION_KEYS if (value := getattr(config, key, None)) is not None]
    # RoBERTa counts from behind its padding token, and leaves as many positions unused.
    unused = getattr(getattr(body, "embeddings", None), "padding_idx", None)
    return int(found[0]) - (0 if unused is None else unused + 1) if found else None


def input_scale(config: Any) -> float:
    """Return by what a decoder scales looked-up embeddings that it does not scale when given."""
    config = config.get_text_config()
    return float(getattr(config, INPUT_SCALES.get(config.model_type, ""), None) or 1.0)


def rescaled(config: Any, logits: Tensor) -> Tensor:
    """Do to logits what Gemma, Granite, Cohere and Falcon-H1 do behind their output layer."""
    config = config.get_text_config()
    if (divisor := getattr(config, "logits_scaling", None)) not in (None, 1):
        logits = logits / divisor
    for name in ("logit_scale", "lm_head_multiplier"):
        if (factor := getattr(config, name, None)) not in (None, 1):
            logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = (logits / cap).tanh() * cap
    return logits


def share_rows(encoder: Any, decoder: Any) -> None:
    """Let the encoder's table of embeddings be the decoder's own rows, where they are equal.

    For reading alone: saves a table (113 MB for SmolLM2 in fp32). `own_rows` undoes it.
    """
    for mine, theirs in _plain_tables(encoder, decoder):
        rows = theirs.data[: len(mine)]
        is_alike = (mine.shape, mine.dtype, mine.device) == (rows.shape, rows.dtype, rows.device)
        if is_alike and torch.equal(mine, rows):
            mine.data = rows


def own_rows(encoder: Any, decoder: Any) -> None:
    """Give the encoder a table of its own again: one that is trained, or saved beside the other."""
    for mine, theirs in _plain_tables(encoder, decoder):
        if mine.data_ptr() == theirs.data_ptr():
            mine.data = mine.data.clone()


def _plain_tables(encoder: Any, decoder: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield both tables, unless they are one, on no device, or sharded over processes."""
    tables = encoder.get_input_embeddings(), decoder.get_input_embeddings()
    if not all(isinstance(table, nn.Embedding) for table in tables):
        return  # peft's, for one, computes a weight each time it is asked for
    mine, theirs = (table.weight for table in tables)
    for weight in (mine, theirs):
        if type(weight) is not nn.Parameter or type(weight.data) is not Tensor or weight.is_meta:
            return
    if mine is not theirs:
        yield mine, theirs


def decode_apart(body: Any, embeds_BTD: Tensor, position_ids_BT: Tensor) -> Tensor:
    """Return the hidden states of packed rows, read one example at a time.

    For decoders whose packed examples would see each other; slower, and on one process only, for
    sharded processes must all run the decoder equally often.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise ConfigError(
            f"{type(body).__name__} cannot keep packed examples apart; train it on one process"
        )
    rows = []
    for row_TD, positions_T in zip(embeds_BTD, position_ids_BT, strict=True):
        starts = (positions_T == 0).nonzero()[:, 0].tolist()
        parts = [part for part in row_TD.tensor_split(starts) if len(part)]
        read = [body(inputs_embeds=part[None], use_cache=False) for part in parts]
        rows.append(torch.cat([one.last_hidden_state[0] for one in read]))
    return torch.stack(rows)
