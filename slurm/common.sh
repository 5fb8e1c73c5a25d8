# shellcheck shell=bash
# What the scripts beside this one share. They source it in the root of the tree, in a job or before one.

PATH=$PATH:/usr/sbin:/sbin # ip
# shellcheck source=slurm/site.env.example
[ ! -e slurm/site.env ] || . slurm/site.env

say() { echo "$(date '+%F %T') slurm: $*" >&2; }

refuse() {
    say "error: $*"
    exit 2
}

# submit SCRIPT [--flag=value ...] ARGUMENTS...: what a script does outside a job, with the site's flags.
submit() {
    local script=$1 flags=()
    shift
    while [[ ${1:-} == -* ]]; do
        flags+=("$1")
        shift
    done
    exec sbatch "${SBATCH_FLAGS[@]}" "${flags[@]}" "$script" "$@"
}

# STEP: how srun starts tasks; INSIDE: what stands before a command, in a container; PYTHON: the interpreter there.
# All ranks end by themselves when one does, with one status; a minute after the first what is left is killed.
STEP=(--kill-on-bad-exit=0 --wait=60 --unbuffered)
INSIDE=()
case ${CONTAINER:-} in
'') PYTHON=${PYTHON:-.venv/bin/python} ;;
apptainer:*)
    INSIDE=(apptainer exec --bind "$PWD${MOUNTS:+,$MOUNTS}" --pwd "$PWD")
    [ -z "${SLURM_GPUS_ON_NODE:-}" ] || INSIDE+=(--nv)
    INSIDE+=("${CONTAINER#apptainer:}")
    ;;
pyxis:*)
    STEP+=(--container-image="${CONTAINER#pyxis:}" --container-mounts="$PWD:$PWD${MOUNTS:+,$MOUNTS}")
    STEP+=(--container-workdir="$PWD")
    ;;
*) refuse "CONTAINER = $CONTAINER: must be apptainer:IMAGE, pyxis:IMAGE or empty" ;;
esac
PYTHON=${PYTHON:-python3}

# connect: where ranks find each other, unless the environment says it. What an earlier shell left behind is not of this job.
connect() {
    local last address
    unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
    if [ -n "${INTERFACE:-}" ]; then
        export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$INTERFACE} GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$INTERFACE}
    elif [ "$SLURM_JOB_NUM_NODES" -gt 1 ] && [ -z "${GLOO_SOCKET_IFNAME:-}" ]; then
        # Gloo would take the address of the node's own name, which on many machines is the loopback's. NCCL looks itself.
        last=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n 1)
        address=$(getent ahosts "$last" | awk '{ print $1; exit }')
        GLOO_SOCKET_IFNAME=$(ip -o route get "${address:-?}" 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p')
        [ -z "$GLOO_SOCKET_IFNAME" ] || export GLOO_SOCKET_IFNAME
    fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
}

# tasks: adds to STEP one task a GPU; without GPUs as many as sbatch's flags say.
tasks() {
    local gpus=${SLURM_GPUS_ON_NODE:-0} cpus=${SLURM_CPUS_ON_NODE:-1}
    if [ "$gpus" -gt 0 ]; then
        [ "$cpus" -ge "$gpus" ] || refuse "$cpus CPUs a node for $gpus GPUs: must be at least one each: add --cpus-per-gpu=N"
        STEP+=(--ntasks-per-node="$gpus" --ntasks=$((SLURM_JOB_NUM_NODES * gpus)) --cpus-per-task=$((cpus / gpus)))
    elif [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
        STEP+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
    fi
}
