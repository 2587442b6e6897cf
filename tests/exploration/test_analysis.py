import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from cryoformer_dist.errors import ExplorationError
from cryoformer_dist.exploration.analysis import analyze_latents, describe_findings, keep_embedding, write_findings
from cryoformer_dist.selection.columns import ParticleColumns, read_columns


@pytest.fixture(scope="module")
def columns(finished_run: Path) -> ParticleColumns:
    return read_columns(finished_run, str(finished_run))


def with_table(columns: ParticleColumns, **arrays: np.ndarray) -> ParticleColumns:
    return replace(columns, table={**columns.table, **arrays})


def test_what_is_found_lies_in_the_run_and_becomes_columns(finished_run: Path, columns: ParticleColumns) -> None:
    found = analyze_latents(columns, 3, umap=False)
    summary = write_findings(finished_run, columns, found)
    told = json.loads((finished_run / "analysis" / "analysis.json").read_text())
    assert told["particles"] == told["trusted"] == 64
    assert sum(group["particles"] for group in told["clusters"]) == 64
    assert sum(group["share"] for group in told["mixture"]) == pytest.approx(1)
    assert "embedded" not in told
    assert image.imread(finished_run / "analysis" / "landscape.png").shape[0] > 300
    with np.load(finished_run / "analysis" / "landscape.npz") as landscape:
        assert landscape["energy"].shape == landscape["error"].shape == (64, 64)
    again = read_columns(finished_run, str(finished_run))
    np.testing.assert_array_equal(again.values("mixture"), found.label)
    assert any(line.startswith("mixture") for line in describe_findings(summary))


def test_columns_of_an_earlier_checkpoint_are_forgotten(finished_run: Path, columns: ParticleColumns) -> None:
    earlier = replace(columns, run=replace(columns.run, checkpoint_step=1))
    write_findings(finished_run, earlier, analyze_latents(earlier, 1, umap=False))
    assert "mixture" not in read_columns(finished_run, str(finished_run)).columns


def test_an_embedding_stays_beside_what_is_found_later(
    finished_run: Path, columns: ParticleColumns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryoformer_dist.exploration.analysis.embed", lambda latents: 2 * latents[:, :2])
    keep_embedding(finished_run, columns)
    write_findings(finished_run, columns, analyze_latents(columns, 1, umap=False))
    again = read_columns(finished_run, str(finished_run))
    np.testing.assert_array_equal(again.values("umap1"), 2 * columns.table["latent"][:, 0])
    assert "mixture" in again.columns


def test_junk_is_not_counted_and_widths_are_turned_onto_the_axes(columns: ParticleColumns) -> None:
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(64, 2)).astype(np.float32) * np.array([1, 3], dtype=np.float32)
    width = np.tile(np.array([0.1, 0.4], dtype=np.float32), (64, 1))
    weight = (np.arange(64) < 50).astype(np.float32)
    table = {"latent": latents, "pca": latents[:, ::-1], "explained_variance": np.array([0.9, 0.1])}
    found = analyze_latents(with_table(columns, **table, latent_deviation=width, weight=weight), 1, umap=False)
    assert found.summarise(columns).trusted == 50
    assert found.blur == pytest.approx((0.4, 0.1), abs=0.02)


def test_one_axis_has_a_profile_and_none_is_refused(finished_run: Path, columns: ParticleColumns) -> None:
    narrow = with_table(columns, explained_variance=np.array([1.0, 0.0]))
    found = analyze_latents(narrow, 1, umap=False)
    assert found.plane.energy.shape == (64,)
    write_findings(finished_run, narrow, found)
    with pytest.raises(ExplorationError, match="do not vary"):
        analyze_latents(with_table(columns, explained_variance=np.zeros(2)), 1, umap=False)


def test_two_crowds_are_told_as_two_wells(columns: ParticleColumns) -> None:
    rng = np.random.default_rng(0)
    latents = (rng.normal(size=(64, 2)) + np.array([12.0, 0]) * (np.arange(64) % 2)[:, None]).astype(np.float32)
    table = {"latent": latents, "pca": latents, "explained_variance": np.array([0.9, 0.1])}
    found = analyze_latents(with_table(columns, **table), 2, umap=False)
    assert len(found.mixture.best) == 2
    # Widths are those of a crowd, not of both together.
    assert found.plane.bandwidth == pytest.approx((0.5, 0.5), rel=0.3)
    lines = describe_findings(found.summarise(columns))
    assert sum(line.startswith("well ") for line in lines) == 2
