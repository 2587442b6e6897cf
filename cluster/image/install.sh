#!/bin/sh
# What is done inside an image, on Debian 12: for Dockerfile and cryoformer-dist.def alike. As root:
#   install.sh system            Debian's packages, and the user that programs run as
#   install.sh packages          Python packages: TORCH and TORCH_INDEX say which torch, constraints.txt the versions
#   install.sh program           cryoformer-dist, from /opt/source
#   install.sh tinycudann DIR    a wheel of tiny-cuda-nn into DIR; needs nvcc of torch's CUDA, and git
set -eu
here=$(dirname "$0")
pip="/opt/venv/bin/pip install --no-cache-dir --constraint $here/constraints.txt"

install_debian() {
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
}

case $1 in
system)
    # Triton compiles its launchers when it runs, with a C compiler and Python's headers; it brings what CUDA it needs.
    # KubeRay asks Ray's pods for their health with wget.
    install_debian ca-certificates gcc libc6-dev python3 python3-dev python3-venv wget
    python3 -m venv /opt/venv
    useradd --uid 1000 --create-home --shell /bin/bash cryo
    ;;
packages)
    # shellcheck disable=SC2086
    $pip ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$TORCH"
    # DeepSpeed compiles nothing here, and nothing that the program uses when it runs.
    DS_BUILD_OPS=0 $pip --requirement "$here/constraints.txt"
    ;;
program)
    $pip "/opt/source[s3,movie]"
    rm -rf /opt/source
    /opt/venv/bin/cryoformer-dist --help >/dev/null
    ;;
tinycudann)
    install_debian g++ git
    $pip "setuptools<82" wheel ninja
    /opt/venv/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir "$2" \
        "git+https://github.com/NVlabs/tiny-cuda-nn@6ee3546#subdirectory=bindings/torch"
    ;;
*)
    echo "install.sh: system, packages, program, or tinycudann DIR" >&2
    exit 2
    ;;
esac
