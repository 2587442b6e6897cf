from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.analysis.trained import load_trained
from cryoformer_dist.data.selection import RowFile, Selection, write_selection
from cryoformer_dist.errors import ExplorationError, SelectionError
from cryoformer_dist.exploration import decoding
from cryoformer_dist.exploration.decoding import Request, choose_series, write_requested
from cryoformer_dist.exploration.path import LatentPath, write_path
from cryoformer_dist.io.mrc import read_volume
from cryoformer_dist.selection.columns import ParticleColumns, read_columns
from cryoformer_dist.storage.working_folder import WorkingFolder

ROWS = (17, 3, 40)


@pytest.fixture(scope="module")
def columns(finished_run: Path) -> ParticleColumns:
    return read_columns(finished_run, str(finished_run))


@pytest.fixture(scope="module")
def decoded(finished_run: Path, columns: ParticleColumns) -> np.ndarray:
    """What the trained run itself says of the particles of `ROWS`."""
    rows = [int(np.flatnonzero(columns.source_row == row)[0]) for row in ROWS]
    return load_trained(finished_run).decode(columns.table["latent"][rows])


def selected(columns: ParticleColumns, file: Path, rows: tuple[int, ...] = ROWS) -> Path:
    return write_selection(file, Selection.of(columns.source, rows, RowFile(path="test")))


def some_path(columns: ParticleColumns) -> LatentPath:
    latents = columns.table["latent"][:3]
    points = tuple(tuple(float(number) for number in latent) for latent in latents)
    return LatentPath(columns.run, "straight", "particle 1", "cluster 0", points, (4, 0, 7), 0.5, (0.0, 1.5, 0.25))


def write(finished_run: Path, folder: Path, **request: object) -> list[np.ndarray]:
    working = WorkingFolder.on_disk(finished_run)
    written = write_requested(working, Request(**request), folder, lambda done, total: None)
    return [read_volume(path).voxels.numpy() for path in written]


def test_a_particle_s_map_is_what_the_run_decodes_from_its_latent(finished_run, columns, decoded, tmp_path):
    maps = write(finished_run, tmp_path, particles=ROWS)
    np.testing.assert_array_equal(maps, decoded)
    assert "# particle_000.mrc: particle 1 of 3: particle 17" in (tmp_path / "particle.cxc").read_text()


def test_latents_of_a_file_give_the_maps_of_the_particles_that_have_them(finished_run, columns, decoded, tmp_path):
    latents = [columns.table["latent"][columns.source_row == row][0] for row in ROWS]
    lines = ["# three of them", *(" ".join(map(repr, map(float, latent))) for latent in latents), ""]
    (tmp_path / "z.txt").write_text("\n".join(lines))
    np.testing.assert_allclose(write(finished_run, tmp_path, latents=tmp_path / "z.txt"), decoded, atol=1e-6)


def test_a_selection_is_shown_by_its_mean_its_midst_or_each(finished_run, columns, decoded, tmp_path):
    chosen = selected(columns, tmp_path / "s.json")
    each = write(finished_run, tmp_path, selection=chosen, form="each")
    # In the order of the store.
    order = np.argsort([int(np.flatnonzero(columns.source_row == row)[0]) for row in ROWS])
    np.testing.assert_array_equal(each, decoded[order])
    (mean,) = write(finished_run, tmp_path, selection=chosen)
    np.testing.assert_allclose(mean, decoded.mean(axis=0), atol=1e-6)
    (centre,) = write(finished_run, tmp_path, selection=chosen, form="centre")
    assert any(np.array_equal(centre, voxels) for voxels in decoded)
    # Maps of the earlier, longer series are gone.
    assert [path.name for path in tmp_path.glob("*.mrc")] == ["selection_000.mrc"]


def test_a_path_is_a_series_that_plays_and_tells_its_particles(finished_run, columns, tmp_path):
    file = write_path(tmp_path / "p.json", some_path(columns))
    maps = write(finished_run, tmp_path, path=file)
    np.testing.assert_array_equal(maps, load_trained(finished_run).decode(columns.table["latent"][:3]))
    script = (tmp_path / "path.cxc").read_text()
    assert "vseries play" in script
    assert "# path_000.mrc: path 1 of 3: 4 particles, particle 1" in script


def refused(finished_run: Path, columns: ParticleColumns, request: Request) -> str:
    with pytest.raises((ExplorationError, SelectionError)) as refusal:
        choose_series(finished_run, columns, request)
    return str(refusal.value)


def test_what_cannot_be_shown_is_refused_by_name(finished_run, columns, tmp_path):
    def latents(text: str) -> str:
        (tmp_path / "z.txt").write_text(text)
        return refused(finished_run, columns, Request(latents=tmp_path / "z.txt"))

    assert "say what to decode" in refused(finished_run, columns, Request())
    assert "particle 64 is not among the 64" in refused(finished_run, columns, Request(particles=(3, 64)))
    assert "latents of 3 numbers; those of this run have 2" in latents("1 2 3\n4 5 6")
    assert "could not convert string to float: 'x'" in latents("1 x")
    assert "as many numbers in each" in latents("1 2\n3")
    for text in ("", "# nothing", "1 nan"):
        assert "no latents, or not finite" in latents(text)
    assert "no such file" in refused(finished_run, columns, Request(latents=tmp_path / "absent.txt"))
    outside = selected(columns, tmp_path / "s.json", (900,))
    assert "none of its 1 particles" in refused(finished_run, columns, Request(selection=outside))
    source = replace(columns.source, sha256="0" * 64)
    strange = write_selection(tmp_path / "t.json", Selection.of(source, ROWS, RowFile(path="test")))
    assert "another content" in refused(finished_run, columns, Request(selection=strange))
    elsewhere = replace(some_path(columns), run=replace(columns.run, checkpoint_step=1))
    assert "at step 1" in refused(finished_run, columns, Request(path=write_path(tmp_path / "p.json", elsewhere)))
    stale = replace(columns, run=replace(columns.run, checkpoint_step=1))
    assert "latents are of step 1" in refused(finished_run, stale, Request(particles=ROWS))


def test_nothing_is_loaded_or_written_for_what_is_refused(finished_run, tmp_path, monkeypatch):
    def load(*arguments):
        raise AssertionError("the network was loaded")

    monkeypatch.setattr(decoding, "load_trained", load)
    with pytest.raises(ExplorationError):
        write(finished_run, tmp_path / "maps", particles=(64,))
    assert not (tmp_path / "maps").exists()


def test_a_series_longer_than_files_can_be_numbered_is_refused(finished_run, columns, monkeypatch):
    monkeypatch.setattr(decoding, "_MOST_MAPS", 2)
    assert "3 maps of one series" in refused(finished_run, columns, Request(particles=ROWS))
