from cryoformer_dist.figures.page import explain_words
from cryoformer_dist.runs.glossary import GLOSSARY


def test_a_word_of_the_glossary_shows_its_meaning_once_and_what_users_wrote_stays_text() -> None:
    told = explain_words("<b> latents & latents")
    assert told == f'&lt;b&gt; <abbr title="{GLOSSARY["latents"]}">latents</abbr> &amp; latents'
