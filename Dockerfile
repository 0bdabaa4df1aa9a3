# The service's images, each with the demo model: `docker build --target cpu .` needs no accelerator, `--target cuda` is for NVIDIA
# GPUs, `--target npu` is for Huawei Ascend, on a CANN image.
#
# BASE_IMAGE is any Linux image with bash, python3 (3.11 to 3.14) and its venv module. The build stages and the run stages share it,
# because the environment must work in both. For npu:
#   --build-arg BASE_IMAGE=quay.io/ascend/cann:9.1.0-910b-ubuntu22.04-py3.12
# TORCH_INDEX is the package index for torch; each target has its own default.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY pyproject.toml ./
# The installers are in /opt/build; only /opt/venv goes into the images. The base image's packages are not used, because their
# selection and versions differ between images.
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/venv && mkdir /weights \
    && /opt/build/bin/pip install "$(sed -n 's/^ *"\(cyclonedx-bom[^"]*\)".*/\1/p' pyproject.toml)"
ENV PIP_PYTHON=/opt/venv/bin/python

FROM build AS build-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# torch has its own layer, because it is the largest and changes least. Only pyproject.toml has its version range.
RUN /opt/build/bin/pip install --retries 1 --index-url "${TORCH_INDEX}" \
       "$(sed -n 's/^cpu = \["\(torch[^"]*\)"\]$/\1/p' pyproject.toml)"
COPY deploy/finish-environment README.md LICENSE THIRD_PARTY.md hatch_build.py ./
COPY app ./app
# Only a compiler needs headers and setuptools, and the service compiles on accelerators only.
RUN /opt/build/bin/pip install ".[cpu,mcp]" && /opt/build/bin/pip uninstall --yes setuptools \
    && ./finish-environment torch/include

FROM build AS build-cuda
# CUDA 13.0, the version of torch's wheels on PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
RUN /opt/build/bin/pip install --retries 1 --index-url "${TORCH_INDEX}" \
       "$(sed -n 's/^cuda = \["\(torch[^"]*\)"\]$/\1/p' pyproject.toml)"
COPY deploy/finish-environment README.md LICENSE THIRD_PARTY.md hatch_build.py ./
COPY app ./app
RUN /opt/build/bin/pip install ".[cuda,mcp]" && ./finish-environment

FROM build AS build-npu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# A torch_npu version other than the pin in pyproject.toml.
ARG TORCH_NPU=
# torch_npu X.Y.Z.postN requires torch X.Y.Z, and extends torch's CPU build.
RUN if [ -n "${TORCH_NPU}" ]; then sed -i "s/\"torch-npu==[^\"]*\"/\"torch-npu==${TORCH_NPU}\"/g" pyproject.toml; fi \
    && torch=$(sed -n 's/.*"torch-npu==\([0-9.]*[0-9]\).*/\1/p' pyproject.toml) \
    && /opt/build/bin/pip install --retries 1 --index-url "${TORCH_INDEX}" "torch==${torch}"
COPY deploy/finish-environment README.md LICENSE THIRD_PARTY.md hatch_build.py ./
COPY app ./app
RUN /opt/build/bin/pip install ".[npu,mcp]" && ./finish-environment

FROM ${BASE_IMAGE} AS runtime
# The user needs a name and a home in /etc/passwd: torch names a cache after the user, and CANN puts its log folder below this home,
# regardless of HOME.
RUN echo "turbo:x:10001:10001::/tmp:/usr/sbin/nologin" >> /etc/passwd && echo "turbo:x:10001:" >> /etc/group
# Empty and owned by the user, so `pull` can write to a volume that is mounted here.
COPY --from=build --chown=10001:10001 /weights /weights
COPY deploy/healthcheck.py /opt/
# Libraries put caches into HOME. /tmp is the only writable place when the root is read-only.
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TURBO_HOST=0.0.0.0 \
    TURBO_WEIGHTS_DIR=/weights
# CANN's compiler writes files to the working directory.
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# The start period allows for gigabytes of weights on a slow disk. The first success ends it, and a service that cannot start exits.
HEALTHCHECK --interval=15s --timeout=5s --start-period=600s --retries=3 CMD ["python", "/opt/healthcheck.py"]
ENTRYPOINT ["python", "-m", "app"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=
LABEL org.opencontainers.image.title="sdxl-turbo-server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"

FROM runtime AS npu
LABEL org.opencontainers.image.description="SDXL-Turbo behind HTTP, for Huawei Ascend NPUs"
# `python` in this image is a wrapper that sets CANN's environment variables, also when the entrypoint is replaced.
COPY --chmod=755 deploy/python-with-cann /opt/cann/bin/python
COPY --chmod=755 deploy/python-with-cann /opt/cann/bin/python3
COPY --from=build-npu /opt/venv /opt/venv
COPY --from=build-npu /usr/share/sbom /usr/share/sbom
# TASK_QUEUE_ENABLE: with 2, an operator without memory for its workspace ends the queue and the process. With 1, it raises
# OutOfMemoryError, and only the request fails (NPUWorkspaceAllocator and OpParamMaker.cpp in Ascend/pytorch). Graphs cannot be
# recorded with 2 (NPUGraph.cpp).
# PYTORCH_NPU_ALLOC_CONF: pictures of many sizes would fragment the memory; segments that grow do not (vllm-ascend's images).
# OMP_NUM_THREADS: the host computes small tensors only, and idle threads would take time from the launches (as there).
# CPU_AFFINITY_CONF is not set, because its cores depend on the host: see docs/ascend.md.
# TURBO_DEVICE: if the container sees no NPU, the service exits with a reason and does not run on CPU.
ENV PATH=/opt/cann/bin:${PATH} \
    TASK_QUEUE_ENABLE=1 \
    PYTORCH_NPU_ALLOC_CONF=expandable_segments:True \
    OMP_NUM_THREADS=1 \
    TURBO_DEVICE=npu

FROM runtime AS cuda
LABEL org.opencontainers.image.description="SDXL-Turbo behind HTTP, for NVIDIA GPUs"
COPY --from=build-cuda /opt/venv /opt/venv
COPY --from=build-cuda /usr/share/sbom /usr/share/sbom
# NVIDIA_*: the GPUs and the driver libraries that NVIDIA's container runtime mounts. TURBO_DEVICE: as for npu.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TURBO_DEVICE=cuda

FROM runtime AS cpu
LABEL org.opencontainers.image.description="SDXL-Turbo behind HTTP, for CPU"
COPY --from=build-cpu /opt/venv /opt/venv
COPY --from=build-cpu /usr/share/sbom /usr/share/sbom
