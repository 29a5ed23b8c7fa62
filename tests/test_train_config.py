"""Recipes: what is read, what is overridden, and how each mistake is named."""

from pathlib import Path

import pytest

import octavo
from octavo.errors import OctavoError, TrainingError
from octavo.train.config import RunConfig

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
    assert config.batch_size == 16
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
        ("batch_size=true", "expected int"),
        ("batch_size=0", "batch_size is 0"),
        ("batch_size=24", "not a multiple of micro_batch_size"),
        ("measure_examples=0", "measure_examples is 0"),
        ("max_grad_norm=0", "max_grad_norm"),
        ("lora.rank=-1", "lora.rank is -1"),
        ("data.train=[]", "data.train is empty"),
        ("data.span_tokens=[9, 3]", "expected [shortest, longest]"),
        ("data.span_tokens=9", "expected [shortest, longest]"),
        ("stages.adapter.steps=0", "trains no step"),
        ("stages.adapter.steps=-1", "0 or more"),
        ("stages.adapter.lr={}", "no lr"),
        ("stages.adapter.lr.adapter=-1", "expected at least 0"),
        ("stages.adapter.lr.adapter=nan", "expected at least 0"),
        ("stages.adapter.min_lr_ratio=2", "expected 0 to 1"),
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


def test_every_packaged_recipe_loads() -> None:
    for path in RECIPES.glob("*.toml"):
        overrides = ["data.train=a.txt"] if path.stem == "tiny" else []
        assert RunConfig.load(path, overrides).stages


def test_the_tiny_recipe_has_all_four_stages() -> None:
    config = RunConfig.load(RECIPES / "tiny.toml", ["data.train=a.txt"])
    assert list(config.stages) == ["adapter", "encoder", "decoder", "sft"]
    assert len((RECIPES / "tiny.toml").read_text(encoding="utf-8").splitlines()) <= 60
