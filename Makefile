# Every environment is made by pip from the package index and is left alone until its inputs change.
#
#   make demo [IMAGE=my.jpg]    code a photograph at three qualities; needs no torch
#   make family [IMAGE=my.jpg]  code a photograph with a member of the research family, MEMBER=small-phase3
#   make test                   the tests, with torch in an environment of their own
#   make test-all               the slow ones too
#   make fuzz [SECONDS=60]      attacks on whatever reads bytes, each for that long
#   make sanitize [SECONDS=60]  the kernels under the compiler's sanitizers, with attacks for that long
#   make lint                   ruff and mypy
#   make kernels                the compiled kernels for this machine, beside their sources; needs g++
#   make bench [IMAGE=my.jpg]   times of whole commands against `python -c "import torch"`; speed and memory at three
#                               sizes, by phase, beside other codecs; each kernel against its bound
#   make clean                  remove all that the Makefile has made
#
# PYTHON       the interpreter that makes the environments
# CONSTRAINT   the file of pinned versions; `make test CONSTRAINT=` takes what the index has to offer, torch included
# WORKERS      processes that share the tests out among themselves; auto: one for each core
# THREADS      threads of numpy and torch in each of them; more than one is slow beside a busy process
# SECONDS      of each attack; SEED chooses others
# SANITIZERS   address, undefined, thread, allocations; all of them without it

PYTHON ?= python3
CONSTRAINT = constraints.txt
IMAGE =
WORKERS = auto
MEMBER = small-phase3
THREADS = 1
SECONDS = 60
SEED = 0
SANITIZERS =

PIP_INSTALL = -m pip install --quiet --disable-pip-version-check
# A test follows those of its file on one worker, which has made what they share, until another runs out of work.
PYTEST = OMP_NUM_THREADS=$(THREADS) OPENBLAS_NUM_THREADS=$(THREADS) .venv-test/bin/python -m pytest \
	-n $(WORKERS) --dist worksteal
PINS = $(if $(CONSTRAINT),-c $(CONSTRAINT))
INPUTS = Makefile constraints.txt pyproject.toml

CODING = click ninja numpy onnxruntime pillow rich safetensors
CHECKS = dask distributed einops hatchling hypothesis mypy onnx packaging pytest pytest-xdist ruff scipy torch
EVALUATION = matplotlib pillow-heif pillow-jxl-plugin pytorch-msssim ssimulacra2
# Installed without what they depend on: of compressai only the entropy coder is used, of scikit-image the photographs.
BARE = compressai scikit-image
# The oldest versions that pyproject.toml admits, numpy 1 among them.
OLDEST = click==8.1.0 ninja==1.11.1 numpy==1.26.0 onnxruntime==1.18.0 pillow==10.1.0 rich==13.0.0 safetensors==0.4.2

.PHONY: demo family test test-all fuzz sanitize lint bench kernels clean
.DELETE_ON_ERROR:

demo: .venv/ready
	@.venv/bin/python hpcmcodec/native/build.py prebuild --optional
	.venv/bin/python -m hpcmcodec.evaluation.demo $(if $(IMAGE),"$(IMAGE)")

family: .venv-test/ready
	@.venv-test/bin/python hpcmcodec/native/build.py prebuild --optional
	.venv-test/bin/python -m hpcmcodec.evaluation.family quickstart $(MEMBER) $(if $(IMAGE),"$(IMAGE)")

test: .venv-test/ready
	@.venv-test/bin/python hpcmcodec/native/build.py prebuild --optional
	$(PYTEST)

test-all: .venv-test/ready .venv-oldest/ready
	@.venv-test/bin/python hpcmcodec/native/build.py prebuild --optional
	HPCM_OLDEST="$(CURDIR)/.venv-oldest/bin/python" $(PYTEST) -m ""

fuzz: .venv-test/ready
	@.venv-test/bin/python hpcmcodec/native/build.py prebuild --optional
	for kind in headers files streams images; do \
	    .venv-test/bin/python -m tests.fuzz $$kind --seconds $(SECONDS) --seed $(SEED) || exit 1; \
	done

sanitize: .venv-test/ready
	.venv-test/bin/python -m tests.sanitizers $(SANITIZERS) --seconds $(SECONDS) --seed $(SEED)

lint: .venv-test/ready
	.venv-test/bin/ruff check .
	.venv-test/bin/mypy

bench: .venv-test/ready
	@.venv-test/bin/python hpcmcodec/native/build.py prebuild --optional
	.venv-test/bin/python -m tools speed $(if $(IMAGE),"$(IMAGE)")
	.venv-test/bin/python -m tools bench
	.venv-test/bin/python -m tools kernels

# The standard library is all that this needs; with ninja, which the environments above have, several sources are
# compiled at once, and only what changed. It does nothing where the sources have been built already.
kernels:
	$(or $(wildcard .venv-test/bin/python),$(wildcard .venv/bin/python),$(PYTHON)) hpcmcodec/native/build.py prebuild

clean:
	rm -rf kernels/*.so kernels/.build .venv .venv-test .venv-oldest demo build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find hpcmcodec tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/ready: $(INPUTS)
	@echo "Making .venv (without torch)"
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) $(PINS) $(CODING)
	.venv/bin/python $(PIP_INSTALL) $(PINS) --no-deps $(BARE)
	.venv/bin/python $(PIP_INSTALL) --no-deps --editable .
	touch $@

.venv-test/ready: $(INPUTS)
	@echo "Making .venv-test (with torch; the first time takes minutes)"
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(PIP_INSTALL) $(PINS) $(CODING) $(CHECKS) $(EVALUATION)
	.venv-test/bin/python $(PIP_INSTALL) $(PINS) --no-deps $(BARE)
	.venv-test/bin/python $(PIP_INSTALL) --no-deps --editable .
	touch $@

.venv-oldest/ready: $(INPUTS)
	@echo "Making .venv-oldest (without torch)"
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP_INSTALL) $(OLDEST)
	.venv-oldest/bin/python $(PIP_INSTALL) --no-deps compressai==1.2.8
	.venv-oldest/bin/python $(PIP_INSTALL) --no-deps --editable .
	touch $@
