"""Networks that nobody chose for us, and torch-pruning beside us: README.md beside this file.

    python experiments/zoo/run.py               all networks that zoo.csv lacks (hours)
    python experiments/zoo/run.py table         the counts of zoo.csv, for the README

Each network is tried in processes of its own, under a limit of time and memory.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

HERE = Path(__file__).parent
ZOO = HERE / "zoo.csv"
VERDICTS = ("right", "partly", "refused", "wrong", "slow", "traceback")
COLUMNS = (
    *("network", "source", "input_size", "params", "macs", "bind_seconds", "seconds", "decisions"),
    *("macs_decided", "macs_touched", "params_touched", "verdict", "reason"),
    *("tp_verdict", "tp_reason", "tp_params_ratio", "tp_seconds", "tp_macs_ratio", "tp_diff"),
    *("varies", "params_said", "macs_said", "prepared_diff", "prepared_small_diff"),
    *("cut_smallest_diff", "cut_uniform_diff", "error_unrepaired", "error_repaired"),
    *("smallest_macs", "smallest_macs_said", "smallest_params", "smallest_params_said"),
    *("uniform_macs", "uniform_macs_said", "uniform_params", "uniform_params_said"),
)
Row = dict[str, Any]  # a line of zoo.csv: COLUMNS


# in a process of its own


def say(stage: str, **facts: Any) -> None:
    """A JSON line: the stage that begins, and what is known by now."""
    print(json.dumps({"stage": stage, **facts}), flush=True)


def try_ours(name: str, size: int | None) -> None:
    import checks
    import networks

    model = networks.build(name)
    size = networks.smallest_size(model, (size,) if size else networks.SIZES)
    say("start", input_size=size, params=checks.params(model))
    calibration, fresh = networks.images(96, size, seed=10), networks.images(32, size, seed=11)

    def tell(stage: str, found: checks.Findings) -> None:
        say(stage, **asdict(found))

    found = checks.Examination(model, calibration, fresh, name).run(tell)
    verdict, reason = found.verdict()
    say("end", **asdict(found) | {"verdict": verdict, "reason": reason})


def try_torch_pruning(name: str, size: int) -> None:
    import networks
    import peer

    networks.timm.layers.set_fused_attn(False)  # the fused one takes its scale from the width
    model, fresh = networks.build(name), networks.images(4, size, seed=11)
    say("torch-pruning")
    say("end", **asdict(peer.examine(model, fresh, networks.CLASSES)))


# the process that starts the others


@dataclass(frozen=True)
class Limits:
    seconds: float
    memory_gb: float


@dataclass
class Trial:
    """A process that tries one network with one of the two."""

    command: list[str]
    limits: Limits
    facts: Row = field(default_factory=dict)
    stage: str = "build"

    def run(self, stop: Event) -> Trial:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            arguments = [sys.executable, __file__, *self.command]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            environment["ZOO_MEMORY_GB"] = str(self.limits.memory_gb)
            process = subprocess.Popen(arguments, stdout=out, stderr=errors, env=environment)
            why = self._watch(process, out.fileno(), stop)
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
        if self.stage != "end":
            status = f"status {process.returncode} in {self.stage}: {' '.join(last)[:200]}"
            self._cut_short(*(("slow", why) if why else ("traceback", status)))
        for reason in ("allocate memory", "MemoryError", "bad_alloc"):
            if self.facts["verdict"] == "traceback" and reason in self.facts["reason"]:
                self.facts |= {"verdict": "slow", "reason": f"more than {self._memory}"}
        return self

    @property
    def _memory(self) -> str:
        return f"{self.limits.memory_gb:g} GB in {self.stage}"

    def _watch(self, process: subprocess.Popen[bytes], out: int, stop: Event) -> str:
        """Until it has ended, or was ended: then the reason. The clock of building (imports
        included) and that of the checks are two.
        """
        clock, read, first = time.monotonic(), 0, True
        while True:
            over = process.poll() is not None
            text = os.pread(out, 2**24, read)
            whole = text[: text.rfind(b"\n") + 1]
            read += len(whole)
            for line in whole.splitlines():
                if line.startswith(b'{"stage"'):  # networks print, too
                    self.facts |= json.loads(line)
                    self.stage = self.facts.pop("stage")
                    clock, first = (time.monotonic(), False) if first else (clock, first)
            late = time.monotonic() - clock > self.limits.seconds
            if over or late or stop.is_set():
                process.kill()
                process.wait()
                return "" if over else f"longer than {self.limits.seconds:g} s in {self.stage}"
            time.sleep(0.1)

    def _cut_short(self, verdict: str, reason: str) -> None:
        """The verdict of what did not come to its end, unless a check before was clear."""
        for known, key in (("wrong", "wrong"), ("traceback", "raised")):
            if self.facts.get(key):
                verdict, reason = known, "; ".join([*self.facts[key], reason])
                break
        self.facts |= {"verdict": verdict, "reason": reason}


def row_of(name: str, size: str, limits: Limits, stop: Event) -> Row:
    """Try a network with both; ``size`` is its input size where it is known."""
    ours = Trial(["ours", name, *([size] if size else [])], limits).run(stop).facts
    source, _, network = name.partition("/")
    if "input_size" not in ours:  # it was never built
        theirs: Row = {"verdict": ours["verdict"], "reason": ours["reason"]}
    else:
        theirs = Trial(["torch-pruning", name, str(ours["input_size"])], limits).run(stop).facts
    return (
        ours
        | {f"tp_{key}": value for key, value in theirs.items()}
        | {"network": network, "source": source}
    )


def read(path: Path) -> dict[str, Row]:
    """``source/network`` -> its row."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {f"{row['source']}/{row['network']}": row for row in csv.DictReader(file)}


