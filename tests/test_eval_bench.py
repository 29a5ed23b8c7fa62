"""`octavo bench`: what it measures, what its rows hold, and how it goes on."""

import importlib.machinery
import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from conftest import CHECKPOINT, WIRE
from presses import last_quarter
from transformers import AutoModel, AutoModelForCausalLM
from typer.testing import CliRunner

import octavo
from octavo.cli.inputs import Misuse
from octavo.config import Extension, RatioError
from octavo.costs import Floor, Peaks, find_peaks
from octavo.engine.local import LocalEngine
from octavo.errors import ConfigError, EvaluationError, MissingExtraError
from octavo.files import WriteError
from octavo.machine import Peak, is_out_of_memory
from octavo.weights.layout import ASSETS
from octavo_evals.bench import Settings, run
from octavo_evals.bench.shapes import SHAPES, build, find_shape
from octavo_evals.bench.summary import Quartiles, break_even, speedups, summarise
from octavo_evals.cli.bench import bench
from octavo_evals.rows import MEASUREMENT, read_rows

run_module = sys.modules["octavo_evals.bench.run"]
FAST = Settings(
    shapes=("tiny",), lengths=(96, 160), ratios=(4, 16), repeats=2, questions=2, batch=2,
    question_tokens=5, new_tokens=3, chunk=64, device="cpu", dtype="float32",
)  # fmt: skip
TRIALS = [("raw", None), ("octavo", 4), ("octavo", 16)]


