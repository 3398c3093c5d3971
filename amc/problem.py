"""What a search works on: a network, its space, data, budget and evaluator, from a config."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from amc.base import base_network, built, kinds_of, named, placed
from amc.compute import AUTO, HOST, Compute, Frugal
from amc.cost.budget import Budget
from amc.data.datasets import Dataset, load_dataset
from amc.data.places import data_folder, find_file
from amc.data.splits import Splits, split
from amc.device.profile import DeviceProfile, load_device
from amc.device.reach import step_of, untimed
from amc.device.runtimes import Runtime, make_runtime, processor, timed_in_turn
from amc.errors import UserError, shown
from amc.evaluate.evaluator import Evaluator
from amc.evaluate.guessing import Guessing
from amc.evaluate.measure import ImageSet, logits
from amc.evaluate.memory import memorised
from amc.evaluate.prepare import SEEN, check_alike, prepared, trust
from amc.network.copying import copied
from amc.network.layers import example_input
from amc.network.trace import Network
from amc.progress import Report, silent
from amc.registry import lookup
from amc.sections import Config
from amc.spaces.base import CompressionSpace, Strategy
from amc.spaces.bounding import Bounds
from amc.training.trainer import train

UNSEEN = 2000  # test images, at most, that are compared with the held-out ones
PIXEL_BYTES = 2**28  # of all test images, at once
SAMPLE = 100  # images by which data is told from other data
_SHAPES: dict[str, tuple[int, ...]] = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that a search works on. What the user gave is not modified."""

    config: Config
    dataset: Dataset
    splits: Splits
    network: Network
    space: CompressionSpace
    budget: Budget
    device: DeviceProfile | None = None
    compute: Compute = HOST  # where the network is

    @classmethod
    def build(
        cls,
        config: Config,
        model: nn.Module | None = None,
        dataset: Dataset | None = None,
        report: Report = silent,
        base: Path | None = None,
        device: DeviceProfile | None = None,
    ) -> Problem:
        """Load, train or take the network; trace, probe and verify it; refuse what cannot work.

        Args:
            config: of the run.
            model: the user's own network instead of ``config.model``.
            dataset: the user's own data instead of ``config.dataset``.
            report: of progress.
            base: a file with the base network's weights, instead of where the config says.
            device: a profile, instead of the one that the config names.

        Raises:
            UserError: something does not exist, does not fit, or leaves nothing to decide.
        """
        if dataset is not None and not isinstance(dataset, Dataset):
            raise UserError(f"dataset is {shown(dataset)}: an amc.Dataset is expected")
        compute = Compute.of(config.compute)  # refused before any data is read
        folder = data_folder(config.data_dir)
        if device is None and config.device is not None:
            device = load_device(config.device)
        if dataset is None:
            dataset = load_dataset(named(config.dataset, "dataset"), folder, config.image_size)
        heldout = find_file(config.heldout, folder) if config.heldout else None
        evaluate = config.evaluate
        splits = split(dataset, evaluate.images, evaluate.calibration_images, config.seed, heldout)
        network, untrained = base_network(config, dataset, model, base)
        fresh = ImageSet.of(dataset, dataset.train, splits.others(SEEN)).normalised
        check_alike(network, fresh, None if base is not None else model)
        compute, fresh = placed(network, fresh, compute, config.compute != AUTO)
        calibration = ImageSet.of(dataset, dataset.train, splits.calibration, compute).normalised
        bind = partial(_bound, config, network, calibration, fresh, device, report)
        space, budget = bind()
        if untrained:
            assert config.train is not None
            train(network.model, dataset, splits.train, config.train, config.seed, report, compute)
            space, budget = bind()  # what there is to decide may depend on the weights
        trust(network, fresh)
        for warning in filter(None, (network.trusted.note, network.table.rest.doubt)):
            logging.getLogger("amc").warning("warning: %s", warning)
        return cls(config, dataset, splits, network, space, budget, device, compute)

    def evaluator(self, precision: str | None = None, batch_size: int | None = None) -> Evaluator:
        """Measures strategies on the held-out images; of a run that goes on, as it began."""
        train, how = self.dataset.train, self.config.evaluate
        images = ImageSet.of(self.dataset, train, self.splits.heldout, self.compute)
        reward = lookup("reward", self.config.reward)
        return Evaluator(
            self.space,
            images,
            self.budget,
            reward,
            precision or how.precision,
            how.racing,
            batch_size or how.batch_size,
        )

    def memorised(self, evaluator: Evaluator) -> str | None:
        """A warning where the base network looks trained on the held-out images
        (`amc.evaluate.memory`).
        """
        train, test = self.dataset.train, self.dataset.test
        seen = ImageSet.of(self.dataset, train, self.splits.calibration, self.compute)

        def unseen() -> Tensor:
            order = np.random.default_rng(0).permutation(len(test.labels))
            few = ImageSet.of(self.dataset, test, np.sort(order[:UNSEEN]), self.compute)
            return evaluator.losses(few)

        return memorised(evaluator.losses(seen), evaluator.losses(), unseen)

    def applied(self, strategy: Strategy, source: Path) -> nn.Module:
        """The smaller network of a strategy that a file names, on the host.

        Raises:
            UserError: it is not one of this space; ``source`` is named.
        """
        try:
            self.space.complete(strategy)
        except ValueError as error:
            raise UserError(f"{str(source)!r} is damaged: its strategy: {error}") from error
        return self.space.apply(strategy).cpu()

    def accuracy(self, model: nn.Module, test: bool = False) -> float:
        """Of a network made from this one, on the held-out or on all test images, in fp32."""
        source = self.dataset.test if test else self.dataset.train
        indices = np.arange(len(source.labels)) if test else self.splits.heldout
        batches = Frugal(self.network.table.activations.batch_size())
        fast = prepared(model, self.network)
        correct = 0.0
        at_once = min(5000, PIXEL_BYTES // math.prod(self.dataset.input_shape))
        at_once = max(batches.size, at_once)  # a folder of images need not fit into memory
        for start in range(0, len(indices), at_once):
            part = indices[start : start + at_once]
            images = ImageSet.of(self.dataset, source, part, self.compute)
            outputs = batches(self.compute, partial(logits, fast, images))
            correct += float((outputs.argmax(1).cpu() == images.labels).sum())
        return correct / len(indices)

    def data_sha256(self) -> str:
        """Of the labels, and the pixels of a few images spread over the training images: the same
        whatever the seed, and whatever images are held out.
        """
        train = self.dataset.train
        few = np.unique(np.linspace(0, len(train.labels) - 1, SAMPLE).astype(np.int64))
        found = hashlib.sha256(train.fetch(few).numpy().tobytes())
        for labels in (train.labels, self.dataset.test.labels):
            found.update(np.asarray(labels, np.int64).tobytes())
        return found.hexdigest()

    def doubts(self) -> list[str]:
        """Why the device profile may mislead this search, a sentence each."""
        if self.device is None:
            return []
        runtime = self._runtime()
        installed = None if runtime is None else (runtime.name, runtime.version)
        step = step_of(self.space)
        doubts = self.device.doubts(self.network.name, step, installed, processor())
        return [*doubts, *untimed(self.network.table)]

    def _runtime(self) -> Runtime | None:
        """The device's runtime, as it is installed here."""
        assert self.device is not None
        try:
            return make_runtime(self.device.runtime, self.device.threads)
        except UserError:
            return None

    def measured_latency(self, compressed: nn.Module) -> dict[str, Any] | None:
        """Milliseconds of the untouched and the compressed network on this machine, measured in
        turn, with the device's runtime (where it is not installed, or there is no device: ONNX
        Runtime, 1 thread, batch 1). None, and a warning, where the runtime cannot run them.
        """
        runtime = None if self.device is None else self._runtime()
        batch = 1 if self.device is None else self.device.batch
        runtime = runtime or make_runtime()
        untouched = copied(self.network.model).cpu()
        example = example_input(untouched, self.network.input_shape, batch)
        models = {"baseline": untouched, "compressed": copied(compressed).cpu()}
        try:
            times = timed_in_turn(runtime, models, example)
        except UserError as error:
            logging.getLogger("amc").warning("the latency was not measured: %s", error)
            return None
        return {
            "baseline": times["baseline"]["ms"],
            "compressed": times["compressed"]["ms"],
            "ratio": times["compressed"]["ratio"],
            "runtime": f"{runtime.name} {runtime.version}",
            "threads": runtime.threads,
            "batch": batch,
        }


def check_trained(config: Config, accuracy: float, labels: Tensor) -> None:
    """Refuse a base network that is no better than guessing, unless ``allow_untrained`` is set.

    Args:
        config: of the run.
        accuracy: of the base network on the held-out images.
        labels: of these images, (n,).

    Raises:
        UserError: with both accuracies.
    """
    guessing = Guessing.of(labels)
    if config.allow_untrained or accuracy > guessing.reach:
        return
    raise UserError(
        f"the base network scores {accuracy:.2%} on the {guessing.images} held-out images, no "
        f"better than always guessing their most frequent class ({guessing.accuracy:.2%}): it "
        "looks untrained, or its weights, labels or normalisation do not belong together; name "
        "trained weights, or set allow_untrained=true to search it all the same"
    )


def untrained_space(
    config: Config, input_shape: tuple[int, ...] | None = None, report: Report = silent
) -> CompressionSpace:
    """A config's action space on its network with random weights, and random images: enough for
    what depends on neither, as costs and times do.

    Raises:
        UserError: the network or the space does not exist, or leaves nothing to decide.
    """
    classes, shape = _geometry(config)
    shape = input_shape or shape
    model, kinds = built(config, classes, shape[0]), kinds_of(config.kinds)
    network = Network.of(model, shape, str(config.model), kinds)
    return _space(config, network, example_input(network.model, shape, batch=8), report)


def _geometry(config: Config) -> tuple[int, tuple[int, ...]]:
    """The number of classes and the shape of an image; guessed from the model without a dataset."""
    family = str(config.model).split(":", maxsplit=1)[0]
    name = config.dataset or {"cifar": "cifar10", "digits": "digits"}.get(family)
    if name is None:
        return 1000, (3, 224, 224)
    if name in _SHAPES:
        return 10, _SHAPES[name]
    dataset = load_dataset(name, data_folder(config.data_dir), config.image_size)
    return dataset.classes, dataset.input_shape


def _bound(
    config: Config,
    network: Network,
    calibration: Tensor,
    fresh: Tensor,
    device: DeviceProfile | None,
    report: Report,
) -> tuple[CompressionSpace, Budget]:
    """The space and the budget, which can be reached."""
    space = _space(config, network, calibration, report)
    space.fresh = fresh
    if device is not None:
        space.latency = device.latency_model(network.name)
    budget = config.budget.of(space.cost({}))
    Bounds.of(space, budget)  # refuses a budget that cannot be reached
    return space, budget


def _space(
    config: Config, network: Network, calibration: Tensor, report: Report
) -> CompressionSpace:
    space_class = lookup("space", config.space["name"])
    options = {key: value for key, value in config.space.items() if key != "name"}
    space: CompressionSpace = space_class(network, options, calibration)
    space.report = report
    if not space.decisions:
        reasons = "; ".join(f"{layer}: {why}" for layer, why in list(space.left_alone.items())[:3])
        keep = ", ".join(options.get("keep") or ())
        raise UserError(
            f"there is nothing to decide in {network.name!r} with the space "
            f"{config.space['name']!r}{keep and f' and space.keep [{keep}], name fewer layers'} "
            f"({reasons})"
        )
    return space
