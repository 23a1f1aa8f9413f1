"""Checkpoints that are checked when they are read: the last two of a training.

A checkpoint is a folder `checkpoints/<training>/<step>` with the state (written by Orbax), the
metrics of all steps so far and the state's shapes in `record.json`, and the digests of both in
`sha256.json`. It is made elsewhere and moved there in one step. A checkpoint with a file that is
absent, shorter or different is passed over with a warning, and training resumes from the one
before.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from experiments.run_folder import DamagedFile, RunFolder, files_under

__all__ = ["Checkpoints"]

KEPT = 2
DIGESTS, RECORD, STATE = "sha256.json", "record.json", "state"


@dataclasses.dataclass
class Checkpoints:
    """The checkpoints of one training.

    Attributes:
        folder: of the run.
        place: of the checkpoints within it, `checkpoints/<training>`.
    """

    folder: RunFolder
    place: str

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, whole or not."""
        parts = [file.removeprefix(f"{self.place}/") for file in self._files()]
        return sorted({int(part.split("/")[0]) for part in parts})

    def save(self, step: int, state: Any, metrics: list[dict[str, Any]]) -> None:
        """Write a checkpoint, then remove those before the last two."""
        made = self.folder.temporary() / "checkpoint"
        made.mkdir()
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save((made / STATE).absolute(), args=ocp.args.StandardSave(state))
        (made / RECORD).write_text(json.dumps({"metrics": metrics, "shapes": _shapes(state)}))
        digests = {file: _digest(made / file) for file in files_under(made)}
        (made / DIGESTS).write_text(json.dumps(digests))
        self.folder.adopt(made, f"{self.place}/{step}")
        self.discard(self.steps()[:-KEPT])

    def restore(self, template: Any) -> tuple[int, Any, list[dict[str, Any]]] | None:
        """The step, state and metrics of the last checkpoint that is whole; None if none is.

        Args:
            template: a state of the same structure, shapes and dtypes.

        Raises:
            DamagedFile: if a whole checkpoint does not fit the template.
        """
        last, damaged = self.last_whole()
        for step, damage in damaged.items():
            instead = "starting again" if last is None else f"resuming from step {last}"
            print(f"warning: {self._path(step)} is damaged ({damage}): {instead}", flush=True)
        if last is None:
            return None
        path = self._path(last)
        if self._record(last)["shapes"] != _shapes(template):
            raise DamagedFile(f"{path} is of another version of this experiment: --overwrite it.")
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            state = checkpointer.restore(
                (path / STATE).absolute(), args=ocp.args.StandardRestore(wanted)
            )
        return last, state, self.metrics(last)

    def last_whole(self) -> tuple[int | None, dict[int, str]]:
        """The last checkpoint that is whole, and what is wrong with those after it."""
        damaged = {}
        for step in reversed(self.steps()):
            damage = self._damage(step)
            if damage is None:
                return step, damaged
            damaged[step] = damage
        return None, damaged

    def metrics(self, step: int) -> list[dict[str, Any]]:
        """The metrics of all steps up to a checkpoint."""
        return self._record(step)["metrics"]

    def discard(self, steps: list[int]) -> None:
        """Remove checkpoints, whole or not."""
        prefixes = tuple(f"{self.place}/{step}/" for step in steps)
        if prefixes:
            self.folder.remove(file for file in self._files() if file.startswith(prefixes))

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint."""
        path = self._path(step)
        try:
            digests = json.loads((path / DIGESTS).read_bytes())
            if not {RECORD, f"{STATE}/_METADATA"} <= digests.keys():
                return f"{DIGESTS} is incomplete"
            for file, digest in digests.items():
                if _digest(path / file) != digest:
                    return f"the digest of {file} is not the one that was saved"
        except OSError as error:
            return f"{Path(error.filename or DIGESTS).name}: {error.strerror}"
        except (ValueError, AttributeError, TypeError):
            return f"{DIGESTS} cannot be read"
        return None

    def _record(self, step: int) -> dict[str, Any]:
        return json.loads((self._path(step) / RECORD).read_bytes())

    def _files(self) -> list[str]:
        return [file for file in self.folder.files if file.startswith(f"{self.place}/")]

    def _path(self, step: int) -> Path:
        return self.folder.path / self.place / str(step)


def _shapes(state: Any) -> dict[str, str]:
    """Shape and dtype of each leaf, by its path."""
    leaves = [
        (jax.tree_util.keystr(path), jax.typeof(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]
    return {path: f"{kind.dtype}{list(kind.shape)}" for path, kind in leaves}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
