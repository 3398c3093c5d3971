"""What can be named in a config: name -> "module:attribute", imported when it is asked for.

A name that is not listed but has a colon is taken as a user's own ``module:attribute``; nothing has
to be registered.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Literal

from amc.errors import UserError, unknown

Kind = Literal["space", "criterion", "reward", "agent", "runtime"]

KNOWN: dict[Kind, dict[str, str]] = {
    "space": {
        "channel": "amc.spaces.channel:ChannelSpace",
        "lowrank": "amc.spaces.lowrank:LowRankSpace",
        "mixed": "amc.spaces.mixed:MixedSpace",
    },
    "criterion": {
        "l1": "amc.criteria.magnitude:l1",
        "reconstruction": "amc.criteria.reconstruction:reconstruction",
    },
    "reward": {
        name: f"amc.evaluate.rewards:{name}"
        for name in (
            "accuracy",
            "macs",
            "params",
            "memory",
            "latency",
            "mnasnet",
            "cross_entropy",
            "kl",
        )
    }
    | {"flops": "amc.evaluate.rewards:macs"},
    "agent": {
        "ddpg": "amc.agents.ddpg:DDPGAgent",
        "td3": "amc.agents.td3:TD3Agent",
        "sac": "amc.agents.sac:SACAgent",
        "random": "amc.agents.random:RandomAgent",
        "uniform": "amc.agents.handcrafted:UniformAgent",
        "shallow": "amc.agents.handcrafted:ShallowAgent",
        "deep": "amc.agents.handcrafted:DeepAgent",
        "greedy": "amc.agents.greedy:GreedyAgent",
        "genetic": "amc.agents.genetic:GeneticAgent",
        "ddpnas": "amc.agents.ddpnas:DDPNASAgent",
        "tpe": "amc.agents.tpe:TPEAgent",
        "vbmf": "amc.agents.vbmf:VBMFAgent",
    },
    "runtime": {
        "onnxruntime": "amc.device.runtimes:OnnxRuntime",
        "torch": "amc.device.runtimes:TorchCpu",
        "torch_cuda": "amc.device.runtimes:TorchCuda",
        "openvino": "amc.device.runtimes:OpenVino",
    },
}


def lookup(kind: Kind, name: str) -> Any:
    """The object behind a name.

    Raises:
        UserError: it does not exist.
    """
    if name in KNOWN[kind]:
        return import_object(KNOWN[kind][name], kind)
    if ":" not in name:
        raise unknown(kind, name, KNOWN[kind])
    return import_object(name, kind)


def import_object(path: str, kind: str) -> Any:
    """``module:attribute``, looked for in the current folder too.

    Raises:
        UserError: there is no such module or attribute.
    """
    module_name, _, attribute = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise
        raise UserError(
            f"unknown {kind} {path!r}: there is no module {module_name!r} here or installed"
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        public = [name for name in vars(module) if not name.startswith("_")]
        raise unknown(f"{kind} in {module_name}", attribute, public) from error
