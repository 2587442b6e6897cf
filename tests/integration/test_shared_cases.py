"""Every input that once went wrong, from the folder of such cases: each gives what its note asks for."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from cryoformer_dist.analysis.map_fsc import read_and_compare
from cryoformer_dist.config.loading import load_cluster, load_config
from cryoformer_dist.config.schema import RunConfig
from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.config.sweep import SweepConfig
from cryoformer_dist.data.convert import ConversionOptions, ConversionPlan, plan_conversion
from cryoformer_dist.errors import CryoFormerError, CryoFormerWarning
from cryoformer_dist.io.atoms import read_structure
from cryoformer_dist.io.cryodrgn import read_ctf_pkl
from cryoformer_dist.io.reading import read_particles
from cryoformer_dist.io.stated import NOTHING_STATED, StatedValues

LONGEST_MESSAGE = 4000


def plan(source: Path, output: Path, stated: StatedValues = NOTHING_STATED) -> ConversionPlan:
    options = ConversionOptions(contrast="light", stated=stated)
    return plan_conversion(read_particles(source, stated=stated), output, options)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("01_duplicate_images_across_halves/in.star", r"more than one half-set: particle rows 1 and 2"),
        ("02_pixel_size_five_million/in.star", r"row 1 .*rlnMagnification: pixel size 5\.28866e\+06 A is not within"),
        ("04_amplitude_contrast_percent/in.star", r"rlnAmplitudeContrast: .* was it written in percent"),
        ("05_wrapped_row/in.star", r"line 40, data_particles: row 6 has 7 of 12 cells"),
        ("07_no_origins/in.star", r"rlnOriginXAngst.*--centred"),
        ("09_heterogeneous_refinement_cs/in.cs", r"poses are per class .*3 classes.*refine one class.*--class 0 to 2"),
        ("11_extended_header_missing/in.star", r"promises an extended header of 57600 bytes that is not there"),
        ("12_defocus_in_micrometre/in.star", r"median defocus .*was it written in micrometre"),
    ],
)
def test_a_case_from_a_public_report_is_refused_for_what_it_is(shared_cases, tmp_path, case, words):
    with pytest.raises(CryoFormerError, match=words):
        plan(shared_cases / case, tmp_path / "s.zarr")


def test_premultiplied_images_are_read_as_such(shared_cases, tmp_path):
    (group,) = plan(shared_cases / "03_ctf_premultiplied_flag/in.star", tmp_path / "s.zarr").table.optics
    assert group.imaging.correction == "multiplied by CTF"


def test_all_in_one_half_is_said(shared_cases, tmp_path):
    with pytest.warns(CryoFormerWarning, match="all 60 particles are in half-set 1"):
        plan(shared_cases / "06_all_in_one_half/in.star", tmp_path / "s.zarr")


def test_what_is_missing_can_be_said(shared_cases, tmp_path):
    stated = StatedValues(centred=True)
    made = plan(shared_cases / "07_no_origins/in.star", tmp_path / "s.zarr", stated)
    assert not made.table.shift_angstrom.any()
    assert made.attributes.conversion.stated == stated
    table = read_particles(shared_cases / "09_heterogeneous_refinement_cs/in.cs", stated=StatedValues(class_number=1))
    assert table.rotation is not None
    assert np.isfinite(table.rotation).all()


def read_yaml(case: Path, kind: str) -> object:
    schemas = {"sweep": SweepConfig, "sim": SimulationConfig, "simrun": RunConfig, "run": RunConfig}
    return load_config(case, schemas[kind]) if kind in schemas else load_cluster(case)


def read_case(folder: Path, shared_data: Path, output: Path) -> object:
    """Read a mutated file as its kind is read, particles as far as to the plan of a conversion."""
    (file,) = (path for path in folder.iterdir() if path.name != "what.txt")
    first_word = (folder / "what.txt").read_text().split()[0]
    readers = {
        "star": lambda: plan(file, output),
        "cs": lambda: plan(file, output),
        "starseeds": lambda: read_particles(file, datadir=shared_data / "particles/tomodrgn_2class"),
        "pkl": lambda: read_ctf_pkl(file),
        "fsc": lambda: read_and_compare(file, file),
        "model": lambda: read_structure(file),
        "yaml": lambda: read_yaml(file, first_word),
    }
    return readers[folder.name.split("-")[0]]()


def test_every_mutated_file_is_refused_in_one_message_that_names_it(shared_cases, shared_data, tmp_path):
    accepted, unnamed, long = [], [], []
    folders = sorted((shared_cases / "mutated").iterdir())
    assert len(folders) > 40
    for folder in folders:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CryoFormerWarning)
                read_case(folder, shared_data, tmp_path / "s.zarr")
        except CryoFormerError as error:
            message = str(error)
            unnamed += [folder.name] if not re.search(r"m\.\w+|ctf\.pkl", message) else []
            long += [folder.name] if len(message) > LONGEST_MESSAGE else []
            continue
        accepted.append(folder.name)
    # A cluster file without GPUs is right; what its launch said was about the bucket.
    assert (accepted, unnamed, long) == (["yaml-a--134"], [], [])
