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

from torch import nn
from torch.utils._pytree import tree_leaves

from amc.network.attention import MultiheadAttention
from amc.network.copying import copied
from amc.network.handwritten import Parts, SelfAttention, agree, does_the_same
from amc.network.layers import evaluating, example_input
from amc.network.torchvision_compat import torchvision
from amc.network.windows import PartitionAttention, WindowAttention, WindowAttentionV2

_SWIN, _MAXVIT = torchvision.models.swin_transformer, torchvision.models.maxvit
_WINDOWS: dict[type, Callable[[nn.Module], nn.Module]] = {
    _SWIN.ShiftedWindowAttention: WindowAttention,
    _SWIN.ShiftedWindowAttentionV2: WindowAttentionV2,
    _MAXVIT.RelativePositionalMultiHeadAttention: PartitionAttention,
}
_OURS = (MultiheadAttention, SelfAttention, WindowAttention, PartitionAttention)
_EXACT = 1e-8  # of the largest output, in float64


def _multihead(module: nn.Module) -> nn.Module | None:
    if not isinstance(module, nn.MultiheadAttention) or type(module) is not nn.MultiheadAttention:
        return None
    return None if module.add_zero_attn or module.bias_k is not None else MultiheadAttention(module)


def _windows(module: nn.Module) -> nn.Module | None:
    make = _WINDOWS.get(type(module))
    return None if make is None else make(module)


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
            alike = agree(_outputs(model, input_shape), expected)
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
    if call is None:  # it is not called at all
        return None
    for form, make in FORMS.items():
        other = make(module)
        if other is not None and (form not in _ASKED or does_the_same(module, other, call)):
            return form
    return None


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
    return agree(got, expected, _EXACT)


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
