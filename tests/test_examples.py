"""The examples run as a stranger runs them, on the golden checkpoint."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CHECKPOINT, TEXT
from transformers import Trainer, TrainingArguments

import octavo
from octavo.errors import TrainingError

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("kind", ["trainer", "peft", "trl"])
def test_a_training_example_learns_and_its_model_opens(kind: str, tmp_path: Path) -> None:
    if kind == "trl" and importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed")
    command = [sys.executable, str(EXAMPLES / f"train_{kind}.py"), str(tmp_path)]
    done = subprocess.run(
        [*command, "--model", str(CHECKPOINT), "--steps", "20"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss\W+([0-9.]+)", done.stdout)]
    assert len(losses) >= 20
    assert sum(losses[15:20]) < sum(losses[:5])
    before, after = octavo.load(CHECKPOINT), octavo.load(tmp_path / "model")
    assert not torch.equal(before.compress(TEXT).latents, after.compress(TEXT).latents)


def run_example(name: str, *args: str | Path, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, args), "--model", str(CHECKPOINT)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OCTAVO_HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_is_asked_and_passages_come_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "log.md").write_text(f"# Log\n\n{TEXT}", encoding="utf-8")
    (tmp_path / "docs" / "tide.py").write_text("def tide():\n    return 4\n", encoding="utf-8")
    said = run_example("ask_folder.py", "docs", "Who signed for the lamp oil?", folder=tmp_path)
    assert re.search(r"^docs/log\.md:3  Log\n    .*signed for the lamp oil", said, re.M)
    assert said.endswith("the model is not sure; see the passages\n")
    assert list((tmp_path / "store" / "indexes").iterdir())


def test_the_chat_over_a_log_reads_what_is_new_and_resumes(tmp_path: Path) -> None:
    said = run_example("chat_log.py", folder=tmp_path)
    read = [tuple(map(int, two)) for two in re.findall(r"read (\d+) of (\d+) positions", said)]
    assert len(read) == 3
    assert all(new < whole for new, whole in read[1:])
    assert "resumed with 6 turns" in said


def test_the_agent_with_a_tool_cites_lines_and_counts_its_cost(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    said = run_example("agent_tool.py", "text.txt", "Who signed for the oil?", folder=tmp_path)
    assert re.search(r"^1\. search: opened \[\d", said)
    assert re.search(r"^line \d+: .*lamp oil", said, re.M)
    assert "not sure: " in said
    assert re.search(r"cost \d+% of reading everything", said)


def test_training_for_expand_learns_and_its_model_opens(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    said = run_example("train_expand.py", "out", "text.txt", "--steps", "24", folder=tmp_path)
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", said)]
    assert sum(losses[-8:]) < sum(losses[:8])
    before, after = octavo.load(CHECKPOINT), octavo.load(tmp_path / "out" / "model")
    assert not torch.equal(before.compress(TEXT).latents, after.compress(TEXT).latents)


def test_a_run_of_trainer_resumes_exactly_and_its_checkpoints_open(tmp_path: Path) -> None:
    asked = [{"type": "memory", "text": TEXT}, {"type": "text", "text": "Who signed?"}]
    answered = {"role": "assistant", "content": "Nobody."}
    chats = [{"messages": [{"role": "user", "content": asked}, answered]}] * 8

    def run(name: str, resume: Path | None = None) -> list[torch.Tensor]:
        model = octavo.load(CHECKPOINT, device="cpu")
        arguments = TrainingArguments(
            output_dir=str(tmp_path / name), max_steps=4, save_steps=2, report_to=[], use_cpu=True,
            per_device_train_batch_size=2, remove_unused_columns=False, disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        collate = octavo.ChatCollator(model.prompts)
        trainer = Trainer(model.lclm, arguments, train_dataset=chats, data_collator=collate)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return list(model.lclm.parameters())

    whole = run("whole")
    resumed = run("resumed", tmp_path / "whole" / "checkpoint-2")
    opened = octavo.load(tmp_path / "whole" / "checkpoint-4", device="cpu").lclm.parameters()
    for one, two, three in zip(whole, resumed, opened, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_the_collator_lays_out_what_the_model_would_be_asked(model: octavo.Model) -> None:
    collate = octavo.ChatCollator(model.prompts)
    memory = {"type": "memory", "text": TEXT}
    question = {"role": "user", "content": [memory, {"type": "text", "text": "Who signed?"}]}
    answer = {"role": "assistant", "content": "Nobody."}
    plain = {"role": "user", "content": "And at sea?"}
    batch = collate([{"messages": [question, answer]}, {"messages": [plain, answer]}])
    asked = model.prompts.encode_messages([question])
    learned = model.prompts.text_ids("Nobody.")
    stop = len(asked.input_ids)
    assert batch["input_ids"][0, :stop].tolist() == asked.input_ids
    assert batch["labels"][0, :stop].tolist() == [-100] * stop
    assert batch["labels"][0, stop:-1].tolist() == learned
    assert batch["memory_ids"].tolist() == [model.prompts.source(TEXT).ids]
    assert batch["attention_mask"].sum(1).tolist()[0] == stop + len(learned) + 1
    with torch.no_grad():
        together = model.lclm(**batch).logits
        alone = model.lclm(**collate([{"messages": [plain, answer]}])).logits
    torch.testing.assert_close(together[1, : alone.shape[1]], alone[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(TrainingError, match="nothing can be learned from the chat"):
        collate([{"messages": [question]}])
