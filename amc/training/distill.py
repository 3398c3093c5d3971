"""What is minimised in training: the labels' cross-entropy, and what a teacher adds to it.

- `Objective`     cross-entropy with the labels
- `Distillation`  and a teacher's softened outputs, features, attention maps, and flow
- `soft_targets`, `hint`, `attention`, `fsp`: the four losses
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.errors import UserError, unknown
from amc.network.layers import evaluating, example_input
from amc.randomness import own_randomness
from amc.training.settings import DistillConfig


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL from the teacher's softened outputs, times the temperature squared, which keeps gradients
    as large as those of labels (Hinton et al. 2015, section 2).

    Args:
        student: logits (n, classes).
        teacher: logits (n, classes).
        temperature: that both are divided by.
    """
    ours = F.log_softmax(student / temperature, 1)
    theirs = F.log_softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared difference of features of one shape (n, C, H, W), the mean over entries
    (FitNets, Romero et al. 2015, equation 3, has the sum).
    """
    return 0.5 * F.mse_loss(student, teacher)


def attention_map(features: Tensor) -> Tensor:
    """Squared activations summed over channels, flattened, of length 1: (n, C, H, W) -> (n, HW)
    (Zagoruyko & Komodakis 2017, equation 1, p = 2).
    """
    return F.normalize(features.pow(2).sum(1).flatten(1), dim=1)


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the squared distance of attention maps, the mean over images (Zagoruyko & Komodakis
    2017, equation 2, with the square, whose gradient vanishes where the two agree).
    """
    difference = attention_map(student) - attention_map(teacher)
    return 0.5 * difference.pow(2).sum(1).mean()


def flow(first: Tensor, last: Tensor) -> Tensor:
    """The flow of solution procedure: products of every channel of one layer with every channel of
    a later one, the mean over positions; (n, C1, H1, W1), (n, C2, H2, W2) -> (n, C1, C2) (Yim et
    al. 2017, equation 1). The larger map is max-pooled to the size of the smaller.
    """
    size = min(first.shape[2], last.shape[2]), min(first.shape[3], last.shape[3])
    first, last = (F.adaptive_max_pool2d(features, size).flatten(2) for features in (first, last))
    return first @ last.transpose(1, 2) / first.shape[2]


def fsp(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Squared difference of two flows, the mean over entries and images (Yim et al. 2017, equation
    2, has the sum over entries).
    """
    return F.mse_loss(flow(*student), flow(*teacher))


def last_of_each_resolution(model: nn.Module, input_shape: Sequence[int]) -> tuple[str, ...]:
    """The modules behind which the resolution falls, and the last one with more than one position:
    of a residual network, its stages.
    """
    found: dict[tuple[int, ...], str] = {}
    with _outputs(model, [name for name, _ in model.named_modules() if name]) as outputs:
        with evaluating(model):
            model(example_input(model, tuple(input_shape)))
        for name, output in outputs.items():
            if output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
                found[tuple(output.shape[2:])] = name
    return tuple(found.values())


class Objective(nn.Module):
    """Cross-entropy with the labels. Holds the network, so that it can be wrapped as a whole."""

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the outputs (n, classes)."""
        outputs = self.model(images).float()
        return self.of_labels(outputs, labels), outputs

    def of_labels(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, label_smoothing=self.label_smoothing)


class Distillation(Objective):
    """The labels and a teacher. The teacher is no part of the state and is not modified."""

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        input_shape: Sequence[int],
        config: DistillConfig,
        label_smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Attach to layers, and add a 1 x 1 convolution for each hint whose widths differ.

        Args:
            model: that learns.
            teacher: that it learns from, in eval mode; its features are asked for by the same
                names of layers.
            input_shape: of an image.
            config: the weights of the losses.
            label_smoothing: of the labels.
            seed: of the first weights of these convolutions.

        Raises:
            UserError: a layer does not exist, its output is no map, or FSP has to compare flows
                between other numbers of channels.
        """
        super().__init__(model, label_smoothing)
        self.config = config
        self._teacher = (teacher,)  # in a tuple: not a submodule
        self.layers: tuple[str, ...] = ()
        self.regressors = nn.ModuleDict()
        if config.hint or config.attention or config.fsp:
            self.layers = config.layers or last_of_each_resolution(teacher, input_shape)
            with own_randomness(seed):
                self._attach(input_shape)

    def _attach(self, input_shape: Sequence[int]) -> None:
        teacher = self._teacher[0]
        for layer in self.layers:
            for network in (teacher, self.model):
                names = dict(network.named_modules())
                if layer not in names or not layer:
                    raise unknown(
                        "layer in distill.layers", layer, [name for name in names if name]
                    )
        with evaluating(teacher), evaluating(self.model):
            with _outputs(teacher, self.layers) as theirs:
                teacher(example_input(teacher, tuple(input_shape)))
            with _outputs(self.model, self.layers) as ours:
                self.model(example_input(self.model, tuple(input_shape)))
        for layer in self.layers:
            if ours[layer].dim() != 4 or ours[layer].shape[2:] != theirs[layer].shape[2:]:
                raise UserError(
                    f"distill.layers: {layer!r} gives {tuple(ours[layer].shape)}, in the teacher "
                    f"{tuple(theirs[layer].shape)}: maps of one height and width are expected"
                )
            widths = ours[layer].shape[1], theirs[layer].shape[1]
            if widths[0] != widths[1] and self.config.fsp:
                raise UserError(
                    f"distill.fsp needs as many channels as the teacher has, but {layer!r} has "
                    f"{widths[0]} of {widths[1]}: name other distill.layers"
                )
            if widths[0] != widths[1] and self.config.hint:
                self.regressors[layer.replace(".", "/")] = nn.Conv2d(*widths, 1)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the outputs (n, classes)."""
        teacher, config = self._teacher[0], self.config
        own = next(teacher.parameters()).dtype  # its precision is its own
        with (
            torch.no_grad(),
            torch.autocast(images.device.type, enabled=False),
            _outputs(teacher, self.layers) as theirs,
        ):
            targets = teacher(images.to(own)).float()
        with _outputs(self.model, self.layers) as ours:
            outputs = self.model(images).float()
        loss = (1 - config.soft) * self.of_labels(outputs, labels)
        if config.soft:
            loss = loss + config.soft * soft_targets(outputs, targets, config.temperature)
        for layer in self.layers:
            student, wanted = ours[layer], theirs[layer].float()
            if config.hint:
                key = layer.replace(".", "/")
                guess = self.regressors[key](student) if key in self.regressors else student
                loss = loss + config.hint * hint(guess.float(), wanted)
            if config.attention:
                loss = loss + config.attention * attention(student.float(), wanted)
        if config.fsp:
            for first, last in pairwise(self.layers):
                student_pair = ours[first].float(), ours[last].float()
                teacher_pair = theirs[first].float(), theirs[last].float()
                loss = loss + config.fsp * fsp(student_pair, teacher_pair)
        return loss, outputs


@contextmanager
def _outputs(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what the named modules give, in the order in which they end."""
    found: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def keep(name: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                found.pop(name, None)
                found[name] = output

        return modules[name].register_forward_hook(hook)

    handles = [keep(name) for name in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
