# A box for training on NVIDIA GPUs; docs/gpu-box.md tells how to use it.
#
#   docker build -t lm-pretraining .
#   docker run --gpus all --ipc=host -v "$PWD/runs:/app/runs" -v "$PWD/corpora:/app/corpora" lm-pretraining \
#       python -m pipeline run recipes/demo_mlstm.yaml
FROM python:3.12-slim-bookworm

# A C compiler for Triton and DeepSpeed's extensions, libaio for the one that offloads to a disk; ssh
# and pdsh for runs on many nodes.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        build-essential git libaio-dev ninja-build openssh-client pdsh \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY requirements.txt .
# torch from PyPI carries the CUDA libraries that it needs; the driver is the host's.
RUN pip install --no-cache-dir -r requirements.txt
COPY . .

CMD ["python", "-m", "pipeline", "--help"]
