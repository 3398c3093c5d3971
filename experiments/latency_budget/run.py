"""Search to half the latency, to half the MACs, and to the MACs that half the latency came to; then
measure the results and the baseline in turn.

    AMC_DATA_DIR=... AMC_WEIGHTS_DIR=... python experiments/latency_budget/run.py

ResNet-56 is searched with real accuracy, in ordinary runs under runs/latency_budget (stopped ones
are resumed, finished ones not repeated). MobileNet-V2 has random weights and a stub for its reward
(`stub`): it is here for the latency only. Writes results.csv, fidelity.csv and profile.png beside
this file; nothing else should run meanwhile.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from amc.agents.ddpg import DDPGAgent
from amc.envs import ENV_ID
from rich.console import Console

from amc.config import load_config, parse_config
from amc.cost.budget import Budget
from amc.device.profile import DeviceProfile, load_device
from amc.device.reach import structure_of
from amc.device.runtimes import make_runtime, timed_in_turn
from amc.evaluate.outcome import Outcome
from amc.evaluate.rewards import Score
from amc.files import write_json
from amc.problem import untrained_space
from amc.progress import ConsoleReport
from amc.search import resume, search
from amc.spaces.base import CompressionSpace, Strategy
from amc.views.pictures import plot_profile

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs" / "latency_budget"
DEVICE = "xeon_onnxruntime_1thread"
SEEDS = (0,)
# network -> (metric, ratio); the last one has as many MACs as the result of the first
SEARCHES = {
    "resnet56": (("latency_ms", 0.5), ("macs", 0.5), ("macs", 0.26)),
    "mobilenet_v2": (("latency_ms", 0.5), ("macs", 0.5), ("macs", 0.46)),
}
WEIGHTS = "weights=cifar10_resnet56_45k.safetensors"
QUICK = ["evaluate.racing=0.9", "evaluate.images=2000", "evaluate.calibration_images=500"]
MOBILENET = "torchvision:mobilenet_v2"
THEN = {  # the agent's options; the presets have another agent now (experiments/agents)
    "warmup_episodes": 100,
    "warmup_spread": None,
    "start": "none",
    "sigma": 0.5,
    "sigma_decay": 0.99,
    "actor_lr": 1e-4,
    "imitate": 0,
    "episodes": 400,
}


Key = tuple[str, float, int]  # metric, ratio, seed


def resnet56(metric: str, ratio: float, seed: int) -> dict[str, Any]:
    """The best strategy of a run, made or finished where it has to be."""
    agent = f"agent={json.dumps({'name': 'ddpg', **THEN})}"
    own = [f"budget.metric={metric}", f"budget.ratio={ratio}", f"seed={seed}"]
    overrides = [agent, WEIGHTS, "budget.fill=false", *own, *QUICK]
    config = load_config("cifar10_resnet56_channel_latency50", overrides)[1]
    name, report = f"resnet56_{metric}{100 * ratio:.0f}", ConsoleReport(Console(stderr=True))
    found = sorted((RUNS / name).glob(f"s{seed}-*"))
    if not found:
        return search(config, out=RUNS, name=name, report=report).best
    lines = (found[-1] / "episodes.jsonl").read_text().count("\n")
    if lines <= config.agent["episodes"]:
        return resume(found[-1], report=report).best
    best: dict[str, Any] = json.loads((found[-1] / "best.json").read_text())
    return best


def mobilenet_space() -> CompressionSpace:
    space = untrained_space(
        parse_config(
            {
                "model": MOBILENET,
                "space": {"name": "channel", "round_to": 16, "repair": "none"},
                "budget": {"ratio": 0.5},
            }
        )
    )
    space.latency = load_device(DEVICE).latency_model(MOBILENET)
    return space


def stub(space: CompressionSpace, strategy: Strategy) -> float:
    """NOT an accuracy: 1 plus the mean logarithm of the keep ratios, which falls faster the more
    one decision loses.
    """
    ratios = space.ratios(strategy)
    return 1 + float(np.mean(np.log(ratios)))


def mobilenet_v2(metric: str, ratio: float, seed: int) -> dict[str, Any]:
    """The best of 400 episodes of the agent on the stub."""
    path = RUNS / f"mobilenet_v2_{metric}{100 * ratio:.0f}_s{seed}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    space = mobilenet_space()
    budget = Budget.of(metric, space.cost({}), ratio=ratio)  # type: ignore[arg-type]
    outcomes: list[Outcome] = []

    def evaluate(strategy: Strategy, budget: Budget) -> Outcome:
        value, cost = stub(space, strategy), space.cost(strategy)
        score = Score(value, 0.0, 0.0)
        outcome = Outcome(dict(strategy), (), score, cost, value - 1, budget.allows(cost), 0.0)
        outcomes.append(outcome)
        return outcome

    env = gymnasium.make(ENV_ID, space=space, budget=budget, evaluate=evaluate)
    options = DDPGAgent.Options.model_validate(THEN)
    agent = DDPGAgent(env, len(space.decisions), options, seed)
    report = ConsoleReport(Console(stderr=True))
    agent.run(lambda: report(f"MobileNet-V2, {metric}", agent.episodes_done, options.episodes))
    assert all(outcome.feasible for outcome in outcomes)
    best = max(outcomes, key=lambda outcome: outcome.reward)
    found = {"strategy": best.strategy, "stub": best.score.accuracy, **best.cost.as_dict()}
    write_json(path, found)
    return found


def rows(
    name: str, space: CompressionSpace, bests: dict[Key, dict[str, Any]]
) -> list[dict[str, Any]]:
    """One row a result; all results of a network and its baseline are measured in one go."""
    profile = load_device(DEVICE)
    runtime = make_runtime(profile.runtime, profile.threads)
    example = torch.randn((1, *space.network.input_shape))
    models = {"baseline": space.network.model}
    models |= {str(key): structure_of(space, best["strategy"]) for key, best in bests.items()}
    times = timed_in_turn(runtime, models, example, seconds=20.0)
    original = space.cost({})
    result = []
    for key, best in bests.items():
        found, cost = times[str(key)], space.cost(best["strategy"])
        result.append(
            {
                "network": name,
                "runtime": f"{runtime.name} {runtime.version}, threads {runtime.threads}",
                "search_metric": key[0],
                "seed": key[2],
                "predicted_ms": round(cost["latency_ms"], 4),
                "measured_ms": round(found["ms"], 4),
                "baseline_measured_ms": round(times["baseline"]["ms"], 4),
                "speedup": round(1 / found["ratio"], 3),
                "macs_ratio": round(cost.macs / original.macs, 4),
                "search_accuracy": best.get("search_accuracy"),
                "budget_ratio": key[1],
                "predicted_ratio": round(cost["latency_ms"] / original["latency_ms"], 4),
                "stub": best.get("stub"),
            }
        )
    return result


def fidelity() -> list[dict[str, Any]]:
    """What the profiles say of themselves: the shipped ones and those beside this file."""
    profiles = [load_device(name) for name in (DEVICE, DEVICE.replace("1thread", "2threads"))]
    profiles += [DeviceProfile.read(path) for path in sorted(HERE.glob("*.yaml"))]
    result = []
    for profile in profiles:
        runtime = f"{profile.runtime} {profile.runtime_version}, threads {profile.threads}"
        for network, fit in profile.networks.items():
            found = fit.fidelity
            assert found is not None
            row = {"network": network, "runtime": runtime, "strategies": found.strategies}
            row |= {"median_ape": found.median_ape, "worst_ape": found.worst_ape}
            result.append({**row, "spearman": found.spearman})
    return result


def main() -> None:
    search_of = {"resnet56": resnet56, "mobilenet_v2": mobilenet_v2}
    found = {
        name: {
            (metric, ratio, seed): search_of[name](metric, ratio, seed)
            for metric, ratio in searches
            for seed in SEEDS
        }
        for name, searches in reversed(SEARCHES.items())
    }
    resnet = untrained_space(load_config("cifar10_resnet56_channel_latency50")[1])
    resnet.latency = load_device(DEVICE).latency_model("cifar:resnet56")
    table = rows("resnet56", resnet, found["resnet56"])
    table += rows("mobilenet_v2", mobilenet_space(), found["mobilenet_v2"])
    for name, values in (("results", table), ("fidelity", fidelity())):
        frame = pd.DataFrame(values)
        frame.to_csv(HERE / f"{name}.csv", index=False)
        print(frame.to_string(index=False))
    plot_profile(load_device(DEVICE), HERE / "profile.png")


if __name__ == "__main__":
    main()
