"""kill -9, at any moment: what goes on afterwards gives what it would have given without."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import ground
from doors import Call
from processes import Running, children, once, parent_of, until
from rows import Row

AGENTS = ("td3", "random", "genetic", "ddpg")
EPISODES = 8
PLACES = ("config.yaml", "provenance.json", "layers.csv", "base.safetensors", "episodes.jsonl")
"""Files of a run, in the order in which they come: some kills wait for one of them."""
KILLS = 3  # of one search, at most


def search(folder: Path, agent: str, out: str) -> Call:
    config = ground.config(folder, agent, EPISODES)
    if agent in ("td3", "ddpg"):
        config["agent"] |= {"warmup_episodes": 3}
    return Call("search", (config,), (("out", str(folder / out)), ("name", agent)))


def only_run(folder: Path) -> Path | None:
    """The run in a folder, once its directory is there."""
    return next(iter(sorted(folder.glob("*/s*"))), None) if folder.is_dir() else None


@cache
def undisturbed(folder: Path, agent: str) -> tuple[list[dict[str, Any]], float]:
    """The journal of a search that nobody kills, and its seconds."""
    clock = time.monotonic()
    verdict, detail = once(search(folder, agent, f"calm_{agent}"), folder)
    run = only_run(folder / f"calm_{agent}")
    if verdict != "accepted" or run is None:
        raise RuntimeError(f"a search that nobody kills fails: {detail}")
    return ground.journal(run), time.monotonic() - clock


def killed_search(folder: Path, random: Random, number: int) -> tuple[str, str, str]:
    """What was done, the verdict and the detail."""
    agent = AGENTS[number % len(AGENTS)]
    expected, seconds = undisturbed(folder, agent)
    out = folder / "killed"
    shutil.rmtree(out, ignore_errors=True)
    moments: list[str] = []
    begin = search(folder, agent, "killed")
    for count in range(random.randint(1, KILLS)):
        run = only_run(out)
        running = Running.start(begin if run is None else Call("resume", (str(run),)), folder)
        moments.append(killed(running, random, out, seconds, first=count == 0))
    how = f"{agent}, killed {', '.join(moments)}"
    return (how, *went_on(folder, out, begin, expected))


def killed(running: Running, random: Random, out: Path, seconds: float, first: bool) -> str:
    """Kill at a moment of chance, or as soon as some file is there."""
    if first and random.random() < 0.5:
        name = random.choice(PLACES)
        until(lambda: any(out.glob(f"*/s*/{name}")), running.process)
        moment = f"at {name}"
    else:
        delay = random.random() * seconds
        running.process.join(delay)
        moment = f"after {delay:.2f} s"
    running.kill()
    return moment


def went_on(
    folder: Path, out: Path, begin: Call, expected: list[dict[str, Any]]
) -> tuple[str, str]:
    """Resume to the end, or begin again where there is nothing to go on with."""
    run = only_run(out)
    before = 0 if run is None else len(whole_lines(run))
    verdict, detail = once(begin if run is None else Call("resume", (str(run),)), folder)
    if verdict == "refused" and run is not None and before == 0:  # it had not begun
        shutil.rmtree(out)
        verdict, detail = once(begin, folder)
        run = only_run(out)
    run = run or only_run(out)
    if verdict != "accepted" or run is None:
        return verdict, detail
    return compared(ground.journal(run), expected)


def whole_lines(run: Path) -> list[bytes]:
    path = run / "episodes.jsonl"
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def compared(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> tuple[str, str]:
    for number, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one != other:
            return "changed", f"line {number + 1}: {str(one)[:100]} is not {str(other)[:100]}"
    if len(found) != len(expected):
        return "lost", f"{len(found)} lines, not {len(expected)}"
    return "equal", ""


# fine-tunings


def tuning(run: Path, to: Path) -> Call:
    settings = {"epochs": 6, "batch_size": 16}
    return Call("finetune", (str(run), settings), (("to", str(to)),))


@cache
def untouched(folder: Path) -> tuple[dict[str, Any], bytes, float]:
    """Metrics and weights of a fine-tuning that nobody kills, and its seconds."""
    clock, to = time.monotonic(), folder / "calm_tuned"
    verdict, detail = once(tuning(folder / "base", to), folder)
    if verdict != "accepted":
        raise RuntimeError(f"a fine-tuning that nobody kills fails: {detail}")
    return metrics(to), (to / "best.safetensors").read_bytes(), time.monotonic() - clock


def metrics(to: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((to / "metrics.json").read_text())
    return {key: value for key, value in found.items() if key != "seconds"}


def killed_tuning(folder: Path, random: Random, number: int) -> tuple[str, str, str]:
    expected, weights, seconds = untouched(folder)
    to = folder / "tuned"
    shutil.rmtree(to, ignore_errors=True)
    moments = []
    for _ in range(random.randint(1, KILLS)):
        running = Running.start(tuning(folder / "base", to), folder)
        delay = random.random() * seconds
        running.process.join(delay)
        running.kill()
        moments.append(f"after {delay:.2f} s")
    how = f"a fine-tuning, killed {', '.join(moments)}"
    verdict, detail = once(tuning(folder / "base", to), folder)
    if verdict != "accepted":
        return how, verdict, detail
    if metrics(to) != expected:
        return how, "changed", f"{metrics(to)} is not {expected}"
    same = (to / "best.safetensors").read_bytes() == weights
    return how, "equal" if same else "changed", "" if same else "other weights"


# sweeps: whole processes, since their workers are


def sweep_command(folder: Path, out: Path) -> list[str]:
    config = folder / "sweep.yaml"
    config.write_text(json.dumps(ground.config(folder, episodes=40)))  # JSON is YAML
    values = ["seed=0,1", "agent.batch=5"]
    return [sys.executable, "-m", "amc.cli", "sweep", str(config), *values, "--out", str(out)]


@cache
def calm_sweep(folder: Path) -> dict[str, list[dict[str, Any]]]:
    out = folder / "calm_sweep"
    done = subprocess.run(
        sweep_command(folder, out), cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"a sweep that nobody kills fails: {done.stderr[-300:]}")
    return journals(out)


def journals(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Of the runs of a sweep, by their seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(out.glob("*/*/*/episodes.jsonl")):
        seed = path.parent.name.split("-")[0]
        name = seed if seed not in found else path.parent.name  # begun twice
        found[name] = ground.journal(path.parent)
    return found


def killed_sweep(folder: Path, random: Random, number: int) -> tuple[str, str, str]:
    """The parent is killed once a worker has begun; what still lives after 5 seconds is counted."""
    expected = calm_sweep(folder)
    out = folder / "sweep"
    shutil.rmtree(out, ignore_errors=True)
    command = sweep_command(folder, out)
    name = random.choice(("config.yaml", "episodes.jsonl", "checkpoint"))
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    end = time.monotonic() + 120
    while not any(out.glob(f"*/*/*/{name}")) and process.poll() is None:
        if time.monotonic() > end:
            break
        time.sleep(0.005)
    workers = list(children(process.pid))
    process.kill()
    process.wait()
    time.sleep(5)
    alive = [pid for pid in workers if parent_of(pid) is not None]
    how = f"a sweep, killed at {name} with {len(workers)} processes below it"
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        return how, "failed", done.stderr[-300:]
    found = journals(out)
    for seed, lines in expected.items():
        verdict, detail = compared(found.get(seed, []), lines)
        if verdict != "equal":
            return how, verdict, detail
    if alive:
        return how, "orphans", f"{len(alive)} of {len(workers)} live 5 s after their parent"
    return how, "equal", ""


Kill = Callable[[Path, Random, int], tuple[str, str, str]]


def attack(folder: Path, seed: int, numbers: range) -> Iterator[Row]:
    ground.prepared(folder)
    for number in numbers:
        random = Random(f"{seed}/{number}")
        kind: Kill = killed_search
        if number % 6 == 4:
            kind = killed_tuning
        elif number % 12 == 5:
            kind = killed_sweep
        how, verdict, detail = kind(folder, random, number)
        yield Row("kills", number, kind.__name__, how, verdict, verdict == "equal", detail=detail)
