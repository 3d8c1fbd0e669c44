# make demo: serves the page, training both models first if there are no weights.
# make test: runs every test. Each makes .venv for itself.
PYTHON ?= python3
.PHONY: demo test lint

.venv/run: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/dev: .venv/run requirements-dev.txt
	.venv/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@

weights/lstm.safetensors: | .venv/run
	.venv/bin/python train_lstm.py

weights/cnn.safetensors: | .venv/run
	.venv/bin/python train_cnn.py

demo: weights/lstm.safetensors weights/cnn.safetensors
	.venv/bin/python demo.py

# One thread each: the tests' models are so small that two would only wait for each other.
test: .venv/dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
