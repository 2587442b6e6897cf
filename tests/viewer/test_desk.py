import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryoformer_dist.data.selection import Lasso, read_selection
from cryoformer_dist.errors import CryoFormerError
from cryoformer_dist.figures.movies import Film
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.runs.layout import PARTICLE_ANALYSIS, SELECTIONS
from cryoformer_dist.runs.results import read_latent_table
from cryoformer_dist.selection.choice import lie_inside
from cryoformer_dist.viewer.desk import Desk
from cryoformer_dist.viewer.films import Filmed
from cryoformer_dist.viewer.snapshot import Snapshot

Ask = Callable[..., Any]
EVERYTHING: dict[str, list[Any]] = {"lassos": [], "gates": []}


def round_half(snapshot: Snapshot) -> dict[str, Any]:
    """A slanted lasso round about half of the particles."""
    x, y = (snapshot.columns.values(axis) for axis in ("pc1", "pc2"))
    left, right, low, high = float(x.min()), float(x.max()), float(y.min()), float(y.max())
    polygon = [[left - 1, low - 1], [right, low - 1], [left, high + 1], [left - 1, high + 1]]
    return {"lassos": [{"how": "union", "axes": ["pc1", "pc2"], "polygon": polygon}], "gates": []}


def test_the_run_is_described_with_every_column(ask: Ask, snapshot: Snapshot, run: Path) -> None:
    described = ask("describe_run")
    assert (described["particles"], described["box"], described["dimensions"]) == (64, 16, 2)
    assert {each["name"] for each in described["columns"]} == set(snapshot.columns.columns)
    for each in described["columns"]:
        values = snapshot.columns.values(each["name"])
        assert (each["low"], each["high"]) == (float(values.min()), float(values.max()))
    assert "consensus.mrc" in described["maps"]


def test_columns_travel_as_numbers(desk: Desk, snapshot: Snapshot, read_arrays: Callable[..., Any]) -> None:
    answer = desk.read_column("pc1")
    assert answer.content_type == "application/octet-stream"
    arrays, _ = read_arrays(answer.body, answer.headers["X-About"])
    assert arrays["values"].dtype == np.float32
    np.testing.assert_array_equal(arrays["values"], snapshot.columns.values("pc1"))


def test_a_lasso_goes_round_a_selection_that_is_written_as_the_particles_came(
    ask: Ask, snapshot: Snapshot, run: Path
) -> None:
    chosen = round_half(snapshot)
    arrays, told = ask("choose", **chosen)
    x, y = (snapshot.columns.values(axis).astype(np.float64) for axis in ("pc1", "pc2"))
    inside = np.flatnonzero(lie_inside(x, y, np.array(chosen["lassos"][0]["polygon"])))
    np.testing.assert_array_equal(arrays["particles"], inside)
    assert 5 < len(inside) < 60
    assert told == {"told": "lasso of 4 corners in pc1, pc2"}

    saved = ask("save", name="half", chosen=chosen, files=[".star", ".pkl"], refined_poses=False)
    assert saved["particles"] == len(inside)
    assert [Path(each).name for each in saved["written"]] == ["half.json", "half.star", "half.pkl"]
    selection = read_selection(run / SELECTIONS / "half.json")
    rows = np.sort(snapshot.columns.source_row[inside])
    np.testing.assert_array_equal(selection.source_row, rows)
    assert isinstance(selection.origin, Lasso)
    given, written = read_particles(Path(snapshot.columns.source.path)), read_particles(run / SELECTIONS / "half.star")
    np.testing.assert_array_equal(written.defocus_u_angstrom, given.defocus_u_angstrom[rows])


def test_maps_of_particles_latents_selections_and_files(ask: Ask, snapshot: Snapshot) -> None:
    own = snapshot.trained.decode(snapshot.latents[[7]])[0]
    latent = snapshot.latents[7].tolist()
    for asked in ({"kind": "particle", "particle": 7}, {"kind": "latent", "latent": latent}):
        arrays, told = ask("make_map", **asked)
        assert (arrays["voxels"].dtype, told["averaged"]) == (np.float16, 1)
        density = arrays["voxels"].astype(np.float32) * told["factors"]["voxels"]
        np.testing.assert_allclose(density, own, atol=1e-3 * np.abs(own).max())
        assert own.min() < told["level"] < own.max()
        assert arrays["flexibility"].shape == own.shape
    assert ask("make_map", kind="selection", chosen=EVERYTHING)[1]["averaged"] == 16
    mask, _ = ask("make_map", kind="file", name="occupancy.mrc")
    assert set(np.unique(mask["voxels"])) == {0, 1}


def test_a_path_and_its_images(ask: Ask, snapshot: Snapshot) -> None:
    path, _ = ask("find_path", axes=["pc1", "pc2"], corners=[], ends=[3, 9], stops=5)
    np.testing.assert_allclose(path["latents"][[0, -1]], snapshot.latents[[3, 9]], atol=1e-4)
    assert path["particles"].sum() == len(snapshot.columns)
    images, _ = ask("show_images", chosen=round_half(snapshot), count=4, seed=0)
    assert {images[name].shape for name in ("images", "filtered", "projected")} == {(4, 16, 16)}


