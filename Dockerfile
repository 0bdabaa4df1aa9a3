# The service's image. `docker build --target cpu .` needs no accelerator and carries the demo model.
#
# BASE_IMAGE is any Debian-like image with python3 (3.11 to 3.13) and its venv module; both stages use it, so that the
# environment that the first makes works in the second.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build-cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml ./
# torch by itself: it is the largest layer and changes least. Its version range stands in pyproject.toml alone.
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --retries 1 --index-url "${TORCH_INDEX}" \
       "$(sed -n 's/^cpu = \["\(torch[^"]*\)"\]$/\1/p' pyproject.toml)"
COPY README.md LICENSE ./
COPY app ./app
RUN /opt/venv/bin/pip install ".[cpu]" && mkdir /weights

FROM ${BASE_IMAGE} AS cpu
LABEL org.opencontainers.image.title="sdxl-turbo-server" \
      org.opencontainers.image.description="SDXL-Turbo behind HTTP, for CPU" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build-cpu /opt/venv /opt/venv
# Empty, and owned by the user, so that a volume that is laid over it can be pulled into.
COPY --from=build-cpu --chown=10001:10001 /weights /weights
# HOME is where libraries may leave caches: the only place that can be written when the root is read-only.
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TURBO_HOST=0.0.0.0 \
    TURBO_WEIGHTS_DIR=/weights
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; ready = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('TURBO_PORT') or 8000), timeout=4); ready.request('GET', '/healthz/ready'); sys.exit(ready.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "app"]
CMD ["serve"]
