"""The folder of a run: which experiment it belongs to, what was written in it, who is writing.

    with run_folder.claim(Path("runs/my_script"), "my_script") as folder:
        folder.write("results.md", text)

A marker, `.divjax-run.json`, holds the experiment's name and the files that its runs wrote. Files
that the marker does not list are never replaced or removed, a folder that holds files but no marker
is refused, and links within the folder are never followed. A lock, which the system releases when
its process ends, keeps a second process out. A folder that cannot be written can still be read.
"""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

try:
    import fcntl
except ImportError:  # Windows has no flock; runs there are not locked.
    fcntl = None

__all__ = ["DamagedFile", "RunFolder", "claim", "write_atomically"]

MARKER, LOCK, TEMPORARY = ".divjax-run.json", ".divjax-run.lock", ".divjax-run.tmp"
OWN = frozenset({MARKER, LOCK, TEMPORARY})
# Removed last of all: where it is gone, nothing else of the run is left.
SETTINGS = "settings.json"


class DamagedFile(ValueError):
    """A file of a run cannot be read; the message names it."""


def write_atomically(path: Path, content: bytes | str, temporary: Path | None = None) -> None:
    """Write a file whole or not at all: under a temporary name first, beside it by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


@contextlib.contextmanager
def claim(path: Path, name: str) -> Iterator["RunFolder"]:
    """Make or open the folder of a run, and keep other processes out of it.

    Args:
        path: the folder. Links on the way to it are followed; it must not be one itself.
        name: of the experiment.

    Raises:
        SystemExit: if the folder holds files but no run of this experiment, is a link, is in use by
            another process, or cannot be made.
        DamagedFile: if the marker cannot be read.
    """
    # Before anything is written, so that a folder that is no run's stays as it is.
    files = _files_of_run(path, name)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as error:
        if files is None or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise SystemExit(f"{path} cannot be written: {error.strerror}.") from error
        yield RunFolder(path, name, files, writable=False)
        return
    try:
        _lock(lock, path)
        # Again: another process may have written since, before the lock was taken.
        files = _files_of_run(path, name)
        folder = RunFolder(path, name, files or set(), writable=os.access(path, os.W_OK))
        if folder.writable:
            folder.discard_temporary()
            folder.save_marker()
        yield folder
        if folder.writable:
            folder.discard_temporary()
    finally:
        os.close(lock)


def _files_of_run(path: Path, name: str) -> set[str] | None:
    """The files that the marker lists; None for a folder that is absent or empty."""
    if path.is_symlink():
        raise SystemExit(f"{path} is a link: name the folder itself.")
    if path.exists() and not path.is_dir():
        raise SystemExit(f"{path} is not a folder.")
    marker = path / MARKER
    if not marker.exists():
        # A process that was killed before it wrote the marker leaves its lock alone.
        if path.exists() and any(entry.name not in OWN for entry in path.iterdir()):
            raise SystemExit(
                f"{path} holds files but is not the folder of a run (there is no {MARKER}): "
                "nothing was changed. Choose another --output."
            )
        return None
    try:
        content = json.loads(marker.read_bytes())
        owner, files = content["run"], set(content["files"])
        # A path that leads out of the folder is none that a run wrote.
        inside = all(
            not (PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts)
            for file in files
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{marker} is damaged and does not say what the run wrote.") from error
    if not inside:
        raise DamagedFile(f"{marker} is damaged: it lists files outside of its folder.")
    if owner != name:
        raise SystemExit(f"{path} holds a run of {owner}, not of {name}. Choose another --output.")
    return files


def _lock(descriptor: int, path: Path) -> None:
    """Lock the folder, or refuse and name the process that has."""
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        process = os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"
        raise SystemExit(
            f"another process ({process}) is writing to {path}. Wait for it, or choose another "
            "--output."
        ) from None
    except OSError as error:
        # Some network file systems have no locks at all.
        print(f"note: {path} cannot be locked ({error.strerror}); run it once at a time")
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)


@dataclasses.dataclass
class RunFolder:
    """A folder that a run has claimed; made by `claim`.

    Attributes:
        path: the folder.
        name: of the experiment.
        files: paths within the folder of the files that its runs wrote.
        writable: whether more can be written; nothing is where not.
    """

    path: Path
    name: str
    files: set[str]
    writable: bool

    def write(self, file: str, content: bytes | str) -> None:
        """Write a file whole or not at all.

        Args:
            file: its path within the folder, such as `stages/a.npz`.
            content: of it.

        Raises:
            SystemExit: if a file of somebody else, or a link, is in the way.
        """
        self._own([file])
        write_atomically(self.path / file, content, self.temporary() / "file")

    def adopt(self, made: Path, place: str) -> None:
        """Move a folder made under `temporary()` to its place, in one step."""
        files = [f"{place}/{file}" for file in files_under(made)]
        target = self.path / place
        self.remove(file for file in self.files if file.startswith(f"{place}/"))
        if target.is_dir() and any(target.iterdir()):
            raise SystemExit(f"{target} holds files that this run did not write: move them away.")
        self._own(files)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, target)

    def remove(self, files: Iterable[str]) -> None:
        """Remove files that the run wrote, then the folders that this leaves empty."""
        files = sorted(files)
        for file in files:
            self._refuse_links(file)
        for file in sorted(files, key=lambda file: file == SETTINGS):
            (self.path / file).unlink(missing_ok=True)
        parents = {parent for file in files for parent in PurePosixPath(file).parents}
        # The deepest first; what somebody else put there keeps its folder.
        for parent in sorted(parents - {PurePosixPath(".")}, key=lambda p: -len(p.parts)):
            with contextlib.suppress(OSError):
                (self.path / parent).rmdir()
        if files:
            self.files -= set(files)
            self.save_marker()

    def foreign(self) -> list[str]:
        """What the folder holds that the run did not write, by the names at its top."""
        own = {PurePosixPath(file).parts[0] for file in self.files} | OWN
        return sorted(entry.name for entry in self.path.iterdir() if entry.name not in own)

    def temporary(self) -> Path:
        """A folder for what is not finished; a killed run's is emptied by the next."""
        path = self.path / TEMPORARY
        self._refuse_links(TEMPORARY)
        path.mkdir(exist_ok=True)
        return path

    def discard_temporary(self) -> None:
        """Remove what was not finished."""
        self._refuse_links(TEMPORARY)
        if (self.path / TEMPORARY).exists():
            shutil.rmtree(self.path / TEMPORARY)

    def save_marker(self) -> None:
        """Write the list of the run's files."""
        content = {"run": self.name, "files": sorted(self.files)}
        write_atomically(
            self.path / MARKER, json.dumps(content, indent=1), self.temporary() / "marker"
        )

    def _own(self, files: Collection[str]) -> None:
        """List files before they are written: a kill in between leaves none without an owner."""
        for file in files:
            self._refuse_links(file)
            if file not in self.files and os.path.lexists(self.path / file):
                raise SystemExit(
                    f"{self.path / file} was not written by this run and is left as it is: move it "
                    "away, then start again."
                )
        if not self.files.issuperset(files):
            self.files.update(files)
            self.save_marker()

    def _refuse_links(self, file: str) -> None:
        place = self.path
        for part in PurePosixPath(file).parts:
            if not place.is_dir() and os.path.lexists(place):
                raise SystemExit(f"{place} is in the way: it is not a folder. Move it away.")
            place = place / part
            if place.is_symlink():
                raise SystemExit(
                    f"{place} is a link: a run writes and removes in its folder alone."
                )


def files_under(folder: Path) -> list[str]:
    """The files below a folder, as paths within it, in order."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
