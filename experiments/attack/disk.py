"""Disks that are full, read-only or strange: every command ends in one line with status 2, and
once there is room the same command goes on.

Files are written in a mount of their own (tmpfs, in a namespace that only the process sees), which
a ballast file fills up to some kilobytes. Where that is not allowed, every k-th opening of a file
for writing fails instead; this is tried everywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import ground
from doors import FORKS, Call, judged
from kills import compared, only_run
from rows import Row

NEW_NAMESPACE, BIND, READ_ONLY, REMOUNT = 0x20000, 0x1000, 0x1, 0x20
ROOM = 256 * 2**20  # of the mount, bytes: a bench is 100 MB
Verdict = tuple[str, str]


def cli(*arguments: object) -> Call:
    return Call("cli", tuple(map(str, arguments)))


def commands(place: Path) -> dict[str, Call]:
    """What writes; the runs lie in ``place``."""
    run, out = place / "base", place / "out"
    config = str(place / "small.yaml")
    return {
        "search": cli("search", config, "--out", out),
        "finetune": cli("finetune", run, "epochs=2", "--out", out / "tuned"),
        "export": cli("export", run, "--format", "safetensors,pt2"),
        "report": cli("report", run),
        "compare": cli("compare", run, "--out", out),
        "pareto": cli("pareto", run, "--out", out),
        "profile": cli("profile", "digits:resnet8", "--emit-bench", out / "bench"),
    }


FILES = {
    "search": 9,
    "finetune": 9,
    "export": 5,
    "report": 2,
    "compare": 3,
    "pareto": 4,
    "profile": 6,
}
"""About so many files each writes; more are tried than that."""
NEEDED = {
    "search": 1_500_000,
    "finetune": 3_000_000,
    "export": 1_600_000,
    "report": 80_000,
    "compare": 60_000,
    "pareto": 60_000,
    "profile": 300_000,
}
"""About so many bytes each writes."""


def laid_out(folder: Path, place: Path) -> None:
    """The run, and the config of a search, in a place of their own."""
    import json

    shutil.copytree(folder / "base", place / "base", dirs_exist_ok=True)
    shutil.rmtree(place / "base" / "export", ignore_errors=True)
    (place / "small.yaml").write_text(json.dumps(ground.config(folder, episodes=3)))


# what fails


def mount(kind: str, target: Path, flags: int, options: str = "", source: str = "none") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (source.encode(), str(target).encode(), kind.encode(), flags, options.encode())
    if libc.mount(*arguments):
        raise OSError(ctypes.get_errno(), "mount")


def own_namespace(place: Path) -> None:
    """A mount that no other process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NAMESPACE):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("", Path("/"), 0x4000 | 0x40000)  # recursively private
    place.mkdir(exist_ok=True)
    mount("tmpfs", place, 0, f"size={ROOM}")


@contextlib.contextmanager
def filled(place: Path, left: int) -> Iterator[None]:
    """So many bytes are left; afterwards there is room again."""
    ballast = place / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        os.posix_fallocate(file.fileno(), 0, max(4096, free - left))
    try:
        yield
    finally:
        ballast.unlink()


class Failing:
    """The k-th opening of a file for writing under a folder fails, and all after it."""

    def __init__(self, place: Path, number: int, code: int) -> None:
        self.place, self.left, self.code, self.on = str(place), number, code, True
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not self.on or not isinstance(arguments[0], str):
            return
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and os.path.abspath(arguments[0]).startswith(self.place):
            self.left -= 1
            if self.left < 0:
                raise OSError(self.code, os.strerror(self.code), arguments[0])


# one attempt, in a process of its own


def goes_on(name: str, place: Path, first: Verdict) -> Verdict:
    """With room again, the same command, or resume, must end well."""
    if first[0] not in ("refused", "accepted"):
        return first
    call = commands(place)[name]
    run = only_run(place / "out") if name == "search" else None
    if run is not None and first[0] == "refused":
        call = cli("resume", run)
    if name == "finetune" and first[0] == "refused" and "settings" in first[1]:
        return first
    verdict, detail, _ = judged(call)
    if verdict == "refused" and run is not None and not (run / "episodes.jsonl").is_file():
        verdict, detail, _ = judged(commands(place)["search"])  # it had not begun
        shutil.rmtree(run)
    if verdict != "accepted":
        return f"afterwards {verdict}", detail
    if name == "search":
        found = only_run(place / "out")
        assert found is not None
        ended = compared(ground.journal(found), ground.journal(place.parent / "calm" / "run"))
        return ended if ended[0] != "equal" else (first[0], first[1])
    return first


