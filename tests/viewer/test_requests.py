import pytest

from cryoformer_dist.viewer.requests import (
    AskedMap,
    AskedPath,
    BadRequest,
    Chosen,
    DrawnLasso,
    Gate,
    MapOfLatent,
    MapOfParticle,
    parse,
)


def test_requests_are_read_as_they_are_meant() -> None:
    lasso = '{"how": "union", "axes": ["pc1", "pc2"], "polygon": [[0, 0], [1, 0.5], [0, 1]]}'
    gate = '{"column": "junk", "low": null, "high": 0.5}'
    assert parse(Chosen, f'{{"lassos": [{lasso}], "gates": [{gate}]}}') == Chosen(
        (DrawnLasso("union", ("pc1", "pc2"), ((0.0, 0.0), (1.0, 0.5), (0.0, 1.0))),), (Gate("junk", None, 0.5),)
    )
    assert parse(AskedMap, '{"kind": "particle", "particle": 3}') == MapOfParticle(particle=3)
    assert parse(AskedMap, '{"kind": "latent", "latent": [1, 2.5]}') == MapOfLatent(latent=(1.0, 2.5))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Chosen, ""),
        (Chosen, "[]"),
        (Chosen, "{}"),
        (Chosen, '{"lassos": [], "gates": [], "more": 1}'),
        (Chosen, '{"lassos": 3, "gates": []}'),
        (Chosen, '{"lassos": [], "gates": [{"column": "junk", "low": "0", "high": 1}]}'),
        (Chosen, '{"lassos": [{"how": "xor", "axes": ["a", "b"], "polygon": []}], "gates": []}'),
        (AskedMap, '{"kind": "everything"}'),
        (AskedMap, '{"kind": "particle", "particle": 1.5}'),
        (AskedMap, '{"kind": "particle", "particle": true}'),
        (AskedPath, '{"axes": ["pc1"], "corners": [], "ends": [], "stops": 3}'),
        (Chosen, "[" * 100_000),
    ],
)
def test_what_is_none_is_refused_in_one_sentence(kind: type, text: str) -> None:
    with pytest.raises(BadRequest, match=r"cannot be understood .*; reload the page"):
        parse(kind, text)
