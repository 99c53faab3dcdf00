"""Decoding against HF's `generate` on the same predictions: see tests/golden/make_decoding_goldens.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from swin_jax.decoding import LengthPenalty, Sampling, TokenRules, beam_search, generate
from tests.decoding.tiny import LookUp

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "hf_decoding.npz")
ABOUT = json.loads(str(GOLDEN["about"]))
NEW = GOLDEN["table"].shape[0]


def name_of(case: dict) -> str:
    return " ".join(f"{key}={value}" for key, value in case.items())


@pytest.fixture(scope="module")
def model():
    return LookUp(GOLDEN["table"])


@pytest.mark.parametrize("number", range(len(ABOUT["cases"])), ids=[name_of(case) for case in ABOUT["cases"]])
def test_searches_equal_hf(model, number):
    case = ABOUT["cases"][number]
    rules = TokenRules(
        eos_id=2 if case["eos"] else None,
        pad_id=1,
        suppressed_ids=tuple(case["suppressed_ids"]),
        force_eos=case["force_eos"],
    )
    tokens, scores = GOLDEN[f"tokens/{number}"], GOLDEN[f"scores/{number}"]
    if case["beams"] == 1:
        result = generate(model, GOLDEN["prompts"], max_new_tokens=NEW, temperature=0, rules=rules)
        np.testing.assert_array_equal(result.tokens, tokens[:, 0])
        return
    result = beam_search(
        model,
        GOLDEN["prompts"],
        max_new_tokens=NEW,
        beams=case["beams"],
        length_penalty=LengthPenalty(case["alpha"], "power"),
        stop=case["stop"],
        rules=rules,
    )
    np.testing.assert_array_equal(result.tokens, tokens)
    np.testing.assert_allclose(result.scores, scores, rtol=1e-5)


def test_the_searches_differ():
    """A golden in which stopping and penalties made no difference would prove nothing of them."""
    found = {
        (case["stop"], case["alpha"], case["beams"]): GOLDEN[f"tokens/{number}"].tobytes()
        for number, case in enumerate(ABOUT["cases"])
        if case["eos"] and not case["force_eos"]
    }
    for alpha in (1.0, 2.5):
        assert len({found[stop, alpha, 2] for stop in ("exact", "heuristic", "full")}) == 3, alpha
    assert len({found["exact", alpha, 4] for alpha in (-0.5, 0.0, 1.0, 2.5)}) == 4


@pytest.mark.parametrize("number", range(len(ABOUT["filters"])), ids=[str(options) for options in ABOUT["filters"]])
def test_what_may_be_drawn_equals_hf(number):
    kept = np.isfinite(Sampling(*ABOUT["filters"][number]).filter(GOLDEN["filter_logits"]))
    np.testing.assert_array_equal(kept, GOLDEN[f"kept/{number}"])
