"""Arrays on their way to the page: numbers as bytes, and a few words about them in a header."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from aiohttp import web

ABOUT = "X-About"
"""Header that says in JSON which arrays follow one another, and what else there is to say."""


def answer_arrays(arrays: Mapping[str, np.ndarray], **told: Any) -> web.Response:
    """Arrays one after the other, little-endian, each beginning at a multiple of 4 bytes.

    Parameters
    ----------
    arrays
        float32, float16 or uint32, by name.
    told
        Numbers, text and lists.
    """
    shapes, parts = [], []
    for name, values in arrays.items():
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
        shapes.append({"name": name, "dtype": values.dtype.name, "shape": values.shape})
        parts.append(data + bytes(-len(data) % 4))
    return answer_bytes(b"".join(parts), arrays=shapes, **told)


def answer_bytes(content: bytes, **told: Any) -> web.Response:
    """Bytes, and what there is to say of them."""
    about = json.dumps(told, allow_nan=False)
    return web.Response(body=content, headers={ABOUT: about}, content_type="application/octet-stream")
