import xml.etree.ElementTree as ElementTree

import numpy as np

from cryoformer_dist.figures.particle_plots import Distribution, draw_distributions


def test_every_distribution_is_drawn_with_its_name_and_median():
    rng = np.random.default_rng(0)
    page = draw_distributions(
        (
            Distribution("amplitude", rng.normal(1, 0.2, 500)),
            Distribution("probability", np.ones(500), low=0.0, high=1.0, logarithmic=True),
            Distribution("one value", np.full(500, 3.0)),
        )
    )
    text = "".join(ElementTree.fromstring(page.svg).itertext())
    for words in ("amplitude", "probability", "one value", "median 3"):
        assert words in text, words
