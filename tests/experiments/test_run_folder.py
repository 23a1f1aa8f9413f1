"""Whose a folder is: strangers' files, links, other processes, folders that cannot be written."""

import errno
import json
import os
import subprocess
import sys

import pytest

from experiments import run_folder
from experiments.run_folder import MARKER, DamagedFile, claim


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def run_of(path, *files, name="test"):
    with claim(path, name) as folder:
        for file in files:
            folder.write(file, "mine")
    return path


def rewrite(path, name="test"):
    with claim(path, name) as folder:
        folder.remove(folder.files)


@pytest.mark.parametrize(
    "files", [("settings.json", "src/thesis.txt"), (".vscode/settings.json",), ("notes",)]
)
def test_a_folder_without_the_marker_is_refused_and_stays_as_it_is(tmp_path, files):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(SystemExit, match="not the folder of a run"), claim(tmp_path, "test"):
        pass
    assert contents(tmp_path) == before


def test_only_what_the_run_wrote_is_removed(tmp_path):
    run_of(tmp_path, "settings.json", "stages/a.npz", "stages/b.npz", "figures/a.png")
    (tmp_path / "thesis.txt").write_text("precious")
    (tmp_path / "stages" / "own.npz").write_text("precious")
    rewrite(tmp_path)
    left = contents(tmp_path)
    assert {MARKER, "thesis.txt", "stages/own.npz"} <= set(left)
    assert not any("mine" in content.decode() for content in left.values())
    assert not (tmp_path / "figures").exists()


def test_a_strangers_file_is_never_replaced(tmp_path):
    run_of(tmp_path, "settings.json")
    (tmp_path / "results.csv").write_text("precious")
    with pytest.raises(SystemExit, match=r"results\.csv was not written by this run"):
        run_of(tmp_path, "results.csv")
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "checkpoints" / "3" / "own").write_text("precious")
    with claim(tmp_path, "test") as folder:
        made = folder.temporary() / "made"
        made.mkdir()
        (made / "file").write_text("mine")
        with pytest.raises(SystemExit, match="files that this run did not write"):
            folder.adopt(made, "checkpoints/3")
    left = contents(tmp_path)
    assert left["results.csv"] == left["checkpoints/3/own"] == b"precious"


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    run_of(tmp_path, "settings.json")
    (tmp_path / "stages").write_text("precious")
    with pytest.raises(SystemExit, match="stages is in the way"):
        run_of(tmp_path, "stages/a.npz")
    assert (tmp_path / "stages").read_text() == "precious"


def test_the_run_of_another_experiment_is_refused(tmp_path):
    run_of(tmp_path, "settings.json", name="flows")
    with pytest.raises(SystemExit, match="a run of flows, not of test"):
        rewrite(tmp_path)
    assert (tmp_path / "settings.json").exists()


def test_a_link_to_a_run_is_refused(tmp_path):
    run_of(tmp_path / "run", "settings.json")
    (tmp_path / "link").symlink_to(tmp_path / "run", target_is_directory=True)
    with pytest.raises(SystemExit, match="link is a link"):
        rewrite(tmp_path / "link")
    assert (tmp_path / "run" / "settings.json").exists()


@pytest.mark.parametrize("linked", ["stages", "stages/a.npz", run_folder.TEMPORARY])
def test_links_within_are_not_followed(tmp_path, linked):
    """Neither by removing nor by writing; everything else of the run is still there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.npz").write_text("precious")
    run = run_of(tmp_path / "run", "settings.json", "stages/a.npz")
    if linked == run_folder.TEMPORARY:
        (run / linked).symlink_to(outside)
    elif linked == "stages":
        (run / "stages" / "a.npz").unlink()
        (run / "stages").rmdir()
        (run / "stages").symlink_to(outside, target_is_directory=True)
    else:
        (run / linked).unlink()
        (run / linked).symlink_to(outside / "a.npz")
    with pytest.raises(SystemExit, match="is a link"):
        rewrite(run)
    with pytest.raises(SystemExit, match="is a link"):
        run_of(run, "stages/a.npz")
    assert contents(outside) == {"a.npz": b"precious"}
    assert (run / "settings.json").exists()


@pytest.mark.parametrize(
    "marker",
    ["", "{", "[]", '{"run": "test"}', '{"run": "test", "files": 3}']
    + [json.dumps({"run": "test", "files": [file]}) for file in ("../thesis", "/thesis", "a/../b")],
)
def test_a_damaged_marker_is_named_and_nothing_removed(tmp_path, marker):
    run = run_of(tmp_path / "run", "settings.json")
    (tmp_path / "thesis").write_text("precious")
    (run / MARKER).write_text(marker)
    with pytest.raises(DamagedFile, match=r"\.divjax-run\.json is damaged"):
        rewrite(run)
    assert (tmp_path / "thesis").exists()
    assert (run / "settings.json").exists()


def test_what_was_killed_half_way_is_of_the_run(tmp_path):
    """Before the marker, within a file, between the list and the file, while removing."""
    path = tmp_path / "run"
    path.mkdir()
    (path / run_folder.LOCK).write_text("123")
    run_of(path, "settings.json", "stages/a.npz")
    temporary = path / run_folder.TEMPORARY
    temporary.mkdir()
    (temporary / "file").write_text("half")
    (path / "stages" / "a.npz").unlink()
    run_of(path, "stages/a.npz")
    assert not temporary.exists()
    assert (path / "stages" / "a.npz").read_text() == "mine"
    rewrite(path)
    assert set(contents(path)) == {MARKER, run_folder.LOCK}


def test_settings_are_removed_last(tmp_path, monkeypatch):
    """Killed while removing: what is left still says which settings it is of."""
    run_of(tmp_path, "a", "settings.json", "z")
    removed = []
    monkeypatch.setattr(run_folder.Path, "unlink", lambda path, **_: removed.append(path.name))
    rewrite(tmp_path)
    assert removed == ["a", "z", "settings.json"]


OTHER = """
import sys, time
from pathlib import Path
from experiments.run_folder import claim
with claim(Path(sys.argv[1]), "test") as folder:
    folder.write("settings.json", "{}")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_kept_out_until_the_first_dies(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        with pytest.raises(SystemExit, match=rf"another process \({first.pid}\) is writing"):
            run_of(tmp_path, "a")
    finally:
        first.kill()
        first.communicate(timeout=10)
    run_of(tmp_path, "a")
    assert (tmp_path / "a").exists()


def forbid_writing(monkeypatch):
    """Every change of the file system fails, as on a read-only disk."""

    def fail(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    opened = os.open

    def open_for_reading(path, flags, *arguments, **options):
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            fail()
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(run_folder.os, "open", open_for_reading)
    monkeypatch.setattr(run_folder.os, "access", lambda path, mode: not mode & os.W_OK)
    for name in ("write_bytes", "write_text", "unlink", "rmdir"):
        monkeypatch.setattr(run_folder.Path, name, fail)
    monkeypatch.setattr(run_folder.os, "replace", fail)


def test_a_run_that_cannot_be_written_is_opened_for_reading(tmp_path, monkeypatch):
    run_of(tmp_path, "a")
    (tmp_path / "new").mkdir()
    forbid_writing(monkeypatch)
    with claim(tmp_path, "test") as folder:
        assert folder.files == {"a"}
        assert not folder.writable
    with pytest.raises(SystemExit, match="cannot be written: Read-only file system"):
        run_of(tmp_path / "new", "a")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SystemExit, match=r"is not a folder|cannot be written"):
            run_of(path, "a")
