"""Make hf_decoding.npz: what HF's beam search, greedy decoding and samplers' filters do with the same predictions.

Run with a Python that has torch, timm and transformers: python tests/golden/make_decoding_goldens.py

`table` [positions, V, V] are the logits of a model that looks up the place and the token before it, so that only the
search is compared. `cases` is JSON: the arguments of each search, whose results are `tokens/NUMBER` [prompts, returned,
new tokens] and `scores/NUMBER`. `filter_logits` [rows, V] and `kept/NUMBER`, by `filters`, are what may be drawn.
"""

import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from tests.golden import reference

reference.import_timm()  # before transformers, which imports torchvision too
import transformers  # noqa: E402
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel  # noqa: E402
from transformers.generation import logits_process  # noqa: E402
from transformers.modeling_outputs import CausalLMOutput  # noqa: E402

VOCAB_SIZE, NEW_TOKENS, EOS, PAD = 9, 12, 2, 1  # not 0, which HF takes for no padding at all
PROMPTS = [[0], [2], [3], [4], [5], [6], [7], [8]]


class LookUp(PreTrainedModel, GenerationMixin):
    """Logits are a row of a table, by the place and the token there."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, config, table):
        super().__init__(config)
        self.table = torch.nn.Parameter(torch.from_numpy(table))
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **_):
        return CausalLMOutput(logits=self.table[torch.arange(input_ids.shape[1]), input_ids])

    def prepare_inputs_for_generation(self, input_ids, **_):
        return {"input_ids": input_ids}


def make_table(rng) -> np.ndarray:
    table = 1.5 * rng.standard_normal((NEW_TOKENS, VOCAB_SIZE, VOCAB_SIZE))
    table[:, :, EOS] += rng.uniform(-1.0, 2.0, (NEW_TOKENS, VOCAB_SIZE))  # some prompts end soon, others late
    return table.astype(np.float32)


def search(model, case) -> dict[str, np.ndarray]:
    stops = {"exact": "never", "heuristic": False, "full": True}
    config = GenerationConfig(
        num_beams=case["beams"],
        num_return_sequences=case["beams"],
        max_new_tokens=NEW_TOKENS,
        early_stopping=stops[case["stop"]] if case["beams"] > 1 else False,
        length_penalty=case["alpha"],
        eos_token_id=EOS if case["eos"] else None,
        pad_token_id=PAD,
        forced_eos_token_id=EOS if case["force_eos"] else None,
        bad_words_ids=[[token] for token in case["suppressed_ids"]] or None,
        do_sample=False,
        use_cache=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    tokens = np.full((len(PROMPTS), case["beams"], NEW_TOKENS), PAD, np.int32)
    scores = np.zeros((len(PROMPTS), case["beams"]), np.float32)
    out = model.generate(torch.tensor(PROMPTS), generation_config=config)
    new = out.sequences[:, 1:].reshape(len(PROMPTS), case["beams"], -1).numpy()
    tokens[:, :, : new.shape[2]] = new
    if case["beams"] > 1:
        scores[:] = out.sequences_scores.reshape(scores.shape).numpy()
    return {"tokens": tokens, "scores": scores}


def main() -> None:
    rng = np.random.default_rng(4)
    table = make_table(rng)
    model = LookUp(PretrainedConfig(vocab_size=VOCAB_SIZE, is_encoder_decoder=False), table).eval()
    usual = {"beams": 4, "alpha": 1.0, "stop": "heuristic", "eos": True, "force_eos": False, "suppressed_ids": []}
    cases = [
        usual | {"stop": stop, "alpha": alpha, "beams": beams}
        for stop, alpha, beams in itertools.product(("exact", "heuristic", "full"), (-0.5, 0.0, 1.0, 2.5), (2, 4))
    ]
    cases += [usual | {"beams": 1}, usual | {"beams": 1, "force_eos": True}, usual | {"eos": False}]
    cases += [usual | {"force_eos": True, "suppressed_ids": [PAD, 5], "stop": stop} for stop in ("exact", "full")]
    entries = {"table": table, "prompts": np.array(PROMPTS, np.int32)}
    for number, case in enumerate(cases):
        found = search(model, case)
        entries |= {f"tokens/{number}": found["tokens"], f"scores/{number}": found["scores"]}

    filters = list(itertools.product((0.5, 1.0, 1.7), (0, 1, 4), (0.3, 0.9, 1.0)))
    logits = rng.standard_normal((12, 20)).astype(np.float32) * 2
    for number, (temperature, top_k, top_p) in enumerate(filters):
        warpers = [logits_process.TemperatureLogitsWarper(temperature)] if temperature != 1.0 else []
        warpers += [logits_process.TopKLogitsWarper(top_k)] if top_k else []
        warpers += [logits_process.TopPLogitsWarper(top_p)] if top_p < 1.0 else []
        warped = torch.from_numpy(logits)
        for warper in warpers:
            warped = warper(None, warped)
        entries[f"kept/{number}"] = torch.isfinite(warped).numpy()
    about = {"source": "HF transformers, generate()", "transformers": transformers.__version__}
    about |= {"torch": torch.__version__, "cases": cases, "filters": filters}
    entries |= {"about": json.dumps(about), "filter_logits": logits}
    np.savez_compressed(Path(__file__).with_name("hf_decoding.npz"), **entries)


if __name__ == "__main__":
    main()
