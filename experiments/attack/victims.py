"""Data and networks that users bring, and that are wrong in one thing each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ground
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import amc
from amc.config import Config

X, Y = ground.images(96)
A, B = ground.images(30, 1)
FLOATS = torch.from_numpy(X).permute(0, 3, 1, 2).float() / 255
LABELS = torch.from_numpy(Y)


def arrays(x: Any = X, y: Any = Y, a: Any = A, b: Any = B, **more: Any) -> amc.Dataset:
    return amc.Dataset.from_arrays("given", x, y, a, b, **more)


def loaders(x: Tensor = FLOATS, y: Tensor = LABELS, **more: Any) -> amc.Dataset:
    train = DataLoader(TensorDataset(x, y), 16, **more)
    test = DataLoader(TensorDataset(FLOATS[:30], LABELS[:30]), 16)
    return amc.Dataset.from_loaders(train, test)


class Raises(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A data set that breaks in the middle."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 50:
            raise OSError("the disk is gone")
        return FLOATS[index], int(Y[index])


def at_one(value: float) -> Tensor:
    images = FLOATS.clone()
    images[7, 0, 3, 3] = value
    return images


DATA: Mapping[str, Callable[[], Any]] = {
    "labels above the network's classes": lambda: arrays(y=Y + 5),
    "negative labels": lambda: arrays(y=Y - 1),
    "huge labels": lambda: arrays(y=Y.astype(np.int64) * 10**15),
    "labels of halves": lambda: arrays(y=Y + 0.5),
    "whole labels as floats": lambda: arrays(y=Y.astype(float)),
    "NaN among the labels": lambda: arrays(y=np.where(Y == 3, np.nan, Y)),
    "labels as texts": lambda: arrays(y=Y.astype(str)),
    "one-hot labels": lambda: arrays(y=np.eye(10)[Y]),
    "labels of objects": lambda: arrays(y=np.array([object()] * 96)),
    "too few labels": lambda: arrays(y=Y[:-1]),
    "one label": lambda: arrays(y=3),
    "no labels": lambda: arrays(y=None),
    "float images": lambda: arrays(x=X / 255.0),
    "NaN images": lambda: arrays(x=np.full(X.shape, np.nan)),
    "constant images": lambda: arrays(x=np.zeros_like(X), a=np.zeros_like(A)),
    "one class": lambda: arrays(y=np.zeros(96, int)),
    "one image": lambda: arrays(x=X[:1], y=Y[:1]),
    "two images": lambda: arrays(x=X[:2], y=Y[:2]),
    "three images": lambda: arrays(x=X[:3], y=Y[:3]),
    "no test images": lambda: arrays(a=A[:0], b=B[:0]),
    "no images": lambda: arrays(x=X[:0], y=Y[:0]),
    "test images of another size": lambda: arrays(a=A[:, :4]),
    "images of no size": lambda: arrays(x=X[:, :0]),
    "channels first": lambda: arrays(x=X.transpose(0, 3, 1, 2), a=A.transpose(0, 3, 1, 2)),
    "17 channels": lambda: arrays(x=np.repeat(X, 17, 3), a=np.repeat(A, 17, 3)),
    "lists": lambda: arrays(x=X.tolist(), y=Y.tolist()),
    "ragged lists": lambda: arrays(x=[[1], [1, 2]], y=[0, 1]),
    "a text": lambda: arrays(x="images"),
    "a mean of NaN": lambda: arrays(mean=[float("nan")], std=[1.0]),
    "a std of 0": lambda: arrays(mean=[0.5], std=[0.0]),
    "an infinite std": lambda: arrays(mean=[0.5], std=[float("inf")]),
    "three means of one channel": lambda: arrays(mean=[0.5] * 3, std=[0.5] * 3),
    "a mean of texts": lambda: arrays(mean=["a"], std=["b"]),
    "loaders: NaN in an image": lambda: loaders(at_one(float("nan"))),
    "loaders: an infinite pixel": lambda: loaders(at_one(float("inf"))),
    "loaders: a huge pixel": lambda: loaders(at_one(1e30)),
    "loaders: labels above the classes": lambda: loaders(y=LABELS + 7),
    "loaders: float labels": lambda: loaders(y=LABELS.float() + 0.5),
    "loaders: no images": lambda: loaders(FLOATS[:0], LABELS[:0]),
    "loaders: one class": lambda: loaders(y=LABELS * 0),
    "loaders: integers": lambda: loaders((FLOATS * 255).to(torch.uint8)),
    "loaders: it breaks": lambda: amc.Dataset.from_loaders(
        DataLoader(Raises(), 16), DataLoader(Raises(), 16)
    ),
    "loaders: lists": lambda: amc.Dataset.from_loaders([1, 2], [3]),  # type: ignore[arg-type]
    "no dataset": lambda: 7,
}


class Small(nn.Module):
    """A network of one's own; subclasses are wrong in one thing each."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, classes)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        x = self.middle(torch.relu(self.norm(self.a(x))))
        return self.head(torch.relu(self.b(x)).mean((2, 3)))


