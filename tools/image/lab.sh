#!/usr/bin/env bash
# Build and run docker/Dockerfile on a Debian machine that has neither Docker nor a registry; as root.
#   tools/image/lab.sh setup             what it needs, by apt, and a Debian base image by debootstrap
#   tools/image/lab.sh build TARGET TAG  for example: build cpu localhost/megaqk:cpu
#   tools/image/lab.sh podman ...        podman on its images
#   tools/image/lab.sh clean             removes images and containers
# Everything is below $IMAGE_LAB. Packages come from where apt and pip of this machine get them; a build is told by mounts,
# of which nothing stays in an image.
set -euo pipefail
cd "$(dirname "$0")/../.."
LAB=${IMAGE_LAB:-/var/tmp/megaqk-image}
BASE=localhost/debian:bookworm-slim
mkdir -p "$LAB/tmp"
export CONTAINERS_STORAGE_CONF=$LAB/storage.conf CONTAINERS_CONF=$LAB/containers.conf TMPDIR=$LAB/tmp

configure() {
    cat >"$CONTAINERS_STORAGE_CONF" <<END
[storage]
driver = "overlay"
graphroot = "$LAB/storage"
runroot = "$LAB/run"
END
    # Without systemd; runc, since crun refuses hybrid cgroups; limits that root may be denied to raise.
    cat >"$CONTAINERS_CONF" <<END
[containers]
default_ulimits = ["nofile=$(ulimit -Hn):$(ulimit -Hn)", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$LAB/libpod"
lock_type = "file"
[network]
network_backend = "cni"
network_config_dir = "$LAB/cni"
END
}

sources() { # those of this machine, in whichever form it has them
    find /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -1
}

base() {
    local root=$LAB/rootfs mirror
    mirror=$(awk '/^URIs:|^deb /{print $2; exit}' "$(sources)")
    rm -rf "$root"
    debootstrap --variant=minbase bookworm "$root" "$mirror" >"$LAB/debootstrap.log"
    # As the public image has it: without documentation, archives, and what is this machine's.
    rm -rf "$root"/etc/{resolv.conf,hostname} "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/archives/*.deb \
        "$root"/var/log/* "$root"/usr/share/{man,doc,locale,info}/*
    printf 'path-exclude /usr/share/%s/*\n' doc man locale >"$root/etc/dpkg/dpkg.cfg.d/slim"
    # Those of this machine lie over it while an image is built.
    : >"$root/etc/apt/sources.list"
    : >"$root$(sources)"
    tar -C "$root" --numeric-owner -c . | podman import -q --change 'CMD ["bash"]' - "$BASE" >/dev/null
    rm -rf "$root"
}

case ${1:-} in
setup)
    packages=(buildah podman runc debootstrap podman-compose)
    [ "$(command -v "${packages[@]}" | wc -l)" = ${#packages[@]} ] || tools/apt_install.sh "${packages[@]}"
    configure
    podman image exists "$BASE" || base
    ;;
build)
    revision=$(git -c safe.directory="$PWD" rev-parse HEAD)
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' megaqk/__init__.py)
    mapfile -t mounts < <(python3 tools/image/pip_settings.py "$LAB/pip.conf")
    # The docker format, for the other one has no health checks.
    buildah build --pull-never --layers --format docker --isolation oci --network host \
        --volume "$(sources):$(sources):ro" "${mounts[@]}" --secret "id=pip,src=$LAB/pip.conf" \
        --build-arg BASE_IMAGE="$BASE" --build-arg VERSION="$version" --build-arg REVISION="$revision" \
        -f docker/Dockerfile --target "$2" -t "$3" .
    ;;
podman)
    shift
    # fatal: without systemd it has something to say about health checks at each start.
    exec podman --log-level=fatal "$@"
    ;;
clean)
    podman rm -fa -t 2 >/dev/null
    podman rmi -fa >/dev/null
    rm -rf "$LAB"
    ;;
*)
    sed -n '3,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
