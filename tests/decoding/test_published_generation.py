"""GPT-2 and Marian with HF's weights generate what HF generates, token for token."""

import json

import numpy as np
import pytest

from swin_jax.decoding import LengthPenalty, TokenRules, beam_search, generate
from tests.convert import goldens

SEARCHES = ("greedy", "beam", "beam_sum", "beam_short")


@pytest.fixture(scope="module", params=goldens.TEXT_MODELS)
def published(request, tmp_path_factory):
    """The golden's name and model, and what every search of it is called with."""
    name = request.param
    model, _ = goldens.load(name, tmp_path_factory.mktemp(name))
    entries, generation = goldens.read(name), json.loads(str(goldens.read(name)["about"]))["generation"]
    if "source" in entries:
        source = [row[:n] for row, n in zip(entries["source"], entries["source_lengths"], strict=True)]
        pad = int(entries["decoder_start_id"])
        assert generation["bad_words_ids"] == [[pad]]
        rules = TokenRules(generation["forced_eos_token_id"], pad, suppressed_ids=(pad,), force_eos=True)
        return name, model, {"prompts": [[pad]] * len(source), "source": source, "rules": rules}
    prompts = [row[-n:] for row, n in zip(entries["prompts"], entries["prompt_lengths"], strict=True)]
    rules = TokenRules(generation["eos_token_id"], generation["pad_token_id"])
    return name, model, {"prompts": prompts, "rules": rules}


@pytest.mark.parametrize("search", SEARCHES)
def test_tokens_and_scores_are_hfs(published, search):
    name, model, inputs = published
    about = json.loads(str(goldens.read(name)["about"]))
    assert set(about["searches"]) == set(SEARCHES)
    options = {**about["generation"], **about["searches"][search]}
    if search == "greedy":
        found = generate(model, **inputs, max_new_tokens=options["max_new_tokens"], temperature=0.0)
        tokens, lengths, scores = found.tokens[:, None], found.lengths[:, None], None
    else:
        tokens, lengths, scores = beam_search(
            model,
            **inputs,
            max_new_tokens=options["max_new_tokens"],
            beams=options["num_beams"],
            length_penalty=LengthPenalty(options.get("length_penalty", 1.0), form="power"),
            stop="heuristic",
        )
    expected = goldens.part(name, "generated")[search]  # as long as the longest hypothesis
    rules = inputs["rules"]
    behind = np.full((*expected.shape[:2], tokens.shape[2] - expected.shape[2]), rules.pad_id)
    np.testing.assert_array_equal(tokens, np.concatenate([expected, behind], axis=2))
    has_ended = (expected == rules.eos_id).any(axis=2)
    np.testing.assert_array_equal(
        lengths, np.where(has_ended, (expected == rules.eos_id).argmax(axis=2) + 1, options["max_new_tokens"])
    )
    if scores is not None:
        np.testing.assert_allclose(scores, goldens.part(name, "scores")[search], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", goldens.TEXT_MODELS)
def test_the_goldens_tell_searches_and_rows_apart(name):
    generated = goldens.part(name, "generated")
    generation = json.loads(str(goldens.read(name)["about"]))["generation"]
    eos = generation.get("eos_token_id", generation.get("forced_eos_token_id"))
    best = {search: [_up_to(eos, row[0].tolist()) for row in generated[search]] for search in SEARCHES}
    assert len({len(row) for rows in best.values() for row in rows if row[-1] == eos}) >= 3
    for first, second in (("greedy", "beam"), ("beam", "beam_sum"), ("greedy", "beam_sum")):
        assert sum(a != b for a, b in zip(best[first], best[second], strict=True)) >= 2


def _up_to(eos: int, row: list[int]) -> list[int]:
    return row[: row.index(eos) + 1] if eos in row else row
