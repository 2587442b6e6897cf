import pytest
from pydantic import ValidationError

from cryoformer_dist.config.nuisances import JunkConfig, NuisancesConfig
from cryoformer_dist.config.simulation import PerturbationConfig, SimulationConfig


def test_nothing_is_unkind_by_itself():
    nuisances = SimulationConfig().nuisances
    assert (nuisances.noise.ratio, nuisances.noise.ice_share) == (1, 0)
    assert set(nuisances.brightness.model_dump().values()) == {0.0}
    assert set(nuisances.junk.model_dump().values()) == {0.0}
    assert nuisances.ctf_errors.model_dump() == {
        "defocus_sd_angstrom": 0.0,
        "true_amplitude_contrast": None,
        "b_factor": 0.0,
    }
    assert (nuisances.views.share, nuisances.crowd.share, nuisances.optics_groups) == (0, 0, ())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise": {"ratio": 0.5}}, "greater than or equal to 1"),
        ({"noise": {"shape": "pink"}}, "power_law"),
        ({"noise": {"ice_share": 1.5}}, "less than or equal to 1"),
        ({"brightness": {"contrast_sd": -0.1}}, "greater than or equal to 0"),
        ({"junk": {"empty": 0.5, "blobs": 0.5}}, "leave no particle"),
        ({"ctf_errors": {"true_amplitude_contrast": 1}}, "less than 1"),
        ({"views": {"share": 0.5, "cap_deg": 0}}, "greater than 0"),
        ({"crowd": {"share": 0.5, "width": 0.3, "centre": 0.9}}, "leaves the motion"),
        ({"optics_groups": [{"weight": 0}]}, "greater than 0"),
        ({"contrast": 0.3}, "Extra inputs"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(values, message):
    with pytest.raises(ValidationError, match=message):
        NuisancesConfig.model_validate(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nuisances": {"views": {"share": 0.5}}, "poses": {"table": "a.star"}}, "leave one out"),
        ({"nuisances": {"crowd": {"share": 0.5}}, "states": {"kind": "discrete", "count": 2}}, "states.weights"),
        ({"nuisances": {"ctf_errors": {"b_factor": 50}}, "ctf": {"apply": False}}, "leave one out"),
        ({"nuisances": {"optics_groups": [{}, {}]}, "particles": 1}, "more optics groups than particles"),
        (
            {
                "nuisances": {"optics_groups": [{"pixel_size_angstrom": 3}]},
                "source": {"kind": "volumes", "paths": ["a.mrc"]},
                "states": {"kind": "discrete"},
            },
            "own pixel size",
        ),
        ({"perturbation": {"rotation_variance": 0.1, "rotation_sd_deg": 2}}, "two kinds of error"),
        ({"perturbation": {"shift_pixels": 1, "shift_sd_pixels": 1}}, "two kinds of error"),
    ],
)
def test_nuisances_that_contradict_the_rest_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        SimulationConfig.model_validate(values)


def test_errors_of_the_paper_and_of_a_refinement_go_together_across_rotation_and_shift():
    assert PerturbationConfig(rotation_sd_deg=2, shift_pixels=1).rotation_variance == 0
    assert JunkConfig(empty=0.3, blobs=0.3).neighbours == 0