def network(change: Callable[[Small], object]) -> nn.Module:
    model = Small()
    with torch.no_grad():
        change(model)
    return model.eval()


def with_middle(middle: Callable[[Any, Tensor], Any]) -> nn.Module:
    return type("Changed", (Small,), {"middle": middle})().eval()


def with_end(end: Callable[[Tensor], Any]) -> nn.Module:
    def forward(self: Small, x: Tensor) -> Any:
        return end(Small.forward(self, x))

    return type("Changed", (Small,), {"forward": forward})().eval()


def poisoned(x: Tensor) -> Tensor:
    """NaN where the network has lost a channel."""
    return x if x.shape[1] == 16 else x * float("nan")


def raising(x: Tensor) -> Tensor:
    if x.shape[1] != 16:
        raise ArithmeticError("only 16 channels\nare understood")
    return x


def fails(*_: Any) -> Any:
    raise ArithmeticError("never\nworks")


NETWORKS: Mapping[str, Callable[[], Any]] = {
    "NaN in a weight": lambda: network(lambda m: m.b.weight.view(-1)[3].fill_(float("nan"))),
    "infinite weights": lambda: network(lambda m: m.b.weight.fill_(float("inf"))),
    "huge weights": lambda: network(lambda m: m.b.weight.fill_(1e38)),
    "zero weights": lambda: network(lambda m: m.b.weight.zero_()),
    "a variance of NaN": lambda: network(lambda m: m.norm.running_var.fill_(float("nan"))),
    "a negative variance": lambda: network(lambda m: m.norm.running_var.fill_(-1.0)),
    "a variance of 0": lambda: network(lambda m: m.norm.running_var.zero_()),
    "untrained": Small,
    "NaN at other widths": lambda: with_middle(lambda self, x: poisoned(x)),
    "raises at other widths": lambda: with_middle(lambda self, x: raising(x)),
    "raises always": lambda: with_middle(fails),
    "too few classes": lambda: Small(4),
    "too many classes": lambda: Small(40),
    "one class": lambda: Small(1),
    "it gives a tuple": lambda: with_end(lambda y: (y, y)),
    "it gives a mapping": lambda: with_end(lambda y: {"logits": y}),
    "it gives nothing": lambda: with_end(lambda y: None),
    "it gives a number": lambda: with_end(lambda y: y.sum()),
    "it gives NaN": lambda: with_end(lambda y: y * float("nan")),
    "it gives integers": lambda: with_end(lambda y: y.long()),
    "it gives chance": lambda: with_end(lambda y: y + torch.rand_like(y)),
    "it gives maps": lambda: with_end(lambda y: y[:, :, None, None]),
    "float64": lambda: Small().double().eval(),
    "half": lambda: Small().half().eval(),
    "no parameters": nn.Flatten,
    "nothing to cut": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    "on no device": lambda: Small().to("meta"),
    "no network": lambda: "resnet",
    "a class": lambda: Small,
    "a function": lambda: torch.relu,
}

