# One image for webserver, daemon and jobs; docs/container.md says how to build and run it.

# Python 3.11 is what the tests run on, bookworm what the wheels were tried on. An exact tag and no digest:
# a tag can be renewed, so give BASE_IMAGE=python@sha256:... where builds must be the same for ever.
ARG BASE_IMAGE=python:3.11.14-slim-bookworm

# --- everything that is made, with pip and whatever it needs; nothing of this stage is shipped unless copied ---
FROM ${BASE_IMAGE} AS build

# pip in an environment of its own, because the one that is shipped needs none. HOME is made here, and the user
# has a name, because libraries ask for both.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/venv \
    && useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin capstone \
    # OpenVINO's Python package tells Intel of each import, unless this file says that it may not.
    && mkdir /home/capstone/intel && echo 0 > /home/capstone/intel/openvino_telemetry

WORKDIR /build
COPY pyproject.toml requirements.lock infra/image/runtime_requirements.py ./
# Wheels only, so no compiler is needed and no package's own code runs. Where packages come from is the builder's
# matter: a pip.conf reaches this command alone (--secret id=pip,src=...), and no layer.
RUN --mount=type=secret,id=pip \
    python3 runtime_requirements.py pyproject.toml requirements.lock > runtime.lock \
    && PIP_CONFIG_FILE=/run/secrets/pip /opt/pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir \
        --disable-pip-version-check --no-input --no-deps --only-binary :all: --require-hashes -r runtime.lock \
    && /opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > site-packages \
    && echo /app > "$(cat site-packages)/capstone.pth" \
    # CUDA and PyTorch, four fifths of all, change less often than the rest: two layers, fetched side by side.
    # By links, which cost nothing as long as it is the command that made the files.
    && packages="/layers/packages$(cat site-packages)" && cuda="/layers/cuda$(cat site-packages)" \
    && mkdir -p /layers/packages/opt "$cuda" && cp -al /opt/venv /layers/packages/opt/ \
    && for each in nvidia torch triton; do mv "$packages/$each" "$cuda"; done

# The model: what it is given is checked before it is loaded, and exported as the analysis would. These files
# alone, so that a change elsewhere does not export again.
ARG MODEL=""
ARG MODEL_SHA256=""
COPY capstone_dagster/__init__.py /app/capstone_dagster/
COPY capstone_dagster/analysis /app/capstone_dagster/analysis
COPY infra/image/bake_model.py ./
COPY ${MODEL:-capstone_dagster/local/detector/person_face.pt} model/
RUN /opt/venv/bin/python bake_model.py model --baked "${MODEL}" --sha256 "${MODEL_SHA256}" --app /app \
        --cache /layers/cache/capstone/models \
    && rm -r /app/capstone_dagster

# The project, into a directory of its own: a new version of it is a small layer.
COPY pyproject.toml README.md LICENSE source/
COPY capstone_dagster source/capstone_dagster
COPY batch_gpu source/batch_gpu
COPY dagster.yaml workspace.yaml infra/image/healthcheck.py /app/
RUN /opt/pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check --no-index \
        --no-deps --no-build-isolation --target /app ./source \
    && mkdir -p /layers/app/dagster_home && ln -s ../dagster.yaml /layers/app/dagster_home/dagster.yaml

# --- what is shipped: copies only, so that nothing of the machine that builds is left in it ---
FROM ${BASE_IMAGE}

COPY --from=build /layers/cuda /
COPY --from=build /layers/packages /
COPY --from=build /etc/passwd /etc/group /etc/
# What the user owns: whole directories, because the owner of the one that is copied to is not everywhere changed.
COPY --from=build --chown=10001:10001 /home /home
COPY --from=build --chown=10001:10001 /layers/cache /var/cache
COPY --from=build /app /app
COPY --from=build --chown=10001:10001 /layers/app /app

ARG MODEL=""
ARG MODEL_SHA256=""
ENV PATH=/app/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/home/capstone \
    DAGSTER_HOME=/app/dagster_home \
    CAPSTONE_MODEL=${MODEL:+/app/}${MODEL} \
    CAPSTONE_MODEL_SHA256=${MODEL_SHA256} \
    CAPSTONE_MODEL_CACHE=/var/cache/capstone/models \
    # Logs are complete even when a process is killed.
    PYTHONUNBUFFERED=1 \
    # What the container toolkit brings of the driver: video is the decoder.
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video

WORKDIR /app
USER 10001:10001
EXPOSE 3000
# By the role that process 1 plays. ECS does not read it: infra/application.yaml says its own.
HEALTHCHECK --interval=60s --timeout=45s --start-period=180s --retries=3 \
    CMD ["python", "/app/healthcheck.py"]
# No entry point, so that a command is run as it is; in AWS the supervisor stands before it (docs/container.md).
CMD ["capstone", "--help"]
