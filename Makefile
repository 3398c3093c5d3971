# Two commands on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint attack clean

demo: $(VENV)/installed
	$(BIN)/amc search digits_resnet8_channel_macs50 --out runs/demo
	$(BIN)/amc finetune "$$(ls -td runs/demo/*/s* | head -n 1)"
	$(BIN)/amc export "$$(ls -td runs/demo/*/s* | head -n 1)"

test: $(VENV)/installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy sees envs, agents and configs where they are imported from
	mkdir -p build/typed/amc
	ln -sfn $(CURDIR)/amc/* $(CURDIR)/envs $(CURDIR)/agents $(CURDIR)/configs build/typed/amc/
	cd build/typed && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p amc

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
