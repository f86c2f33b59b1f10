# make demo: install, and run the main job on the shipped references.
# make test: lint, types and tests. `make check` runs the same without installing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
CLI := ../$(BIN)/aigc-compress

.PHONY: demo test table check lint types clean

$(VENV)/.installed-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[compress,efficientnet]'
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[compress,dev,efficientnet,openvino,tensorrt-rtx]'
	touch $@

# The contest is short here, since the bench after it is a longer one.
demo: $(VENV)/.installed-demo
	mkdir -p $(DEMO)
	cd $(DEMO) && for model in gan cnn rnn; do \
	  $(CLI) fetch $$model --force && \
	  $(CLI) export $$model.pt && \
	  $(CLI) quantize $$model.onnx --processes 3 || exit; \
	done
	cd $(DEMO) && $(CLI) sample gan.onnx -o gan.png && $(CLI) sample gan.int8.onnx -o gan.int8.png
	cd $(DEMO) && $(CLI) sample rnn.int8.onnx -o rnn.int8.txt && cat rnn.int8.txt
	cd $(DEMO) && $(CLI) bench $(foreach m,gan cnn rnn,$(m).onnx $(m).int8.onnx) -o bench.json
	@echo "Look at $(DEMO)/gan.png, $(DEMO)/gan.int8.png and $(DEMO)/rnn.int8.txt."

test: $(VENV)/.installed-test check

check: lint types
	$(BIN)/python -m pytest

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The type checkers read the installed shape, where the folders stand as one package.
types:
	rm -rf build/flat
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --target build/flat .
	cd build/flat && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p aigc_compress
	$(BIN)/pyright -p pyrightconfig.json

# The references beside other tools, one step and 64; wants a quiet machine.
table: $(VENV)/.installed-test
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[peers]'
	$(BIN)/python -m aigc_compress.bench.peers gan cnn rnn rnn-gru -o peers.json
	$(BIN)/python -m aigc_compress.bench.peers rnn rnn-gru --length 64 -o peers-64.json

clean:
	rm -rf build dist $(DEMO) .mypy_cache .pytest_cache .ruff_cache *.egg-info
