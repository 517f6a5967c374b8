"""What a model declares as its inputs, and reading a feed as the runtime would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from hardening.errors import InputError

#: dtypes of the tensor types that numpy knows; others, such as bfloat16, are fed as arrays only.
DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(float)": np.dtype(np.float32),
    "tensor(string)": np.dtype(np.object_),
    **{f"tensor({name})": np.dtype(name) for name in ("double", "float16", "int8", "int16", "int32", "int64")},
    **{f"tensor({name})": np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
}


class Feeds:
    """The inputs of one model. Initializers that are inputs as well are not among them: no caller may write weights.

    Attributes:
        names: declared inputs, in order.
    """

    def __init__(self, inner: onnxruntime.InferenceSession) -> None:
        self.names = tuple(i.name for i in inner.get_inputs())
        self._optional = {i.name for i in inner.get_inputs() if i.type.startswith("optional")}
        self._dtypes = {i.name: DTYPES.get(i.type) for i in inner.get_inputs()}

    def read(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """Every declared input; plain lists as tensors, None for an optional input left out. Raises InputError."""
        for name in feed:
            if name not in self._dtypes:
                raise InputError(f"input {name!r} is not declared; this model takes: {', '.join(self.names)}")
        missing = [name for name in self.names if name not in feed and name not in self._optional]
        if missing:
            raise InputError(f"missing inputs: {', '.join(missing)}")
        return {name: self._tensor(name, feed.get(name)) for name in self.names}

    def _tensor(self, name: str, value: Any) -> Any:
        """A plain list as the runtime would read it, so that what it rounds away cannot key another noise."""
        dtype = self._dtypes[name]
        if isinstance(value, np.ndarray) or value is None or dtype is None:
            return value
        try:
            return np.asarray(value, dtype)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"input {name!r} is not a tensor of {dtype}") from None

    def question(self, feed: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], int]:
        """What noise is keyed on, and how many rows are asked, of a feed that was `read`."""
        arrays = {name: _spell(value) for name, value in feed.items()}
        return arrays, next((len(array) for array in arrays.values() if array.ndim), 1)


def _spell(value: Any) -> NDArray[Any]:
    """The tensor, or for a sequence of tensors one row that spells it out."""
    if not (isinstance(value, list) and any(isinstance(v, np.ndarray) for v in value)):
        return np.asarray("" if value is None else value)
    spelt = b"".join(
        repr((v.dtype.str, v.shape)).encode() + (repr(v.tolist()).encode() if v.dtype.kind == "O" else v.tobytes())
        for v in map(np.asarray, value)
    )
    return np.frombuffer(spelt, np.uint8).reshape(1, -1)
