"""The log of a run, log.jsonl: one JSON object a line, none twice and none lost by a resume."""

import json
import time
from pathlib import Path
from typing import Any

from octavo.files import WriteError, write_text
from octavo.train.config import STAGES


class Log:
    """Appends rows to a file; each names its stage and step."""

    def __init__(self, path: Path) -> None:
        """Log to `path`, which appears with the first row."""
        self.path = path

    def __call__(self, row: dict[str, Any]) -> None:
        """Append one row, with the time."""
        line = json.dumps({"time": round(time.time(), 1), **row}) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise WriteError(
                f"cannot write {self.path}: {error.strerror or error}; free some space and resume"
            ) from error

    def rewind(self, stage: str, step: int, measured_step: int) -> None:
        """Forget rows later than a checkpoint: their steps will be taken and logged again."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").split("\n"):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed while it wrote
            last = measured_step if "measured" in row else step
            order = STAGES.index(row["stage"]) - STAGES.index(stage)
            if order < 0 or (order == 0 and row["step"] <= last):
                kept.append(line + "\n")
        write_text(self.path, "".join(kept))
