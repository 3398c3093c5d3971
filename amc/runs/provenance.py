"""By what, from what, on what and when something was made."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from amc import __version__
from amc.device.runtimes import processor


def surroundings() -> dict[str, Any]:
    """Command, versions, commit, machine and time of this process."""
    packages = "torch", "torchvision", "gymnasium", "stable-baselines3", "numpy", "scipy"
    return {
        "amc": __version__,
        "command": sys.argv,
        "git_commit": _git_commit(),
        "packages": {name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count(),
        },
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
