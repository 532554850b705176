"""Tensors that have a shape and no memory, and a count of the bytes that real ones would hold.

Enters: a module whose parameters are on torch's meta device. Leaves: the same module with hollow parameters; all that
its forward and backward pass compute from them is hollow too, and is counted while it lives. Surprising choice: a
hollow tensor says that it is on the CPU, so that a model takes the same way through its code as in training there, and
whole numbers stay real, because packing, reading and sampling look at their values. What a model keeps for its gradient
is therefore not a formula that someone wrote down, but what its code does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

SMALL_BYTES = 32 << 20
"""Below it glibc may keep freed memory for itself (DEFAULT_MMAP_THRESHOLD_MAX); above, it goes back at once."""
_FACTORIES = {"empty", "zeros", "ones", "full", "rand", "randn", "empty_strided", "arange"}


class Hollow(Tensor):
    """A tensor of which only the shape, type and storage's size are known."""

    meta: Tensor

    @staticmethod
    def __new__(cls, meta: Tensor) -> Hollow:
        made: Hollow = Tensor._make_wrapper_subclass(
            cls,
            meta.shape,
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=torch.device("cpu"),
            requires_grad=False,
        )
        made.meta = meta
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Hollow({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {}, lambda tensor: None)


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of what is computed below it from hollow tensors: those alive, and their most so far.

    What was alive before is not counted, if it was shown to ``ignore``. ``backward`` is to be set while gradients are
    computed. Small and large tensors are counted apart, see SMALL_BYTES.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = {"small": 0, "large": 0}
        self._most = dict(self.alive)
        self._known: dict[int, Any] = {}
        self.backward = False

    def ignore(self, module: nn.Module) -> None:
        """Leaves the parameters and buffers of a module out of the count."""
        for tensor in (*module.parameters(), *module.buffers()):
            self.leave_out(tensor)

    def leave_out(self, tensor: Tensor) -> None:
        """Leaves one tensor out of the count."""
        self._known[_storage(tensor)._cdata] = None

    def most_since(self) -> tuple[int, int]:
        """The most bytes in small and in large tensors since this was asked before."""
        most, self._most = self._most, dict(self.alive)
        return most["small"], most["large"]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if name in _FACTORIES and not any(issubclass(kind, Hollow) for kind in types):
            with torch.utils._python_dispatch._disable_current_modes():
                made = func(*args, **{**given, "device": torch.device("meta")})
            if made.dtype.is_floating_point:
                return self._seen(Hollow(made))
            return func(*args, **given)
        if self.backward and func is torch.ops.aten.add.Tensor and _alike(*args[:2]):
            return args[0]  # autograd sums gradients of one tensor in place, but for subclasses
        return _computed(func, args, given, self._see)

    def _seen(self, made: Hollow) -> Hollow:
        self._see(made)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        kind = "small" if size < SMALL_BYTES else "large"
        self.alive[kind] += size
        self._most[kind] = max(self._most[kind], self.alive[kind])

        def gone() -> None:
            self.alive[kind] -= size
            self._known.pop(key, None)

        self._known[key] = weakref.finalize(storage, gone)


def _alike(a: Any, b: Any) -> bool:
    return isinstance(a, Hollow) and isinstance(b, Hollow) and a.shape == b.shape and a.dtype == b.dtype


def _storage(tensor: Tensor) -> Any:
    return (tensor.meta if isinstance(tensor, Hollow) else tensor).untyped_storage()


def _computed(func: Any, args: Any, kwargs: dict[str, Any], see: Callable[[Tensor], None]) -> Any:
    """What an operation gives for hollow tensors among real ones; each that it touches is shown to ``see``."""
    if not any(isinstance(value, Hollow) for value in tree_leaves((args, kwargs))):
        return func(*args, **kwargs)
    if func._schema.name.startswith("aten::index") and isinstance(args[1], list | tuple):
        args = (args[0], _places(args[1]), *args[2:])
    given: dict[int, Tensor] = {}
    kept: list[Tensor] = []

    def emptied(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("meta")
        if not isinstance(value, Tensor):
            return value
        see(value)
        meta = value.meta if isinstance(value, Hollow) else value
        if meta.device.type != "meta":
            meta = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        given[id(meta)] = value
        kept.append(meta)
        return meta

    with torch.utils._python_dispatch._disable_current_modes():
        out = func(*tree_map(emptied, args), **tree_map(emptied, kwargs))

    def filled(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in given:
            return given[id(value)]  # changed in place
        made = Hollow(value)
        see(made)
        return made

    return tree_map(filled, out)


def _places(indices: Any) -> list[Any]:
    """The same indices, masks as the places where they are true: how many that are no shape tells."""
    found: list[Any] = []
    for index in indices:
        is_mask = isinstance(index, Tensor) and index.dtype == torch.bool
        found += index.nonzero(as_tuple=True) if is_mask else [index]
    return found


def hollowed(module: nn.Module) -> nn.Module:
    """The module, its parameters now hollow, and its buffers of the meta device; those shared stay shared."""
    made: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(Hollow(parameter.detach().to("meta")), parameter.requires_grad)
            setattr(owner, name, made[id(parameter)])
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.device.type == "meta":
                owner._buffers[name] = Hollow(buffer)
    return module
