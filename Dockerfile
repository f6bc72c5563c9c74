# The bench on a CPU, from the lock: docker build -t e2bench . && docker run --rm -v "$PWD/results:/work/results" e2bench quickstart
# For CUDA: docker build --build-arg TORCH_INDEX=https://pypi.org/simple -t e2bench . and docker run --gpus all …
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=torch==2.13.0
WORKDIR /src
COPY requirements/lock.txt requirements/lock.txt
RUN pip install --no-cache-dir "$TORCH" --index-url "$TORCH_INDEX"
COPY . .
# The lock is a constraint: it holds what tests and tools need as well, of which running needs a part.
RUN pip install --no-cache-dir --constraint requirements/lock.txt ".[train,served]"
WORKDIR /work
ENTRYPOINT ["e2bench"]
CMD ["--help"]
