"""Words of ours, each explained once: in the log where it first appears, and in the report's tooltips."""

GLOSSARY = {
    "first latents": "a first guess of where each particle lies along the motion, from a mean map and a few maps of "
    "change fitted to the images; training starts from it",
    "residual outside": "of what the maps do not explain, the share that lies where the mask allows no density; the "
    "mask grows there by itself; above 5 % for long it is too tight",
    "images say": "how much one image tells of its conformation, on average: .7 nats halve the conformations that it "
    "may show, 2.3 leave a tenth; below .1 it tells next to nothing",
    "poses off by": "how wrong the given poses are found to be, in general; they are corrected as far as images allow",
    "junk": "images that probably show no particle, or no single one; they count less",
}
"""What a user may read in the log, and what it means."""

_LOGGED = {"residual outside": "of residual outside"}


class Explainer:
    """Explains each word the first time it is told."""

    def __init__(self) -> None:
        self._left = dict(GLOSSARY)

    def explain(self, line: str) -> list[str]:
        """Explanations of the words in a line that were not explained yet, one line each."""
        met = [word for word in self._left if _LOGGED.get(word, word) in line]
        return [f"  ({word}: {self._left.pop(word)})" for word in met]
