# The two commands of a fresh clone: `make run` and `make test`. Both install into .venv first.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: run test check test-slow cluster-test docker-test clean

run: .venv/installed
	$(BIN)/python -m preprocess.run --runner=DirectRunner --overwrite
	$(BIN)/python -m tfrecords.inspect data/tfrecords --verify --html=data/tfrecords.html
	$(BIN)/python -m trainer.task --strategy=mirrored
	find data/sample -path '*/test/*' -name '*.jpg' -print0 | sort -z -t / -k 7 | head -z -n 3 | \
		xargs -0 $(BIN)/python -m trainer.predict --model=runs/drawn-sample --top=1
	@echo "Go on with photos of your own:"
	@echo "  $(BIN)/python -m trainer.predict --model=runs/drawn-sample --output=drawn PHOTO ..."
	@echo "  $(BIN)/python -m trainer.serve --model=runs/drawn-sample"
	@echo "Pages to open in a browser:"
	@echo "  data set: data/tfrecords.html"
	@echo "  run:      runs/drawn-sample/report.html"

# The two longest files first: a file is one worker's.
test: .venv/installed
	$(BIN)/python -m pytest -q --numprocesses=2 --dist=loadfile --no-loadscope-reorder \
		tests/trainer/test_train.py tests/trainer/test_task.py tests

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test-slow: .venv/installed
	$(BIN)/python -m pytest -q -m slow --timeout=3600

# The job on real engines, with failures. It needs Java 17, Maven and Go, and builds the engines once, in
# ~/.cache/carbox-cluster. At most 45 minutes the first time, then 20.
cluster-test: .venv/installed
	$(BIN)/python -m tests.cluster.run

# Root, Go, `apt-get install buildah debootstrap`, and half an hour. EXTRA=train leaves CUDA out.
EXTRA ?= gpu
docker-test: .venv/installed
	$(BIN)/python docker/test_images.py --extra=$(EXTRA)

# The lock pins what was tested. The second line installs nothing more than carbox itself: it is there
# so that pip refuses a lock that contradicts pyproject.toml with all its extras.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check \
		--constraint requirements.lock --editable ".[dev]"
	$(BIN)/pip check
	touch $@

clean:
	rm -rf .venv build *.egg-info
