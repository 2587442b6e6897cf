"""What a machine with only torch, triton and numpy lacks, as far as a training step touches it.

None of these packages does any work within a step: jaxtyping is read by people and by the tests, pydantic checks run
files, zarr reads stores. Where one is missing a stand-in takes its name, so that the real modules are timed there too.
Nothing is validated then, and no store can be opened.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


def stand_in_for_absent() -> list[str]:
    """Put stand-ins in place of what is not installed; their names."""
    absent = [name for name in _STAND_INS if not _is_there(name)]
    for name in absent:
        sys.modules.update(_STAND_INS[name]())
    return absent


def _is_there(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True


class _Annotation:
    """``Float[Tensor, "points 3"]`` without the shape."""

    def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
        return item[0]


class _Settings:
    """Pydantic's model: keyword arguments over the defaults of the class."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def _default(default: Any = ..., **_: Any) -> Any:
    return default


def _unchanged(**_: Any) -> Callable[[Any], Any]:
    return lambda function: function


def _jaxtyping() -> dict[str, ModuleType]:
    return {
        "jaxtyping": _module("jaxtyping", **dict.fromkeys(("Bool", "Complex", "Float", "Float32", "Int"), _Annotation))
    }


def _pydantic() -> dict[str, ModuleType]:
    spoken = {"BaseModel": _Settings, "ConfigDict": dict, "Field": _default, "model_validator": _unchanged}
    return {"pydantic": _module("pydantic", **spoken)}


def _zarr() -> dict[str, ModuleType]:
    return {"zarr": _module("zarr"), "zarr.codecs": _module("zarr.codecs", Crc32cCodec=None)}


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


_STAND_INS = {"jaxtyping": _jaxtyping, "pydantic": _pydantic, "zarr": _zarr}
