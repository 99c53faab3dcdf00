"""GPT-2 and Marian as HF transformers computes them: logits, gradients, greedy and beam search.

Entries beside those of the other goldens: `logits` of rows padded on the right, whose padding means nothing, and
`gradients/KEY` of the mean cross-entropy on `labels` (-1: none), under the names of the weights; `prompts` and their
`prompt_lengths`; `generated/SEARCH` [B, hypotheses, N], prompts left out, and `scores/SEARCH` [B, hypotheses], for each
of the searches in `about`, which has HF's arguments.
"""

import json

import torch
import transformers

from tests.golden.writing import published_hf_weights

GPT2 = dict(vocab_size=61, n_positions=40, n_embd=16, n_layer=2, n_head=4)
MARIAN = dict(
    vocab_size=53,
    d_model=16,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=40,
    activation_function="swish",
    scale_embedding=True,
    pad_token_id=52,
    decoder_start_token_id=52,
    eos_token_id=0,
    forced_eos_token_id=0,
)

PUBLISHED_GPT2 = {  # n_embd, n_layer, n_head
    "gpt2": (768, 12, 12),
    "gpt2_medium": (1024, 24, 16),
    "gpt2_large": (1280, 36, 20),
    "gpt2_xl": (1600, 48, 25),
}
OPUS_MT_EN_DE = dict(  # Helsinki-NLP/opus-mt-en-de
    vocab_size=58_101,
    d_model=512,
    encoder_layers=6,
    decoder_layers=6,
    encoder_attention_heads=8,
    decoder_attention_heads=8,
    encoder_ffn_dim=2048,
    decoder_ffn_dim=2048,
    max_position_embeddings=512,
    activation_function="swish",
    scale_embedding=True,
    pad_token_id=58_100,
    decoder_start_token_id=58_100,
    eos_token_id=0,
    forced_eos_token_id=0,
)


def full_size(name: str) -> transformers.PreTrainedModel:
    """Build a published model under the name of our preset, with HF's initial weights."""
    if name == "opus_mt":
        return transformers.MarianMTModel(transformers.MarianConfig(**OPUS_MT_EN_DE))
    width, depth, num_heads = PUBLISHED_GPT2[name]
    config = transformers.GPT2Config(n_embd=width, n_layer=depth, n_head=num_heads, pad_token_id=50_256)
    return transformers.GPT2LMHeadModel(config)


def beam(**options) -> dict:
    return dict(num_beams=4, num_return_sequences=4, **options)


SEARCHES = {
    "greedy": dict(num_beams=1),
    "beam": beam(),  # HF's default: log-probabilities over the length
    "beam_sum": beam(length_penalty=0.0),
    "beam_short": beam(max_new_tokens=3),
}


def randomize_text(model: torch.nn.Module, seed: int, *, logits_scale: float, gain: float) -> torch.nn.Module:
    """Make every parameter random: logits spread by about `logits_scale`, and the branches' outputs by `gain`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith(("wte.weight", "shared.weight")):
                tensor.copy_(logits_scale * noise / tensor.shape[1] ** 0.5)
            elif name.endswith(("wpe.weight", "final_logits_bias")):
                tensor.copy_(noise)
            elif tensor.ndim == 1:
                tensor.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))
            elif "embed_positions" not in name:  # Marian's are fixed
                tensor.copy_(gain * noise / tensor.shape[0 if ".c_" in name else 1] ** 0.5)  # GPT-2's are [in, out]
    return model.eval()


def text_golden(model: torch.nn.Module, our: dict, generation: dict) -> dict:
    about = dict(
        source=f"HF {type(model).__name__}",
        torch=torch.__version__,
        transformers=transformers.__version__,
        model=our,
        generation=generation,
        searches=SEARCHES,
    )
    weights = published_hf_weights(model)
    return {"about": json.dumps(about), **{f"weights/{name}": weight for name, weight in weights.items()}}


def add_text_run(entries: dict, model: torch.nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Add logits and labels `[B, N]`, of the tokens after each, and the gradients."""
    model.zero_grad()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1).backward()
    entries |= {"logits": logits, "labels": labels}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.grad is not None:
            entries[f"gradients/{name}"] = tensor.grad


