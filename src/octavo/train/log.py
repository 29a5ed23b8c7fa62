"""The log of a run: log.jsonl, one JSON object a line, none twice and none lost by a resume.

With TensorBoard asked for, the numbers of every row go there too.
"""

import json
import time
from pathlib import Path
from typing import Any

from octavo.errors import MissingExtraError
from octavo.files import WriteError, write_text
from octavo.recipe import STAGES


class Log:
    """Appends rows to a file; each names its stage and step."""

    def __init__(self, path: Path, *, tensorboard: bool = False) -> None:
        """Log to `path`, which appears with the first row, and to `tensorboard/` beside it."""
        self.path = path
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError(
                    "tensorboard = true needs it: pip install 'octavo[tensorboard]'"
                ) from error
            self._board = SummaryWriter(str(path.parent / "tensorboard"))

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
        if self._board is not None:
            for name, value in _numbers(row):
                self._board.add_scalar(f"{row['stage']}/{name}", value, row["step"])
            self._board.flush()

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


def _numbers(values: dict[str, Any], where: str = "") -> list[tuple[str, float]]:
    """Return the numbers of a row by path; of a mean with its interval, the mean."""
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{where}{name}/")
        elif isinstance(value, list) and value and isinstance(value[0], float):
            found.append((f"{where}{name}", value[0]))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((f"{where}{name}", float(value)))
    return [(name, value) for name, value in found if name not in ("stage", "step")]
