"""Attention that cannot lose heads as it is written, replaced by modules that compute the same and
can (`amc.network.attention`): ``nn.MultiheadAttention``, torchvision's Swin and MaxViT, and
self-attention as people write it who take the width of a head from the width of the input.

A module is replaced only where it is exactly of a type whose computation is known, or where the
other one gave its outputs on an input of its own; and all only where the network's outputs stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from amc.network.attention import HEADS, MultiheadAttention, Parts, SelfAttention
from amc.network.copying import copied
from amc.network.kinds import kind_of
from amc.network.layers import evaluating, example_input
from amc.network.torchvision_compat import torchvision
from amc.network.windows import PartitionAttention, WindowAttention, WindowAttentionV2

_SWIN, _MAXVIT = torchvision.models.swin_transformer, torchvision.models.maxvit
_OURS = (MultiheadAttention, SelfAttention, WindowAttention, PartitionAttention)
_ALIKE, _EXACT = 1e-5, 1e-8  # of the largest output: in float32, in float64


def _multihead(module: nn.Module) -> nn.Module | None:
    if not isinstance(module, nn.MultiheadAttention) or type(module) is not nn.MultiheadAttention:
        return None
    return None if module.add_zero_attn or module.bias_k is not None else MultiheadAttention(module)


def _windows(module: nn.Module) -> nn.Module | None:
    if type(module) is _SWIN.ShiftedWindowAttention:
        return WindowAttention(module)
    if type(module) is _SWIN.ShiftedWindowAttentionV2:
        return WindowAttentionV2(module)
    if type(module) is _MAXVIT.RelativePositionalMultiHeadAttention:
        return PartitionAttention(module)
    return None


def _own(module: nn.Module, need_weights: bool = False) -> nn.Module | None:
    parts = Parts.of(module)
    return None if parts is None else SelfAttention(module, parts, need_weights)


FORMS: dict[str, Callable[[nn.Module], nn.Module | None]] = {
    "multihead": _multihead,
    "windows": _windows,
    "self": _own,
    "self_with_weights": lambda module: _own(module, need_weights=True),
}
"""Name -> what makes the other module; None where a module is not built so."""
_ASKED = ("self", "self_with_weights")  # people's own: what they compute is seen from outputs


def rewrite(model: nn.Module, forms: Mapping[str, str]) -> None:
    """Replace modules by their other forms, in place; one that is replaced already is left.

    Args:
        model: the architecture; on any device.
        forms: name of a module -> of its form, as `rewrite_alike` gave them.

    Raises:
        ValueError: the network has no such module.
    """
    for name, form in forms.items():
        module = model.get_submodule(name) if name in dict(model.named_modules()) else None
        if isinstance(module, _OURS):
            continue
        new = None if module is None or form not in FORMS else FORMS[form](module)
        if module is None or new is None:
            raise ValueError(f"its {name!r} is no attention that can be rewritten as {form!r}")
        _swap(model, module, new)
    for module in model.modules():  # a way around layers that knows torch's attention only
        inside = any(isinstance(one, MultiheadAttention) for one in module.modules())
        if inside and isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def rewrite_alike(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, str]:
    """Replace, in place, all modules for which that leaves the network's outputs.

    Args:
        model: in float32, on the host.
        input_shape: of one image.

    Returns:
        name of a module -> of its form; none where the network does not run, or gives others then.
    """
    candidates = dict(_candidates(model))
    if not candidates:
        return {}
    before = _Calls()
    try:
        with before.of(candidates):
            expected = _outputs(model, input_shape)
    except Exception:  # whoever traces it says why it does not run
        return {}
    found = {name: _form_of(one, before.first.get(name)) for name, one in candidates.items()}
    forms = {name: form for name, form in found.items() if form is not None}
    if not forms:
        return {}
    rewrite(model, forms)
    old = {name: candidates[name] for name in forms}
    new = {name: model.get_submodule(name) for name in forms}
    after = _Calls()
    try:
        with after.of(new):
            alike = _agree(_outputs(model, input_shape), expected)
        alike = alike or _agree_exactly(model, input_shape, old, new)
        alike = alike and all(after.count[name] == before.count[name] for name in new)
    except Exception:  # whatever the user's forward asks of its modules
        alike = False
    if not alike:
        _restore(model, new, old)
    return forms if alike else {}


def restored(model: nn.Module) -> nn.Module:
    """A copy of a whole network whose state dict has the keys that the user's own has."""
    own = copied(model)
    for module in list(own.modules()):
        if isinstance(module, MultiheadAttention):
            _swap(own, module, module.original())
    return own


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What may be replaced: nothing of it is shared, hooked, or has a forward of an instance."""
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    for name, module in model.named_modules():
        if not name or not any(make(module) is not None for make in FORMS.values()):
            continue
        inside = list(module.modules())
        hooks = any(one._forward_hooks or one._forward_pre_hooks for one in inside)
        own = any("forward" in vars(one) for one in inside)
        if not hooks and not own and all(owners[id(p)] == 1 for p in module.parameters()):
            yield name, module


@dataclass
class _Calls:
    """What modules were called with."""

    first: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # arguments, named ones, output
    count: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def of(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Note the calls inside."""
        handles = []
        for name, module in modules.items():

            def note(_: Any, given: Any, named: Any, output: Any, name: str = name) -> None:
                self.count[name] += 1
                self.first.setdefault(name, (given, named, output))

            handles.append(module.register_forward_hook(note, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _form_of(module: nn.Module, call: tuple[Any, ...] | None) -> str | None:
    """The form in which a module computes what it does."""
    for form, make in FORMS.items():
        other = make(module)
        if other is None or call is None:
            continue
        if form not in _ASKED or _does_the_same(module, other, call):
            return form
    return None


def _does_the_same(module: nn.Module, other: nn.Module, call: tuple[Any, ...]) -> bool:
    """Whether another module gives the outputs of one that people have written, whatever the
    weights: in eval mode and, with every dropout taking nothing or all, in training; and can lose
    a head, which that cannot.
    """
    (x, *more), named, _ = call
    if more or named or not isinstance(x, Tensor) or x.dim() != 3:
        return False
    random = torch.Generator().manual_seed(0)
    x = torch.randn(x.shape, generator=random)
    theirs, ours = copied(module).eval(), copied(other).eval()
    assert isinstance(ours, SelfAttention)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():  # they may be zero before training
            spread = parameter.shape[-1] ** -0.5
            parameter.copy_(spread * torch.randn(parameter.shape, generator=random))
            ours.get_parameter(name).copy_(parameter)
        if not _agree(theirs(x), ours(x)) or _loses_a_head(theirs, ours, x):
            return False
        theirs.train(), ours.train()
        for lossy in ("", ours.parts.weights_dropout, ours.parts.dropout):
            for model in (theirs, ours):
                for name, one in model.named_children():
                    if isinstance(one, nn.Dropout):
                        one.p = float(name == lossy)
            if not _agree(theirs(x), ours(x)):
                return False
    return True


def _loses_a_head(module: nn.Module, other: SelfAttention, x: Tensor) -> bool:
    """Whether a module computes with one head less as the other one does."""
    if other.heads == 1:
        return True
    try:
        return _agree(*(_one_head_less(one, other.parts)(x) for one in (module, other)))
    except Exception:  # whatever its forward raises on widths that it did not expect
        return False


def _one_head_less(module: nn.Module, parts: Parts) -> nn.Module:
    """A copy without the last head, whose attributes say so."""
    smaller, inner = copied(module), parts.heads * parts.head_dim
    gone = list(range(inner - parts.head_dim, inner))
    blocks = 3 if len(parts.inward) == 1 else 1
    for name in parts.inward:
        layer = smaller.get_submodule(name)
        kind = kind_of(layer)
        assert kind is not None
        kind.cut(layer, [], [block * inner + at for block in range(blocks) for at in gone])
    outward = smaller.get_submodule(parts.outward)
    kind = kind_of(outward)
    assert kind is not None
    kind.cut(outward, gone, [])
    for name, value in list(vars(smaller).items()):
        if type(value) is int and name in HEADS and value == parts.heads:
            setattr(smaller, name, value - 1)
        elif type(value) is int and value == inner:
            setattr(smaller, name, inner - parts.head_dim)
    return smaller


def _agree(a: Any, b: Any, tolerance: float = _ALIKE) -> bool:
    """Whether outputs are the same but for rounding."""
    (ours, shape), (theirs, other) = tree_flatten(a), tree_flatten(b)
    if shape != other or not all(isinstance(one, Tensor) for one in (*ours, *theirs)):
        return False
    return all(
        one.shape == two.shape
        and float((one - two).abs().max()) <= tolerance * max(float(two.abs().max()), 1e-30)
        for one, two in zip(ours, theirs, strict=True)
    )


def _outputs(model: nn.Module, input_shape: tuple[int, ...]) -> list[Any]:
    with evaluating(model):
        return tree_leaves(model(example_input(model, input_shape, batch=2)))


def _agree_exactly(
    model: nn.Module,
    input_shape: tuple[int, ...],
    old: Mapping[str, nn.Module],
    new: Mapping[str, nn.Module],
) -> bool:
    """Whether a rewritten network gives its former outputs in float64: what rounding could explain
    in float32 is decided so.
    """
    got = _outputs(copied(model).double(), input_shape)
    _restore(model, new, old)
    expected = _outputs(copied(model).double(), input_shape)
    _restore(model, old, new)
    return _agree(got, expected, _EXACT)


def _restore(
    model: nn.Module, there: Mapping[str, nn.Module], wanted: Mapping[str, nn.Module]
) -> None:
    for name, module in there.items():
        _swap(model, module, wanted[name])


def _swap(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, wherever that is."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
