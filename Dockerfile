# capfilt in a container, without root, with `capfilt` as the entry point:
#
#   docker build -t capfilt .
#   docker build -t capfilt:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run --rm --shm-size=8g -v "$PWD:/data" --user "$(id -u):$(id -g)" capfilt caption data --model M
#
# --shm-size: loader workers of training pass batches through shared memory. --gpus all with a CUDA image.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=openai,ray,s3
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY blipcore blipcore
COPY capfilt capfilt
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --constraint constraints.txt \
    --extra-index-url "$TORCH_INDEX" ".[$EXTRAS]"

FROM python:${PYTHON}-slim
COPY --from=build /venv /venv
# Models from the hub and compiled files go below HOME, which any user id may write.
ENV PATH=/venv/bin:$PATH HOME=/home/capfilt
RUN useradd --uid 1000 capfilt && mkdir --mode 0777 "$HOME"
USER 1000
WORKDIR /data
ENTRYPOINT ["capfilt"]
CMD ["--help"]
