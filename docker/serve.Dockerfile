# The server, on a CPU: a page and JSON over HTTP. From the repository's root:
#
#     docker build -f docker/serve.Dockerfile -t carbox-serve .
#
# A run or an export is mounted at /carbox/model.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
FROM ${PYTHON_IMAGE}

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

ENV HOME=/home/carbox
RUN useradd --uid 1000 --create-home carbox \
    && mkdir -p /carbox/model \
    && chmod -R a+rwX /home/carbox

# The dependencies before the code, on empty packages, so that an edit does not fetch them again.
WORKDIR /opt/carbox
COPY pyproject.toml requirements.lock README.md LICENSE ./
RUN mkdir carbox tfrecords trainer \
    && pip install --only-binary :all: --constraint requirements.lock ".[serve]"

COPY carbox carbox
COPY tfrecords tfrecords
COPY trainer trainer
RUN pip install --no-deps --force-reinstall . && pip check

ARG REVISION=unknown
LABEL org.opencontainers.image.title="carbox-serve" \
    org.opencontainers.image.description="Names the object on a photo and draws its box, over HTTP." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.revision="${REVISION}"

USER 1000
WORKDIR /carbox
EXPOSE 8080
# The model takes seconds to load; until then nobody answers.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "trainer.serve", "--host=0.0.0.0", "--model=/carbox/model"]
