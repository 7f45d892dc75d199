# Two images of the same code: `services` for webserver and daemon, and `worker` for jobs, which has PyTorch and
# CUDA as well. docs/container.md says how to build and run them.

# Python 3.11 is what the tests run on, bookworm what the wheels were tried on. The digest is that of the index of
# all architectures, so that a build is the same tomorrow; docs/container.md says how to renew it.
ARG BASE_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

# --- four stages that make things, with pip and what it needs; only what the last ones copy is shipped ---
FROM ${BASE_IMAGE} AS packages

# pip in an environment of its own, because the one that is shipped needs none. HOME is made here, and the user
# has a name, because libraries ask for both.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/venv \
    && useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin capstone

WORKDIR /build
COPY pyproject.toml requirements.lock ./
COPY infra/locked.py infra/
COPY infra/image/unused ./
# Wheels only, so no compiler is needed and no package's own code runs. Where packages come from is the builder's
# matter: a pip.conf reaches these commands alone (--secret id=pip,src=...), and no layer. What builds the project
# goes to pip's own environment.
RUN --mount=type=secret,id=pip \
    python3 infra/locked.py > services.lock && python3 infra/locked.py build > build.lock \
    && install() { PIP_CONFIG_FILE=/run/secrets/pip /opt/pip/bin/pip --python "$1" install --no-cache-dir \
        --disable-pip-version-check --no-input --no-deps --only-binary :all: --require-hashes -r "$2"; } \
    && install /opt/venv/bin/python services.lock && install /opt/pip/bin/python build.lock \
    && /opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > site-packages \
    && cd "$(cat site-packages)" && rm -rf $(sed 's/#.*//' /build/unused) && cd /build \
    && echo /app > "$(cat site-packages)/capstone.pth" \
    # By links, which cost nothing as long as it is the command that made the files.
    && mkdir -p /layers/packages/opt && cp -al /opt/venv /layers/packages/opt/

FROM packages AS torch

# CUDA and PyTorch, three quarters of the worker, change less often than the rest: a layer of their own.
RUN --mount=type=secret,id=pip \
    touch before && python3 infra/locked.py torch > worker.lock \
    && PIP_CONFIG_FILE=/run/secrets/pip /opt/pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir \
        --disable-pip-version-check --no-input --no-deps --only-binary :all: --require-hashes -r worker.lock \
    && cd "$(cat site-packages)" && rm -rf $(sed 's/#.*//' /build/unused) && cd /build \
    && mkdir -p /layers/torch "/layers/cuda$(cat site-packages)" && cd / \
    && find opt/venv -cnewer /build/before ! -type d -print0 | xargs -0 cp -al --parents -t /layers/torch \
    && cd "/layers/torch$(cat /build/site-packages)" \
    && mv nvidia torch "/layers/cuda$(cat /build/site-packages)"

# The model: what it is given is checked before it is loaded, and exported as the analysis would. These files
# alone, so that a change elsewhere does not export again. The embedded detector brings its export along.
ARG MODEL=""
ARG MODEL_SHA256=""
COPY capstone_dagster/__init__.py /app/capstone_dagster/
COPY capstone_dagster/analysis /app/capstone_dagster/analysis
COPY infra/image/bake_model.py ./
COPY ${MODEL:-pyproject.toml} model/
RUN mkdir -p /layers/cache/capstone/models \
    && if [ -n "${MODEL}" ]; then \
        /opt/venv/bin/python bake_model.py "model/${MODEL##*/}" "${MODEL_SHA256}" /layers/cache/capstone/models; fi

FROM packages AS project

# A directory of its own: a new version is a small layer.
COPY pyproject.toml README.md LICENSE source/
COPY capstone_dagster source/capstone_dagster
COPY batch_gpu source/batch_gpu
COPY dagster.yaml workspace.yaml infra/image/healthcheck.py infra/image/code-server.yaml /app/
ARG MODEL=""
COPY ${MODEL:-LICENSE} /app/${MODEL:-LICENSE}
# The authorities that sign the database's certificate.
ARG DATABASE_CA=""
COPY ${DATABASE_CA:-LICENSE} database-ca
RUN if [ -n "${DATABASE_CA}" ]; then install -D --mode=644 database-ca /app/certificates/database.pem; fi
RUN /opt/pip/bin/pip wheel --disable-pip-version-check --no-index --no-deps --no-build-isolation ./source \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check --no-index \
        --no-deps --target /app ./*.whl \
    && mkdir -p /layers/app/dagster_home && ln -s ../dagster.yaml /layers/app/dagster_home/dagster.yaml

# --- what is shipped: copies only, so that nothing of the machine that builds is left in it ---
FROM ${BASE_IMAGE} AS shipped

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

USER 10001:10001
EXPOSE 3000
# By the role that process 1 plays. ECS does not read it: infra/application.yaml says its own.
HEALTHCHECK --interval=60s --timeout=45s --start-period=180s --retries=3 \
    CMD ["python", "/app/healthcheck.py"]
# No entry point, so that a command is run as it is.
CMD ["capstone", "--help"]

FROM shipped AS services
COPY --from=packages /layers/packages /
COPY --from=packages /etc/passwd /etc/group /etc/
# What the user owns: whole directories, because the owner of the one that is copied to is not everywhere changed.
# /app itself, from which Python imports, is root's: so it is made by a copy, because buildah gives a WORKDIR that it
# makes to the user.
COPY --from=packages --chown=10001:10001 /home /home
COPY --from=project /app /app
COPY --from=project --chown=10001:10001 /layers/app /app
WORKDIR /app
# Last, because each version has another: what `capstone dora` counts as a deployment, and since when it was there.
ARG VERSION=""
ARG COMMITTED_AT=""
ENV CAPSTONE_VERSION=${VERSION} \
    CAPSTONE_COMMITTED_AT=${COMMITTED_AT}

FROM shipped AS worker
COPY --from=torch /layers/cuda /
COPY --from=torch /layers/torch /
COPY --from=packages /layers/packages /
COPY --from=packages /etc/passwd /etc/group /etc/
COPY --from=packages --chown=10001:10001 /home /home
COPY --from=torch --chown=10001:10001 /layers/cache /var/cache
COPY --from=project /app /app
COPY --from=project --chown=10001:10001 /layers/app /app
WORKDIR /app
