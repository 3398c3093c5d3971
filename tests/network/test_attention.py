"""Attention that can lose heads computes what the user's does, and what it computes without heads
is what the whole one does when nothing listens to them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import amc
from amc.compute import Compute
from amc.data.datasets import Dataset
from amc.deliver.formats import as_onnx
from amc.errors import UserError
from amc.network.attention import MultiheadAttention
from amc.network.handwritten import SelfAttention
from amc.network.kinds import kind_of
from amc.network.layers import evaluating
from amc.network.rewriting import restored, rewrite, rewrite_alike
from amc.network.torchvision_compat import torchvision
from amc.network.trace import Network
from amc.network.windows import PartitionAttention, WindowAttention, WindowAttentionV2
from amc.search import open_problem

tv = torchvision.models
swin = tv.swin_transformer
SHAPE = (3, 32, 32)


def vit(classes: int = 5) -> nn.Module:
    return tv.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=classes,
        attention_dropout=0.1,
    )


def swin_of(second: bool, stages: int = 2) -> nn.Module:
    """The sides of its maps, 8 and 4, are no multiples of its windows', 3 x 4."""
    extra: dict[str, Any] = {}
    if second:
        extra = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    return tv.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=16,
        depths=[2, 2][:stages],
        num_heads=[2, 4][:stages],
        window_size=[3, 4],
        num_classes=5,
        stochastic_depth_prob=0.0,
        **extra,
    )


def maxvit() -> nn.Module:
    return tv.MaxVit(
        input_size=(32, 32),
        stem_channels=16,
        partition_size=4,
        block_channels=[16],
        block_layers=[2],
        head_dim=4,
        stochastic_depth_prob=0.0,
        num_classes=5,
    )


