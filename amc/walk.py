"""The agent in its environment, taken up where the journal of a run ends."""

from __future__ import annotations

import logging
from dataclasses import replace

import gymnasium

from amc.agents import Agent
from amc.envs import ENV_ID
from amc.errors import kind_and_line
from amc.evaluate.evaluator import Evaluator
from amc.files import check_same
from amc.problem import Problem
from amc.registry import lookup
from amc.runs import names
from amc.runs.directory import Run
from amc.runs.policy import Policy
from amc.runs.recorder import Recorder


def taken_up(run: Run, problem: Problem, evaluator: Evaluator) -> tuple[Agent, Recorder]:
    """The agent as the last checkpoint has it, where that is not ahead of the journal; else as it
    was at first, to walk again what the journal knows.
    """
    agent, recorder = _begun(run, problem, evaluator)
    known = len(recorder.outcomes)
    state = run.load_checkpoint()
    if state is None:
        return agent, recorder
    try:
        if 1 + state["counters"][0] // len(problem.space.decisions) <= known:
            agent.load_state(state)
            recorder.number = 1 + agent.episodes_done
    except Exception as error:  # it is not what an agent has written
        logger = logging.getLogger("amc")
        logger.warning("the checkpoint is damaged (%s): it is not used", kind_and_line(error))
        return _begun(run, problem, evaluator)
    return agent, recorder


def _begun(run: Run, problem: Problem, evaluator: Evaluator) -> tuple[Agent, Recorder]:
    """The agent as it was at first."""
    recorder = Recorder(run, run.lines(), evaluator)
    return _agent(problem, recorder), recorder


def _agent(problem: Problem, recorder: Recorder) -> Agent:
    """The agent in its environment, after the uniform strategy, which is the first of every run."""
    agent_class = lookup("agent", problem.config.agent["name"])
    options = {key: value for key, value in problem.config.agent.items() if key != "name"}
    exact = getattr(agent_class, "exact", False)  # it means its strategies as they are
    env = gymnasium.make(
        ENV_ID,
        space=problem.space,
        budget=replace(problem.budget, fill=problem.budget.fill and not exact),
        evaluate=recorder.evaluate,
        announce=recorder.announce,
        observation=lookup("observation", problem.config.observation),
    )
    recorder.evaluate(env.get_wrapper_attr("bounds").uniform(), problem.budget)
    agent: Agent = agent_class(
        env, len(problem.space.decisions), agent_class.Options(**options), problem.config.seed
    )
    recorder.phase_of = agent.phase_of
    if (recorder.run.path / names.POLICY).is_file():
        check_same(recorder.run.path / names.POLICY, recorder.run.provenance["policy_sha256"])
        policy = Policy.read(recorder.run.path / names.POLICY)
        agent.adopt(policy)  # type: ignore[attr-defined]
    return agent
