"""From a trained run to chosen particles in another program's file, and back to training, as typed."""

import sys
from pathlib import Path

import numpy as np
import pytest
from support.tiny_runs import tiny_config, train

from cryoformer_dist.analysis.results import reconstruct_alone
from cryoformer_dist.cli import main as cli
from cryoformer_dist.data.selection import Combined, read_selection
from cryoformer_dist.data.store import ParticleStore
from cryoformer_dist.io.cryodrgn import read_indices_pkl
from cryoformer_dist.io.relion import read_star
from cryoformer_dist.runs.manifest import read_manifest
from cryoformer_dist.runs.results import read_latent_table
from cryoformer_dist.storage.working_folder import WorkingFolder

# Of so few particles after so few steps little is known, and the program says so.
pytestmark = pytest.mark.filterwarnings("ignore::cryoformer_dist.errors.CryoFormerWarning")
SEARCHED = {"model.latent.refinement": "search", "model.latent.start": "linear", "training.epochs": 1}


@pytest.fixture(scope="module")
def run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with a search of latents, so that all columns are there; its maps and tables made."""
    folder = tmp_path_factory.mktemp("selecting") / "tiny"
    train(tiny_config(tiny_store, SEARCHED), folder)
    reconstruct_alone(WorkingFolder.on_disk(folder))
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Type a command; what it says, or what it is refused for."""

    def type_in(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["cryoformer-dist", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert (end.value.code or 0) == (2 if said.err.startswith("error: ") else 0), said.err
        return said.err if end.value.code else said.out

    return type_in


def test_the_columns_are_listed_with_their_ranges(run: Path, command) -> None:
    lines = command("select", run, "--list").splitlines()
    names = [line.split()[0] for line in lines]
    assert {"pc1", "z2", "cluster", "junk", "amplitude", "confidence", "defocus_angstrom", "tilt_deg"} <= set(names)
    assert all(" .. " in line for line in lines)


def test_a_cluster_goes_to_relion_and_is_kept_beside_the_run(run: Path, tmp_path: Path, command) -> None:
    star, pickle = tmp_path / "one.star", tmp_path / "ind.pkl"
    said = command("select", run, "--cluster", 1, "--where", "amplitude > 0", "-o", star, "-o", pickle)
    table = read_latent_table(run)
    rows = np.sort(table["source_row"][(table["kmeans_label"] == 1) & (table["amplitude"] > 0)])
    assert f"selected  {len(rows)} of 64 particles: (cluster 1 and where amplitude > 0)" in said
    source = read_star(Path(ParticleStore.open(read_manifest(run).store).attributes.source.path))
    np.testing.assert_array_equal(read_star(star).stack_index, source.stack_index[rows])
    assert read_indices_pkl(pickle).tolist() == rows.tolist()
    kept = read_selection(run / "selections" / "one.json")
    assert kept.source_row.tolist() == rows.tolist()
    assert isinstance(kept.origin, Combined)


def test_parts_are_taken_together_as_asked(run: Path, tmp_path: Path, command) -> None:
    def rows(*arguments: object) -> set[int]:
        command("select", run, *arguments, "--name", "some")
        return set(read_selection(run / "selections" / "some.json").source_row.tolist())

    everything, one = rows(), rows("--cluster", 1)
    command("select", run, "--where", "source_row < 20", "-o", tmp_path / "ind.pkl", "-o", tmp_path / "first.json")
    first = set(range(20))
    assert everything == set(range(64))
    assert rows("--cluster", 0, "--cluster", 1) == everything
    assert rows("--cluster", 1, "--ind", tmp_path / "ind.pkl") == one & first
    assert rows("--cluster", 1, "--selection", tmp_path / "first.json", "--any") == one | first
    assert rows("--cluster", 1, "--complement") == everything - one


def test_what_cannot_be_is_refused_before_anything_is_written(run: Path, tmp_path: Path, command) -> None:
    before = sorted((run / "selections").glob("*")) if (run / "selections").is_dir() else []
    for arguments, why in (
        ((), "say where to with --output"),
        (("--name", "../x"), "cannot be the name of a selection"),
        (("--cluster", 7, "-o", tmp_path / "a.star"), "no cluster 7; there are 0 to 1"),
        (("--where", "jnk < 1", "-o", tmp_path / "a.star"), "no column jnk; did you mean junk?"),
        (("--where", "junk > 2", "-o", tmp_path / "a.star"), "no particle is left (where junk > 2)"),
        (("-o", tmp_path / "a.cs"), "the particles came from"),
        (("--selection", tmp_path / "absent.json", "-o", tmp_path / "a.star"), "no such selection"),
    ):
        assert why in command("select", run, *arguments)
    assert list(tmp_path.iterdir()) == []
    assert (sorted((run / "selections").glob("*")) if (run / "selections").is_dir() else []) == before


def test_a_selection_is_trained_on_again_and_may_go_afterwards(
    run: Path, tiny_store: Path, tmp_path: Path, command
) -> None:
    picked = tmp_path / "picked.json"
    said = command("select", run, "--where", "source_row < 40", "-o", picked)
    assert said.splitlines()[-1].startswith("next: cryoformer-dist train RUN.yaml --set dataset.selection=")
    again = tmp_path / "again"
    train(tiny_config(tiny_store, {"training.epochs": 1, "dataset.selection": str(picked)}), again)
    picked.unlink()
    reconstruct_alone(WorkingFolder.on_disk(again))
    assert read_manifest(again).particles == 40
    assert np.sort(read_latent_table(again)["source_row"]).tolist() == list(range(40))
    command("select", again, "-o", tmp_path / "all.star")
    assert len(read_star(tmp_path / "all.star")) == 40


def test_a_selection_is_converted_by_itself(run: Path, tmp_path: Path, command) -> None:
    command("select", run, "--where", "source_row >= 30", "-o", tmp_path / "late.json")
    source = Path(ParticleStore.open(read_manifest(run).store).attributes.source.path)
    options = ("-o", tmp_path / "late.zarr", "--local", "--contrast", "light")
    command("convert", source, "--from-selection", tmp_path / "late.json", *options)
    store = ParticleStore.open(tmp_path / "late.zarr")
    assert np.sort(store.particles().source_row).tolist() == list(range(30, 64))
    other = tmp_path / "other.star"
    other.write_text(source.read_text() + "\n")
    said = command("convert", other, "--from-selection", tmp_path / "late.json", *options)
    assert "another content" in said
