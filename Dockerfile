# docker build -t cilbench .                       with CUDA, as PyPI's torch comes
# docker build -t cilbench --build-arg PIP_INDEX_URL=<PyTorch's CPU index> --build-arg PIP_EXTRA_INDEX_URL=<PyPI's> .
# docker run --rm -v "$PWD:/runs" cilbench demo    add --gpus all for CUDA
FROM python:3.12-slim
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY . /src
RUN pip install --no-cache-dir /src && rm -rf /src
ENV CILBENCH_DATA=/runs/data CILBENCH_CACHE=/runs/.cilbench
WORKDIR /runs
ENTRYPOINT ["cilbench"]
