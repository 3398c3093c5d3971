"""What can be named in a config: name -> "module:attribute", imported when it is asked for.

A name that is not listed but has a colon is taken as a user's own ``module:attribute``
(`amc.plugins`); nothing has to be registered.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

from amc.errors import unknown
from amc.plugins import imported

Kind = Literal["space", "criterion", "reward", "agent", "observation", "runtime", "kind"]

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
        "policy": "amc.agents.policy:PolicyAgent",
        "random": "amc.agents.random:RandomAgent",
        "sensitivity": "amc.agents.sensitivity:SensitivityAgent",
        "uniform": "amc.agents.handcrafted:UniformAgent",
        "shallow": "amc.agents.handcrafted:ShallowAgent",
        "deep": "amc.agents.handcrafted:DeepAgent",
        "greedy": "amc.agents.greedy:GreedyAgent",
        "genetic": "amc.agents.genetic:GeneticAgent",
        "ddpnas": "amc.agents.ddpnas:DDPNASAgent",
        "tpe": "amc.agents.tpe:TPEAgent",
        "vbmf": "amc.agents.vbmf:VBMFAgent",
    },
    "kind": {},  # of layer: those of ours are asked for by nobody (`amc.network.kinds`)
    "observation": {
        "amc": "amc.envs.observation:Amc",
        "graph": "amc.envs.graph:Graph",
    },
    "runtime": {
        "onnxruntime": "amc.device.runtimes:OnnxRuntime",
        "torch": "amc.device.runtimes:TorchCpu",
        "torch_cuda": "amc.device.cuda:TorchCuda",
        "torch_cuda_fp16": "amc.device.cuda:TorchCudaHalf",
        "openvino": "amc.device.runtimes:OpenVino",
    },
}

ONE_SHOT = ("uniform", "shallow", "deep", "vbmf")
"""The agents that search nothing: their few strategies follow from the space alone
(`amc.agents.proposing.OneShotAgent`). Of these `HANDCRAFTED` look at no weights either."""
HANDCRAFTED = ("uniform", "shallow", "deep")


def lookup(kind: Kind, name: str) -> Any:
    """The object behind a name.

    Raises:
        UserError: it does not exist, or is code that the user has not named (`amc.plugins`).
    """
    if name in KNOWN[kind]:
        module, _, attribute = KNOWN[kind][name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if ":" not in name:
        raise unknown(kind, name, KNOWN[kind] or ["module:Class"])
    return imported(name, kind)
