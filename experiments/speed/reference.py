"""An episode in the way of AMC's released code: a full-size network whose cut channels are zero,
fp32, NCHW, batches of 50; least squares from raw features with scikit-learn.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression
from torch import nn

from amc.evaluate.measure import ImageSet
from amc.network.kinds import mixes
from amc.network.kinds.base import kept
from amc.network.layers import evaluating
from amc.network.trace import Network
from amc.repair.rows import Sampler
from amc.surgery.cut import Cuts

BATCH = 50
Matrix = NDArray[np.float32]


class Reference:
    """Applies, repairs and measures cuts of one network. Features are collected once."""

    def __init__(self, network: Network, calibration: torch.Tensor, sampler: Sampler) -> None:
        self.network = network
        self.folds = dict(network.table.folds)
        self.inputs: dict[str, list[Matrix]] = {}
        self.outputs: dict[str, list[Matrix]] = {}
        first = 0

        def keep(name: str) -> object:
            def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
                rows = sampler.inputs(name, module, inputs[0].contiguous(), first)
                self.inputs.setdefault(name, []).append(rows.numpy())
                wanted = sampler.outputs(name, module, output, first)
                self.outputs.setdefault(name, []).append(wanted.numpy())

            return hook

        handles = [
            module.register_forward_hook(keep(name))
            for name, module in network.model.named_modules()
            if mixes(module)
        ]
        with evaluating(network.model):
            for first in range(0, len(calibration), BATCH):
                network.model(calibration[first : first + BATCH])
        for handle in handles:
            handle.remove()
        self.x = {name: np.concatenate(rows) for name, rows in self.inputs.items()}
        self.y = {name: np.concatenate(rows) for name, rows in self.outputs.items()}
        self.inputs.clear()
        self.outputs.clear()

    def apply(self, cuts: Cuts) -> nn.Module:
        """A full-size copy: weights for cut input channels are zero, the others are solved."""
        model = copy.deepcopy(self.network.model)
        modules = dict(model.named_modules())
        with torch.no_grad():
            for name, sides in cuts.items():
                if sides.get("in") and mixes(modules[name]):
                    self._solve(name, modules, sides)
        return model

    def _solve(
        self, name: str, modules: dict[str, nn.Module], sides: Mapping[str, list[int]]
    ) -> None:
        module = modules[name]
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        stay = kept(module.weight.shape[1], sides["in"]).numpy()
        x = self.x[name].reshape(len(self.x[name]), -1, module.weight.shape[1])[:, :, stay]
        found = LinearRegression().fit(x.reshape(len(x), -1), self.y[name])
        new = torch.zeros_like(module.weight)
        solved = torch.from_numpy(np.asarray(found.coef_, dtype=np.float32))
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            solved = solved.view(len(solved), height, width, len(stay)).permute(0, 3, 1, 2)
        new[:, stay] = solved
        module.weight.copy_(new)
        shift = torch.from_numpy(np.asarray(found.intercept_, dtype=np.float32))
        if module.bias is not None:
            module.bias.copy_(shift)
            return
        norm = modules.get(self.folds.get(name, ""))
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean -= shift

    def accuracy(self, model: nn.Module, images: ImageSet) -> float:
        correct = 0
        with evaluating(model):
            for start in range(0, len(images.labels), BATCH):
                batch = images[slice(start, start + BATCH)]
                correct += int((model(batch.normalised).argmax(1) == batch.labels).sum())
        return correct / len(images.labels)
