"""Networks of five shapes at half their MACs: does the smaller one do what it claims, and can it
leave the house?

    python experiments/kinds/half.py                # all, into half.csv
    python experiments/kinds/half.py swin_t c2f

Random, uneven weights, BatchNorms with the statistics of what they are given; the uniform strategy
that fills the budget, without repair. `cut_diff` is the largest difference between the smaller
network and the whole one in which nobody reads the cut channels, in float64 and as a part of what
varies between four images; `onnx_diff` that between ONNX Runtime and PyTorch, in float32 and as a
part of the largest output.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.cost.budget import Budget
from amc.network.copying import copied
from amc.network.layers import example_input
from amc.network.revealing import revealed
from amc.network.torchvision_compat import torchvision
from amc.network.trace import Network
from amc.spaces.bounding import Bounds
from amc.spaces.channel import ChannelSpace
from amc.surgery.cut import cut, masking
from amc.surgery.verify import apart, differ_by_variation

HERE = Path(__file__).parent


class Unit(nn.Sequential):
    """Convolution, BatchNorm, SiLU."""

    def __init__(self, given: int, width: int, size: int = 3, stride: int = 1) -> None:
        conv = nn.Conv2d(given, width, size, stride, size // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(width), nn.SiLU())


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Unit(width, width), Unit(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Half of the channels pass by a row of bottlenecks, and all that there was is joined."""

    def __init__(self, given: int, width: int, count: int) -> None:
        super().__init__()
        self.c = width // 2
        self.cv1, self.cv2 = Unit(given, width, 1), Unit((2 + count) * self.c, width, 1)
        self.m = nn.ModuleList(Bottleneck(self.c) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).split((self.c, self.c), 1))
        for bottleneck in self.m:
            parts.append(bottleneck(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


def c2f() -> nn.Module:
    """A backbone like those of recent detectors, and a classifier behind it."""
    return nn.Sequential(
        *(Unit(3, 16, 3, 2), Unit(16, 32, 3, 2), C2f(32, 32, 1)),
        *(Unit(32, 64, 3, 2), C2f(64, 64, 2), Unit(64, 128, 3, 2), C2f(128, 128, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    )


class UNet(nn.Module):
    """Three levels down and up, by transposed convolutions; what went down is joined on the way."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(
            nn.Sequential(Unit(given, wide), Unit(wide, wide))
            for given, wide in zip([3, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(wide, wide // 2, 2, 2) for wide in reversed(widths[1:])
        )
        self.join = nn.ModuleList(
            nn.Sequential(Unit(wide, wide // 2), Unit(wide // 2, wide // 2))
            for wide in reversed(widths[1:])
        )
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if seen else x)
            seen.append(x)
        for up, join, before in zip(self.up, self.join, reversed(seen[:-1]), strict=True):
            x = join(torch.cat([before, up(x)], 1))
        return self.head(x)


def vit() -> nn.Module:
    """torchvision's, of the size of ViT-Ti, for smaller images."""
    make = torchvision.models.vision_transformer.VisionTransformer
    return make(64, 8, 6, 3, 192, 768, num_classes=10)


def _tv(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=10)


SHAPES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (vit, 64),
    "swin_t": (_tv("swin_t"), 224),
    "convnext_tiny": (_tv("convnext_tiny"), 224),
    "c2f": (c2f, 128),
    "unet": (UNet, 128),
}
COLUMNS = (
    *("network", "input_size", "decisions", "macs_decided", "macs_ratio", "params_ratio"),
    *("cut_diff", "onnx_diff", "bind_s"),
)


def uneven(model: nn.Module) -> nn.Module:
    """No channel is like another."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.numel() == max(parameter.shape, default=1):
                drawn = torch.rand(parameter.shape, generator=generator)
                parameter.data.copy_(parameter.data + drawn - 0.5)
    return model.eval()


def row_of(name: str) -> dict[str, object]:
    build, size = SHAPES[name]
    torch.manual_seed(0)
    raw = Network.of(uneven(build()), (3, size, size), name)
    network = Network.of(revealed(raw).model, (3, size, size), name)
    begin = time.process_time()
    space = ChannelSpace(network, {"repair": "none"})
    decisions, seconds = len(space.decisions), time.process_time() - begin
    table, least = network.table, space.resize(space.smallest)
    rows = [(a.macs, b.macs) for a, b in zip(table, least, strict=True)]
    rows.append((table.rest.macs, least.rest.macs))
    strategy = Bounds.of(space, Budget.of("macs", space.cost({}), 0.5)).uniform()
    cuts, ratios = space.cuts(strategy), space.cost(strategy).ratios(space.cost({}))
    smaller = cut(network.model, cuts).eval()
    image = example_input(network.model, (3, size, size), batch=4)
    whole = copied(network.model).double()
    exact = cut(whole, cuts)
    with masking(whole, cuts):
        cut_diff = differ_by_variation(exact, whole, image.double())
    return {
        "network": name,
        "input_size": size,
        "decisions": decisions,
        "macs_decided": f"{sum(a for a, b in rows if b < a) / table.macs:.4f}",
        "macs_ratio": f"{ratios['macs']:.4f}",
        "params_ratio": f"{ratios['params']:.4f}",
        "cut_diff": f"{cut_diff:.1e}",
        "onnx_diff": f"{onnx_diff(smaller, image):.1e}",
        "bind_s": f"{seconds:.1f}",
    }


def onnx_diff(model: nn.Module, images: Tensor) -> float:
    file = io.BytesIO()
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        return apart(torch.from_numpy(output), model(images))


def main() -> None:
    torch.set_num_threads(1)
    path, names = HERE / "half.csv", sys.argv[1:] or list(SHAPES)
    before = list(csv.DictReader(path.open())) if path.is_file() else []
    rows = {str(row["network"]): dict(row) for row in before}
    for name in names:
        rows[name] = {key: str(value) for key, value in row_of(name).items()}
        print(rows[name], flush=True)
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows.values())


if __name__ == "__main__":
    main()
