"""What is attacked: a small data set, runs made from it once, and the files of strangers."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 10
CANARY_CODE = '''"""A stranger's module: it tells when it was imported or called."""
from pathlib import Path

def tell(what):
    Path({where!r}).write_text(what)

tell("canary.py was imported")

class Options:
    model_fields = {{}}

def run(*arguments, **options):
    tell("canary.run was called")

class Thing:
    def __init__(self, *arguments, **options):
        tell("canary.Thing was made")
'''


def images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, 8, 8, 1) of easy classes: each has a bright place."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    pixels = generator.integers(0, 80, (count, 8, 8, 1))
    for row, label in enumerate(labels):
        pixels[row, 2 * label : 2 * label + 3] += 150
    return pixels.astype(np.uint8), labels


def data(folder: Path) -> Path:
    """tiny.npz in a folder."""
    (x, y), (a, b) = images(96), images(30, 1)
    np.savez(folder / "tiny.npz", x_train=x, y_train=y, x_test=a, y_test=b)
    return folder / "tiny.npz"


def config(folder: Path, agent: str = "random", episodes: int = 3, **more: Any) -> dict[str, Any]:
    """A search that takes a second or two."""
    return {
        "model": "digits:resnet8",
        "dataset": f"npz:{folder / 'tiny.npz'}",
        "data_dir": str(folder),
        "budget": {"metric": "macs", "ratio": 0.5},
        "space": {"name": "channel", "round_to": 8, "coupled": False},
        "evaluate": {"images": 20, "calibration_images": 20, "precision": "fp32"},
        "agent": {"name": agent, "episodes": episodes},
        "train": {"epochs": 5, "batch_size": 16, "augment": False},
        "finetune": {"epochs": 2, "batch_size": 32, "augment": "none"},
        **more,
    }


def plant(folder: Path) -> None:
    """The canary, as a module in a folder."""
    text = CANARY_CODE.format(where=str(folder / "canary.ran"))
    (folder / "canary.py").write_text(text)


def consistent(run: Path) -> None:
    """Make a config that was changed look as if the run had begun with it."""
    path = run / "provenance.json"
    digest = hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config_sha256": digest}))


@cache
def prepared(folder: Path) -> Path:
    """The runs ``base`` (macs; fine-tuned and exported) and ``timed`` (latency, with a device) in a
    folder, made by a process of their own.
    """
    import doors

    process = doors.FORKS.Process(target=_prepare, args=(folder,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("the runs to attack could not be made")
    return folder


def _prepare(folder: Path) -> None:
    import amc

    data(folder)
    plant(folder)
    base = amc.search(config(folder), out=folder / "made", name="base").run.path
    amc.finetune(base)
    amc.export(base, ["safetensors"])
    timed = config(
        folder,
        device="xeon_onnxruntime_1thread",
        budget={"metric": "latency_ms", "ratio": 0.6},
        space={"name": "channel", "round_to": 8, "coupled": True},
    )
    other = amc.search(timed, out=folder / "made", name="timed").run.path
    shutil.move(base, folder / "base")
    shutil.move(other, folder / "timed")


def fresh(folder: Path, name: str = "base") -> Path:
    """A copy of a prepared run, in place of the last one."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(folder / name, folder / "run")
    return folder / "run"


def journal(run: Path) -> list[dict[str, Any]]:
    """All lines without what a clock says."""
    text = (run / "episodes.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "profile")} for line in lines]
