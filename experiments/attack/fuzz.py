"""Files of strangers: every format that amc reads, mutated, through the commands that read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import files
import ground
import mutate
import yaml
from doors import Answer, Call, Victim
from rows import Row

Made = tuple[bytes, str]


@dataclass(frozen=True)
class Format:
    """A file, how it is mutated, and what reads it; ``RUN`` stands for the run in calls."""

    file: str  # in the run, or beside it
    mutate: Callable[[Path, Random], Made]  # of the run's folder
    calls: tuple[Call, ...]
    all_calls: int = 0  # so many of the first are always made; one of the others
    weight: int = 1
    base: str = "base"
    config: bool = False  # a run's: the digest in provenance.json is made to fit, mostly
    unended: bool = False  # a fine-tuning's: half of the time it has not ended


def cli(*arguments: str) -> Call:
    return Call("cli", arguments)


SHOW, REPORT = cli("show", "RUN/config.yaml"), cli("report", "RUN")
COMPARE, PARETO = cli("compare", "RUN", "--out", "out"), cli("pareto", "RUN", "--out", "out")
RESUME, LOAD = Call("resume", ("RUN",)), Call("load", ("RUN",))
FINETUNE = Call("finetune", ("RUN",), (("config", ("epochs=1",)), ("to", "out/tuned")))
AGAIN = Call("finetune", ("RUN",))
EXPORT = Call("export", ("RUN", ("safetensors",)))
READERS = (REPORT, COMPARE, PARETO)


def json_file(name: str) -> Callable[[Path, Random], Made]:
    """Mutations of a JSON file: in its structure, its text, or its bytes."""

    def mutation(run: Path, random: Random) -> Made:
        old = (run / name).read_bytes()
        draw = random.random()
        if draw < 0.7:
            value, said = mutate.changed(json.loads(old), random)
            return mutate.dumped(value), said
        return (mutate.json_text if draw < 0.85 else mutate.flipped)(old, random)

    return mutation


def yaml_file(name: str) -> Callable[[Path, Random], Made]:
    def mutation(run: Path, random: Random) -> Made:
        text = (run / name).read_text()
        draw = random.random()
        if draw < 0.6:
            value, said = mutate.changed(yaml.load(text, yaml.CSafeLoader), random)
            made = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
            return made.encode("utf-8", "surrogatepass"), said
        if draw < 0.88:
            return mutate.yaml_text(text, random)
        return mutate.flipped(text.encode(), random)

    return mutation


PLANTS = {
    "config.yaml": ("model", "space.name", "space.criterion", "agent.name", "reward", "dataset"),
    "export/strategy.json": ("model", "space", "dtype"),
    "device.yaml": ("runtime", "name"),
}
"""Where a file names what is imported."""


def planted(name: str) -> Callable[[Path, Random], Made]:
    """A stranger's code, named in a file."""

    def mutation(run: Path, random: Random) -> Made:
        value = yaml.safe_load((run / name).read_text())  # JSON is YAML, too
        *parents, key = random.choice(PLANTS[name]).split(".")
        what = random.choice(mutate.NAMES)
        mutate.at(value, tuple(parents))[key] = what
        made = json.dumps(value, indent=2)
        return made.encode(), f"{key}: {what} is planted"

    return mutation


def journal(run: Path, random: Random) -> Made:
    """One line of the journal changed; or its bytes."""
    old = (run / "episodes.jsonl").read_bytes()
    if random.random() < 0.25:
        return mutate.flipped(old, random)
    lines = old.splitlines()
    number = random.randrange(len(lines))
    value, said = mutate.changed(json.loads(lines[number]), random)
    lines[number] = json.dumps(value).encode("utf-8", "surrogatepass")
    return b"\n".join(lines) + b"\n", f"line {number + 1}: {said}"


def plain(name: str) -> Callable[[Path, Random], Made]:
    return lambda run, random: mutate.flipped((run / name).read_bytes(), random)


def tensors(name: str) -> Callable[[Path, Random], Made]:
    def mutation(run: Path, random: Random) -> Made:
        way = mutate.safetensors if random.random() < 0.7 else mutate.flipped
        return way((run / name).read_bytes(), random)

    return mutation


def searching(**changes: Any) -> Call:
    return Call("search", (), (("name", "fuzz"), ("out", "out"), ("changes", changes)))


