"""Several processes at one run: one writes, the others are refused, and readers never fail."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import ground
from doors import Call
from kills import compared, metrics, only_run, search, tuning, undisturbed, untouched, whole_lines
from processes import Running, once, until
from rows import Row

AGENT = "td3"
READERS = ("evaluate", "report", "compare", "pareto")
Verdict = tuple[str, str]


def cut_short(folder: Path) -> Path:
    """A run that was killed after its second episode."""
    out = folder / "shared"
    shutil.rmtree(out, ignore_errors=True)
    running = Running.start(search(folder, AGENT, "shared"), folder)
    until(lambda: any(len(whole_lines(run)) > 1 for run in out.glob("*/s*")), running.process)
    running.kill()
    run = only_run(out)
    if run is None:
        raise RuntimeError("no search has begun")
    return run


def cli(*arguments: object) -> Call:
    return Call("cli", tuple(map(str, arguments)))


def finished(folder: Path, run: Path) -> Verdict:
    """The run is gone on with to its end, and compared with an undisturbed one."""
    verdict, detail = once(Call("resume", (str(run),)), folder)
    if verdict != "accepted":
        return f"afterwards {verdict}", detail
    return compared(ground.journal(run), undisturbed(folder, AGENT)[0])


def losers(ends: list[Verdict]) -> Verdict:
    """At least one has ended well, and the others were refused in one line."""
    wrong = [end for end in ends if end[0] not in ("accepted", "refused")]
    if wrong:
        return wrong[0]
    if all(verdict == "refused" for verdict, _ in ends):
        return "nobody", ends[0][1]
    return "equal", ""


def resumes(folder: Path, random: Random) -> tuple[str, Verdict]:
    """Two or three go on with one run."""
    run, count = cut_short(folder), random.choice((2, 3))
    calls = [Running.start(cli("resume", run), folder) for _ in range(count)]
    ends = [running.end() for running in calls]
    verdict = losers(ends)
    if verdict[0] == "equal":
        verdict = finished(folder, run)
    refused = sum(one == "refused" for one, _ in ends)
    return f"{count} resumes of one run, {refused} refused", verdict


def while_searching(folder: Path, random: Random) -> tuple[str, Verdict]:
    """A run that is searched is gone on with by another."""
    out = folder / "shared"
    shutil.rmtree(out, ignore_errors=True)
    running = Running.start(search(folder, AGENT, "shared"), folder)
    place = random.choice(("provenance.json", "base.safetensors", "episodes.jsonl"))
    until(lambda: any(out.glob(f"*/s*/{place}")), running.process)
    run = only_run(out)
    other = Running.start(cli("resume", run), folder)
    ends = [running.end(), other.end()]
    how = f"resume of a run that searches, at {place}: {ends[1][0]}"
    if ends[0][0] != "accepted":  # the one that was there first must not lose
        return how, (f"the search {ends[0][0]}", ends[0][1])
    verdict = losers(ends)
    return how, finished(folder, run) if verdict[0] == "equal" and run else verdict


def exports(folder: Path, random: Random) -> tuple[str, Verdict]:
    """Two exports of one run."""
    run = ground.fresh(folder)
    shutil.rmtree(run / "export", ignore_errors=True)
    call = cli("export", run, "--format", "safetensors")
    ends = [one.end() for one in [Running.start(call, folder) for _ in range(2)]]
    verdict = losers(ends)
    if verdict[0] == "equal":
        verdict = once(Call("load", (str(run),)), folder)
    return "two exports of one run", (
        "equal" if verdict[0] == "accepted" else verdict[0],
        verdict[1],
    )


def tunings(folder: Path, random: Random) -> tuple[str, Verdict]:
    """Two fine-tunings in one folder."""
    expected, weights, _ = untouched(folder)
    to = folder / "tuned_twice"
    shutil.rmtree(to, ignore_errors=True)
    call = tuning(folder / "base", to)
    ends = [one.end() for one in [Running.start(call, folder) for _ in range(2)]]
    verdict = losers(ends)
    how = f"two fine-tunings in one folder, {sum(v == 'refused' for v, _ in ends)} refused"
    if verdict[0] != "equal":
        return how, verdict
    verdict = once(call, folder)
    if verdict[0] != "accepted":
        return how, verdict
    same = metrics(to) == expected and (to / "best.safetensors").read_bytes() == weights
    return how, ("equal", "") if same else ("changed", f"{metrics(to)} is not {expected}")


def readers(folder: Path, random: Random) -> tuple[str, Verdict]:
    """One reads all the time while another searches; what it refuses of a run that has not ended
    (there is nothing to evaluate, say) it may refuse then, too.
    """
    run, name = cut_short(folder), random.choice(READERS)
    if name == "evaluate":
        finished(folder, run)  # then another resume writes what follows from the journal
    more = ("--out", folder / "read") if name in ("compare", "pareto") else ()
    call = cli(name, run, *more)
    alone = once(call, folder)
    reading = Running.start(call, folder, seconds=6.0)
    time.sleep(random.random() * 2)
    writing = Running.start(cli("resume", run), folder).end()
    read = reading.end()
    how = f"{name} in a loop beside a writer (alone: {alone[0]})"
    if writing[0] != "accepted":
        return how, (f"the writer {writing[0]}", writing[1])
    return how, finished(folder, run) if read[0] in ("accepted", alone[0]) else read


def searches(folder: Path, random: Random) -> tuple[str, Verdict]:
    """Two searches of one name, begun in one second, get a folder each."""
    out = folder / "shared"
    shutil.rmtree(out, ignore_errors=True)
    call = search(folder, AGENT, "shared")
    ends = [one.end() for one in [Running.start(call, folder) for _ in range(2)]]
    how = "two searches begun together"
    if any(verdict != "accepted" for verdict, _ in ends):
        return how, next(end for end in ends if end[0] != "accepted")
    runs = sorted(out.glob("*/s*"))
    if len(runs) != 2:
        return how, ("lost", f"{len(runs)} folders")
    expected = undisturbed(folder, AGENT)[0]
    verdicts = [compared(ground.journal(run), expected) for run in runs]
    return how, max(verdicts, key=lambda one: one[0] != "equal")


KINDS: tuple[Callable[[Path, Random], tuple[str, Verdict]], ...] = (
    *(resumes, while_searching, exports, tunings, readers, searches, readers, resumes),
)


def attack(folder: Path, seed: int, numbers: range) -> Iterator[Row]:
    ground.prepared(folder)
    for number in numbers:
        kind = KINDS[number % len(KINDS)]
        try:
            how, (verdict, detail) = kind(folder, Random(f"{seed}/{number}"))
        except (json.JSONDecodeError, OSError) as error:  # a journal that is not whole
            how, verdict, detail = kind.__doc__ or "", "broken", repr(error)
        yield Row("writers", number, kind.__name__, how, verdict, verdict == "equal", detail=detail)
