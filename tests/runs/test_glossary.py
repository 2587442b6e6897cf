from support.training_records import training_record

from cryoformer_dist.runs.glossary import GLOSSARY, Explainer, find_words
from cryoformer_dist.runs.training_log import describe


def test_a_word_is_explained_where_it_first_appears_and_never_again() -> None:
    explainer = Explainer()
    line = describe(training_record(residual_outside=0.02, latent_information_nats=1.9))
    assert [told.split(":")[0] for told in explainer.explain(line)] == ["  (residual outside", "  (images say"]
    assert explainer.explain(line) == []
    assert explainer.explain("consensus map") == []
    assert explainer.explain("first latents")[0] == f"  (first latents: {GLOSSARY['first latents']})"


def test_a_nat_is_a_factor_of_e_in_the_conformations_left() -> None:
    from math import exp

    assert "0.7 nats halve" in GLOSSARY["images say"].replace(" .7", " 0.7")
    assert abs(exp(-0.7) - 1 / 2) < 0.01
    assert "2.3 leave a tenth" in GLOSSARY["images say"]
    assert abs(exp(-2.3) - 1 / 10) < 0.01


def test_words_are_found_whole_the_longest_first_and_once() -> None:
    text = "Latents against the consensus map, latents again; latent.npz is a file, relatents no word."
    assert [(text[start:end], word) for start, end, word in find_words(text)] == [
        ("Latents", "latents"),
        ("consensus map", "consensus map"),
    ]
