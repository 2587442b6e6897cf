from cryoformer_dist.figures.chimerax import compose_resolution_script, compose_series_script

MAPS = [(f"m_{number:03d}.mrc", f"map {number}") for number in range(3)]


def commands(maps, ordered):
    lines = compose_series_script("m.cxc", maps, 0.25, ordered).splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_maps_that_follow_one_another_are_played_at_one_level():
    opened, surface, played, *_ = commands(MAPS, ordered=True)
    assert opened == "open m_000.mrc m_001.mrc m_002.mrc vseries true"
    assert "level 0.25" in surface
    assert played.startswith("vseries play #1 ")


def test_unordered_maps_have_a_model_each_and_stand_side_by_side():
    lines = commands(MAPS, ordered=False)
    assert [line for line in lines if line.startswith("open")] == [
        "open m_000.mrc id 1", "open m_001.mrc id 2", "open m_002.mrc id 3",
    ]  # fmt: skip
    assert sum("level 0.25" in line for line in lines) == 3
    assert "tile" in lines


def test_of_many_unordered_maps_the_first_is_shown():
    many = [(f"m_{number:03d}.mrc", "") for number in range(40)]
    assert "hide #2-40 models" in commands(many, ordered=False)
    assert "tile" not in commands(many, ordered=False)


def test_a_single_map_is_no_series():
    assert not [line for line in commands(MAPS[:1], ordered=True) if "vseries" in line or line == "tile"]


def test_maps_are_coloured_by_resolutions_that_are_not_shown_themselves():
    lines = compose_resolution_script("r.cxc", [("a.mrc", "ra.mrc"), ("b.mrc", "rb.mrc")], 0.25, (6, 16)).splitlines()
    assert lines[1:4] == ["open a.mrc id 1", "open ra.mrc id 3", "hide #3 models"]
    coloured = [line for line in lines if line.startswith("color sample")]
    assert [line.split()[2:5] for line in coloured] == [["#1", "map", "#3"], ["#2", "map", "#4"]]
    values = [float(stop.split(",")[0]) for stop in coloured[0].split()[6].split(":")]
    assert (values[0], values[-1]) == (6, 16)
    assert "tile" in lines
