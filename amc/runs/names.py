"""Every file name in a run directory."""

from __future__ import annotations

CONFIG, PROVENANCE, LAYERS = "config.yaml", "provenance.json", "layers.csv"
JOURNAL, BEST, PICTURE = "episodes.jsonl", "best.json", "search.png"
CHECKPOINT = "checkpoint/agent.pt"
LOCK, WRITER = ".lock", ".writer.json"  # of the process that writes the folder
LOCKS = LOCK, f"{LOCK}.held", WRITER  # the second stands in where a filesystem has no locks
BASE = "base.safetensors"  # the base network's weights, kept where they come from no file
POLICY = "policy.pt"  # of another run, which the agent begins with
ERRORS = "errors"  # a folder: a traceback for each episode that a plug-in failed in
DEVICE = "device.yaml"  # a copy of the device profile
METRICS = "metrics.json"  # of an export, and of a fine-tuning

FINETUNE = "finetune"  # the folder of a fine-tuning, and what is in it
BEFORE, LOG, CURVES = "before.json", "log.csv", "finetune.png"

EXPORT = "export"  # the folder of an export, and what is in it
WEIGHTS, STRATEGY, CARD = "model.safetensors", "strategy.json", "README.md"
ONNX, PROGRAM = "model.onnx", "model.pt2"
