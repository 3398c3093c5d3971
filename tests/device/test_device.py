"""Device profiles: files, interpolation, adaptive grids, measuring, and how much to trust them.

Most of it runs on a pretended device (`zoo.Pretended`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn
from zoo import OVERHEAD_MS, Pretended, zoo_network

from amc.cost.cost import cost_of
from amc.device.grid import plan
from amc.device.layer_times import Family, LayerTimes, Point
from amc.device.profile import (
    DeviceProfile,
    Fidelity,
    LatencyModel,
    NetworkFit,
    devices,
    load_device,
)
from amc.device.reach import Widths, random_strategies, step_of, widths_of
from amc.device.survey import fit_network, measure_profile
from amc.errors import UserError
from amc.network.layers import LayerSpec
from amc.network.trace import trace
from amc.spaces.channel import ChannelSpace
from amc.testing import sample_networks


def space_of(name: str = "resnet20", **options: object) -> ChannelSpace:
    return ChannelSpace(zoo_network(name), {"repair": "none", "round_to": 4, **options})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[ChannelSpace, Path]:
    path = tmp_path_factory.mktemp("device") / "mine.yaml"
    space = space_of()
    measure_profile(space, Pretended(), path)
    return space, path


@pytest.mark.parametrize("index", [0, 1, 2])
def test_predictions_are_exact_where_there_is_no_noise(index: int, tmp_path: Path) -> None:
    """Residual, grouped and depthwise convolutions, and linear layers."""
    network = sample_networks()[index]
    space = ChannelSpace(network, {"repair": "none", "round_to": 4})
    fit = measure_profile(space, Pretended(), tmp_path / "mine.yaml").networks[network.name]
    assert fit.fidelity is not None and fit.fidelity.strategies >= 30
    assert fit.fidelity.median_ape < 0.02 and fit.fidelity.spearman > 0.99
    assert fit.scale == pytest.approx(1, rel=0.05)
    assert fit.overhead_ms == pytest.approx(OVERHEAD_MS, rel=0.1)


def test_latency_on_paper_is_latency_of_the_metal(measured: tuple[ChannelSpace, Path]) -> None:
    """Law 1, in milliseconds."""
    space, path = measured
    model = load_device(str(path)).latency_model("resnet20")
    for strategy in random_strategies(space, 4, seed=1):
        metal = trace(space.apply(strategy), space.network.input_shape)
        paper = cost_of(space.resize(strategy), model).latency_ms
        assert paper == cost_of(metal, model).latency_ms and paper is not None and paper > 0


def test_measuring_goes_on_where_it_stopped(
    measured: tuple[ChannelSpace, Path], tmp_path: Path
) -> None:
    space, path = measured
    whole = load_device(str(path))
    count = sum(len(times.points) for times in whole.layers)

    class Stops(Pretended):
        def prepare(self, model: nn.Module, example: Tensor) -> Callable[[], float]:
            if self.prepared > 1.5 * count:
                raise KeyboardInterrupt
            return super().prepare(model, example)

    again = tmp_path / "mine.yaml"
    with pytest.raises(KeyboardInterrupt):
        measure_profile(space, Stops(), again)
    assert 0 < sum(len(times.points) for times in load_device(str(again)).layers) < count
    rest = Pretended()
    assert measure_profile(space, rest, again).layers == whole.layers
    complete = Pretended()
    measure_profile(space, complete, again)
    assert complete.prepared < rest.prepared < 2 * count, "nothing is measured twice"


def test_a_second_network_is_added(measured: tuple[ChannelSpace, Path], tmp_path: Path) -> None:
    space, path = measured
    again = tmp_path / "mine.yaml"
    again.write_text(path.read_text())
    both = measure_profile(space_of("plain20"), Pretended(), again)
    assert set(both.networks) == {"resnet20", "plain20"}
    before, after = load_device(str(path)), load_device(str(again))
    table = space.resize(space.smallest)
    plain = NetworkFit(reference_ms=1.0)
    assert LatencyModel(after, plain).latency_ms(table) == pytest.approx(
        LatencyModel(before, plain).latency_ms(table), rel=0.02
    )


@pytest.mark.parametrize(
    ("version", "threads", "batch", "what"),
    [("2.0", 1, 1, "version"), ("1.0", 2, 1, "threads"), ("1.0", 1, 4, "batch")],
)
def test_another_runtime_is_not_mixed_in(
    measured: tuple[ChannelSpace, Path], version: str, threads: int, batch: int, what: str
) -> None:
    space, path = measured
    other = Pretended(threads)
    other.version = version
    with pytest.raises(UserError, match=f"{what}.*another name"):
        measure_profile(space, other, path, batch)


def test_conversions_between_layers_are_fitted() -> None:
    """Every input that does not fill whole blocks of 8 costs 0.2 ms a megabyte more."""
    times = [
        LayerTimes(
            family=CONV.model_copy(update={"input_size": (size, size)}),
            in_channels=(4, 32),
            out_channels=(4, 32),
            points=tuple(Point(a, b, 1e-4 * a * b, 0.0, 1) for a in (4, 32) for b in (4, 32)),
        )
        for size in (16, 32, 64)
    ]
    generator = np.random.default_rng(0)
    networks = [[(each, 32, 32) for each in times]]
    while len(networks) < 64:
        widths = 4 * generator.integers(1, 9, (3, 2))
        networks.append(
            [(each, int(a), int(b)) for each, (a, b) in zip(times, widths, strict=True)]
        )
    measured = []
    for network in networks:
        extra = sum(a * t.family.input_size[0] ** 2 * 4e-6 for t, a, _ in network if a % 8)
        measured.append(0.1 + 1.2 * sum(t.ms(a, b) for t, a, b in network) + 0.2 * extra)
    fit = fit_network(networks, measured, 4)
    assert (fit.block, fit.fitted_on) == (8, 24) and fit.fidelity is not None
    assert (fit.overhead_ms, fit.scale, fit.conversion_ms_per_mb) == pytest.approx((0.1, 1.2, 0.2))
    assert fit.fidelity.worst_ape == pytest.approx(0, abs=1e-4)
    layer = LayerSpec("a", "conv", 4, 32, (3, 3), input_size=(32, 32), output_size=(8, 8))
    model = LatencyModel(small_profile(layers=tuple(times)), fit)
    assert model.layer_ms(layer) == pytest.approx(1.2 * 0.0128 + 0.2 * 4e-6 * 4 * 32 * 32)


# grids

CONV = Family(kind="conv", kernel=(3, 3), stride=(1, 1), input_size=(8, 8), output_size=(8, 8))


def complete_grid(
    widths: Widths, ms: Callable[[int, int], float], family: Family = CONV
) -> LayerTimes:
    known: dict[tuple[int, int], Point] = {}
    while True:
        ins, outs, missing = plan(family, widths, known, 1e-9)
        if not missing:
            points = tuple(known.values())
            return LayerTimes(
                family=family, in_channels=tuple(ins), out_channels=tuple(outs), points=points
            )
        known |= {pair: Point(*pair, ms(*pair), 0.0, 1) for pair in missing}


def test_a_straight_line_needs_few_points_and_a_staircase_all_its_steps() -> None:
    widths = Widths(set(range(8, 257, 8)), set(range(8, 257, 8)))
    straight = complete_grid(widths, lambda a, b: 1e-4 * a * b)
    assert len(straight.in_channels) == len(straight.out_channels) == 3
    stairs = complete_grid(widths, lambda a, b: 1e-4 * a * math.ceil(b / 64))
    assert {64, 72, 128, 136, 192, 200} <= set(stairs.out_channels)
    assert len(stairs.points) < len(widths.ins) * len(widths.outs) / 3
    for width in widths.outs:
        assert stairs.ms(128, width) == pytest.approx(128e-4 * math.ceil(width / 64))


def test_a_staircase_that_is_right_in_its_middle_is_found() -> None:
    widths = Widths({16}, set(range(64, 129, 8)))
    stairs = complete_grid(widths, lambda a, b: 1e-3 * 16 * math.ceil(b / 16))
    for width in widths.outs:
        assert stairs.ms(16, width) == pytest.approx(1e-3 * 16 * math.ceil(width / 16), rel=0.04)


def test_a_grouped_family_has_one_axis() -> None:
    family = CONV.model_copy(update={"group": (4, 8)})
    widths = Widths(set(range(4, 65, 4)), set(range(8, 129, 8)))
    times = complete_grid(widths, lambda a, b: 1e-3 * a, family)
    assert times.out_channels == () and all(
        p.out_channels == 2 * p.in_channels for p in times.points
    )
    assert times.ms(36, 72) == pytest.approx(0.036)


def test_widths_that_come_up_only_together_are_measured() -> None:
    """With padded shortcuts the widths of a later stage are sums of several decisions."""
    space = space_of("resnet20")
    widths = widths_of(space)
    for strategy in (space.smallest, *random_strategies(space, 20, seed=5)):
        for layer in space.resize(strategy):
            if layer.kind == "conv":
                found = widths[Family.of(layer)]
                assert min(found.ins) <= layer.in_channels <= max(found.ins)
                assert min(found.outs) <= layer.out_channels <= max(found.outs)
    assert step_of(space) == 4


# files and trust


def small_profile(**changes: object) -> DeviceProfile:
    points = tuple(Point(a, b, 1e-3 * a * b, 0.0, 5) for a in (8, 16) for b in (8, 16))
    times = LayerTimes(family=CONV, in_channels=(8, 16), out_channels=(8, 16), points=points)
    fidelity = Fidelity.of([1.0, 2.0, 3.1], [1.0, 2.0, 3.0])
    values: dict[str, object] = {
        "name": "small",
        "runtime": "onnxruntime",
        "runtime_version": "1.0",
        "threads": 1,
        "batch": 1,
        "machine": {"processor": "x"},
        "date": "2026-01-01",
        "layers": (times,),
        "networks": {"net": NetworkFit(reference_ms=1.0, step=8, fidelity=fidelity)},
    }
    return DeviceProfile(**{**values, **changes})


def test_a_profile_survives_its_file_and_is_readable() -> None:
    profile = small_profile()
    text = profile.to_yaml()
    assert DeviceProfile.parse(text, "x") == profile
    assert "- [8, 16, 0.128, 0.0, 5]" in text
    assert profile.layers[0].ms(12, 12) == pytest.approx(0.144)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 1", "version: 7", "is of version 7"),
        ("threads: 1", "threads: many", "threads"),
        ("name: small", "nam: small", "nam"),
        ("- [8, 16, 0.128, 0.0, 5]", "", "no time for 8 to 16 channels"),
        ("name: small", "name: [small", "not valid YAML"),
    ],
)
def test_a_damaged_profile_is_refused_in_one_line(old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        DeviceProfile.parse(small_profile().to_yaml().replace(old, new, 1), "mine.yaml")
    assert "\n" not in str(caught.value) and "mine.yaml" in str(caught.value)


def test_what_was_not_measured_is_refused() -> None:
    model = small_profile().latency_model("net")
    layer = LayerSpec("a", "conv", 8, 16, (3, 3), input_size=(8, 8), output_size=(8, 8))
    assert model.layer_ms(layer) == pytest.approx(0.128)
    wide = LayerSpec("a", "conv", 8, 32, (3, 3), input_size=(8, 8), output_size=(8, 8))
    with pytest.raises(UserError, match=r"32 channels.*measured: 8 to 16.*amc profile"):
        model.layer_ms(wide)
    other = LayerSpec("a", "conv", 8, 16, (1, 1), input_size=(8, 8), output_size=(8, 8))
    with pytest.raises(UserError, match=r"'a'.*amc profile"):
        model.layer_ms(other)


def test_doubts() -> None:
    profile = small_profile()

    def doubts(
        network: str = "net",
        step: int = 8,
        runtime: tuple[str, str] | None = ("onnxruntime", "1.0"),
        processor: str = "x",
        of: DeviceProfile = profile,
    ) -> list[str]:
        return of.doubts(network, step, runtime, processor)

    assert doubts() == [] and doubts(step=16) == []
    assert "steps of 8" in doubts(step=4)[0]
    assert "never checked" in doubts("other")[0]
    assert "onnxruntime 2.0" in doubts(runtime=("onnxruntime", "2.0"))[0]
    assert "not installed" in doubts(runtime=None)[0]
    assert "measured on x" in doubts(processor="y")[0]
    for pairs in (([1.0, 2.0, 3.0], [1.3, 2.5, 3.7]), ([1.0, 1.01, 1.02], [1.02, 1.0, 1.01])):
        fit = NetworkFit(reference_ms=1.0, step=8, fidelity=Fidelity.of(*pairs))
        assert "not to be trusted" in doubts(of=small_profile(networks={"net": fit}))[0]


def test_fidelity() -> None:
    found = Fidelity.of([1.0, 2.2, 2.7], [1.0, 2.0, 3.0])
    assert found.median_ape == pytest.approx(0.1) and found.worst_ape == pytest.approx(0.1)
    assert found.spearman == 1 and found.strategies == 3 and found.trusted


def test_unknown_devices() -> None:
    with pytest.raises(UserError, match="unknown device 'pixel'"):
        load_device("pixel")


@pytest.mark.parametrize("name", devices())
def test_shipped_profiles_are_to_be_trusted(name: str) -> None:
    profile = load_device(name)
    assert profile.machine["processor"] and profile.networks
    for network, fit in profile.networks.items():
        assert fit.fidelity is not None and fit.fidelity.strategies >= 30 and fit.fidelity.trusted
        model = profile.latency_model(network)
        assert model.fit.scale > 0
    for times in profile.layers:
        assert np.isfinite([point.ms for point in times.points]).all()