def write(path: Path, rows: dict[str, Row]) -> None:
    """All rows, in whose place the old ones were: a kill in between loses none."""
    fresh = path.with_suffix(".new")
    with fresh.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for row in rows.values():
            table.writerow({key: rounded(value) for key, value in row.items()})
    fresh.replace(path)


def rounded(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def wanted(names: list[str], only: str, again: str, known: dict[str, Row]) -> Iterator[str]:
    """The networks to try: those that ``again`` matches, and those without a row."""
    for name in names:
        if fnmatch.fnmatch(name, f"*{again or only}*") and (again or name not in known):
            yield name


def try_all(names: list[str], path: Path, limits: Limits, jobs: int) -> None:
    """A row each, written as soon as it is known."""
    rows, stop, start = read(path), Event(), time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        sizes = {name: rows.get(name, {}).get("input_size", "") for name in names}
        futures = {pool.submit(row_of, n, sizes[n], limits, stop): n for n in names}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                name, row = futures[future], future.result()
                rows[name] = row
                write(path, rows)
                left = (time.monotonic() - start) / done * (len(names) - done)
                print(
                    f"{done}/{len(names)} {line(name, row)}; {left / 60:.0f} min left", flush=True
                )
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def line(name: str, row: Row) -> str:
    def said(verdict: str, reason: str) -> str:
        return f"{verdict} ({reason})" if reason else verdict

    ours, theirs = said(row["verdict"], row["reason"]), said(row["tp_verdict"], row["tp_reason"])
    return f"{name}: {ours} in {row.get('seconds') or 0:.0f} s; torch-pruning {theirs}"


def table(rows: dict[str, Row]) -> str:
    """How many networks of each source got which verdict."""
    lines = [f"| networks | by | {' | '.join(VERDICTS)} |", f"|---|---|{'---|' * len(VERDICTS)}"]
    for source in sorted({row["source"] for row in rows.values()}, reverse=True):
        of_source = [row for row in rows.values() if row["source"] == source]
        for who, key in (("amc", "verdict"), ("torch-pruning", "tp_verdict")):
            counts = Counter(row[key] for row in of_source)
            cells = " | ".join(str(counts[verdict]) for verdict in VERDICTS)
            lines.append(f"| {source}, {len(of_source)} | {who} | {cells} |")
    slow = [name for name, row in rows.items() if row["verdict"] == "slow"]
    return "\n".join([*lines, "", f"Slow: {', '.join(slow) or 'none'}."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="all", choices=("all", "table"))
    parser.add_argument("--only", default="", metavar="PATTERN", help="of source/network")
    parser.add_argument("--again", default="", metavar="NAME", help="try these again, no others")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a network and tool")
    parser.add_argument("--memory", type=float, default=10.0, help="GB a process")
    parser.add_argument("--out", type=Path, default=ZOO)
    chosen = parser.parse_args()
    if chosen.what == "table":
        print(table(read(chosen.out)))
        return
    from networks import names

    picked = list(wanted(names(), chosen.only, chosen.again, read(chosen.out)))
    try_all(picked, chosen.out, Limits(chosen.limit, chosen.memory), chosen.jobs)


if __name__ == "__main__":
    if sys.argv[1:2] in (["ours"], ["torch-pruning"]):
        limit = int(float(os.environ["ZOO_MEMORY_GB"]) * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        import torch

        torch.set_num_threads(1)
        name, *size = sys.argv[2:]
        (try_ours if sys.argv[1] == "ours" else try_torch_pruning)(
            name, int(size[0]) if size else None
        )
    else:
        main()
