"""Places to write to that are no ordinary folders."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from doors import FORKS, Call, judged

Verdict = tuple[str, str]


def cli(*arguments: object) -> Call:
    return Call("cli", tuple(map(str, arguments)))


def searched(place: Path, to: object) -> list[Call]:
    """Everything that takes a folder to write to."""
    return [
        cli("search", place / "small.yaml", "--out", to),
        cli("sweep", place / "small.yaml", "seed=0,1", "--jobs", 1, "--out", to),
        cli("compare", place / "base", "--out", to),
        cli("pareto", place / "base", "--out", to),
        cli("finetune", place / "base", "epochs=1", "--out", to),
        cli("profile", "digits:resnet8", "--emit-bench", to),
    ]


def inside(place: Path) -> list[Call]:
    """Everything that writes into a run."""
    run = place / "base"
    return [
        cli("report", run),
        cli("export", run, "--format", "safetensors"),
        cli("resume", run),
        cli("finetune", run),
    ]


def file_in_the_way(place: Path) -> list[Call]:
    (place / "file").write_text("x")
    return searched(place, place / "file") + searched(place, place / "file" / "below")


def files_within(place: Path) -> list[Call]:
    """Files where a run has folders, and folders where it has files."""
    run = place / "base"
    for name in ("export", "finetune", "checkpoint"):
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).write_text("x")
    return inside(place)


def folders_within(place: Path) -> list[Call]:
    run = place / "base"
    for name in ("report.html", "search.png", "best.json", "episodes.jsonl"):
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()
    return [*inside(place), cli("compare", run, "--out", place / "x"), cli("evaluate", run)]


def links_within(place: Path) -> list[Call]:
    """Links that lead nowhere, or to themselves."""
    run = place / "base"
    for name in ("report.html", "search.png", "best.json"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(run / name)
    return inside(place)


def read_only(place: Path) -> list[Call]:
    """A mount that nothing can be written to; permissions do not bind root."""
    import disk

    disk.own_namespace(place.parent / "mounted")
    other = place.parent / "mounted"
    shutil.copytree(place, other, dirs_exist_ok=True)
    shutil.rmtree(other / "base" / "export", ignore_errors=True)
    disk.mount("", other, disk.REMOUNT | disk.READ_ONLY)
    return searched(other, other / "out") + inside(other)


def immutable(place: Path) -> list[Call]:
    """The attribute that binds root, too, where the file system knows it."""
    run = place / "base"
    done = subprocess.run(["chattr", "+i", str(run)], capture_output=True, check=False)
    if done.returncode:
        return []
    return inside(place)


def full_temporary(place: Path) -> list[Call]:
    """A temporary folder without room."""
    import tempfile

    import disk

    other = place.parent / "mounted"
    disk.own_namespace(other)
    with (other / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.ROOM - 8192)
    os.environ["TMPDIR"] = str(other)
    tempfile.tempdir = None
    run = place / "base"
    return [cli("export", run), cli("report", run), cli("profile", "digits:resnet8")]


def no_temporary(place: Path) -> list[Call]:
    import tempfile

    os.environ["TMPDIR"] = tempfile.tempdir = str(place / "nowhere")
    return [cli("export", place / "base"), cli("profile", "digits:resnet8")]


def gone(place: Path) -> list[Call]:
    """The current folder is deleted."""
    here = place / "here"
    here.mkdir()
    os.chdir(here)
    here.rmdir()
    return [cli("report", place / "base"), cli("compare", place / "base"), cli("ls")]


PLACES: Mapping[str, Callable[[Path], list[Call]]] = {
    "/dev/full": lambda place: searched(place, "/dev/full"),
    "below /dev/full": lambda place: searched(place, "/dev/full/x"),
    "/proc": lambda place: searched(place, "/proc/x"),
    "a file in the way": file_in_the_way,
    "too long a name": lambda place: searched(place, place / ("x" * 300)),
    "too long a path": lambda place: searched(place, "/".join([str(place), *["x" * 100] * 50])),
    "a zero in it": lambda place: searched(place, f"{place}/a\0b"),
    "files where folders are": files_within,
    "folders where files are": folders_within,
    "links to themselves": links_within,
    "a read-only mount": read_only,
    "immutable": immutable,
    "a full TMPDIR": full_temporary,
    "no TMPDIR": no_temporary,
    "the current folder is gone": gone,
}


def _attempt(pipe: Any, folder: str, name: str) -> None:
    import disk

    os.chdir(folder)
    place = Path(folder) / "disk"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    disk.laid_out(Path(folder), place)
    try:
        calls = PLACES[name](place)
    except OSError as error:
        return pipe.send([("skipped", f"not allowed here: {error}")])
    found = []
    for call in calls:
        verdict, detail, _ = judged(call)
        found.append((verdict, f"{call.arguments[0]}: {detail}"))
    subprocess.run(["chattr", "-i", str(place / "base")], capture_output=True, check=False)
    pipe.send(found)


def attempt(folder: Path, name: str) -> list[Verdict]:
    """What each of the commands gives."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_attempt, args=(theirs, str(folder), name))
    process.start()
    theirs.close()
    try:
        ends: list[Verdict] = ours.recv()
    except EOFError:
        ends = [("died", "without a word")]
    process.join()
    return ends
