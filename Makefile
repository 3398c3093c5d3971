# Two commands on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= passive

GPU_PYTHON = PYTHONSAFEPATH=1 PYTHONPATH=build/typed:experiments/speed:build/site \
	$(if $(WHEELS),$(PYTHON),$(BIN)/python)

.PHONY: demo test lint linked gpu unpacked attack clean

demo: $(VENV)/installed
	$(BIN)/amc search digits_resnet8_channel_macs50 --out runs/demo
	$(BIN)/amc finetune "$$(ls -td runs/demo/*/s* | head -n 1)"
	$(BIN)/amc export "$$(ls -td runs/demo/*/s* | head -n 1)"

test: $(VENV)/installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/installed-dev linked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/typed && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p amc

# amc, envs, agents, configs and weights where they are imported from
linked:
	@rm -rf build/typed && mkdir -p build/typed/amc
	@ln -sfn $(CURDIR)/amc/* $(CURDIR)/envs $(CURDIR)/agents $(CURDIR)/configs build/typed/amc/
	@ln -sfn $(CURDIR)/experiments/baselines/weights build/typed/amc/weights

# On a GPU: the tests that need one, then experiments/speed/gpu.py; about 8 minutes. Without network
# and pip, beside a Python that has torch and torchvision: make gpu WHEELS=folder (of what it lacks,
# for its version of Python)
gpu: $(if $(WHEELS),unpacked,$(VENV)/installed-dev) linked
	$(GPU_PYTHON) -m pytest -m cuda -p no:cacheprovider; tests=$$?; \
	$(GPU_PYTHON) experiments/speed/gpu.py && exit $$tests

unpacked:
	@rm -rf build/site && mkdir -p build/site
	@for wheel in $(WHEELS)/*.whl; do case $$wheel in \
	*/torch-*|*/torchvision-*|*/triton-*|*/nvidia_*) ;; \
	*) $(PYTHON) -m zipfile -e "$$wheel" build/site || exit 1 ;; esac; done

# kill -9, full disks, mutated files, wrong inputs: experiments/attack/README.md
attack: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python experiments/attack/run.py --out build/attack

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" setuptools
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
