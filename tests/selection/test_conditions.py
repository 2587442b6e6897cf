import contextlib

import numpy as np
import pytest

from cryoformer_dist.errors import SelectionError
from cryoformer_dist.selection.conditions import fulfils

RNG = np.random.default_rng(7)
COLUMNS = {
    "junk": RNG.random(200, dtype=np.float32),
    "pc1": RNG.normal(size=200).astype(np.float32),
    "cluster": RNG.integers(0, 5, 200),
}
JUNK, PC1, CLUSTER = COLUMNS.values()
TENTH = np.float32(0.1)


def column(name: str) -> np.ndarray:
    if name not in COLUMNS:
        raise SelectionError(f"no column {name}")
    return COLUMNS[name]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("junk<.1", JUNK < TENTH),
        (" 0.25 >= junk ", JUNK <= 0.25),
        ("junk < .5 and pc1 > 0", (JUNK < 0.5) & (PC1 > 0)),
        ("junk < .1 or pc1 > 0 and cluster == 3", (JUNK < TENTH) | ((PC1 > 0) & (CLUSTER == 3))),
        ("(junk < .1 or pc1 > 0) and cluster != 3", ((JUNK < TENTH) | (PC1 > 0)) & (CLUSTER != 3)),
        ("not cluster in (1, 3)", ~np.isin(CLUSTER, (1, 3))),
        ("cluster not in [1]", CLUSTER != 1),
        ("-.5 < pc1 <= .5", (PC1 > -0.5) & (PC1 <= 0.5)),
        ("pc1 - 2 * junk > -1/4", PC1 - 2 * JUNK > -0.25),
        ("pc1 / (cluster - cluster) > 0", PC1 > 0),
    ],
)
def test_a_condition_means_what_it_says(expression: str, expected: np.ndarray) -> None:
    assert 0 < expected.sum() < len(expected)
    np.testing.assert_array_equal(fulfils(expression, column), expected)


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("", "invalid syntax"),
        ("junk <", "invalid syntax"),
        ("junk", "junk is neither true nor false"),
        ("1 < 2", "names no column"),
        ("junk < 1; junk", "invalid syntax"),
        ("junk = 1", "invalid syntax"),
        ("junk < '1'", "'1' is no number"),
        ("junk < True", "True is no number"),
        ("junk < 1j", "1j is no number"),
        ("junk is 1", "junk is 1 does not compare"),
        ("cluster in 3", "3 is no list"),
        ("cluster in (pc1,)", "pc1 in a list"),
        ("junk < .1 & pc1 > 0", "& and | are written as and, or"),
        ("pc1 ** 2 > 1", r"pc1 \*\* 2 is no number"),
        ("abs(pc1) < 1", r"abs\(pc1\) is no number"),
        ("__import__('os').remove('x') < junk", "is no number"),
        ("junk.real < 1", r"junk\.real is no number"),
        ("junk[0] < 1", r"junk\[0\] is no number"),
        ("(lambda: junk)() < 1", "is no number"),
        ("[x for x in junk] < 1", "is no number"),
        ("(junk := 1) < 1", "is no number"),
        ("junk < " + "9" * 980, "too large"),
        ("junk < 1" + " and junk < 1" * 100, "longer than 1000 characters"),
    ],
)
def test_anything_else_is_refused_and_nothing_is_run(expression: str, why: str) -> None:
    with pytest.raises(SelectionError, match=f"is no condition .*{why}.*; write for example: junk < .1"):
        fulfils(expression, column)


@pytest.mark.parametrize("part", ["-", "(", "not ", "junk <", "1+", "[", "junk < 1 if ", "'", "\\", "\n", "\0", "é"])
def test_nothing_that_is_typed_breaks_it(part: str) -> None:
    for count in (1, 30, 900 // len(part)):
        with contextlib.suppress(SelectionError):
            assert fulfils(part * count + "junk < 1", column).shape == (200,)


def test_an_unknown_column_is_named() -> None:
    with pytest.raises(SelectionError, match="no column jnk"):
        fulfils("jnk < .1", column)