def test_progress_curves_and_the_newest_checkpoint(ask: Ask, snapshot: Snapshot) -> None:
    records, told = ask("tell_progress")
    assert (told["newest_step"], told["shown_step"], told["finished"]) == (snapshot.step, snapshot.step, True)
    assert len(records["loss"]) > 2
    assert ask("read_curves") == ({}, {"tables": []})
    assert ask("show_newest") == ask("describe_run")


@pytest.mark.parametrize(
    ("what", "asked", "why"),
    [
        ("choose", {"lassos": [{"how": "union", "axes": ["pc1", "pc9"], "polygon": [[0, 0]] * 3}], "gates": []}, "pc9"),
        ("choose", {"lassos": [{"how": "union", "axes": ["pc1", "pc2"], "polygon": [[0, 0]]}], "gates": []}, "three"),
        ("choose", {"lassos": "all"}, "cannot be understood"),
        ("make_map", {"kind": "particle", "particle": 64}, "this run has 0 to 63"),
        ("make_map", {"kind": "particle", "particle": -1}, "this run has 0 to 63"),
        ("make_map", {"kind": "file", "name": "../config.yaml"}, "no map of this run"),
        ("make_map", {"kind": "latent", "latent": [1]}, "2 finite numbers"),
        ("show_images", {"chosen": EVERYTHING, "count": 99, "seed": 0}, "1 to 24 images"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(desk: Desk, what: str, asked: dict[str, Any], why: str) -> None:
    with pytest.raises(CryoFormerError, match=why):
        getattr(desk, what)(json.dumps(asked))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "../escape"}, "cannot be the name"),
        ({"name": ""}, "cannot be the name"),
        ({"files": [".exe"]}, "unknown kind"),
        ({"files": [".cs"]}, "no place in a .cs"),
        ({"chosen": EVERYTHING | {"gates": [{"column": "pc1", "low": 1e9, "high": None}]}}, "no particle is selected"),
    ],
)
def test_nothing_is_written_of_what_cannot_be_saved(desk: Desk, run: Path, changes: dict[str, Any], why: str) -> None:
    before = {path for path in run.rglob("*") if path.is_file()}
    asked = {"name": "wrong", "chosen": EVERYTHING, "files": [".star"], "refined_poses": False} | changes
    with pytest.raises(CryoFormerError, match=why):
        desk.save(json.dumps(asked))
    assert {path for path in run.rglob("*") if path.is_file()} == before


def test_only_what_was_written_can_be_fetched(desk: Desk, ask: Ask, run: Path) -> None:
    ask("save", name="all", chosen=EVERYTHING, files=[".star"], refined_poses=False)
    assert desk.find_written("all.star") == run / SELECTIONS / "all.star"
    for name in ("../config.yaml", "config.yaml", "", "."):
        with pytest.raises(CryoFormerError, match="no such file among the selections"):
            desk.find_written(name)


def test_a_path_is_filmed_as_it_is_shown_and_a_single_map_turns(
    desk: Desk, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Film] = []
    monkeypatch.setattr(
        "cryoformer_dist.viewer.desk.make_film", lambda film: seen.append(film) or Filmed(b"GIF", ".gif", "")
    )
    stops = [{"kind": "latent", "latent": snapshot.latents[row].tolist()} for row in (3, 9, 20)]
    for maps in (stops, stops[:1]):
        answer = desk.make_film(json.dumps({"name": "path", "maps": maps, "level": 0.25}))
        assert answer.body == b"GIF"
        assert json.loads(answer.headers["X-About"])["suffix"] == ".gif"
    morph, turning = seen
    np.testing.assert_array_equal(morph.maps, snapshot.trained.decode(snapshot.latents[[3, 9, 20]]))
    assert (morph.level, morph.turntable, turning.turntable) == (0.25, False, True)
    with pytest.raises(CryoFormerError, match="1 to 60 maps, not 0"):
        desk.make_film(json.dumps({"name": "path", "maps": [], "level": 0.25}))
    with pytest.raises(CryoFormerError, match="cannot be understood"):
        desk.make_film(json.dumps({"name": "path", "maps": [None], "level": 0.25}))


def test_latents_are_unrolled_once_and_are_columns_from_then_on(
    ask: Ask, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryoformer_dist.exploration.analysis.embed", lambda latents: 3 * latents[:, :2])
    described = ask("embed")
    assert {"umap1", "umap2"} <= {each["name"] for each in described["columns"]}
    lasso = {"how": "union", "axes": ["umap1", "umap2"], "polygon": [[0, -99], [99, -99], [99, 99], [0, 99]]}
    arrays, _ = ask("choose", lassos=[lasso], gates=[])
    latents = read_latent_table(run)["latent"]
    np.testing.assert_array_equal(arrays["particles"], np.flatnonzero(latents[:, 0] > 0))
    (run / PARTICLE_ANALYSIS).unlink()