TUNED = "finetune/config.yaml"
FORMATS = (
    Format("config.yaml", yaml_file("config.yaml"), (SHOW, RESUME, *READERS), 1, 6, config=True),
    Format(
        "config.yaml",
        planted("config.yaml"),
        (SHOW, RESUME, *READERS, EXPORT, AGAIN),
        weight=3,
        config=True,
    ),
    Format("export/strategy.json", planted("export/strategy.json"), (LOAD,)),
    Format("device.yaml", planted("device.yaml"), (RESUME, REPORT), base="timed"),
    Format("provenance.json", json_file("provenance.json"), (RESUME, *READERS, EXPORT), weight=3),
    Format("best.json", json_file("best.json"), (REPORT, PARETO, EXPORT, FINETUNE), weight=3),
    Format("episodes.jsonl", journal, (RESUME, *READERS), weight=5),
    Format("layers.csv", plain("layers.csv"), (REPORT, RESUME)),
    Format("export/strategy.json", json_file("export/strategy.json"), (LOAD,), 1, 4),
    Format(
        "export/strategy.json", json_file("export/strategy.json"), (cli("evaluate", "RUN/export"),)
    ),
    Format("export/metrics.json", json_file("export/metrics.json"), (REPORT,), weight=2),
    Format("export/model.safetensors", tensors("export/model.safetensors"), (LOAD,), weight=2),
    Format("device.yaml", yaml_file("device.yaml"), (RESUME, REPORT), weight=2, base="timed"),
    Format("checkpoint/agent.pt", files.agent, (RESUME,), weight=2),
    Format("base.safetensors", tensors("base.safetensors"), (RESUME,), weight=1),
    Format(TUNED, yaml_file(TUNED), (AGAIN, REPORT, EXPORT), weight=3, unended=True),
    Format(
        "finetune/provenance.json",
        json_file("finetune/provenance.json"),
        (AGAIN, REPORT, cli("evaluate", "RUN/finetune")),
    ),
    Format(
        "finetune/before.json", json_file("finetune/before.json"), (AGAIN, REPORT), unended=True
    ),
    Format("finetune/metrics.json", json_file("finetune/metrics.json"), (AGAIN, REPORT, EXPORT)),
    Format("finetune/log.csv", plain("finetune/log.csv"), (REPORT, AGAIN), unended=True),
    Format(
        "finetune/checkpoint/training.pt",
        files.training,
        (AGAIN,),
        weight=2,
        unended=True,
    ),
    Format(
        "finetune/best.safetensors",
        tensors("finetune/best.safetensors"),
        (AGAIN, EXPORT),
        unended=True,
    ),
    Format(
        "../weights.pt",
        lambda run, r: files.checkpoint(run.parent, r),
        (searching(weights="weights.pt", train=None),),
        weight=4,
    ),
    Format(
        "../data.npz",
        lambda run, r: files.npz(run.parent, r),
        (searching(dataset="npz:data.npz"),),
        weight=3,
    ),
    Format(
        "../heldout.npy",
        lambda run, r: files.heldout(run.parent, r),
        (searching(heldout="heldout.npy"),),
        weight=2,
    ),
    Format(
        "../images",
        lambda run, r: (b"", files.images(run.parent, r)),
        (searching(dataset="imagefolder:images", image_size=8, model="cifar:resnet20"),),
        weight=2,
    ),
)
DRAWN = [one for one in FORMATS for _ in range(one.weight)]


def located(call: Call, folder: Path, run: Path) -> Call:
    """A call with the run's place in it, and a search with its config."""
    arguments = tuple(
        one.replace("RUN", str(run)) if isinstance(one, str) else one for one in call.arguments
    )
    options = dict(call.options)
    if "changes" in options:
        config = ground.config(
            folder, episodes=1, weights_dir=str(folder), **options.pop("changes")
        )
        arguments = (config,)
    return Call(call.door, arguments, tuple(options.items()))


def prepare(folder: Path, number: int, seed: int) -> tuple[Format, str, list[Call], Path]:
    """The mutated file in its place, and what is to read it."""
    random = Random(f"{seed}/{number}")
    chosen = DRAWN[number % len(DRAWN)]
    for name in ("out", "images"):
        shutil.rmtree(folder / name, ignore_errors=True)
    run = ground.fresh(folder, chosen.base)
    content, said = chosen.mutate(run, random)
    if chosen.file != "../images":
        (run / chosen.file).write_bytes(content)
    if chosen.config and random.random() < 0.85:
        ground.consistent(run)
    if chosen.unended and random.random() < 0.6:
        (run / "finetune" / "metrics.json").unlink(missing_ok=True)
    always = list(chosen.calls[: chosen.all_calls])
    others = chosen.calls[chosen.all_calls :]
    calls = always + ([random.choice(others)] if others else [])
    return chosen, said, [located(call, folder, run) for call in calls], run


def attack(folder: Path, seed: int, numbers: range) -> Iterator[Row]:
    """Mutated files, one after the other."""
    ground.prepared(folder)
    victim = Victim(folder)
    try:
        for number in numbers:
            chosen, said, calls, run = prepare(folder, number, seed)
            for call in calls:
                (run / "report.html").unlink(missing_ok=True)
                found = scripts(run, victim.ask(call))
                yield judged(number, chosen, call, said, found)
    finally:
        victim.stop()


def scripts(run: Path, found: Answer) -> Answer:
    """A page with a script in it, made from a stranger's text, is no right answer."""
    page = run / "report.html"
    if page.is_file() and "<script" in page.read_text(errors="replace").lower():
        return Answer("script", "report.html holds <script", found.seconds, found.memory_mb)
    return found


def judged(number: int, chosen: Format, call: Call, said: str, found: Answer) -> Row:
    door = call.arguments[0] if call.door == "cli" else call.door
    return Row(
        attack="fuzz",
        number=number,
        what=f"{chosen.file.removeprefix('../')} ({door})",
        how=said,
        verdict=found.verdict,
        right=found.verdict in ("accepted", "refused"),
        seconds=found.seconds,
        memory_mb=found.memory_mb,
        detail=found.detail,
    )