class Tokens(nn.Module):
    """A network of one block around an attention module."""

    def __init__(self, attention: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.attn, self.call = attention, call
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.call(self.attn, x)
        return self.head(x.mean(1))


class Fused(nn.Module):
    """As DeiT and early timm have it: the width of a head follows from the input's."""

    def __init__(self, dim: int = 24, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = 0.3
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.num_heads, width // self.num_heads)
        return qkv.permute(2, 0, 3, 1, 4).unbind()

    def mix(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n, length, width = x.shape
        q, k, v = self.split(x)
        weights = self.attn_drop((q @ k.transpose(-2, -1) * self.scale).softmax(-1))
        x = (weights @ v).transpose(1, 2).reshape(n, length, width)
        return self.proj_drop(self.proj(x)), weights

    def forward(self, x: Tensor) -> Any:
        return self.mix(x)[0]


class GivesWeights(Fused):
    def forward(self, x: Tensor) -> Any:
        return self.mix(x)


class Separate(nn.Module):
    def __init__(self, dim: int = 24, heads: int = 4, drops_output: bool = False) -> None:
        super().__init__()
        self.n_heads, self.drops_output = heads, drops_output
        self.key = nn.Linear(dim, dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = (
            layer(x).view(n, length, self.n_heads, width // self.n_heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-2, -1) / (width // self.n_heads) ** 0.5
        if self.drops_output:
            x = scores.softmax(-1) @ v
            return self.dropout(self.out(x.transpose(1, 2).reshape(n, length, width)))
        x = self.dropout(scores.softmax(-1)) @ v
        return self.out(x.transpose(1, 2).reshape(n, length, width))


class InWindows(Fused):
    """As the authors of Swin have it: a bias of positions, and a mask of each window."""

    def __init__(self) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.randn(9, 4))
        self.register_buffer("relative_position_index", torch.arange(16).view(4, 4) % 9)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.split(x)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        products = q @ k.transpose(-2, -1) * self.scale
        products = products + bias.view(length, length, -1).permute(2, 0, 1)
        if mask is not None:
            products = products.view(-1, len(mask), self.num_heads, length, length)
            products = (products + mask.unsqueeze(1)).view(n, self.num_heads, length, length)
        x = (self.attn_drop(products.softmax(-1)) @ v).transpose(1, 2).reshape(n, length, width)
        return self.proj_drop(self.proj(x))


class HeadsFirst(Fused):
    """Looks the same, but its projection has the heads outside of queries, keys and values."""

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, self.num_heads, 3, width // self.num_heads)
        return qkv.permute(3, 0, 2, 1, 4).unbind()


class Untrained(HeadsFirst):
    """Gives zeros before it is trained, as what it looks like would."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.proj.weight)


class NamesOfOurs(Fused):
    """Calls its projection as our module calls its number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = self.qkv
        del self.qkv

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        n, length, _ = x.shape
        qkv = self.heads(x).reshape(n, length, 3, self.num_heads, 24 // self.num_heads)
        return qkv.permute(2, 0, 3, 1, 4).unbind()


class DropsMore(Fused):
    """Does the same in eval mode only."""

    def forward(self, x: Tensor) -> Any:
        return nn.functional.dropout(self.mix(x)[0], 0.5, self.training)


class Ready(Fused):
    """Takes the width of a head from an attribute: nothing is to be done."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 6

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, 6)).permute(2, 0, 3, 1, 4)
        weights = self.attn_drop((q @ k.transpose(-2, -1) * self.scale).softmax(-1))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))


def itself(attention: nn.Module, x: Tensor) -> Tensor:
    return attention(x)


def first_of_itself(attention: nn.Module, x: Tensor) -> Tensor:
    return attention(x)[0]


def in_windows(attention: nn.Module, x: Tensor) -> Tensor:
    mask = torch.full((4, 4, 4), -100.0, dtype=x.dtype, device=x.device).triu(1)
    mask[0] = 0
    x = attention(x.reshape(-1, 4, 24), mask=mask)
    return (x + attention(x)).reshape(-1, 16, 24)


def of_torch(**options: Any) -> nn.Module:
    return nn.MultiheadAttention(24, 4, **options)


def layer_of_torch(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(24, 4, 32, batch_first=True, **options)


def _with_masks(attention: nn.Module, x: Tensor) -> Tensor:
    padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    padding[:, -3:] = True
    later = torch.ones(16, 16, dtype=torch.bool, device=x.device).triu(1)
    return attention(x, x, x, key_padding_mask=padding, attn_mask=later)[0]


def _causal(attention: nn.Module, x: Tensor) -> Tensor:
    later = nn.Transformer.generate_square_subsequent_mask(16, x.device, x.dtype)
    options = {"attn_mask": later, "is_causal": True, "need_weights": False}
    return attention(x, x, x, **options)[0]


def _mask_of_each_head(attention: nn.Module, x: Tensor) -> Tensor:
    mask = torch.linspace(-1, 1, len(x) * 4 * 16 * 16, dtype=x.dtype, device=x.device)
    return attention(x, x, x, need_weights=False, attn_mask=mask.view(-1, 16, 16))[0]


def _weights_too(attention: nn.Module, x: Tensor) -> Tensor:
    told, mean = attention(x, x[:, :9], x[:, :9])
    each = attention(x, x, x, average_attn_weights=False)[1]
    return told + mean.sum(2, keepdim=True) * mean[:, :, :1] + each[:, 2, :, :1]


def _lengths_first(attention: nn.Module, x: Tensor) -> Tensor:
    x = x.transpose(0, 1)
    return attention(x, x, x)[0].transpose(0, 1)


def _one_by_one(attention: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([attention(one, one, one)[0] for one in x])


def _other_widths(attention: nn.Module, x: Tensor) -> Tensor:
    return attention(x, x[..., :10], x[..., 10:17])[0]


def _layer_with_padding(layer: nn.Module, x: Tensor) -> Tensor:
    padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    padding[:, -3:] = True
    return layer(x, src_key_padding_mask=padding)


def _decoder(layer: nn.Module, x: Tensor) -> Tensor:
    later = nn.Transformer.generate_square_subsequent_mask(16, x.device, x.dtype)
    return layer(x, 2 * x[:, :9], tgt_mask=later, tgt_is_causal=True)


def _three(attention: nn.Module, x: Tensor) -> Tensor:
    return attention(x, x, x, need_weights=False)[0]


REWRITTEN: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "fused": (Fused, itself),
    "with_weights": (GivesWeights, first_of_itself),
    "separate": (Separate, itself),
    "in_windows": (InWindows, in_windows),
    "torch": (lambda: of_torch(batch_first=True, dropout=0.1), _three),
    "masks": (lambda: of_torch(batch_first=True), _with_masks),
    "causal": (lambda: of_torch(batch_first=True, bias=False), _causal),
    "mask_of_each_head": (lambda: of_torch(batch_first=True), _mask_of_each_head),
    "weights": (lambda: of_torch(batch_first=True), _weights_too),
    "lengths_first": (of_torch, _lengths_first),
    "one_by_one": (of_torch, _one_by_one),
    "other_widths": (lambda: of_torch(batch_first=True, kdim=10, vdim=7), _other_widths),
    "layer": (layer_of_torch, itself),
    "layer_norm_first": (lambda: layer_of_torch(norm_first=True), itself),
    "decoder": (lambda: nn.TransformerDecoderLayer(24, 4, 32, batch_first=True), _decoder),
    "encoder": (lambda: nn.TransformerEncoder(layer_of_torch(), 2), _layer_with_padding),
}
LEFT: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "heads_first": (HeadsFirst, itself),
    "names_of_ours": (NamesOfOurs, itself),
    "drops_more": (DropsMore, itself),
    "drops_the_output": (lambda: Separate(drops_output=True), itself),
    "ready": (Ready, itself),
    "zero_attention": (lambda: of_torch(batch_first=True, add_zero_attn=True), _three),
    "bias_kv": (lambda: of_torch(batch_first=True, add_bias_kv=True), _three),
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "maxvit": maxvit,
    "swin": lambda: swin_of(second=False),
    "swin_v2": lambda: swin_of(second=True),
    "swin_v2_of_one_stage": lambda: swin_of(second=True, stages=1),
    **{name: lambda of=of: Tokens(of[0](), of[1]) for name, of in REWRITTEN.items()},  # type: ignore[misc]
}


def made(name: str) -> nn.Module:
    """A network with no parameter at zero or one."""
    torch.manual_seed(0)
    return stirred(NETWORKS[name]())


def cut_network(name: str) -> nn.Module:
    """Half of the heads of a network are gone."""
    model = Network.of(made(name), SHAPE).model
    for attention in heads_of(model).values():
        cut_heads(attention, [*range(attention.heads)][1::2])
    return model


def stirred(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def run(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model):
        output = model(x)
    assert isinstance(output, Tensor)
    return output


def heads_of(model: nn.Module) -> dict[str, Any]:
    kinds = (MultiheadAttention, WindowAttention, SelfAttention, PartitionAttention)
    return {name: one for name, one in model.named_modules() if isinstance(one, kinds)}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_rewritten_network_computes_and_costs_what_it_did(name: str) -> None:
    model = made(name)
    before = copy.deepcopy(model.state_dict())
    network = Network.of(model, SHAPE)
    assert set(network.rewritten) == set(heads_of(network.model)) != set()
    assert not heads_of(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    ours = copy.deepcopy(network.model).double()
    torch.testing.assert_close(run(ours, x), run(model.double(), x), rtol=0, atol=1e-9)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), evaluating(model):
        model(x[:1])
    assert network.table.macs == counter.get_total_flops() // 2
    assert network.table.params == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_surely_the_same_or_needs_nothing_stays(name: str) -> None:
    torch.manual_seed(0)
    attention, call = LEFT[name]
    model = stirred(Tokens(attention(), call))
    assert rewrite_alike(model, SHAPE) == {}
    assert not heads_of(model)


def test_what_gives_zeros_before_training_is_not_taken_for_another() -> None:
    model = Tokens(Untrained(), itself)
    assert rewrite_alike(model, SHAPE) == {}
    assert rewrite_alike(Tokens(Fused(), itself), SHAPE) == {"attn": "self"}


def test_what_others_have_a_say_in_stays() -> None:
    hooked, own, shared = (made("torch") for _ in range(3))
    hooked.attn.register_forward_hook(lambda module, given, output: output)
    own.attn.forward = own.attn.forward  # type: ignore[method-assign, assignment, union-attr]
    shared.head.weight = shared.attn.out_proj.bias  # type: ignore[union-attr, assignment]
    for model in (hooked, own):
        assert rewrite_alike(model, SHAPE) == {}
    reads = made("torch")
    reads.call = lambda attention, x: x * attention.in_proj_weight.mean()
    assert rewrite_alike(reads, SHAPE) == {}
    assert isinstance(reads.attn, nn.MultiheadAttention)


@pytest.mark.parametrize("name", ["vit", "swin", "swin_v2", "fused", "layer", "other_widths"])
def test_gradients_are_those_of_the_original(name: str) -> None:
    model = made(name).double()  # in eval mode: dropout is out of the way
    ours = copy.deepcopy(model)
    rewrite(ours, Network.of(model, SHAPE).rewritten)
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    for one in (model, ours):
        one(x).square().sum().backward()
    slopes = copy.deepcopy(ours)
    for slope, value in zip(slopes.parameters(), ours.parameters(), strict=True):
        assert value.grad is not None
        slope.data = value.grad
    got = restored(slopes).state_dict()
    for key, value in model.named_parameters():
        expected = value.grad
        assert expected is not None
        if name == "swin_v2" and key.endswith("qkv.bias"):  # whose part for keys is unused there
            kept = [0, 2]
            got[key], expected = (one.unflatten(0, (3, -1))[kept] for one in (got[key], expected))
        torch.testing.assert_close(got[key], expected)


def test_dropout_of_weights_is_there_in_training_only() -> None:
    model = made("torch")
    rewrite(model, {"attn": "multihead"})
    x = torch.randn(2, *SHAPE)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", ["layer", "encoder"])
def test_runs_its_layers_where_pytorch_would_go_around_them(name: str) -> None:
    model = made(name)
    rewrite(model, Network.of(model, SHAPE).rewritten)
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(model(x), run(model, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_state_dict_goes_there_and_back(name: str) -> None:
    model, other = made(name), made(name)
    forms = Network.of(model, SHAPE).rewritten
    rewrite(other, forms)
    rewrite(other, forms)  # a second time changes nothing
    stirred(model)
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, *SHAPE)
    if not name.startswith("swin_v2"):  # whose bias of the keys is not used in the original
        torch.testing.assert_close(run(other, x), run(model, x), rtol=1e-4, atol=1e-5)
    back = restored(other).state_dict()
    assert set(back) == set(model.state_dict())
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


def test_dtype_and_device_are_kept() -> None:
    forms = Network.of(made("swin_v2"), SHAPE).rewritten
    with torch.device("meta"):
        paper = swin_of(second=True)
        rewrite(paper, forms)
    assert len(heads_of(paper)) == 4
    assert all(one.device.type == "meta" for one in paper.parameters())
    model = made("vit").to(torch.bfloat16)
    network = Network.of(model, SHAPE)
    assert network.dtype == torch.bfloat16
    rewrite(model, network.rewritten)
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["vit", "swin", "swin_v2", "masks", "fused"])
def test_runs_on_another_device(name: str, elsewhere: Compute) -> None:
    ours = Network.of(made(name), SHAPE).model
    x = torch.randn(2, *SHAPE)
    expected = run(ours, x)
    got = run(ours.to(elsewhere.device), elsewhere.put(x)).cpu()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def cut_heads(attention: Any, gone: list[int]) -> tuple[nn.Module, list[int]]:
    """Remove heads of a module by hand, in place; its projection outwards, and what that loses."""
    width, inner = attention.head_dim, attention.heads * attention.head_dim
    columns = [head * width + at for head in gone for at in range(width)]
    kept = [head for head in range(attention.heads) if head not in gone]
    packed = [block * inner + at for block in range(3) for at in columns]
    if isinstance(attention, MultiheadAttention):
        inward, outward = [attention.q_proj, attention.k_proj, attention.v_proj], attention.out_proj
    elif isinstance(attention, SelfAttention):
        inward = [attention.get_submodule(name) for name in attention.parts.inward]
        outward = attention.get_submodule(attention.parts.outward)
    elif isinstance(attention, PartitionAttention):
        inward, outward = [attention.to_qkv], attention.merge
    else:
        inward, outward = [attention.qkv], attention.proj
    for layer in inward:
        cut(layer, [], columns if len(inward) == 3 else packed)
    cut(outward, columns, [])
    if isinstance(attention, WindowAttentionV2):
        attention.logit_scale = nn.Parameter(attention.logit_scale.detach()[kept])
        cut(attention.cpb_mlp[2], [], gone)
    elif "relative_position_bias_table" in attention._parameters:
        table = attention.relative_position_bias_table.detach()[:, kept]
        attention.relative_position_bias_table = nn.Parameter(table)
    attention.heads = len(kept)
    return outward, columns


def cut(layer: nn.Module, gone_in: list[int], gone_out: list[int]) -> None:
    kind = kind_of(layer)
    assert kind is not None
    kind.cut(layer, gone_in, gone_out)


@pytest.mark.parametrize(
    "name", ["vit", "swin", "swin_v2", "maxvit", "fused", "separate", "in_windows", "layer"]
)
def test_a_cut_of_heads_is_their_mask(name: str) -> None:
    network = Network.of(made(name), SHAPE)
    masked, smaller = network.model, copy.deepcopy(network.model)
    for at, attention in heads_of(smaller).items():
        gone = [0] if attention.heads == 2 else [1, 2]
        whole = masked.get_submodule(at)
        outward, columns = cut_heads(attention, gone)
        outward_name = next(key for key, one in attention.named_modules() if one is outward)

        def silence(_: Any, given: Any, columns: list[int] = columns) -> Tensor:
            x = given[0].clone()
            x[..., columns] = 0
            return x

        whole.get_submodule(outward_name).register_forward_pre_hook(silence)
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(run(smaller, x), run(masked, x), rtol=1e-4, atol=1e-5)
    assert Network.of(smaller, SHAPE).table.macs < network.table.macs


@pytest.mark.parametrize("name", ["torch", "swin_v2_of_one_stage", "fused"])
def test_a_network_that_lost_heads_is_exported(name: str) -> None:
    assert as_onnx(cut_network(name), torch.randn(3, *SHAPE), {})[1].batch is None


@pytest.fixture
def photos() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 5
    images = torch.randint(0, 256, (160, 32, 32, 3), generator=generator, dtype=torch.uint8)
    images, labels = images.numpy(), labels.numpy()
    return Dataset.from_arrays("noise", images[:120], labels[:120], images[120:], labels[120:])


def test_a_vision_transformer_is_searched_exported_and_loaded(
    photos: Dataset, tmp_path: Path
) -> None:
    model = made("vit")
    config = {
        "space": {"name": "lowrank"},
        "agent": {"name": "random", "episodes": 2},
        "budget": {"metric": "macs", "ratio": 0.6},
        "evaluate": {"images": 32, "calibration_images": 32},
        "allow_untrained": True,
    }
    found = amc.search(config, model=model, dataset=photos, out=tmp_path)
    amc.export(found, ["safetensors"])
    folder = found.run.path
    from_result, from_folder = amc.load(found), amc.load(folder, model=model)
    assert not heads_of(model)
    assert set(heads_of(from_folder)) == set(found.problem.network.rewritten) != set()
    x = torch.randn(2, *SHAPE)
    assert torch.equal(run(from_result, x), run(from_folder, x))
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    other = open_problem(found, weights=str(tmp_path / "mine.safetensors"))[1]
    torch.testing.assert_close(run(other.network.model, x), run(model, x))
    again = amc.resume(folder, model=made("vit"), dataset=photos)
    assert again.problem.network.rewritten == found.problem.network.rewritten
    with pytest.raises(UserError, match="strategy"):
        amc.load(folder, model=made("fused"))
