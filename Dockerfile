# The daemon and every other command.
FROM python:3.13-slim-trixie AS base

FROM base AS build
WORKDIR /build
# tracing: with OpenTelemetry (docs/tracing.md)
ARG REQUIREMENTS=runtime
COPY requirements/build.txt requirements/${REQUIREMENTS}.txt requirements/
# pip stays here: the environment that is carried over has none
RUN python -m venv --without-pip /app && python -m venv tools && tools/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    tools/bin/pip --python /app/bin/python install --require-hashes -r "requirements/${REQUIREMENTS}.txt"
COPY pyproject.toml README.md LICENSE ./
COPY dispatcher dispatcher
RUN tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir wheels . \
    && tools/bin/pip --python /app/bin/python install --no-cache-dir --no-deps --no-index wheels/*.whl

FROM base AS runtime
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="dispatcher" \
      org.opencontainers.image.description="Puts each asynchronous GPU-inference request, once, on the queue of the AWS Region that will serve it soonest" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# a number, so that an orchestrator can tell that it is not root
RUN groupadd --system --gid 10001 dispatcher \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin dispatcher
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    DISPATCHER_REVISION=${REVISION}
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# Whether the process is well, never whether AWS is. ECS ignores this and has the same in the task definition.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["dispatcher", "healthcheck"]
ENTRYPOINT ["dispatcher"]
CMD ["run"]
