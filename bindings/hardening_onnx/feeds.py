"""What a model declares as its inputs, and reading a feed as the runtime would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from hardening.errors import ConfigError, InputError

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
        self._types = {i.name: i.type for i in inner.get_inputs()}
        self._dtypes = {i.name: DTYPES.get(i.type) for i in inner.get_inputs()}
        # Where the batch's size is free, an input of a fixed length is not one of its columns.
        leads = {i.name: i.shape[0] for i in inner.get_inputs() if i.shape}
        free = not isinstance(next(iter(leads.values()), 0), int)
        self._shared = {name for name, lead in leads.items() if free and isinstance(lead, int)}

    def check_rows(self, name: str, path: str) -> None:
        """Raise ConfigError at `path` if `name` is no input of numbers with a row for each question."""
        if name not in self._types:
            raise ConfigError(path, f"the model has no input {name!r}; it takes: {', '.join(self.names)}")
        dtype = self._dtypes[name]
        if dtype is None or dtype.kind == "O":
            raise ConfigError(path, f"{name!r} is a {self._types[name]}: an input of numbers is needed")
        if name in self._shared:
            raise ConfigError(path, f"{name!r} is one for all rows: an input with a row for each is needed")

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
        """What the runtime is given, so that nothing it rounds away or ignores can key another noise."""
        dtype = self._dtypes[name]
        if isinstance(value, list) and dtype is None:
            return [_plain(name, v) if isinstance(v, np.ndarray) else v for v in value]
        if not isinstance(value, np.ndarray):
            if value is None or dtype is None:
                return value
            try:
                value = np.asarray(value, dtype)
            except (TypeError, ValueError, OverflowError):
                raise InputError(f"input {name!r} is not a tensor of {dtype}") from None
        return _plain(name, value)

    def question(self, feed: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], int]:
        """What noise is keyed on, and how many rows are asked, of a feed that was `read`; views, where it holds arrays.

        What all rows share has a leading dimension of one, so that it is part of every row of a batch of any size.
        """
        arrays = {name: _spell(value) for name, value in feed.items()}
        rows = next((len(array) for array in arrays.values() if array.ndim), 1)
        return {name: array[None] if name in self._shared else array for name, array in arrays.items()}, rows


def _plain(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The one array that stands for all that the runtime takes for the same.

    It reads bytes in the machine's order whatever the dtype says, any text as the text of its elements, and fixed-width
    byte strings up to their first NUL.
    """
    kind = array.dtype.kind
    if kind in "OSU":
        out = np.empty(array.size, object)
        try:
            for i, item in enumerate(array.ravel().tolist()):
                out[i] = str(item.split(b"\0", 1)[0], "utf-8") if kind == "S" else str(item)
        except UnicodeDecodeError:
            raise InputError(f"input {name!r} holds text that is not UTF-8") from None
        return out.reshape(array.shape)
    if kind == "b":
        return np.asarray(array.view(np.uint8) != 0)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _spell(value: Any) -> NDArray[Any]:
    """The tensor, or for a sequence of tensors one row that spells it out."""
    if not (isinstance(value, list) and any(isinstance(v, np.ndarray) for v in value)):
        return np.asarray("" if value is None else value)
    spelt = b"".join(repr((v.dtype.str, v.shape)).encode() + _octets(v) for v in map(np.asarray, value))
    return np.frombuffer(spelt, np.uint8).reshape(1, -1)


def _octets(array: NDArray[Any]) -> bytes:
    """Equal numbers and texts give equal bytes: there is one zero and one NaN."""
    if array.dtype.kind == "O":
        return repr(array.tolist()).encode()
    if array.dtype.kind == "f":
        zero, nan = array.dtype.type(0), array.dtype.type(np.nan)
        array = np.where(np.isnan(array), nan, np.where(array == zero, zero, array))
    return array.tobytes()
