"""The doors that are attacked: the command line, and `import amc` as a user would. A call is made
in a process of its own, which is forked from one that has imported everything already, so that
thousands of calls take minutes; it may die, hang or eat memory without harm to who asked.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import multiprocessing
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rows import LIMIT_MB, LIMIT_SECONDS

HERE = Path(__file__).parent
WALL_SECONDS = 6 * LIMIT_SECONDS  # by the clock, on a machine that others use too
MEMORY_LIMIT = 4 * 2**30  # of a process: beyond it a call ends in a MemoryError
CANARY = "canary.ran"  # the file that a stranger's code writes when it runs
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["loaded"])


@dataclass(frozen=True)
class Call:
    """What is called: ``cli`` with its arguments, or a function of `amc` with its own."""

    door: str
    arguments: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    trust: bool = False  # the user's own plug-ins may run

    def __str__(self) -> str:
        said = [str(one) for one in self.arguments] + [f"{k}={v}" for k, v in self.options]
        return f"{self.door} {' '.join(said)}"[:200]


@dataclass(frozen=True)
class Answer:
    """What came of a call."""

    verdict: str
    detail: str = ""
    seconds: float = 0.0  # of the processor
    memory_mb: float = 0.0  # at most, beyond what there was before
    value: Any = None  # best.json of a search, metrics of a fine-tuning


def perform(call: Call) -> Any:
    """Make a call in this process.

    Raises:
        SystemExit: always, of the command line.
    """
    import victims

    import amc.cli

    if call.door == "cli":
        trust = ["--trust"] if call.trust and knows_trust(call.arguments[0]) else []
        sys.argv = ["amc", *map(str, call.arguments), *trust]
        return amc.cli.main()
    given = call.door == "given"
    function: Callable[..., Any] = victims.search if given else getattr(amc, call.door)
    options = dict(call.options)
    if call.trust and "trust" in inspect.signature(function).parameters:
        options["trust"] = True
    value = function(*call.arguments, **options)
    return getattr(value, "best", getattr(value, "metrics", None))


def knows_trust(command: str) -> bool:
    """Whether a command has the option ``--trust``."""
    import amc.cli

    found = [one for one in amc.cli.app.registered_commands if one.callback is not None]
    names = {one.name or one.callback.__name__: one.callback for one in found}
    return command in names and "trust" in inspect.signature(names[command]).parameters


def judged(call: Call) -> tuple[str, str, Any]:
    """Verdict, detail and value of a call."""
    from amc.errors import UserError

    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            value = perform(call)
    except UserError as error:
        return sentence(str(error)), str(error), None
    except SystemExit as error:
        return (*exit_status(error.code, err.getvalue(), call), None)
    except BaseException as error:
        return "traceback", last_frame(error), None
    return "accepted", "", value


def sentence(text: str) -> str:
    """Whether a refusal is one line."""
    return "refused" if text.strip() and "\n" not in text.strip() else "several lines"


def exit_status(code: Any, text: str, call: Call) -> tuple[str, str]:
    """The verdict on a command that has ended, by its status and its standard error."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if call.door != "cli" or type(code) is not int:  # the command line always gives a number
        return "ran code", f"sys.exit({code!r})"
    if code == 0:
        return "accepted", ""
    if "Usage:" in text:  # typer's box
        return "refused", " ".join(lines)[-200:]
    if code == 2:
        complaints = [line for line in lines if line.startswith("amc: ")]
        one = len(complaints) == 1 and last == complaints[0]
        return ("refused" if one else "several lines"), last
    if re.search(r"\bbug\b", last):
        return "bug report", " | ".join(lines[-3:])
    return ("traceback" if "Traceback" in text else "failed"), last


def last_frame(error: BaseException) -> str:
    """The exception, and where it was raised: the last frame in amc, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if re.search(r"/amc/|/agents/|/envs/|/configs/", f.filename)]
    shown = [*ours[-1:], *([] if ours[-1:] == frames[-1:] else frames[-1:])]
    where = " < ".join(
        f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno} {f.name}" for f in reversed(shown)
    )
    text = (str(error).strip().splitlines() or [""])[0][:160]
    return f"{type(error).__name__}: {text} at {where}"


# the process that is attacked


def memory_kb(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", text).group(1))  # type: ignore[union-attr]


def answer(call: Call) -> Answer:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, clock = memory_kb("VmRSS"), time.process_time()
    verdict, detail, value = judged(call)
    seconds = time.process_time() - clock
    memory = max(0.0, (memory_kb("VmHWM") - before) / 1024)
    if Path(CANARY).exists():
        verdict, detail = "ran code", f"{Path(CANARY).read_text()[:80]} ({verdict}: {detail})"
    elif seconds > LIMIT_SECONDS:
        verdict = "slow"
    elif memory > LIMIT_MB and verdict != "accepted":
        verdict = "memory"
    return Answer(verdict, detail, seconds, memory, value)


def serve(pipe: Connection, folder: str) -> None:
    os.chdir(folder)
    sys.path.insert(0, folder)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open("worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    while (call := pipe.recv()) is not None:
        found = answer(call)
        for name in ("canary", "bad"):
            sys.modules.pop(name, None)
        pipe.send(found)


class Victim:
    """A process that answers calls, in a folder; another takes its place where it died."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: Any = None

    def ask(self, call: Call) -> Answer:
        if self._process is None or not self._process.is_alive():
            self._pipe, theirs = FORKS.Pipe()
            self._process = FORKS.Process(target=serve, args=(theirs, str(self.folder)))
            self._process.start()
            theirs.close()
        (self.folder / CANARY).unlink(missing_ok=True)
        clock = time.monotonic()
        used = processor_seconds(self._process.pid)
        self._pipe.send(call)
        while not self._pipe.poll(0.05):
            seconds = processor_seconds(self._process.pid) - used
            late = time.monotonic() - clock > WALL_SECONDS
            if seconds > LIMIT_SECONDS + 1 or late:
                self.stop()
                return Answer("slow", "was ended", max(seconds, LIMIT_SECONDS + 1))
        try:
            found: Answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            status = self._process.exitcode
            self.stop()
            ran = (self.folder / CANARY).exists()
            return Answer("ran code" if ran else "died", f"exit status {status}")
        return found

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def processor_seconds(pid: int) -> float:
    """What a process has used so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
