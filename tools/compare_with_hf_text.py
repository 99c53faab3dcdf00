"""Compare GPT-2 and Marian at full size with HF transformers: logits, greedy and beam search, and weights back to HF.

Run with a Python that has this package, torch, timm and transformers:

    python tools/compare_with_hf_text.py [--models gpt2 opus_mt ...] [--tolerance=1e-4]

All weights are random everywhere and go to ours through the file that HF writes; the second row of each batch is
padded. Prints a JSON object for each model; the exit code is 1 if logits differ by more than the tolerance, or a
generated token does.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from flax import nnx  # noqa: E402

from swin_jax.convert import load_pretrained, save_hf  # noqa: E402
from swin_jax.decoding import LengthPenalty, TokenRules, beam_search, generate  # noqa: E402
from swin_jax.models import create_model  # noqa: E402
from tests.golden.reference import import_timm  # noqa: E402

import_timm()  # before transformers, which imports torchvision too
from tests.golden.text_goldens import PUBLISHED_GPT2, full_size, randomize_text  # noqa: E402

NEW_TOKENS, BEAMS = 16, 4


def compare(name: str, folder: Path) -> dict:
    reference = randomize_text(full_size(name), seed=0, logits_scale=2.0, gain=1.0)
    config = reference.config
    rules = TokenRules(eos_id=config.eos_token_id, pad_id=config.pad_token_id)
    is_marian = config.is_encoder_decoder
    length = config.max_position_embeddings
    lengths = torch.tensor([length, length // 3])
    mask = torch.arange(length) < lengths[:, None]
    tokens = torch.randint(1, 50_000, (2, length), generator=torch.Generator().manual_seed(1))
    source, target = (torch.where(mask, part, config.pad_token_id) for part in (tokens, tokens.flip(1)))
    inputs = dict(input_ids=source, attention_mask=mask)
    with torch.no_grad():
        logits = reference(**inputs, **({"decoder_input_ids": target} if is_marian else {})).logits
    reference.save_pretrained(folder)

    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    report = load_pretrained(model, folder / "model.safetensors")
    graph, state = nnx.split(model)
    segments = mask.numpy().astype(np.int32)
    if is_marian:
        arguments = (source.numpy(), target.numpy()), dict(source_segments=segments, target_segments=segments)
    else:
        arguments = (source.numpy(),), dict(segments=segments)
    ours = jax.jit(lambda state, batch, segments: nnx.merge(graph, state)(*batch, **segments))(state, *arguments)
    expected = logits[mask].numpy()
    result = {
        "model": name,
        "length": length,
        "loaded": len(report.loaded),
        "logits_std": round(float(expected.std()), 2),
        "logits_max": round(float(np.abs(expected).max()), 1),
        "logits_difference": float(np.abs(np.asarray(ours)[mask.numpy()] - expected).max()),
    }
    result["same_tokens"] = searched_alike(reference, model, rules)

    save_hf(model, folder / "model.safetensors")
    back = type(reference).from_pretrained(folder).eval()
    differing = [
        key for key, tensor in reference.state_dict().items() if not torch.equal(tensor, back.state_dict()[key])
    ]
    return result | {"differing_back_in_hf": differing}


def searched_alike(reference, model: nnx.Module, rules: TokenRules) -> dict[str, bool]:
    """Tell of greedy decoding and beam search whether all tokens are HF's, of three inputs of different lengths."""
    config = reference.config
    rows = [
        torch.randint(1, 50_000, (length,), generator=torch.Generator().manual_seed(length)) for length in (9, 4, 14)
    ]
    longest = max(map(len, rows))
    side = "right" if config.is_encoder_decoder else "left"
    batch = torch.nn.utils.rnn.pad_sequence(rows, True, config.pad_token_id, padding_side=side)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True, 0, padding_side=side)
    options = dict(attention_mask=mask, max_new_tokens=NEW_TOKENS)
    prompts, source, num_prompt = [row.numpy() for row in rows], None, longest
    if config.is_encoder_decoder:
        options["bad_words_ids"] = [[config.pad_token_id]]
        rules = TokenRules(rules.eos_id, rules.pad_id, suppressed_ids=(rules.pad_id,), force_eos=True)
        prompts, source, num_prompt = [[config.decoder_start_token_id]] * len(rows), prompts, 1
    found = {}
    for beams in (1, BEAMS):
        theirs = reference.generate(batch, num_beams=beams, **options)[:, num_prompt:].numpy()
        common = dict(max_new_tokens=NEW_TOKENS, source=source, rules=rules)
        if beams == 1:
            ours = generate(model, prompts, temperature=0.0, **common).tokens
        else:
            penalty = LengthPenalty(1.0, "power")
            ours = beam_search(model, prompts, beams=beams, length_penalty=penalty, stop="heuristic", **common)
            ours = ours.tokens[:, 0]
        padded = np.full(ours.shape, rules.pad_id)
        padded[:, : theirs.shape[1]] = theirs
        found["greedy" if beams == 1 else "beam"] = bool(np.array_equal(padded, ours))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["gpt2", "opus_mt"], choices=[*PUBLISHED_GPT2, "opus_mt"])
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()
    failed = []
    for name in arguments.models:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            result = compare(name, Path(folder))
        print(json.dumps(result | {"seconds": round(time.perf_counter() - start, 1)}), flush=True)
        is_same = all(result["same_tokens"].values()) and not result["differing_back_in_hf"]
        if not (is_same and result["logits_difference"] <= arguments.tolerance):
            failed.append(name)
        gc.collect()
        jax.clear_caches()
    print(json.dumps({"compared": len(arguments.models), "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
