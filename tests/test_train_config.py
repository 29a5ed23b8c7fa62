"""Recipes: what is read, what is overridden, and how each mistake is named."""

from pathlib import Path

import pytest

import octavo
from octavo.errors import OctavoError, TrainingError
from octavo.recipe import RunConfig

RECIPES = Path(octavo.__file__).parent / "recipes"
GOOD = """
[model]
compression_ratio = 4
encoder_window_size = 16
[data]
train = ["a.txt"]
[stages.adapter]
steps = 3
lr = { adapter = 1e-3 }
"""


def load(tmp_path: Path, text: str = GOOD, *overrides: str) -> RunConfig:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return RunConfig.load(path, overrides)


def test_a_recipe_keeps_the_defaults_it_does_not_name(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.model.compression_ratio == 4
    assert config.batch_rows == 16
    assert config.stages["adapter"].lr == {"adapter": 1e-3}


def test_an_override_wins_over_the_file_and_is_typed(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        GOOD,
        "stages.adapter.lr.adapter=1",
        "model.name=my-model",
        "model.ratios=[2, 8]",
        "data.train=/texts/book.txt",
        "lora.rank=2",
    )
    assert config.stages["adapter"].lr["adapter"] == 1.0
    assert config.model.name == "my-model"
    assert config.model.ratios == [2, 8]
    assert config.data.train == ["/texts/book.txt"]
    assert config.lora.rank == 2


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.trian=a.txt", "did you mean 'train'"),
        ("modle.encoder=x", "did you mean 'model'"),
        ("stages.adapter.lr.encodr=1e-3", "did you mean 'encoder'"),
        ("stages.adaptor.steps=1", "did you mean 'adapter'"),
        ("model.pooling=max", "expected one of mean, concat, eos"),
        ("model.compression_ratio=5", "does not divide encoder_window_size 16"),
        ("model.compression_ratio=0", "compression_ratio"),
        ("model.ratios=[3]", "does not divide"),
        ("model.compression_ratio='4'", "expected int"),
        ("batch_size=8", "did you mean 'batch_rows'"),
        ("batch_rows=true", "expected int"),
        ("batch_rows=0", "batch_rows is 0"),
        ("batch_rows=24", "not a multiple of micro_batch_rows"),
        ("keep_best=1", "expected bool"),
        ("keep_checkpoints=0", "keep_checkpoints is 0"),
        ("attention=flash", "expected one of auto, eager"),
        ("precision=fp16", "expected one of auto, bf16, fp32"),
        ("data.row_tokens=8", "data.row_tokens is 8, expected at least 16"),
        ("data.rows_per_shard=0", "data.rows_per_shard is 0"),
        ("data.held_out_examples=0", "data.held_out_examples is 0"),
        ("max_grad_norm=0", "max_grad_norm"),
        ("lora.rank=-1", "lora.rank is -1"),
        ("data.train=[]", "data.train is empty"),
        ("data.sources.web.weight=1", "data.sources.web has no files"),
        ("data.sources.web={files=['a.txt'], weight=-1}", "weight is -1"),
        ("data.sources.web.file=a.txt", "did you mean 'files'"),
        ("data.mixtures.main.copy_tokens=[9, 3]", "expected [shortest, longest]"),
        ("data.mixtures.main.context_tokens=9", "expected [shortest, longest]"),
        ("data.mixtures.main.document_tokens=[0, 4]", "expected [shortest, longest]"),
        ("data.mixtures.main.weights.reconstruct=1", "did you mean 'reconstruction'"),
        ("data.mixtures.main.caps.needles=1", "did you mean 'needle'"),
        ("data.mixtures.main.caps.needle=-1", "caps.needle is -1, expected 0 or more"),
        ("data.mixtures.main.weights.qa=-1", "weights.qa is -1"),
        ("data.mixtures.main.weights={qa=0}", "weights are all zero"),
        ("data.mixtures.main.ratios.3=1", "one of the model's ratios, 4"),
        ("data.mixtures.main.ratios.four=1", "one of the model's ratios, 4"),
        ("data.mixtures.main.ratios.4=-1", "one of the model's ratios, 4"),
        ("data.mixtures.main.ratios.4=0", "ratios are all zero"),
        ("data.mixtures.main.max_questions=0", "at least 1"),
        ("data.mixtures.main.min_segment_tokens=0", "at least 1"),
        ("stages.adapter.mixture=mian", "did you mean 'main'"),
        ("stages.adapter.betas.adapter=[0.9]", "expected two in [0, 1)"),
        ("stages.adapter.betas.adapter=[0.9, 1.0]", "expected two in [0, 1)"),
        ("stages.adapter.betas.adaptor=[0.9, 0.9]", "did you mean 'adapter'"),
        ("stages.adapter.steps=0", "trains no step"),
        ("stages.adapter.steps=-1", "0 or more"),
        ("stages.adapter.lr={}", "no lr"),
        ("stages.adapter.lr.adapter=-1", "expected at least 0"),
        ("stages.adapter.lr.adapter=nan", "expected at least 0"),
        ("stages.adapter.min_lr_ratio=2", "expected 0 to 1"),
        ("stages.adapter.hold=1", "hold is 1"),
        ("stages.adapter.seconds=0", "expected more than 0"),
        ("data.mixtures.main.raw=1.5", "raw is 1.5, expected 0 to 1"),
        ("data.workers=-1", "data.workers is -1"),
        ("measure_every=-1", "measure_every is -1"),
        ("stages.adapter.weight_decay.encoder=0.1", "has no lr"),
        ("model=3", "expected a section"),
        ("model.encoder.name=3", "unknown key|expected str"),
        ("nothing", "not section.field=value"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_clear_error(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(OctavoError) as caught:
        load(tmp_path, GOOD, override)
    assert any(part in str(caught.value) for part in says.split("|"))


def test_memory_rows_cannot_decay_because_other_rows_would(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="never decay"):
        load(
            tmp_path,
            GOOD,
            "stages.adapter.lr.memory_rows=1e-3",
            "stages.adapter.weight_decay.memory_rows=0.1",
        )


def test_a_recipe_that_is_missing_or_no_toml_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no recipe at"):
        RunConfig.load(tmp_path / "absent.toml")
    with pytest.raises(TrainingError, match="not a readable TOML recipe"):
        load(tmp_path, "[model\n")


def test_a_mixture_is_named_by_the_stages_that_read_it(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        GOOD,
        "batch_rows=16",
        "data.mixtures.late.ratios={4 = 1}",
        "data.mixtures.late.caps.qa=7",
        "stages.decoder={steps = 2, lr = {decoder = 1}, mixture = 'late'}",
        "stages.sft={steps = 5, lr = {decoder = 1}, betas = {decoder = [0.8, 0.99]}}",
    )
    assert config.mixture("main").weights == {"reconstruction": 0.5, "interleaved": 0.5}
    assert config.mixture("late").caps == {"qa": 7}
    assert config.num_rows("main") == 16 * (3 + 5)
    assert config.num_rows("late") == 16 * 2
    assert config.stages["sft"].betas == {"decoder": [0.8, 0.99]}


def test_data_train_is_a_source_like_any_other(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD, "data.sources.web={files = ['b.txt'], weight = 2}")
    assert list(config.sources()) == ["train", "web"]
    assert config.sources()["train"].files == ["a.txt"]
    assert config.sources()["web"].weight == 2.0


def test_prepared_rows_need_no_texts(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD, "data.train=[]", "data.rows=prepared").data.rows == "prepared"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_packaged_recipe_loads_and_is_short(path: Path) -> None:
    assert RunConfig.load(path, ["data.train=a.txt"]).stages
    assert RunConfig.load(path, ["data.rows=prepared"]).stages
    if path.stem == "paper":  # it leaves the texts to whoever runs it
        with pytest.raises(TrainingError, match=r"data\.train is empty"):
            RunConfig.load(path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_the_recipes_are_those_that_were_promised() -> None:
    names = {path.stem for path in RECIPES.glob("*.toml")}
    assert names == {"tiny", "smol", "paper"}


def test_the_tiny_and_the_paper_recipes_have_all_four_stages() -> None:
    for name in ("tiny", "paper"):
        config = RunConfig.load(RECIPES / f"{name}.toml", ["data.train=a.txt"])
        assert list(config.stages) == ["adapter", "encoder", "decoder", "sft"]


def test_the_paper_recipe_serves_every_published_ratio() -> None:
    for ratio in (4, 8, 16):
        overrides = ["data.train=a.txt", f"model.compression_ratio={ratio}"]
        assert RunConfig.load(RECIPES / "paper.toml", overrides).served_ratios() == [ratio]
