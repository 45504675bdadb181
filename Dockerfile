# The quickstart in a container:
#   docker build -t tql . && docker run --rm -v "$PWD/runs:/work/runs" tql
# With CUDA, where any command of tql may follow the image's name:
#   docker build -t tql --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 . && docker run --rm --gpus all tql quickstart
# PyPI's torch for Linux brings CUDA along. For a small CPU image give the index of PyTorch's CPU builds:
#   --build-arg PIP_EXTRA_INDEX_URL=...
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG PIP_EXTRA_INDEX_URL=
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv make libegl1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /work
COPY . .
RUN make .venv/.installed
ENV PATH=/work/.venv/bin:$PATH
ENTRYPOINT ["tql"]
CMD ["quickstart"]
