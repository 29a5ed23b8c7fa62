"""The golden fixtures, through the script that anyone can point at their own."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from conftest import WIRE
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_wire.py"
SPEC = importlib.util.spec_from_file_location("check_wire", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
check_wire = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_wire)


def run(capsys: pytest.CaptureFixture[str], *folders: Path) -> tuple[int, str]:
    code = check_wire.main([str(folder) for folder in folders])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def test_the_golden_fixtures_are_reproduced(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = run(capsys, WIRE)
    assert code == 0, shown
    assert shown.count("  passed") == len(list(WIRE.iterdir()))
    assert shown.count("largest error") > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantity", ["pooled", "latents", "logits_last4", "greedy_ids", "coverage"]
)
def test_a_value_beyond_tolerance_fails(
    tmp_path: Path, quantity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(WIRE / "C_concat_causal_r8_w32", folder)
    expected = load_file(folder / "expected.safetensors")
    key = next((k for k in expected if quantity in k), "no/such/value")
    expected[key] = expected.get(key, next(iter(expected.values()))).clone()
    expected[key].view(-1)[0] += 1
    save_file(expected, folder / "expected.safetensors")
    code, shown = run(capsys, folder)
    assert code == 1
    assert "FAIL" in shown


def test_wrong_ids_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(WIRE / "C_concat_causal_r8_w32", folder)
    cases = json.loads((folder / "cases.json").read_text())
    cases[-1]["decoder_input_ids"][0] += 1
    (folder / "cases.json").write_text(json.dumps(cases))
    code, shown = run(capsys, folder)
    assert code == 1
    assert "ids" in shown.split("FAIL")[0].splitlines()[-1]


def test_a_folder_without_cases_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = run(capsys, tmp_path)
    assert code == 2
    assert shown.startswith("error:")