PLUGINS = '''"""Plug-ins that are wrong in one thing each."""
import numpy as np
import torch

from amc.agents.proposing import ProposingAgent
from amc.agents.random import RandomAgent
from amc.criteria.magnitude import l1
from amc.spaces.channel import ChannelSpace

calls = 0

def reward(value):
    def give(score, *more, **options):
        return value(score) if callable(value) else value
    return give

def sometimes(score, *more):
    global calls
    calls += 1
    return float("nan") if calls % 2 else score.accuracy

def fails(*arguments, **options):
    raise ZeroDivisionError("by\\nzero")

nan, inf, minus_inf = reward(float("nan")), reward(float("inf")), reward(float("-inf"))
none, text, boolean = reward(None), reward("0.5"), reward(True)
lists, complexes, huge = reward([0.5]), reward(1j), reward(10**400)
numpy_scalar = reward(lambda score: np.float32(score.accuracy))
numpy_array = reward(lambda score: np.array([score.accuracy]))
tensor = reward(lambda score: torch.tensor(score.accuracy))
tensors = reward(lambda score: torch.tensor([score.accuracy, 1.0]))
gradient = reward(lambda score: torch.tensor(score.accuracy, requires_grad=True) * 1)
number = 3

def too_few(): return 0.5

def criterion(change):
    def give(*arguments, **options):
        return change(l1(*arguments, **options))
    return give

shorter = criterion(lambda scores: scores[:-1])
longer = criterion(lambda scores: np.append(np.asarray(scores), 1.0))
nan_scores = criterion(lambda scores: np.asarray(scores) * float("nan"))
no_scores = criterion(lambda scores: None)
text_scores = criterion(lambda scores: ["a"] * len(scores))
square = criterion(lambda scores: np.ones((len(scores), 2)))
as_list = criterion(lambda scores: [float(one) for one in scores])
as_tensor = criterion(lambda scores: torch.as_tensor(np.asarray(scores)))

class FailingApply(ChannelSpace):
    def apply(self, strategy): raise ZeroDivisionError("no\\nsurgery")

class FailingCost(ChannelSpace):
    def resize(self, strategy): raise ZeroDivisionError("no\\npaper")

class NoDecisions(ChannelSpace):
    def find_decisions(self): return ()

class ApplyNothing(ChannelSpace):
    def apply(self, strategy): return None

class FailingDecisions(ChannelSpace):
    def find_decisions(self): raise KeyError("x")

class NoSpace: pass

class Proposes(ProposingAgent):
    value = [0.5]
    def propose(self): return [self.value]

class TooShort(Proposes):
    value = np.array([0.5])

class Nan(ProposingAgent):
    def propose(self): return [np.full(self.steps, np.nan)]

class Large(ProposingAgent):
    def propose(self): return [np.full(self.steps, 1e30)]

class Texts(ProposingAgent):
    def propose(self): return ["half"]

class Nothing(ProposingAgent):
    def propose(self): return None

class None_(ProposingAgent):
    def propose(self): return []

class FailingAgent(ProposingAgent):
    def propose(self): raise ZeroDivisionError("no\\nidea")

class FailingState(RandomAgent):
    def state(self): raise ZeroDivisionError("no\\nstate")

class StrangeState(RandomAgent):
    def state(self): return {"counters": [0], "mine": object()}

class NoAgent: pass
'''
REWARDS = (
    *("nan", "inf", "minus_inf", "none", "text", "boolean", "lists", "complexes", "huge"),
    *("numpy_scalar", "numpy_array", "tensor", "tensors", "gradient", "number", "too_few"),
    *("sometimes", "fails", "nothing_of_that_name"),
)
CRITERIA = (
    *("shorter", "longer", "nan_scores", "no_scores", "text_scores", "square", "as_list"),
    *("as_tensor", "fails", "number"),
)
SPACES = (
    *("FailingApply", "FailingCost", "NoDecisions", "ApplyNothing", "FailingDecisions"),
    *("NoSpace", "number", "fails"),
)
AGENTS = (
    *("Proposes", "TooShort", "Nan", "Large", "Texts", "Nothing", "None_", "FailingAgent"),
    *("FailingState", "StrangeState", "NoAgent", "number", "fails"),
)


def plant(folder: Path) -> None:
    (folder / "bad.py").write_text(PLUGINS)


def search(kind: str, name: str, folder: str) -> Any:
    """A search with one of the data sets or networks above."""
    config = ground.config(Path(folder))
    made: dict[str, Any] = {}
    if kind == "data":
        made["dataset"] = DATA[name]()
    else:
        made["model"] = NETWORKS[name]()
        config |= {"model": None, "train": None}
        if name != "untrained" and "allow_untrained" in Config.model_fields:
            config["allow_untrained"] = True  # what else is wrong with them matters here
    return amc.search(config, out=Path(folder) / "out", name="given", **made)
