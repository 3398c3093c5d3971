"""What is told about anything long."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from amc.progress import ConsoleReport


def test_the_time_left_does_not_count_what_was_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    written = io.StringIO()
    report = ConsoleReport(Console(file=written, width=100))
    report("training | epoch 7", 700, 1000)
    now[0] += 20
    report("training | epoch 7", 710, 1000)
    assert written.getvalue() == "training | epoch 7: 710/1000, 20 s, 580 s left\n"