def fast(**changes: Any) -> Settings:
    return Settings(**{**{n: getattr(FAST, n) for n in Settings.__slots__}, **changes})


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tiny(**changes: Any) -> octavo.nn.LCLM:
    options: dict[str, Any] = {"positions": 4096, "device": "cpu", "dtype": torch.float32}
    return build(find_shape("tiny"), **{**options, **changes})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The file and the rows of one whole run."""
    path = tmp_path_factory.mktemp("bench") / "rows.jsonl"
    return path, run(FAST, path)


# -- rows ----------------------------------------------------------------------------------------


def test_a_run_returns_a_row_per_cell_and_repeat_and_writes_the_same(measured: Any) -> None:
    path, rows = measured
    assert lines_of(path) == rows
    turns = [(row["length"], row["repeat"], row["method"], row["ratio"]) for row in rows]
    # All methods take their turn at a length before any is repeated.
    assert turns == [
        (length, repeat, *trial) for length in (96, 160) for repeat in (1, 2) for trial in TRIALS
    ]


def test_rows_hold_what_can_be_counted_by_hand(measured: Any) -> None:
    _, rows = measured
    raw = next(row for row in rows if row["method"] == "raw" and row["length"] == 160)
    own = next(row for row in rows if row["ratio"] == 16 and row["length"] == 160)
    # 3 layers, keys and values, 2 heads of 16, 4 bytes.
    assert raw["cache_bytes"] == 160 * 768
    # Windows of 64 tokens make 4 + 4 + 2 latents, and two marks stand around them.
    assert own["latents"] == 10
    assert own["cache_bytes"] == 12 * 768
    assert own["context_bytes"] == 10 * 64 * 4
    assert raw["prompt_tokens"] == 165
    assert own["prompt_tokens"] == 17
    assert own["source_tokens"] == raw["source_tokens"] == 160
    assert own["decode_tokens"] == 2
    assert own["flops"] < raw["flops"]
    for row in rows:
        assert row["skipped"] is None
        assert 0 < row["next_seconds"] < row["first_seconds"] + 1
        assert row["decode_seconds"] > 0
        assert (row["compress_seconds"] > 0) == (row["method"] == "octavo")
        assert row["compress_seconds"] < row["first_seconds"]
        assert 0 < row["batch_seconds"] < 9 * row["alone_seconds"]
        assert row["versions"]["torch"] == version("torch")
        assert (row["device"], row["dtype"], row["seed"]) == ("cpu", "float32", 0)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0.0, 0.71])
def test_a_cut_run_goes_on_to_the_same_keys(measured: Any, tmp_path: Path, cut: float) -> None:
    path, rows = measured
    data = path.read_bytes()
    part = tmp_path / "rows.jsonl"
    part.write_bytes(data[: int(len(data) * cut)])
    whole = part.read_bytes().count(b"\n")
    resumed = run(FAST, part)
    keys = [sorted(map(repr, map(MEASUREMENT.key_of, some))) for some in (resumed, rows)]
    assert keys[0] == keys[1]
    assert lines_of(part) == resumed
    assert resumed[:whole] == rows[:whole]


def test_a_finished_run_measures_nothing_more(
    measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rows = measured
    before = path.read_bytes()
    monkeypatch.setattr(LocalEngine, "start", lambda *_: pytest.fail("measured again"))
    assert run(FAST, path) == rows
    assert path.read_bytes() == before


def test_lengths_can_be_added_and_only_those_asked_for_come_back(
    measured: Any, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(measured[0].read_bytes())
    rows = run(fast(lengths=(32, 96)), path)
    assert {row["length"] for row in rows} == {32, 96}
    assert {row["length"] for row in lines_of(path)} == {32, 96, 160}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ratios": (4,)}, r"ratios is \[4\], but the rows of .* with \[4, 16\]; give -o"),
        ({"methods": ("raw",)}, "methods"),
        ({"new_tokens": 4}, "new_tokens is 4, but .* with 3"),
        ({"chunk": 32}, "chunk is 32, but .* with 64"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16'"),
        ({"seed": 1}, "seed is 1, but"),
    ],
)
def test_changed_settings_are_refused(measured: Any, change: dict[str, Any], said: str) -> None:
    path, _ = measured
    before = path.read_bytes()
    with pytest.raises(EvaluationError, match=said):
        run(fast(**change), path)
    assert path.read_bytes() == before


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"a line that is no row of a bench .*dear diary"):
        run(FAST, path)
    assert path.read_text(encoding="utf-8") == "dear diary\n"
    path.write_text("dear diary", encoding="utf-8")
    with pytest.raises(EvaluationError, match="no row of a bench"):
        run(FAST, path)
    assert path.read_text(encoding="utf-8") == "dear diary"
    with pytest.raises(WriteError, match="cannot write"):
        run(FAST, tmp_path / "missing" / "rows.jsonl")


def test_two_runs_do_not_measure_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    code = (
        "import sys, pathlib\n"
        "from octavo_evals.rows import MEASUREMENT, RowFile\n"
        "with RowFile(pathlib.Path(sys.argv[1]), MEASUREMENT).claim(()):\n"
        "    print('claimed', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    line = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(line, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(EvaluationError, match="another process is measuring"):
            run(FAST, path)
        other.communicate()
    run(fast(lengths=(32,), ratios=(4,), repeats=1), path)  # the other has let go


def test_rows_of_an_older_bench_still_open() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "bench_2core_202611.jsonl"
    gains = speedups(summarise(read_rows(path, MEASUREMENT)))["smol"]
    assert set(gains) == {"2048", "8192"}
    assert all(one["first"] > 1 for one in gains["8192"].values())
    assert "batch" not in gains["8192"]["octavo@4"]


# -- memory --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_running_out_of_memory_skips_one_cell_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried = []
    encode = LocalEngine.encode

    def hungry(self: LocalEngine, spans: Any, ratio: int, on_tokens: Any = None) -> Any:
        tried.append((len(spans[0]), ratio))
        if tried[-1] == (96, 16):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
        return encode(self, spans, ratio, on_tokens)

    monkeypatch.setattr(LocalEngine, "encode", hungry)
    rows = run(FAST, tmp_path / "rows.jsonl")
    skipped = [row for row in rows if row["skipped"]]
    assert [MEASUREMENT.key_of(row) for row in skipped] == [("tiny", 96, "octavo", 16, None)]
    assert skipped[0]["skipped"] == "out of memory"
    assert len(rows) == 11
    assert tried.count((96, 16)) == 1
    assert run(FAST, tmp_path / "rows.jsonl") == rows
    assert tried.count((96, 16)) == 1
    found = {one.label: one for one in summarise(rows) if one.length == 96}
    assert not found["octavo@16"].rows
    assert found["octavo@4"].speedups
    assert "octavo@16" not in speedups(list(found.values()))["tiny"]["96"]


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(LocalEngine, "encode", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(FAST)
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("memory format"))


def test_what_cannot_fit_is_skipped_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    floor = Floor(tiny(device="meta", ratios=FAST.ratios))
    # Room for the weights, and for the cache of 60 positions: 5 + 3 are the question's.
    room = floor.weight_bytes + 60 * 768
    monkeypatch.setattr(run_module, "memory_of", lambda device: room)
    rows = run(fast(lengths=(160,), repeats=1))
    by_cell = {(row["method"], row["ratio"]): row["skipped"] for row in rows}
    assert by_cell[("octavo", 4)] is None  # 40 latents
    assert by_cell[("raw", None)] == (
        "out of memory: 0.0 GB of KV cache and 0.0 GB of weights exceed 0.0 GB"
    )


def test_weights_that_do_not_fit_skip_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(shape: Any, *, device: Any, **how: Any) -> octavo.nn.LCLM:
        if str(device) != "meta":
            raise torch.OutOfMemoryError("out of memory")
        return build(shape, device=device, **how)

    monkeypatch.setattr(run_module, "build", refuse)
    rows = run(FAST)
    assert len(rows) == 6
    assert {row["skipped"] for row in rows} == {"out of memory"}


@pytest.mark.slow
def test_the_peak_counts_what_a_block_took_and_gave_back() -> None:
    with Peak("cpu") as idle:
        pass
    if idle.bytes is None:
        pytest.skip("this kernel tells no peak")
    with Peak("cpu") as peak:
        torch.ones(1 << 24).sum()  # 64 MiB
    assert peak.bytes is not None
    assert 60 << 20 <= peak.bytes <= 100 << 20
    assert idle.bytes < 20 << 20
    with Peak("mps") as unknown:
        pass
    assert unknown.bytes is None


# -- shapes and floor ----------------------------------------------------------------------------


def test_the_papers_shape_has_the_published_sizes() -> None:
    shape = find_shape("paper-0.6b-4b")
    how: dict[str, Any] = {"positions": 1 << 20, "device": "meta", "dtype": torch.bfloat16}
    lclm = build(shape, **how)
    # Parameters in the model cards' safetensors metadata.
    assert lclm.decoder.num_parameters() == 4_022_468_096
    assert lclm.encoder.body.num_parameters() == 595_776_512
    floor = Floor(lclm)
    assert floor.kv_bytes == 147_456
    assert floor.weight_bytes == 2 * floor.parameters
    assert 9.2e9 < floor.weight_bytes < 9.3e9
    assert lclm.decoder.config.max_position_embeddings == 1 << 20
    assert {p.dtype for p in lclm.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_as_many_parameters_as_transformers_gives_its_configs(name: str) -> None:
    shape = find_shape(name)
    lclm = build(shape, positions=64, device="meta", dtype=torch.float32)
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(shape.decoder)
        decoder.tie_weights()
        encoder = AutoModel.from_config(shape.encoder)
    own = sum(
        p.numel() for part in (lclm.adapter, lclm.residual) if part for p in part.parameters()
    )
    wanted = decoder.num_parameters() + encoder.num_parameters() + own
    assert Floor(lclm).parameters == wanted


def test_smol_is_smollm2_with_three_more_words_and_the_shipped_encoder() -> None:
    lclm = build(find_shape("smol"), positions=64, device="meta", dtype=torch.float32)
    assert lclm.decoder.num_parameters() == 134_515_008 + 3 * 576
    shipped = Extension.read(ASSETS / "smol")
    assert len(lclm.encoder.body.layers) == shipped.encoder_layers == 6
    assert lclm.residual is not None


def test_the_floor_equals_hand_worked_numbers() -> None:
    floor = Floor(tiny(device="meta"))
    # A layer: q and o 64 x 64, k and v 64 x 32, three of 64 x 128.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    adapter = 2 * 64 * 64
    # 100 tokens are windows of 64 and 36; 4 FLOPs x 4 heads x 16 x 2 layers for each pair.
    pairs = 64 * 65 // 2 + 36 * 37 // 2
    compress = 2 * 2 * layer * 100 + 4 * 4 * 16 * 2 * pairs + 2 * adapter * 7
    assert floor.compress_flops(100, 16) == compress
    # 10 positions behind 5: 15, 14 … 6 pairs.
    read = 2 * 3 * layer * 10 + 4 * 4 * 16 * 3 * sum(range(6, 16))
    assert floor.read_flops(10, past=5) == read
    assert floor.question_flops(10, past=5) == read + 2 * 512 * 64
    assert floor.kv_bytes == 2 * 3 * 2 * 16 * 4
    assert floor.decode_bytes(7) == (3 * layer + 512 * 64) * 4 + 7 * 768


def test_reading_in_two_parts_costs_what_reading_at_once_does() -> None:
    floor = Floor(tiny(device="meta"))
    assert floor.read_flops(30) + floor.read_flops(70, past=30) == floor.read_flops(100)


def test_peaks_are_known_for_exact_names_of_cards_only(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, half = torch.device("cuda"), torch.bfloat16
    assert find_peaks(torch.device("cpu"), half) == Peaks()
    assert find_peaks(torch.device("cpu"), half, 1.5, 20.0) == Peaks(1.5, 20.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    assert find_peaks(cuda, half) == Peaks(989.0, 4800.0)
    assert find_peaks(cuda, half, gbps=4000.0) == Peaks(989.0, 4000.0)
    assert find_peaks(cuda, torch.float32) == Peaks(None, 4800.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200 NVL")
    assert find_peaks(cuda, half) == Peaks()


def test_a_checkpoint_folder_lends_its_sizes(tmp_path: Path) -> None:
    shape = find_shape(str(CHECKPOINT))
    assert (shape.name, shape.settings.encoder_window_size) == ("checkpoint", 16)
    rows = run(fast(shapes=(str(CHECKPOINT),), lengths=(40,), repeats=1))
    assert {row["shape"] for row in rows} == {"checkpoint"}
    assert {row["latents"] for row in rows} == {0, 10, 3}


def test_shapes_that_cannot_be_measured_are_refused_with_a_reason() -> None:
    with pytest.raises(EvaluationError, match=r"unknown shape 'huge'; give smol, paper"):
        run(fast(shapes=("huge",)))
    with pytest.raises(EvaluationError, match="LoRA"):
        find_shape(str(Path(octavo.__file__).parent / "assets" / "smol"))
    concat = WIRE / "C_concat_causal_r8_w32" / "checkpoint"
    with pytest.raises(EvaluationError, match="--ratio 8"):
        run(fast(shapes=(str(concat),)))
    with pytest.raises(EvaluationError, match="does not divide") as refusal:
        run(fast(ratios=(3,)))
    assert isinstance(refusal.value.__cause__, RatioError)
    with pytest.raises(EvaluationError, match="attention 'magic'"):
        run(fast(attention="magic"))
    with pytest.raises(ConfigError, match="device 'cupboard'"):
        run(fast(device="cupboard"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repeats": 0}, "repeats is 0; give at least 1"),
        ({"questions": 1}, "questions is 1; give at least 2"),
        ({"new_tokens": 1}, "new_tokens is 1; give at least 2"),
        ({"lengths": ()}, "no lengths"),
        ({"lengths": (0,)}, "lengths is 0; give at least 1"),
        ({"ratios": ()}, "--method raw alone"),
        ({"methods": ("raw", "gzip")}, "unknown method 'gzip'; give raw, octavo, expected"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        fast(**change)


def test_kvpress_methods_name_the_environment_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"scripts/kvpress-env.*\.venv-kvpress"):
        fast(methods=("raw", "snapkv"))


def test_every_method_but_raw_is_measured_at_every_ratio_once() -> None:
    one = fast(lengths=(16,), repeats=1, batch=0)
    few = {name: getattr(one, name) for name in Settings.__slots__}
    rows = run(Settings(**{**few, "methods": ("octavo", "raw", "octavo"), "ratios": (4, 4, 2)}))
    trials = [(row["method"], row["ratio"]) for row in rows]
    assert trials == [("octavo", 4), ("octavo", 2), ("raw", None)]
    rows = run(Settings(**{**few, "methods": ("raw",), "ratios": ()}))
    assert [row["method"] for row in rows] == ["raw"]
    assert rows[0]["batch_seconds"] is None


# -- what is measured is the real thing ----------------------------------------------------------


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_what_is_timed_are_questions_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    start = LocalEngine.start

    def spy(self: LocalEngine, prompts: Any, sampling: Any) -> Any:
        asked.append((self, prompts, sampling))
        return start(self, prompts, sampling)

    monkeypatch.setattr(LocalEngine, "start", spy)
    rows = run(fast(lengths=(150,), ratios=(4,), repeats=1))
    # First and second question, two of a batch alone and together; twice, for one round warms up.
    counts = [len(prompts) for _, prompts, _ in asked]
    assert counts == [1, 1, 1, 1, 2] * 4
    assert [sampling.max_new_tokens for *_, sampling in asked[:5]] == [3, 1, 3, 3, 3]
    raw, own = asked[0][1][0], asked[5][1][0]
    assert (raw.latents, raw.prefix_length, len(raw.input_ids)) == (None, 150, 155)
    assert (len(own.latents), own.prefix_length) == (38, 40)
    engine = asked[5][0]
    (latents,) = engine.encode([raw.input_ids[:150]], 4)
    assert torch.equal(own.latents, latents)
    assert own.input_ids[-5:] == raw.input_ids[-5:]
    assert {row["kept_positions"] for row in rows} == {150, 40}


def test_a_press_is_measured_by_the_positions_that_it_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = types.ModuleType("kvpress")
    fake.__spec__ = importlib.machinery.ModuleSpec("kvpress", None)
    fake.KnormPress = lambda compression_ratio: last_quarter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kvpress", fake)
    (row,) = run(fast(lengths=(40,), methods=("knorm",), ratios=(4,), repeats=1))
    assert row["cache_bytes"] == 10 * 768
    assert (row["prompt_tokens"], row["kept_positions"]) == (45, 10)
    assert (row["decode_tokens"], row["batch_seconds"]) == (2, None)
    assert 0 < row["compress_seconds"] < row["first_seconds"]


@pytest.mark.gpu
def test_on_cuda_a_bench_says_what_memory_it_took() -> None:
    rows = run(fast(device="cuda", dtype=None, repeats=1))
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert all(row["peak_bytes"] > row["cache_bytes"] for row in rows)


def test_the_same_seed_draws_the_same_weights_and_leaves_the_callers_dice_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = tiny(seed=1), tiny(seed=1), tiny(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    name = "decoder.model.layers.0.mlp.up_proj.weight"
    weights = [dict(model.named_parameters())[name] for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_half_precision_keeps_rotary_frequencies_exact() -> None:
    lclm = tiny(dtype=torch.bfloat16)
    assert {p.dtype for p in lclm.parameters()} == {torch.bfloat16}
    assert lclm.decoder.model.rotary_emb.inv_freq.dtype == torch.float32
    output = lclm.decoder(torch.randint(500, (1, 50)))
    assert torch.isfinite(output.logits).all()


# -- summary -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "questions"),
    [
        ((5.0, 1.0, 10.0, 10.0), 1),  # cheaper from the start
        ((10.0, 1.0, 4.0, 4.0), 3),  # 10, 11, 12 against 4, 8, 12
        ((10.0, 1.0, 4.0, 3.9), 4),  # 10, 11, 12, 13 against 4, 7.9, 11.8, 15.7
        ((10.0, 1.0, 4.0, 1.0), None),  # never gains on it
        ((10.0, 2.0, 4.0, 1.0), None),
    ],
)
def test_break_even_is_the_first_count_of_questions_that_costs_no_more(
    costs: tuple[float, float, float, float], questions: int | None
) -> None:
    assert break_even(*costs) == questions
    own_first, own_next, other_first, other_next = costs
    totals = [
        (own_first + own_next * more, other_first + other_next * more) for more in range(1000)
    ]
    won = [more + 1 for more, (own, other) in enumerate(totals) if own <= other + 1e-9]
    assert (won[0] if won else None) == questions


def row(method: str, ratio: int | None, first: float, then: float, decode: float) -> dict[str, Any]:
    return {
        "shape": "tiny", "length": 100, "method": method, "ratio": ratio, "repeat": 1,
        "skipped": None, "first_seconds": first, "next_seconds": then, "decode_seconds": decode,
        "decode_tokens": 10, "source_tokens": 100, "peak_bytes": None, "flops": 3e12,
        "decode_bytes": 2e9, "compress_seconds": 0.5 if ratio else 0.0,
        "cache_bytes": 100 // (ratio or 1),
    }  # fmt: skip


def test_speedups_compare_medians_and_whole_answers() -> None:
    rows = [
        row("octavo", 4, 3.0, 0.5, 1.0),
        row("raw", None, 2.0, 1.0, 2.0),
        row("raw", None, 4.0, 1.0, 2.0),
    ]
    raw, own = summarise(rows)
    assert (raw.label, own.label) == ("raw", "octavo@4")
    assert own.speedups == {
        "first": 1.0,  # 3 s is the median of 2 s and 4 s
        "next": 2.0,
        "decode": 2.0,
        "cache": 4.0,
        "break_even": 1,
        "break_even_kept": 1,
    }
    assert speedups([raw, own]) == {"tiny": {"100": {"octavo@4": own.speedups}}}
    assert own.spread("compress") == (200.0, 200.0, 200.0)
    assert own.rates == Peaks(tflops=1.0, gbps=20.0)
    assert raw.spread("compress") is None


def test_a_spread_is_the_median_between_its_quartiles() -> None:
    (found,) = summarise([row("raw", None, seconds, 1.0, 1.0) for seconds in (5, 1, 2, 4, 3)])
    assert found.spread("first") == Quartiles(3.0, 2.0, 4.0)


def test_without_raw_there_is_nothing_to_be_faster_than() -> None:
    assert speedups(summarise([row("octavo", 4, 3.0, 0.5, 1.0)])) == {}


# -- the verb ------------------------------------------------------------------------------------

Verb = Callable[..., Any]


@pytest.fixture
def verb() -> Verb:
    """Run `octavo bench` alone."""
    app = typer.Typer(rich_markup_mode=None)
    app.command()(bench)

    def run_line(*args: str | Path) -> Any:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    return run_line


LINE = (
    "--shape", "tiny", "--length", "96", "--length", "1k", "--ratio", "16", "--device", "cpu",
    "--repeats", "1", "--new-tokens", "2", "--questions", "2", "--question-tokens", "4",
    "--batch", "2",
)  # fmt: skip


def test_the_verb_prints_tables_and_ends_with_one_line_of_json(verb: Verb, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    done = verb(*LINE, "-o", out, "--peak-tflops", "1", "--peak-gbps", "100")
    assert done.exit_code == 0, done.output
    *table, last = done.stdout.splitlines()
    gains = json.loads(last)["tiny"]
    assert set(gains) == {"96", "1024"}
    assert set(gains["1024"]) == {"octavo@16"}
    assert gains["1024"]["octavo@16"]["cache"] == pytest.approx(1024 / 66, abs=0.01)
    titles = [line for line in table if line.startswith("tiny, 1,024 tokens: ")]
    assert len(titles) == 4
    assert [line.split(maxsplit=1)[0] for line in table if line].count("octavo@16") == 2 * 4
    assert any("2 questions, answers included" in line for line in table)
    assert max(map(len, table)) <= 80
    assert sum(line.endswith("%") for line in table) == 4
    assert len(lines_of(out)) == 4
    again = verb(*LINE, "-o", out, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout) == json.loads(last)
    assert len(lines_of(out)) == 4


def test_the_verb_tells_what_was_skipped(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "memory_of", lambda device: 1 << 20)
    done = verb(*LINE)
    assert done.exit_code == 0, done.output
    assert "raw was skipped: out of memory: 0.0 GB of KV" in done.stdout
    assert done.stdout.splitlines()[-1] == "{}"


def test_the_verb_says_how_to_go_on_after_an_interruption(
    verb: Verb, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalEngine, "start", interrupt)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        bench(shape=["tiny"], length=["32"], out=tmp_path / "rows.jsonl")


@pytest.mark.parametrize("length", ["x", "k", "-4", "0", "1.5k", "4kk"])
def test_a_length_that_is_no_number_is_refused(verb: Verb, length: str) -> None:
    done = verb("--shape", "tiny", f"--length={length}")
    assert isinstance(done.exception, Misuse)
    assert f"--length '{length}'" in str(done.exception)
