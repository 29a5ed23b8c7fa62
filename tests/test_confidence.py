"""Confidence: curves fitted on known answers, ROC, and what is kept of a measured model."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TEXT

import octavo
from octavo.confidence import (
    Curve,
    Measured,
    auc,
    auc_within,
    fit,
    read_measured,
    roc,
    write_measured,
)
from octavo.errors import ConfigError
from octavo.fallback import find_passages


def drawn(count: int, slope: float, intercept: float) -> tuple[list[float], list[bool]]:
    generator = np.random.default_rng(3)
    logprobs = [-float(one) for one in generator.exponential(1.0, count)]
    shares = [1 / (1 + math.exp(-(slope * one + intercept))) for one in logprobs]
    return logprobs, [bool(generator.random() < share) for share in shares]


def test_a_curve_finds_the_probabilities_its_answers_were_drawn_with() -> None:
    logprobs, is_right = drawn(4000, 3.0, 2.0)
    curve = fit(logprobs, is_right)
    assert abs(curve.slope - 3.0) < 0.3
    assert abs(curve.intercept - 2.0) < 0.3
    for low, high in ((-0.5, 0.0), (-1.0, -0.5), (-3.0, -1.0)):
        inside = [
            (curve(one), right)
            for one, right in zip(logprobs, is_right, strict=True)
            if low <= one < high
        ]
        said, true = (sum(column) / len(inside) for column in zip(*inside, strict=True))
        assert abs(said - true) < 0.05


def test_a_likelihood_that_misleads_is_ignored() -> None:
    logprobs, is_right = drawn(400, 3.0, 2.0)
    curve = fit(logprobs, [not right for right in is_right])
    share = 1 - sum(is_right) / len(is_right)
    assert curve(-0.1) == curve(-5.0) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("right", [True, False])
def test_answers_that_all_agree_give_no_certainty(right: bool) -> None:
    curve = fit([-0.1 * n for n in range(20)], [right] * 20)
    assert curve.auc is None
    assert all(0.01 < curve(-x) < 0.99 for x in (0.0, 0.5, 1.0))


def test_a_curve_needs_items() -> None:
    with pytest.raises(ConfigError, match="3 answers are too few"):
        fit([-1.0, -2.0, -3.0], [True, False, True])


def test_the_area_under_the_roc_is_the_share_of_pairs_in_order() -> None:
    values, is_right = [3.0, 2.0, 2.0, 1.0], [True, False, True, False]
    assert auc(values, is_right) == (2 + 1 + 0.5) / 4
    points = roc(values, is_right)
    assert points == [(3.0, 0.0, 0.5), (2.0, 0.5, 1.0), (1.0, 1.0, 1.0)]
    xs, ys = [0.0, *(x for _, x, _ in points)], [0.0, *(y for _, _, y in points)]
    assert np.trapezoid(ys, xs) == pytest.approx(auc(values, is_right))


def test_an_easy_and_a_hard_task_together_look_better_than_either() -> None:
    easy, hard = ([5.0, 6.0], [True, True]), ([1.0, 2.0], [True, False])
    assert auc_within([easy, hard]) == 0.0
    assert auc([*easy[0], *hard[0]], [*easy[1], *hard[1]]) == pytest.approx(2 / 3)


def test_what_was_measured_survives_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    assert read_measured("abc") == Measured(fingerprint="abc")
    curve = fit(*drawn(50, 3.0, 2.0))
    measured = Measured(
        fingerprint="abc", curves={"passages": curve}, policy="retrieval", layout="alone",
        accuracy={"retrieval, alone": 0.8}, about="50 made-up answers",
    )  # fmt: skip
    path = write_measured(measured)
    assert read_measured("abc") == measured
    assert measured.confidence("passages", -0.2) == curve(-0.2)
    assert measured.confidence("latents", -0.2) is None
    assert measured.confidence("passages", None) is None
    for damaged in ("{", "[]", '{"format_version": 1}', path.read_text().replace("abc", "abd")):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match="is damaged"):
            read_measured("abc")


def test_an_answer_comes_with_its_likelihood(model: octavo.Model) -> None:
    answer = model.generate("Who?", max_new_tokens=4)
    ids = model.prompts.encode_messages([{"role": "user", "content": "Who?"}]).input_ids
    sampling = octavo.Sampling(max_new_tokens=4, stop_ids=model.engine.stop_ids)
    prompt = octavo.engine.base.Prompt(input_ids=ids, latents=None)
    tokens = [token for (token,) in model.engine.start([prompt], sampling) if token is not None]
    scores = model.engine.score(prompt, tokens)
    assert answer.logprob == pytest.approx(sum(scores.logprobs) / len(tokens), abs=1e-4)


LATENTS_ARE_WORTHLESS = Measured(
    fingerprint="", curves={
        "latents": Curve(slope=0.0, intercept=-3.0, num_items=9, auc=0.5),
        "passages": Curve(slope=0.0, intercept=2.0, num_items=9, auc=0.5),
        "raw": Curve(slope=0.0, intercept=1.0, num_items=9, auc=0.5),
    },
)  # fmt: skip


@pytest.fixture
def measured(model: octavo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> octavo.Model:
    """A model of which it is known that its answers from latents are wrong."""
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path))
    write_measured(replace(LATENTS_ARE_WORTHLESS, fingerprint=model.fingerprint))
    return model


@pytest.mark.parametrize("how", ["passages", "raw"])
def test_an_answer_that_is_not_trusted_is_read_anew(measured: octavo.Model, how: Any) -> None:
    question, held = "Who signed for the lamp oil?", measured.compress(TEXT)
    plain = measured.generate(question, held, max_new_tokens=6)
    assert plain.confidence == pytest.approx(1 / (1 + math.exp(3)))
    again = measured.generate(question, held, max_new_tokens=6, fallback=how)
    texts = [find_passages(measured.prompts, [TEXT], question)] if how == "passages" else [TEXT]
    expected = measured.generate(question, texts, raw=True, max_new_tokens=6)
    assert again.text == expected.text
    assert again.fallback == how
    assert again.usage.latents == 0
    assert again.confidence == pytest.approx(1 / (1 + math.exp(-2 if how == "passages" else -1)))
    assert again.timings.total_seconds > again.timings.ttft_seconds > plain.timings.ttft_seconds / 9
    # Two questions at once, and one that is trusted enough.
    both = measured.generate([question, "Why?"], held, max_new_tokens=6, fallback=how)
    assert both[0].text == expected.text
    kept = measured.generate(question, held, max_new_tokens=6, fallback=how, threshold=0.01)
    assert (kept.text, kept.fallback) == (plain.text, None)


def test_a_model_that_was_not_measured_is_not_trusted(
    model: octavo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path))
    answer = model.generate("Who signed?", TEXT, max_new_tokens=4, fallback="raw")
    assert answer.fallback == "raw"
    assert answer.confidence is None


def test_a_fallback_that_cannot_be_is_refused(model: octavo.Model) -> None:
    wrong: Any = "guess"
    with pytest.raises(ConfigError, match="expected passages or raw"):
        model.generate("Who?", TEXT, fallback=wrong, max_new_tokens=2)
    with pytest.raises(ConfigError, match="needs a question and a context"):
        model.generate("Who?", fallback="raw", max_new_tokens=2)


def test_found_passages_keep_to_their_budget_and_order(model: octavo.Model) -> None:
    texts = ["The oil lay in the cellar. " + TEXT * 3, "Nobody signed for the oil."]
    for budget in (60, 200, 400):
        found = find_passages(model.prompts, texts, "Who signed for the oil?", budget=budget)
        assert len(model.prompts.text_ids(found)) <= budget
    assert found.index("lamp oil") < found.index("Nobody signed for the oil.")
    assert find_passages(model.prompts, texts, "xyzzy") == ""
