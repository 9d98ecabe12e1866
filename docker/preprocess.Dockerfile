# A worker of Beam for `preprocess.run`, and the command itself, without TensorFlow. From the
# repository's root:
#
#     docker build -f docker/preprocess.Dockerfile -t carbox-preprocess .
#
# CLOUD=gcp or CLOUD=aws adds what gs:// or s3:// paths need. Dataflow's folders are root's: build
# the image for it with RUN_AS=root.
#
# Beam's contract for a worker is its program `boot`: Dataflow and Docker environments start it with
# the worker's id, `--worker_pool` makes it a pool on port 50000. It alone is taken from Beam's own
# image, whose gigabytes of compilers and cloud tools no worker of carbox needs.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
ARG BEAM_IMAGE=apache/beam_python3.11_sdk:2.77.0
FROM ${BEAM_IMAGE} AS beam

FROM ${PYTHON_IMAGE}
ARG CLOUD=
ARG RUN_AS=1000

# `boot` would otherwise make a virtual environment for each job, in a folder of root's.
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1

ENV HOME=/home/carbox
RUN useradd --uid 1000 --create-home carbox \
    && mkdir -p /carbox/data \
    && chown -R carbox /carbox \
    && chmod -R a+rwX /carbox /home/carbox

# The dependencies before the code, on empty packages, so that an edit does not fetch them again.
# All are wheels, so that no compiler is needed, but one that is Python alone.
WORKDIR /opt/carbox
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY docker/constraints.txt docker/
RUN mkdir carbox preprocess tfrecords \
    && pip install --only-binary :all: --no-binary google-apitools \
        --constraint requirements.lock --constraint docker/constraints.txt \
        ".[preprocess]" "apache-beam[${CLOUD}]"

COPY --from=beam /opt/apache/beam/boot /opt/apache/beam/LICENSE /opt/apache/beam/NOTICE /opt/apache/beam/
COPY carbox carbox
COPY preprocess preprocess
COPY tfrecords tfrecords
RUN pip install --no-deps --force-reinstall . && pip check

ARG REVISION=unknown
LABEL org.opencontainers.image.title="carbox-preprocess" \
    org.opencontainers.image.description="A worker of Apache Beam that turns photos and boxes into TFRecords." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.revision="${REVISION}"

USER ${RUN_AS}
WORKDIR /carbox
ENTRYPOINT ["/opt/apache/beam/boot"]
