"""A device beside the CPU, played by the CPU: what is on it meets nothing that is not, and reading it is counted.

Code that runs on a GPU cannot be tried without one, but two mistakes of such code can be found: tensors of two devices
in one operation, and waiting for the device in a loop. Tensors on `DEVICE` hold their values in main memory; torch
knows them as tensors of its device without data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_ATEN = torch.ops.aten
_COPIES = {_ATEN._to_copy.default, _ATEN.copy_.default}
# Places may be told by the CPU: they are copied.
_INDEXED = {_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN._index_put_impl_.default}
# Below here nobody looks whether a view stands for the conjugate or the negative.
_MADE_REAL = {_ATEN._conj.default: _ATEN._conj_physical.default, _ATEN._neg_view.default: _ATEN.neg.default}
_READ = {_ATEN._local_scalar_dense.default, _ATEN.nonzero.default, _ATEN.masked_select.default, _ATEN.equal.default}


class MixedDevicesError(Exception):
    """An operation was given tensors of two devices."""


class _There(Tensor):
    """A tensor on the other device."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> "_There":
        there = Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=DEVICE
        )
        there.here = here
        return there

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        return _Played().__torch_dispatch__(operation, types, given, named)


class _Played(TorchDispatchMode):
    """Does on the CPU what is asked of the other device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        named = dict(named or {})
        tensors = [each for each in tree_flatten((given, named))[0] if isinstance(each, Tensor)]
        there = {id(each.here): each for each in tensors if isinstance(each, _There)}
        asked = named.get("device")
        if asked == DEVICE:
            named["device"] = torch.device("cpu")
        if there and operation not in _COPIES:
            self._refuse_others(operation, tensors)
        if there and (operation in _READ or _selects(operation, tensors) or asked == torch.device("cpu")):
            self.waits += 1
        operation = _MADE_REAL.get(operation, operation)
        found = operation(*tree_map(bring_back, given), **tree_map(bring_back, named))
        if asked == DEVICE or (there and asked is None):
            return tree_map(lambda value: there.get(id(value), _send(value)), found)
        return found

    @staticmethod
    def _refuse_others(operation: Any, tensors: list[Tensor]) -> None:
        """A GPU takes single numbers of the CPU, and nothing else."""
        strangers = [each for each in tensors if not isinstance(each, _There) and each.dim() > 0]
        if strangers and not (operation in _INDEXED and isinstance(tensors[0], _There)):
            shapes = [("there " if isinstance(each, _There) else "here ") + str(tuple(each.shape)) for each in tensors]
            raise MixedDevicesError(f"{operation}: {', '.join(shapes)}")


def _selects(operation: Any, tensors: list[Tensor]) -> bool:
    """Whether something is picked by yes and no: how much it is, the device must tell."""
    return operation in _INDEXED and any(each.dtype == torch.bool for each in tensors[1:])


def bring_back(value: Any) -> Any:
    """A tensor of the other device, here."""
    return value.here if isinstance(value, _There) else value


def _send(value: Any) -> Any:
    return _There(value) if isinstance(value, Tensor) and not isinstance(value, _There) else value


@contextmanager
def other_device() -> Iterator[_Played]:
    """While it lasts `DEVICE` computes; ``waits`` counts how often its values were read."""
    with _Played() as played:
        yield played
