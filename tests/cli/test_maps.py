from pathlib import Path

import pytest
from support.command_line import run_main


def test_fsc_speaks_of_two_maps_and_writes_table_and_picture_and_mask_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from cryoformer_dist.io.mrc import read_volume, write_volume
    from cryoformer_dist.physics.grids import radius_grid
    from cryoformer_dist.physics.volume import Volume

    monkeypatch.chdir(tmp_path)
    radius = radius_grid(16, 3)
    generator = torch.Generator().manual_seed(0)
    for name in ("one", "two"):
        noisy = torch.exp(-radius.square() / 8) + 0.1 * torch.randn(radius.shape, generator=generator)
        write_volume(Path(f"{name}.mrc"), Volume(noisy, 4.0))
    write_volume(Path("mask.mrc"), Volume((radius < 6).float(), 4.0))
    arguments = ("fsc", "one.mrc", "two.mrc", "--mask", "mask.mrc", "-o", "out/fsc.csv", "--figure", "out/fsc.svg")
    assert run_main(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    for words in ("box 16", "4 A per voxel", "Nyquist 8 A", "mask.mrc", "corrected", "FSC 0.143"):
        assert words in said
    assert Path("out/fsc.csv").read_text().startswith("shell,frequency_per_angstrom,resolution_angstrom,unmasked")
    assert "mask.mrc" in Path("out/fsc.svg").read_text()
    assert run_main(monkeypatch, "mask", "one.mrc", "-o", "own.mrc", "--threshold", "0.4", "--soft-edge", "20") == 0
    made = capsys.readouterr().out
    for words in ("threshold   0.4", "soft edge of 20 A", "A^3:", "kDa", f"--set training.mask={tmp_path / 'own.mrc'}"):
        assert words in made
    assert 0 < read_volume(Path("own.mrc")).voxels.mean() < 1
    assert run_main(monkeypatch, "fsc", "one.mrc", "two.mrc") == 0
    assert "masked" not in capsys.readouterr().out.replace("unmasked", "")


def test_local_resolution_is_measured_told_and_filtered_to(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from cryoformer_dist.io.mrc import read_volume, write_volume
    from cryoformer_dist.physics.volume import Volume

    monkeypatch.chdir(tmp_path)
    shown = read_volume(finished_run / "volumes" / "mean.mrc")
    for seed, name in enumerate(("one", "two")):
        noise = torch.randn(shown.voxels.shape, generator=torch.Generator().manual_seed(seed))
        noisy = shown.voxels + 0.05 * shown.voxels.max() * noise
        write_volume(Path(f"{name}.mrc"), Volume(noisy, shown.voxel_size_angstrom))
    assert run_main(monkeypatch, "local-resolution", "one.mrc", "two.mrc", "-o", "resolution.mrc") == 0
    assert "A in the middle" in capsys.readouterr().out
    measured = read_volume(Path("resolution.mrc")).voxels
    assert float(measured.min()) >= 2 * shown.voxel_size_angstrom - 1e-3
    for options, folder in (((), "plain"), (("--local-resolution", "resolution.mrc"), "filtered")):
        assert run_main(monkeypatch, "volumes", finished_run, "--particle", 3, *options, "-o", folder) == 0
    plain, filtered = (read_volume(Path(name) / "particle_000.mrc").voxels for name in ("plain", "filtered"))
    assert float(filtered.std()) < float(plain.std())
    assert float(torch.corrcoef(torch.stack([plain.ravel(), filtered.ravel()]))[0, 1]) > 0.8