def add_searches(entries: dict, model, tokens: torch.Tensor, mask: torch.Tensor, generation: dict) -> None:
    for name, options in SEARCHES.items():
        arguments = {**generation, **options}
        output = model.generate(
            tokens, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **arguments
        )
        num_prompt = 1 if model.config.is_encoder_decoder else tokens.shape[1]
        entries[f"generated/{name}"] = output.sequences[:, num_prompt:].unflatten(0, (len(tokens), -1))
        if "sequences_scores" in output:
            entries[f"scores/{name}"] = output.sequences_scores.unflatten(0, (len(tokens), -1))


def hf_gpt2(_) -> dict:
    """Prompts are padded on the left, and get the positions that they have without."""
    from transformers import GPT2Config, GPT2LMHeadModel

    eos, pad = 1, 2
    config = GPT2Config(**GPT2, bos_token_id=eos, eos_token_id=eos, pad_token_id=pad)
    model = randomize_text(GPT2LMHeadModel(config), seed=20, logits_scale=2.0, gain=1.5)
    our = dict(name="gpt2", vocab_size=61, max_length=40, embed_dim=16, depth=2, num_heads=4)
    generation = dict(max_new_tokens=16, pad_token_id=pad, eos_token_id=eos)
    entries = text_golden(model, our, generation)

    tokens = torch.randint(3, GPT2["vocab_size"], (5, 12), generator=torch.Generator().manual_seed(21))
    lengths = torch.tensor([12, 7, 3, 9, 1])
    mask = torch.arange(12) < lengths[:, None]
    padded = torch.where(mask, tokens, pad)
    entries |= {"tokens": padded, "lengths": lengths}
    labels = torch.nn.functional.pad(torch.where(mask, tokens, -1)[:, 1:], (0, 1), value=-1)
    add_text_run(entries, model, model(padded, attention_mask=mask).logits, labels)

    mask = mask[:, :8].flip(1)
    prompts = torch.where(mask, tokens[:, :8], pad)
    entries |= {"prompts": prompts, "prompt_lengths": mask.sum(1)}
    add_searches(entries, model, prompts, mask, generation)
    return entries


def reversals(batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sources of 2 to 7 tokens and the eos `[B, 8]`, and as labels the same backwards; -1 behind the end."""
    eos = MARIAN["eos_token_id"]
    places, lengths = torch.arange(8), torch.randint(2, 8, (batch_size, 1), generator=generator)
    tokens = torch.randint(1, MARIAN["pad_token_id"], (batch_size, 8), generator=generator)
    backwards = tokens.gather(1, (lengths - 1 - places).clamp(min=0))
    return tuple(torch.where(places < lengths, row, eos).where(places <= lengths, -1) for row in (tokens, backwards))


def hf_marian(_) -> dict:
    """After a few updates on a toy task, from random weights, generation ends and does not repeat itself.

    Without them, tied embeddings and post-norm say the last token again. Padding is on the right, and never generated.
    """
    from transformers import MarianConfig, MarianMTModel

    pad, eos = MARIAN["pad_token_id"], MARIAN["eos_token_id"]
    model = randomize_text(MarianMTModel(MarianConfig(**MARIAN)), seed=30, logits_scale=2.0, gain=1.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # which keeps the gradient from padding's embedding, that targets begin with too
    generator = torch.Generator().manual_seed(31)

    def run(source: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        target = torch.nn.functional.pad(labels.where(labels >= 0, pad), (1, -1), value=pad)
        mask = source >= 0
        return model(source.where(mask, pad), attention_mask=mask, decoder_input_ids=target).logits

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        source, labels = reversals(64, generator)
        loss = torch.nn.functional.cross_entropy(run(source, labels).flatten(0, 1), labels.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    our = dict(
        name="opus_mt", vocab_size=53, max_length=40, embed_dim=16, depth=2, encoder_depth=1, num_heads=2, mlp_ratio=3.0
    )
    generation = dict(max_new_tokens=12, bad_words_ids=[[pad]], forced_eos_token_id=eos)
    entries = text_golden(model, our, generation)
    source, labels = reversals(6, generator)
    mask = source >= 0
    entries |= {"source": source.where(mask, pad), "source_lengths": mask.sum(1), "decoder_start_id": pad}
    model.final_logits_bias.requires_grad_()
    add_text_run(entries, model, run(source, labels), labels)
    model.final_logits_bias.requires_grad_(False)
    add_searches(entries, model, source.where(mask, pad), mask, generation)
    return entries
