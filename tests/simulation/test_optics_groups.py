import numpy as np

from cryoformer_dist.config.simulation import SimulationConfig
from cryoformer_dist.simulation.acquisition import draw_ctf
from cryoformer_dist.simulation.optics_groups import group_particles, plan_sessions


def configured(*groups, **values) -> SimulationConfig:
    return SimulationConfig.model_validate(
        {"particles": 40, "box_size": 24, "nuisances": {"optics_groups": groups}} | values
    )


def test_a_set_without_groups_is_one_session_as_the_rest_of_the_file_says():
    (session,) = plan_sessions(configured(snr=0.2))
    assert (session.rows, session.snr, session.box_length_angstrom) == (slice(0, 40), 0.2, 230.0)
    assert session.noise.ratio == 1


def test_sessions_share_the_particles_by_weight_and_say_what_is_their_own():
    config = configured({"weight": 3, "snr": 0.3}, {"pixel_size_angstrom": 10, "noise": {"ratio": 5}})
    first, second = plan_sessions(config)
    assert (first.rows, second.rows) == (slice(0, 30), slice(30, 40))
    assert (first.snr, second.snr) == (0.3, 0.1)
    assert (first.box_length_angstrom, second.box_length_angstrom) == (230.0, 240.0)
    assert (first.noise.ratio, second.noise.ratio) == (1, 5)


def test_sessions_alike_at_the_microscope_are_groups_of_their_own():
    config = configured({"snr": 0.3}, {"snr": 0.1}, {"pixel_size_angstrom": 10})
    groups, of_particle = group_particles(config, plan_sessions(config), draw_ctf(config).given)
    assert [group.pixel_size_angstrom for group in groups] == [230 / 24, 230 / 24, 10]
    np.testing.assert_array_equal(of_particle, np.repeat([0, 1, 2], [13, 14, 13]))
