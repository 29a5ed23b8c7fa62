"""Contexts: what they know, how they are cut and joined, and how they survive the disk."""

import errno
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXT, WIRE
from safetensors.torch import load_file, safe_open, save_file

import octavo
from octavo import CompressedContext, ContextError, InputError, RatioError, WriteError
from octavo.context import sha256_of

LONG = TEXT * 5


@pytest.fixture(scope="module")
def context(model: octavo.Model) -> CompressedContext:
    return model.compress(LONG)


def test_a_context_counts_exactly(model: octavo.Model, context: CompressedContext) -> None:
    tokens = len(model.prompts.source(LONG).ids)
    assert context.source_tokens == tokens
    assert len(context) == -(-tokens // 4)
    assert context.num_bytes == len(context) * 64 * 4
    assert context.text_sha256 == sha256_of(LONG)


def test_blocks_cover_the_text_without_gaps(context: CompressedContext) -> None:
    pieces = [context.passage(index) for index in range(len(context))]
    assert "".join(pieces) == LONG


def test_characters_of_many_tokens_belong_to_one_passage(model: octavo.Model) -> None:
    text = "日本語のテキスト 🤖👩‍🚀 café" * 3
    context = model.compress(text)
    assert "".join(context.passage(i) for i in range(len(context))) == text


def test_a_context_survives_the_disk(
    model: octavo.Model, context: CompressedContext, tmp_path: Path
) -> None:
    context.save(tmp_path / "c.safetensors")
    loaded = CompressedContext.load(tmp_path / "c.safetensors")
    for name in ("latents", "block_tokens", "offsets"):
        torch.testing.assert_close(getattr(loaded, name), getattr(context, name), atol=0, rtol=0)
    for name in ("ratio", "text", "text_sha256", "fingerprint", "compressor_name", "is_whole"):
        assert getattr(loaded, name) == getattr(context, name)
    fresh = model.generate("Who signed?", context=context, max_new_tokens=8)
    assert model.generate("Who signed?", context=loaded, max_new_tokens=8).text == fresh.text


def test_a_context_can_be_kept_without_its_text(model: octavo.Model, tmp_path: Path) -> None:
    bare = model.compress(LONG, keep_text=False)
    bare.save(tmp_path / "c.safetensors")
    assert TEXT[:20].encode() not in (tmp_path / "c.safetensors").read_bytes()
    loaded = model.load_context(tmp_path / "c.safetensors")
    with pytest.raises(ContextError, match="without its text"):
        loaded.passage(0)
    with pytest.raises(ContextError, match="did not keep its text"):
        model.extend(loaded, "more")
    with pytest.raises(ContextError, match="raw=True"):
        model.generate("Who?", context=loaded, raw=True)


def test_a_slice_keeps_its_latents_and_its_text(context: CompressedContext) -> None:
    part = context[3:9]
    assert torch.equal(part.latents, context.latents[3:9])
    assert part.text == context.passage(3, 9)
    assert part.source_tokens == int(context.block_tokens[3:9].sum())
    assert part.passage(2) == context.passage(5)
    for bad in (slice(3, 3), slice(0, 9, 2), 4):
        with pytest.raises(ContextError):
            context[bad]  # type: ignore[index]


def test_joined_slices_are_the_whole(model: octavo.Model, context: CompressedContext) -> None:
    joined = CompressedContext.join([context[:7], context[7:30], context[30:]])
    assert torch.equal(joined.latents, context.latents)
    assert torch.equal(joined.offsets, context.offsets)
    assert joined.text == context.text
    assert joined.source_tokens == context.source_tokens
    with pytest.raises(ContextError, match="slice or a join"):
        model.extend(joined, "more")
    with pytest.raises(ContextError, match="nothing to join"):
        CompressedContext.join([])


@pytest.mark.parametrize("cut", [1, 7, 16, 63, 64, 65, 200, len(LONG) - 1])
def test_appending_equals_compressing_the_whole(
    model: octavo.Model, context: CompressedContext, cut: int
) -> None:
    grown = model.extend(model.compress(LONG[:cut]), LONG[cut:])
    torch.testing.assert_close(grown.latents, context.latents, atol=1e-5, rtol=1e-5)
    assert torch.equal(grown.offsets, context.offsets)
    assert torch.equal(grown.block_tokens, context.block_tokens)
    assert grown.text_sha256 == context.text_sha256


def test_appending_encodes_only_new_windows(
    model: octavo.Model, context: CompressedContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = model.engine.encode

    def counted(spans: Any, *rest: Any) -> Any:
        read.extend(map(len, spans))
        return real(spans, *rest)

    monkeypatch.setattr(model.engine, "encode", counted)
    grown = model.extend(context, "One more line.")
    assert sum(read) < 16 + len(model.prompts.source("One more line.").ids) + 16
    assert grown.source_tokens > 200


def test_appending_equals_the_whole_where_windows_overlap() -> None:
    model = octavo.load(WIRE / "F_mean_causal_r8_w16_o4" / "checkpoint", device="cpu")
    grown = model.extend(model.compress(LONG[:150]), LONG[150:])
    whole = model.compress(LONG)
    torch.testing.assert_close(grown.latents, whole.latents, atol=1e-5, rtol=1e-5)


def test_a_loaded_context_grows_with_its_model(
    model: octavo.Model, context: CompressedContext, tmp_path: Path
) -> None:
    context.save(tmp_path / "c.safetensors")
    grown = model.extend(model.load_context(tmp_path / "c.safetensors"), " More.")
    assert grown.text == LONG + " More."
    with pytest.raises(InputError, match="empty"):
        model.extend(context, "")


def test_another_compressor_is_refused_by_name(context: CompressedContext, tmp_path: Path) -> None:
    other = octavo.load(WIRE / "C_concat_causal_r8_w32" / "checkpoint", device="cpu")
    with pytest.raises(ContextError, match=f"{context.fingerprint}.*{other.fingerprint}"):
        other.generate("Who?", context=context)
    with pytest.raises(ContextError, match="cannot read its latents"):
        CompressedContext.join([other.compress(TEXT), context])
    context.save(tmp_path / "c.safetensors")
    with pytest.raises(ContextError, match="cannot read its latents"):
        other.load_context(tmp_path / "c.safetensors")


def test_damaged_and_foreign_files_are_refused(context: CompressedContext, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    context.save(path)
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ContextError):
            CompressedContext.load(path)
    with pytest.raises(ContextError, match="no context"):
        CompressedContext.load(WIRE / "A_mean_causal_r4_w16/checkpoint/adapter/adapter.safetensors")
    with pytest.raises(ContextError, match="no context at"):
        CompressedContext.load(tmp_path / "nowhere.safetensors")


def parts_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["context"])


def put(path: Path, tensors: dict[str, torch.Tensor], about: Any) -> None:
    said = about if isinstance(about, str) else json.dumps(about)
    save_file(tensors, path, metadata={"format": "octavo-context", "context": said})


def odd_value(rng: random.Random, value: Any) -> Any:
    """Return a value that should not stand where `value` does."""
    odd = [None, True, -1, 0, 99, 2**70, 1.5, float("nan"), "x", "", [], {}, [value]]
    return rng.choice([one for one in odd if one != value or type(one) is not type(value)])


def odd_tensor(rng: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of another type, shape or content."""
    changed = tensor.clone()
    flat = changed.view(-1)
    at = rng.randrange(len(flat))
    kinds: list[Callable[[], Any]] = [
        lambda: changed[:-1].clone(),
        lambda: changed[None].clone(),
        lambda: changed[:0].clone(),
        lambda: torch.cat([changed, changed]),
        lambda: changed.to(rng.choice([torch.int8, torch.bool, torch.float64, torch.complex64])),
        lambda: flat.__setitem__(at, flat[at] + rng.choice([1, 100])) or changed,
        lambda: flat.__setitem__(at, 127) or changed,
    ]
    if tensor.is_floating_point():
        kinds.append(lambda: flat.__setitem__(at, float("nan")) or changed)
    return rng.choice(kinds)()


def mutate(rng: random.Random, path: Path) -> None:
    """Change one thing in a context's file: bytes, a field of its metadata, or a tensor."""
    raw = bytearray(path.read_bytes())
    kind = rng.randrange(5)
    if kind == 0:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == 1:  # in the header, where the most can go wrong
        raw[rng.randrange(900)] = rng.randrange(256)
    elif kind == 2:
        at = rng.randrange(len(raw))
        raw[at : at + rng.choice([0, 1, 8, 999])] = rng.randbytes(rng.choice([0, 1, 8]))
    else:
        tensors, about = parts_of(path)
        if kind == 3:
            name = rng.choice([*about, "more"])
            about[name] = odd_value(rng, about.get(name))
            if rng.random() < 0.2:
                del about[name]
        else:
            name = rng.choice(list(tensors))
            tensors[name] = odd_tensor(rng, tensors[name])
            if rng.random() < 0.2:
                tensors[rng.choice([name, "more"])] = tensors.pop(name)
        return put(path, tensors, about)
    return path.write_bytes(raw) and None


def check_mutations(context: CompressedContext, path: Path, count: int) -> None:
    context.save(path)
    whole, refused = path.read_bytes(), 0
    for seed in range(count):
        path.write_bytes(whole)
        mutate(random.Random(seed), path)
        try:
            loaded = CompressedContext.load(path)
        except ContextError:
            refused += 1
            continue
        for name in CompressedContext.__slots__:
            found, wanted = getattr(loaded, name), getattr(context, name)
            same = torch.equal(found, wanted) if torch.is_tensor(found) else found == wanted
            assert same, (seed, name)
    assert refused > 0.9 * count


def test_no_altered_context_is_read(context: CompressedContext, tmp_path: Path) -> None:
    check_mutations(context[:9], tmp_path / "part.safetensors", 200)
    check_mutations(context, tmp_path / "whole.safetensors", 200)


@pytest.mark.slow
def test_none_of_five_thousand_altered_contexts_is_read(
    context: CompressedContext, tmp_path: Path
) -> None:
    check_mutations(context, tmp_path / "c.safetensors", 5_000)


@pytest.mark.parametrize(
    "change",
    [
        lambda t, a: t.update(latents=t["latents"] * float("nan")),
        lambda t, a: t.update(latents=t["latents"].to(torch.int8)),
        lambda t, a: t.update(latents=t["latents"][0]),
        lambda t, a: t.update(block_tokens=t["block_tokens"][:-1].clone()),
        lambda t, a: t.update(block_tokens=t["block_tokens"] * 0),
        lambda t, a: t.update(offsets=t["offsets"] + 10**9),
        lambda t, a: t.update(offsets=t["offsets"].flip(0)),
        lambda t, a: t.update(text=torch.full((4,), 255, dtype=torch.uint8)),
        lambda t, a: t.pop("offsets"),
        lambda t, a: a.update(ratio=99),
        lambda t, a: a.update(ratio="x"),
        lambda t, a: a.update(compress_seconds=float("inf")),
        lambda t, a: a.update(fingerprint=None),
        lambda t, a: a.pop("ratio"),
    ],
)
def test_files_of_older_versions_pass_every_check_but_the_checksum(
    context: CompressedContext, tmp_path: Path, change: Any
) -> None:
    path = tmp_path / "c.safetensors"
    context.save(path)
    tensors, about = parts_of(path)
    about["format_version"] = 1
    del about["checksum"]
    put(path, tensors, about)
    assert torch.equal(CompressedContext.load(path).latents, context.latents)
    change(tensors, about)
    put(path, tensors, about)
    with pytest.raises(ContextError):
        CompressedContext.load(path)


@pytest.mark.parametrize("said", ["{", "[]", "[" * 100_000, "null", '{"format_version": 99}', "{}"])
def test_odd_metadata_is_refused(context: CompressedContext, tmp_path: Path, said: str) -> None:
    context.save(tmp_path / "c.safetensors")
    put(tmp_path / "c.safetensors", load_file(tmp_path / "c.safetensors"), said)
    with pytest.raises(ContextError, match="make it again"):
        CompressedContext.load(tmp_path / "c.safetensors")


def test_a_context_that_cannot_be_right_is_not_saved(
    context: CompressedContext, tmp_path: Path
) -> None:
    broken = replace(context, latents=context.latents / 0)
    with pytest.raises(ContextError, match="latents"):
        broken.save(tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_ratio_may_be_a_number_of_numpy(model: octavo.Model, tmp_path: Path) -> None:
    made = model.compress(TEXT, np.int64(4))  # type: ignore[arg-type]
    made.save(tmp_path / "c.safetensors")
    assert type(model.load_context(tmp_path / "c.safetensors").ratio) is int


def test_a_full_disk_leaves_the_old_file_whole(
    context: CompressedContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"the old one")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="No space left"):
        context.save(path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(WriteError, match="does not exist"):
        context.save(tmp_path / "no" / "folder.safetensors")
    with pytest.raises(WriteError, match="is a folder"):
        context.save(tmp_path)


def test_bad_texts_and_ratios_are_refused(model: octavo.Model) -> None:
    with pytest.raises(InputError, match="empty"):
        model.compress("")
    with pytest.raises(InputError, match="expected str"):
        model.compress(b"bytes")  # type: ignore[arg-type]
    for ratio in (0, 7, -4, True):
        with pytest.raises(RatioError, match="trained for 4"):
            model.compress(TEXT, ratio)
    with pytest.raises(ContextError, match="split the text"):
        model.compress(TEXT * 2000)
    with pytest.raises(ContextError, match="10 fit"):
        model.compress(LONG, max_latents=10)
