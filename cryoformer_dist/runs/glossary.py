"""Words of ours, each explained once: in the log where it first appears, and in the report's tooltips."""

import re
from collections.abc import Iterator

GLOSSARY = {
    "first latents": "a first guess of where each particle lies along the motion, from a mean map and a few maps of "
    "change fitted to the images; training starts from it",
    "residual outside": "of what the maps do not explain, the share that lies where the mask allows no density; the "
    "mask grows there by itself; above 5 % for long it is too tight",
    "images say": "how much one image tells of its conformation, on average: .7 nats halve the conformations that it "
    "may show, 2.3 leave a tenth; below .1 it tells next to nothing",
    "poses off by": "how wrong the given poses are found to be, in general; they are corrected as far as images allow",
    "junk": "images that probably show no particle, or no single one; they count less",
    "latent": "the few numbers that say in which conformation a particle is; near latents, like shapes",
    "latents": "the few numbers that say in which conformation each particle is; near latents, like shapes",
    "consensus map": "the one map that a refinement without conformations makes of all particles",
    "consensus": "the one map that a refinement without conformations makes of all particles",
    "FSC": "Fourier shell correlation: how well two maps agree at each resolution, 1 is the same",
    "FSC area": "mean of the Fourier shell correlation over all resolutions up to Nyquist",
    "Nyquist": "twice the pixel size, the finest detail that the images can hold",
    "nats": "units of information: .7 nats halve the possibilities, 2.3 leave a tenth",
    "k-means": "a way to divide particles into groups of like latents",
    "ROC area": "how well something is told apart: 1 is perfect, 0.5 is chance",
    "query": "one of the network's channels, each of which may attend to a part of the molecule",
    "attention": "how strongly the network looks at one of its channels at a place in the map",
    "oracle": "somebody who knows the true maps and poses, and is left with the noise of the images only",
    "pose": "from where a particle is seen, and where in its image it lies",
    "poses": "from where particles are seen, and where in their images they lie",
    "principal axis": "a direction along which latents vary most; PC1 is the first",
    "PC1": "the direction along which latents vary most",
}
"""What a user may read in the log or in a report, and what it means."""

_LOGGED = {
    "first latents": "first latents",
    "residual outside": "of residual outside",
    "images say": "images say",
    "poses off by": "poses off by",
    "junk": "% junk",
}
_WORDS = re.compile(
    r"\b(" + "|".join(sorted(map(re.escape, GLOSSARY), key=len, reverse=True)) + r")\b(?!\.\w)", re.IGNORECASE
)
_BY_LOWER_CASE = {word.lower(): word for word in GLOSSARY}


class Explainer:
    """Explains each word of the log the first time it is told."""

    def __init__(self) -> None:
        self._left = dict(_LOGGED)

    def explain(self, line: str) -> list[str]:
        """Explanations of the words in a line that were not explained yet, one line each."""
        met = [word for word, form in self._left.items() if form in line]
        for word in met:
            del self._left[word]
        return [f"  ({word}: {GLOSSARY[word]})" for word in met]


def find_words(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and entry of each word of the glossary in a text, the first time it stands there."""
    met = set()
    for found in _WORDS.finditer(text):
        word = _BY_LOWER_CASE[found[0].lower()]
        if word not in met:
            met.add(word)
            yield *found.span(), word
