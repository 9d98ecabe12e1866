# The trainer on GPUs, without Beam. From the repository's root:
#
#     docker build -f docker/trainer.Dockerfile -t carbox-trainer .
#
# EXTRA=train leaves CUDA out: 2.6 GB instead of 7.1, for machines without a GPU.
#
# A plain Python base with TensorFlow's own CUDA wheels: the ready-made TensorFlow GPU image of this
# version has been reported with a cuDNN that does not match. The machine brings the driver only.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
FROM ${PYTHON_IMAGE}
ARG EXTRA=gpu

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The home and the work folder are open to any user, for `docker run --user` and for clusters that
# choose one: caches (Keras weights, kernels compiled for a new GPU, fonts) go to the home.
ENV HOME=/home/carbox
RUN useradd --uid 1000 --create-home carbox \
    && mkdir -p /carbox/data /carbox/runs \
    && chown -R carbox /carbox \
    && chmod -R a+rwX /carbox /home/carbox

# The dependencies before the code, on empty packages: gigabytes that are fetched again only when
# the versions change, not with every edit. All are wheels, so that no compiler is needed.
WORKDIR /opt/carbox
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY docker/constraints.txt docker/
RUN mkdir benchmarks carbox preprocess tfrecords trainer \
    && pip install --only-binary :all: \
        --constraint requirements.lock --constraint docker/constraints.txt ".[${EXTRA}]"

COPY carbox carbox
COPY preprocess preprocess
COPY tfrecords tfrecords
COPY trainer trainer
COPY benchmarks benchmarks
RUN pip install --no-deps --force-reinstall . && pip check

ARG REVISION=unknown
LABEL org.opencontainers.image.title="carbox-trainer" \
    org.opencontainers.image.description="Trains a model that names the object on a photo and draws its box." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.revision="${REVISION}"

# By number, which clusters can tell from root's.
USER 1000
WORKDIR /carbox
# In this form Python itself gets the SIGTERM of a cluster that takes the machine back, and saves.
ENTRYPOINT ["python", "-m", "trainer.task"]
