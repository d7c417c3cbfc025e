# docker build -t cilbench .                                    with CUDA, as PyPI's torch comes
# docker build -t cilbench --build-arg TORCH=https://download.pytorch.org/whl/cpu .     for a CPU alone
# docker run --rm -v "$PWD:/work" cilbench demo                 add --gpus all for CUDA
FROM python:3.12-slim
ARG TORCH=
COPY . /src
RUN pip install --no-cache-dir ${TORCH:+--index-url $TORCH --extra-index-url https://pypi.org/simple} /src && rm -rf /src
ENV CILBENCH_DATA=/work/data CILBENCH_CACHE=/work/.cilbench
WORKDIR /work
ENTRYPOINT ["cilbench"]
