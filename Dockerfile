# The app for Docker Spaces and a classroom's own server:  docker build -t dmtd . && docker run -p 7860:7860 dmtd
# the optional kernel for AVX512-VNNI, by the gcc of the full image; no wheel where it does not compile
FROM python:3.12 AS kernel
COPY vnni /home/user/vnni
RUN mkdir -p /home/user/wheels && { pip wheel --no-deps --wheel-dir /home/user/wheels /home/user/vnni || echo "without dmtd-vnni"; }

FROM python:3.12-slim

RUN useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user/app
ENV HOME=/home/user PATH=/home/user/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860 DMTD_OWNER=token

# PyTorch first, its small build for CPUs; for an NVIDIA GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --chown=user requirements.txt ./
RUN python -m venv /home/user/venv && pip install --extra-index-url ${TORCH_INDEX} "torch>=2.8,<2.14" && pip install -r requirements.txt
# of no use, and no harm, where the CPU lacks the instructions
COPY --from=kernel --chown=user /home/user/wheels /home/user/wheels
RUN find /home/user/wheels -name "*.whl" -exec pip install --no-deps {} +

COPY --chown=user app.py README.md LICENSE ./
COPY --chown=user assets ./assets
COPY --chown=user dmtd_demo ./dmtd_demo

EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=8)"
CMD ["python", "app.py", "--no-browser"]
