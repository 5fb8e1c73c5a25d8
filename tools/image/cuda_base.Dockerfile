# A stand-in for NVIDIA's base images where no registry can be reached: Debian with NVIDIA's compiler from its wheels.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/toolkit
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/toolkit/bin/pip install --no-cache-dir --target /opt/wheels \
        "cuda-toolkit[nvcc,cccl,cudart,cublas,cusparse,cusolver,curand,cufft,nvrtc,nvtx,nvjitlink,profiler,crt,nvvm]==13.0.2" \
 && mv /opt/wheels/nvidia/cu13 /usr/local/cuda \
 && rm -rf /opt/wheels /opt/toolkit \
 && ln -s lib /usr/local/cuda/lib64 \
 && find /usr/local/cuda/lib -name 'lib*.so.[0-9]*' | while read -r file; do ln -sf "${file##*/}" "${file%%.so.*}.so"; done \
 && /usr/local/cuda/bin/nvcc --version
ENV PATH=/usr/local/cuda/bin:$PATH
