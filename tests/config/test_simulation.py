from pathlib import Path

import pytest
from pydantic import ValidationError

from cryoformer_dist.config.simulation import (
    HingeSource,
    MicroscopeConfig,
    PhantomSource,
    SimulationConfig,
    StatesConfig,
    VolumesSource,
)


def test_defaults_are_the_demo_set():
    config = SimulationConfig()
    assert isinstance(config.source, PhantomSource)
    assert (config.particles, config.box_size, config.snr, config.source.arc_deg) == (4000, 32, 0.1, 100.0)
    assert config.pixel_size_angstrom == 7.1875
    assert config.simulated_box == 32


def test_configuration_survives_a_round_trip_through_plain_values():
    config = SimulationConfig.model_validate(
        {
            "source": {"kind": "hinge", "model": "a.pdb", "moving": ["H:1-230", "L"], "hinge": ["H:229-232"]},
            "states": {"kind": "discrete", "count": 3, "weights": [1, 2, 3]},
            "snr": None,
        }
    )
    assert SimulationConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"box_size": 33}, "boxes are even, use 34"),
        ({"box_size": 64, "snr_box": 32}, "at least box_size"),
        ({"snr": 0}, "greater than 0"),
        ({"particels": 3}, "Extra inputs"),
        ({"ctf": {"min_defocus_angstrom": 3e4, "max_defocus_angstrom": 1e4}}, "swap"),
        ({"ctf": {"apply": False, "table": "ctf.star"}}, "leave one out"),
        ({"states": {"count": 3}}, "add kind: discrete"),
        ({"states": {"kind": "discrete"}}, "states.count is required"),
        ({"states": {"kind": "discrete", "count": 2, "weights": [0, 0]}}, "all zero"),
        ({"source": {"kind": "volumes", "paths": ["a.mrc"]}}, "set states.kind: discrete"),
        (
            {"source": {"kind": "volumes", "paths": ["a.mrc"]}, "states": {"kind": "discrete", "count": 2}},
            "number of maps, 1",
        ),
        ({"source": {"kind": "hinge", "model": "a.pdb", "moving": ["H"]}}, "name the pivot once"),
        (
            {
                "source": {
                    "kind": "hinge",
                    "model": "a.pdb",
                    "moving": ["H"],
                    "hinge": ["H:1"],
                    "axis": [0, 0, 0],
                }
            },
            "axis has no length",
        ),
        (
            {"source": {"kind": "hinge", "model": "a.pdb", "moving": ["H:one"], "hinge": ["H:1"]}},
            "should match pattern",
        ),
        ({"source": {"kind": "phantom", "arc_deg": 361}}, "less than or equal to 360"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(values, message):
    with pytest.raises(ValidationError, match=message):
        SimulationConfig.model_validate(values)


def test_relative_paths_start_at_the_given_folder_and_absolute_ones_stay():
    config = SimulationConfig(
        source=VolumesSource(kind="volumes", paths=(Path("a.mrc"), Path("/maps/b.mrc"))),
        states=StatesConfig(kind="discrete"),
        ctf=MicroscopeConfig(table=Path("ctf.star")),
    ).with_paths_from(Path("/runs"))
    assert config.source.paths == (Path("/runs/a.mrc"), Path("/maps/b.mrc"))
    assert config.ctf.table == Path("/runs/ctf.star")
    assert config.poses.table is None
    hinge = HingeSource(kind="hinge", model=Path("m.cif"), moving=("A",), hinge_angstrom=(0.0, 0.0, 0.0))
    assert SimulationConfig(source=hinge).with_paths_from(Path("/runs")).source.model == Path("/runs/m.cif")
