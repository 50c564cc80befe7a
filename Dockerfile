# One image for workers, for whoever starts a run, and for Dataflow's Flex Templates.
# docs/dataflow.md says how to build and use it.
ARG BEAM_VERSION=2.77.0

FROM gcr.io/dataflow-templates-base/python311-template-launcher-base AS template

FROM apache/beam_python3.11_sdk:${BEAM_VERSION}

WORKDIR /opt/headct
COPY pyproject.toml setup.py README.md LICENSE constraints.txt ./
COPY headct ./headct
COPY beam_pipeline ./beam_pipeline
RUN pip install --no-cache-dir -c constraints.txt ".[gcp]"
# Dataflow's template launcher starts a file; the processes that decode import it again.
RUN printf '%s\n' 'import sys' 'from beam_pipeline.__main__ import main' \
    'if __name__ == "__main__":' '    sys.exit(main(sys.argv[1:]))' > main.py

# Beam's boot program, the entry point of the base image, would else make an environment of its own.
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1

COPY --from=template /opt/google/dataflow/python_template_launcher /opt/google/dataflow/
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/headct/main.py