def _attempt(pipe: Any, folder: str, way: str, name: str, size: int) -> None:
    os.chdir(folder)
    place = Path(folder) / "disk"
    if way == "full":
        own_namespace(place)
    else:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    laid_out(Path(folder), place)
    pipe.send(WAYS[way](place, name, size))


def full(place: Path, name: str, size: int) -> Verdict:
    with filled(place, size):
        verdict, detail, _ = judged(commands(place)[name])
    return goes_on(name, place, (verdict, detail))


def no_room(place: Path, name: str, size: int) -> Verdict:
    return opening_fails(place, name, size, errno.ENOSPC)


def read_error(place: Path, name: str, size: int) -> Verdict:
    return opening_fails(place, name, size, errno.EROFS)


def opening_fails(place: Path, name: str, size: int, code: int) -> Verdict:
    hook = Failing(place, size, code)
    verdict, detail, _ = judged(commands(place)[name])
    hook.on = False
    return goes_on(name, place, (verdict, detail))


def large_file(place: Path, name: str, size: int) -> Verdict:
    """No file may grow beyond some bytes (EFBIG)."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(1, size), hard))
    verdict, detail, _ = judged(commands(place)[name])
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return goes_on(name, place, (verdict, detail))


WAYS: dict[str, Callable[[Path, str, int], Verdict]] = {
    "full": full,
    "no room": no_room,
    "read-only": read_error,
    "large file": large_file,
}


def attempt(folder: Path, way: str, name: str, size: int) -> Verdict:
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_attempt, args=(theirs, str(folder), way, name, size))
    process.start()
    theirs.close()
    try:
        found: Verdict = ours.recv()
    except EOFError:
        found = "died", "without a word"
    process.join()
    return found


@cache
def namespaces() -> bool:
    """Whether mounts of one's own are allowed here."""

    def tried(place: str) -> None:
        own_namespace(Path(place))

    with tempfile.TemporaryDirectory() as scratch:
        if (child := os.fork()) == 0:
            with contextlib.suppress(OSError):
                tried(scratch)
                os._exit(0)
            os._exit(1)
        return os.waitpid(child, 0)[1] == 0


def calm(folder: Path) -> None:
    """The search of `commands` without a fault, for its journal."""
    _, run = folder / "calm", None
    process = FORKS.Process(target=_calm, args=(str(folder),))
    process.start()
    process.join()
    run = only_run(folder / "calm")
    if run is None:
        raise RuntimeError("a search without a fault fails")
    run.rename(folder / "calm" / "run")


def _calm(folder: str) -> None:
    place = Path(folder) / "disk"
    place.mkdir(exist_ok=True)
    laid_out(Path(folder), place)
    judged(cli("search", place / "small.yaml", "--out", Path(folder) / "calm"))


def attack(folder: Path, seed: int, numbers: range) -> Iterator[Row]:
    import strange

    ground.prepared(folder)
    calm(folder)
    plan = planned(Random(seed)) + [("strange", name, 0) for name in strange.PLACES]
    Random(seed).shuffle(plan)
    for number in numbers:
        if number >= len(plan):
            return
        way, name, size = plan[number]
        if way == "strange":
            for verdict, detail in strange.attempt(folder, name):
                right = verdict in ("refused", "accepted", "skipped")
                yield Row("disk", number, way, name, verdict, right, detail=detail)
            continue
        verdict, detail = attempt(folder, way, name, size)
        right = verdict in ("refused", "accepted")
        yield Row("disk", number, name, f"{way} at {size}", verdict, right, detail=detail)


def planned(random: Random) -> list[tuple[str, str, int]]:
    """Way, command, and the bytes or openings after which it fails."""
    found: list[tuple[str, str, int]] = []
    for name, count in FILES.items():
        openings = range(count + 2)
        found += [("no room", name, number) for number in openings]
        found += [("read-only", name, random.choice(openings))]
        found += [("large file", name, size) for size in (0, 100, 2000, 30_000, 400_000)]
        if namespaces():
            steps = 8 if NEEDED[name] > 10**6 else 4
            sizes = [0, 4096, *(NEEDED[name] * step // steps for step in range(1, steps + 1))]
            found += [("full", name, size) for size in sizes]
    return found
