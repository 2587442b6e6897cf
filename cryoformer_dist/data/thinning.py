"""Some out of many, evenly spread."""


def stride_for(count: int, wanted: int) -> int:
    """Step of a slice that takes ``wanted`` out of ``count`` or up to twice as many; all where there are fewer."""
    return max(1, count // wanted)
