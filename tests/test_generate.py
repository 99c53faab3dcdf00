"""The command that generates: against the whole model run again for every token, and what it refuses."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx
from tokenizers import models as tokenizer_models
from tokenizers import pre_tokenizers

import train
from swin_jax import generate, models
from swin_jax.data.text.tokenizer import train_tokenizer
from swin_jax.runs import open_run
from swin_jax.training.default_config import default_config
from swin_jax.training.workdir import config_to_dict
from tests.convert import goldens
from tests.text_runs import config_arguments, mistake, result_of, write_text

LENGTH = 32  # the runs' context
PAD, BOS, EOS, UNK, MASK = range(5)


def trained(folder, name, **overrides):
    """Train, and take the text away: generating needs none."""
    text = write_text(folder / f"{name}.txt")
    common = {"total_steps": 200, "batch_size": 16, "data.source": f"text:{text}", "text.held_out": 0.2}
    common |= {"text.sequence_length": LENGTH, "text.eval_stride": LENGTH}
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    result_of(train, *config_arguments(folder / name, "austen_lm", common | overrides))
    text.unlink()
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def running(folder):
    """A run on windows of characters, with positions up to its context."""
    return trained(folder, "running", model__positions="learned", total_steps=400)


@pytest.fixture(scope="module")
def whole(folder):
    """A prefix language model on whole texts of bytes, packed; rotary, so without a limit."""
    options = {"text__packed": True, "text__tokenizer": "byte", "task__objective": "prefix", "model__depth": 2}
    return trained(folder, "whole", **options)


@pytest.fixture(scope="module")
def masked(folder):
    return trained(folder, "masked", model__name="masked_transformer", task__objective="masked", total_steps=2)


@pytest.fixture(scope="module")
def images(folder):
    path = folder / "images"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config_to_dict(default_config())))
    return path


class ByHand:
    """The likeliest token each time, from all tokens before it, without a cache; one prompt at a time."""

    def __init__(self, workdir, *, has_prefix=False, room=96):
        run = open_run(workdir, devices=jax.devices()[:1], reads_text=False)
        self.tokenizer, self.room, self.has_prefix = run.experiment.inputs.tokenizer, room, has_prefix
        graphdef, arrays = nnx.split(run.model())
        self._call = jax.jit(lambda *tokens, **options: nnx.merge(graphdef, arrays)(*tokens, **options))

    def greedy(self, row, count, *, forbidden, eos=None):
        row, length, total = list(row), len(row), 0.0
        options = {"prefix_lengths": jnp.array([max(1, length - 1)])} if self.has_prefix else {}
        for _ in range(count):
            tokens = np.zeros((1, self.room), np.int32)  # zeros behind the end, which a causal model does not see
            tokens[0, : len(row)] = row
            log_probs = np.array(jax.nn.log_softmax(self._call(tokens, **options)[0, len(row) - 1]))
            log_probs[list(forbidden)] = -np.inf
            row.append(int(log_probs.argmax()))
            total += log_probs.max()
            if row[-1] == eos:
                break
        return row[length:], total


def texts_of(workdir, *arguments, prompts=()):
    flags = [f"--prompt={prompt}" for prompt in prompts]
    return result_of(generate, f"--workdir={workdir}", *flags, *arguments)


def test_greedy_text_is_that_of_the_whole_model_run_for_every_token(running):
    prompts = ["the cat saw", "a", "bird and\nthen"]
    printed, result = texts_of(running, "--temperature=0", "--max_new_tokens=12", prompts=prompts)
    by_hand = ByHand(running, room=LENGTH)
    expected = []
    for prompt in prompts:
        ids, _ = by_hand.greedy(by_hand.tokenizer.encode(prompt), 12, forbidden=(PAD, BOS, EOS, UNK, MASK))
        expected.append(by_hand.tokenizer.decode(ids))
    assert result["texts"] == expected
    assert printed == "\n\n".join(prompt + text for prompt, text in zip(prompts, expected, strict=True))
    assert (result["tokens"], result["step"], result["workdir"]) == (36, 400, str(running))
    assert len(set(expected)) == 3


def test_a_prefix_model_reads_its_prompt_both_ways_and_rotary_positions_go_on(whole):
    prompts, count = ["the red bird and", "", "it ran"], LENGTH + 20
    _, result = texts_of(whole, "--temperature=0", f"--max_new_tokens={count}", "--batch_size=2", prompts=prompts)
    by_hand, one_way = ByHand(whole, has_prefix=True), ByHand(whole)
    rows = [[BOS, *by_hand.tokenizer.encode(prompt)] for prompt in prompts]
    found = [by_hand.greedy(row, count, forbidden=(PAD, BOS, UNK, MASK), eos=EOS) for row in rows]
    expected, scores = [ids for ids, _ in found], [total for _, total in found]
    assert max(map(len, expected)) > LENGTH
    assert result["texts"] == [by_hand.tokenizer.decode(row) for row in expected]
    assert result["tokens"] == sum(map(len, expected))
    np.testing.assert_allclose(result["scores"], scores, atol=2e-3)
    _, causal = one_way.greedy(rows[0], count, forbidden=(PAD, BOS, UNK, MASK), eos=EOS)
    assert abs(causal - scores[0]) > 0.02


def test_what_is_drawn_follows_the_seed_and_the_likeliest_of_one_is_greedy(running):
    arguments = ("--max_new_tokens=15",)
    drawn = [texts_of(running, *arguments, f"--seed={seed}", prompts=["the "])[1]["texts"] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    (greedy,) = texts_of(running, *arguments, "--temperature=0", prompts=["the "])[1]["texts"]
    for flag in ("--top_k=1", "--top_p=1e-6", "--temperature=1e-4"):
        assert texts_of(running, *arguments, flag, "--seed=3", prompts=["the "])[1]["texts"] == [greedy], flag
    best = texts_of(running, *arguments, "--beams=3", prompts=["the "])[1]
    by_hand = texts_of(running, *arguments, "--temperature=0", prompts=["the "])[1]
    assert best["scores"][0] * ((5 + 15) / 6) ** 0.6 >= by_hand["scores"][0] - 1e-4


def test_prompts_come_from_a_file_and_stop_at_the_context(running, tmp_path):
    (tmp_path / "prompts.txt").write_text("the cat\na red bird\n")
    _, result = texts_of(running, f"--prompts_file={tmp_path / 'prompts.txt'}")
    assert result["tokens"] == 2 * (LENGTH - len("a red bird"))
    assert [len(text) for text in result["texts"]] == [22, 22]


@pytest.mark.parametrize(
    ("run", "arguments", "message"),
    [
        ("running", ("--prompt=" + "a" * (LENGTH + 1),), "has 33 tokens, more than the model's context of 32"),
        ("running", ("--prompt=" + "a" * LENGTH,), "a prompt of 32 tokens and 1 new ones are more than the model's"),
        ("running", ("--prompt=a", "--max_new_tokens=32"), "a prompt of 1 tokens and 32 new ones are more than the"),
        ("running", ("--prompt=the caπ",), "the prompt 'the caπ' has what the tokenizer of"),
        ("running", ("--prompt=the caπ",), "does not know: 'π' (U+03C0)"),
        ("running", ("--prompt=\udcff",), "is not UTF-8"),
        ("running", ("--prompt=",), "the prompt is empty"),
        ("running", ("--source=a",), "continues a text: give --prompt=..."),
        ("running", ("--prompt=a", "--source=a"), "give one of --prompt=..., --source=... and --prompts_file=..."),
        ("running", (), "give one of --prompt=..."),
        ("running", ("--prompts_file=/nowhere.txt",), "there is no file /nowhere.txt"),
        ("running", ("--prompt=a", "--checkpoint=7"), "no checkpoint '7'"),
        ("running", ("--prompt=a", "--model=gpt2"), "give either --workdir=... or --model=..."),
        ("running", ("--prompt=a", "--tokenizer=x.json"), "a run has its own"),
        ("running", ("--prompt=a", "--beams=2", "--top_k=3"), "--top_k is of sampling, which --beams=2 is not"),
        ("running", ("--prompt=a", "--length_penalty=1"), "--length_penalty is of a beam search"),
        ("running", ("--prompt=a", "--temperature=-1"), "--temperature"),
        ("running", ("--prompt=a", "--top_p=0"), "top_p=0"),
        ("running", ("--prompt=a", "--beams=0"), "--beams"),
        ("masked", ("--prompt=a",), "has a MaskedTransformer, which fills in tokens and generates no text"),
        ("images", ("--prompt=a",), "is a run on images, which generates no text"),
        ("folder", ("--prompt=a",), "is no workdir"),
        (None, ("--prompt=a",), "give either --workdir=... or --model=..."),
        (None, ("--prompt=a", "--model=gpt2"), "--pretrained=... is missing"),
        (None, ("--prompt=a", "--model=gtp2", "--pretrained=x"), "unknown model 'gtp2'; did you mean 'gpt2'?"),
        (None, ("--prompt=a", "--model=vit_base_patch16_224", "--pretrained=x"), "which generates no text"),
        (None, ("--prompt=a", "--model=gpt2", "--pretrained=/nowhere/x.bin"), "there is no /nowhere/tokenizer.json"),
    ],
)
def test_mistakes_are_one_line(run, arguments, message, request):
    workdir = [f"--workdir={request.getfixturevalue(run)}"] if run else []
    assert message in mistake(generate, *workdir, *arguments)


def test_a_file_of_prompts_that_is_not_utf8(running, tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"the \xff\n")
    told = mistake(generate, f"--workdir={running}", f"--prompts_file={tmp_path / 'prompts.txt'}")
    assert "is not UTF-8: invalid start byte at byte 4" in told


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's reads still under way
def test_a_workdir_whose_tokenizer_is_not_its_own(running, tmp_path):
    shutil.copytree(running, tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").write_text(train_tokenizer("byte", ["a"]).to_json())
    assert "no usable checkpoint" in mistake(generate, f"--workdir={tmp_path / 'run'}", "--prompt=a")


@pytest.fixture
def published(request, tmp_path, monkeypatch):
    """A golden's weights in HF's file beside a tokenizer of words `w0`, `w1`, ...; its name, tokens and file."""
    name = request.param
    about = json.loads(str(goldens.read(name)["about"]))
    options = {key: value for key, value in about["model"].items() if key != "name"}
    family = models._FAMILIES.get(about["model"]["name"]) or models._PRESETS[about["model"]["name"]][0]
    preset = models._PRESETS.get(about["model"]["name"], (family, {}))[1] | options
    monkeypatch.setitem(models._PRESETS, "tiny", (family, preset))
    generation = about["generation"]
    if "source" in goldens.read(name):
        special = {int(goldens.read(name)["decoder_start_id"]): "<pad>", generation["forced_eos_token_id"]: "</s>"}
    else:
        special = {generation["eos_token_id"]: "<|endoftext|>"}
    words = {special.get(id, f"w{id}"): id for id in range(preset["vocab_size"])}
    library = tokenizers.Tokenizer(tokenizer_models.WordLevel(words, unk_token="w1"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(list(special.values()))
    library.save(str(tmp_path / "tokenizer.json"))
    return name, generation, goldens.write_weights(goldens.part(name, "weights"), tmp_path)


def words_of(row, generation):
    end = {generation.get("eos_token_id"), generation.get("forced_eos_token_id")} - {None}
    kept = row[: min((place for place, id in enumerate(row) if id in end), default=len(row))]
    return " ".join(f"w{id}" for id in kept)


@pytest.mark.parametrize("published", ["hf_gpt2"], indirect=True)
def test_gpt2_goes_on_as_hfs_does(published):
    name, generation, weights = published
    entries, expected = goldens.read(name), goldens.part(name, "generated")["greedy"][:, 0].tolist()
    rows = [row[-n:] for row, n in zip(entries["prompts"], entries["prompt_lengths"], strict=True)]
    prompts = [f"--prompt={' '.join(f'w{id}' for id in row)}" for row in rows]
    count = f"--max_new_tokens={generation['max_new_tokens']}"
    arguments = ("--model=tiny", f"--pretrained={weights}", "--temperature=0", count)
    printed, result = result_of(generate, *arguments, *prompts)
    assert "HF GPT-2" in printed
    assert result["texts"] == [words_of(row, generation) for row in expected]
    # An empty prompt is the token that ends a text.
    assert result_of(generate, *arguments, "--prompt=")[1]["tokens"] >= 1


@pytest.mark.parametrize("published", ["hf_marian"], indirect=True)
def test_marian_translates_as_hfs_does(published):
    name, generation, weights = published
    entries, searches = goldens.read(name), json.loads(str(goldens.read(name)["about"]))["searches"]
    rows = [row[: n - 1] for row, n in zip(entries["source"], entries["source_lengths"], strict=True)]
    sources = [f"--source={' '.join(f'w{id}' for id in row)}" for row in rows]
    search = searches["beam"]
    penalty, count = search.get("length_penalty", 1.0), ({**generation, **search})["max_new_tokens"]
    arguments = (f"--beams={search['num_beams']}", f"--length_penalty={penalty}", f"--max_new_tokens={count}")
    _, result = result_of(generate, "--model=tiny", f"--pretrained={weights}", *arguments, *sources)
    expected = goldens.part(name, "generated")["beam"][:, 0].tolist()
    assert result["texts"] == [words_of(row, generation) for row in expected]


@pytest.mark.parametrize("published", ["hf_gpt2"], indirect=True)
def test_a_tokenizer_larger_than_the_published_vocabulary(published, tmp_path):
    _, _, weights = published
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.add_tokens(["another"])
    library.save(str(tmp_path / "larger.json"))
    flags = ("--model=tiny", f"--pretrained={weights}", f"--tokenizer={tmp_path / 'larger.json'}", "--prompt=w3")
    size = library.get_vocab_size()
    assert f"({size - 1}," in mistake(generate, *flags)
