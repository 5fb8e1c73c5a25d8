#!/usr/bin/env bash
# A real Slurm cluster on one machine, to be thrown away: nodes node1, node2, ... are namespaces with an address, a host
# name and processes of their own. Root only; tools/cluster/install.sh installs what it needs.
#
#   cluster.sh up            starts it, and waits until all nodes are idle
#   cluster.sh env           prints the variable that leads sbatch and its kin to it: eval "$(cluster.sh env)"
#   cluster.sh exec CMD...   runs a command where the nodes' names are known, as on a login node
#   cluster.sh crash NODE    cuts a node's power: its cable first, then all of its processes
#   cluster.sh boot NODE     starts a node again
#   cluster.sh down          ends everything that was started
#
# CLUSTER is its folder, NODES their number; SUBNET, BRIDGE and PORT must be free.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
CLUSTER=${CLUSTER:-/tmp/megaqk-cluster}
NODES=${NODES:-2}
SUBNET=${SUBNET:-10.213.78}
BRIDGE=${BRIDGE:-megaqkbr0}
PORT=${PORT:-16917}
export SLURM_CONF=$CLUSTER/slurm.conf

die() {
    echo "cluster.sh: $*" >&2
    exit 1
}

alive() { # alive PID: there, and no zombie
    local state
    [ -n "${1:-}" ] && state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) && [ "${state%% *}" != Z ]
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}

# stop NAME SIGNAL: the process of run/NAME.pid, if it is ours still.
stop() {
    local pid
    pid=$(cat "$CLUSTER/run/$1.pid" 2>/dev/null) || return 0
    if grep -qsF "$CLUSTER" "/proc/$pid/cmdline" "/proc/$pid/environ"; then
        kill "-$2" "$pid" 2>/dev/null || true
        wait_for 5 gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
    fi
    rm -f "$CLUSTER/run/$1.pid"
}
gone() { ! alive "$1"; }

configure() {
    local i name
    name=$(uname -n)
    # AuthInfo: a requeued job waits for cred_expire. SlurmdTimeout: a dead node is found so soon. config_overrides: the
    # nodes may have more CPUs than this machine; their GPUs are devices by name alone.
    cat >"$SLURM_CONF" <<CONF
ClusterName=megaqk
SlurmctldHost=${name%%.*}($SUBNET.1)
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
SlurmUser=root
AuthInfo=socket=$CLUSTER/munge/socket,cred_expire=5
StateSaveLocation=$CLUSTER/state
SlurmdSpoolDir=$CLUSTER/spool/%n
SlurmctldPidFile=$CLUSTER/run/slurmctld.pid
SlurmdPidFile=$CLUSTER/run/slurmd.%n.pid
SlurmctldLogFile=$CLUSTER/log/slurmctld.log
SlurmdLogFile=$CLUSTER/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=10000,bf_interval=1
ReturnToService=2
SlurmdTimeout=10
MessageTimeout=5
TCPTimeout=2
KillWait=10
MailProg=/bin/true
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node[1-$NODES] NodeAddr=$SUBNET.[11-$((10 + NODES))] CPUs=16 RealMemory=16000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES DefaultTime=10
CONF
    ln -sfn /dev/null "$CLUSTER/gpu0"
    ln -sfn /dev/null "$CLUSTER/gpu1"
    echo "NodeName=node[1-$NODES] Name=gpu File=$CLUSTER/gpu[0-1]" >"$CLUSTER/gres.conf"
    {
        echo "127.0.0.1 localhost"
        echo "$SUBNET.1 ${name%%.*}"
        for ((i = 1; i <= NODES; i++)); do echo "$SUBNET.$((10 + i)) node$i"; done
    } >"$CLUSTER/hosts"
    printf '%s: files\n' passwd group hosts >"$CLUSTER/nsswitch.conf"
    # The first process of a node: it waits for its cable, and reaps orphans.
    cat >"$CLUSTER/init" <<'INIT'
#!/bin/bash
cluster=$1 node=$2 address=$3 gateway=$4
echo "$node" >/proc/sys/kernel/hostname
mount --bind "$cluster/hosts" /etc/hosts
mount --bind "$cluster/nsswitch.conf" /etc/nsswitch.conf # no name server can be reached, and none is waited for
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip addr add "$address/24" dev eth0 && ip link set eth0 up && ip route add default via "$gateway" || exit 1
slurmd -D -N "$node" &
while :; do sleep 3600 & wait $!; done
INIT
}

boot() {
    local node=$1 number=${1#node} unshared
    mkdir -p "$CLUSTER/spool/$node"
    setsid unshare --net --uts --mount --pid --fork --kill-child --mount-proc \
        bash "$CLUSTER/init" "$CLUSTER" "$node" "$SUBNET.$((10 + number))" "$SUBNET.1" \
        </dev/null >>"$CLUSTER/log/init.$node.log" 2>&1 &
    unshared=$!
    disown
    echo "$unshared" >"$CLUSTER/run/$node.pid"
    wait_for 10 is_apart "$node" || die "$node did not start, see $CLUSTER/log/init.$node.log"
    ip link add "$BRIDGE.$number" type veth peer name eth0 netns "$(first_process "$node")"
    ip link set "$BRIDGE.$number" master "$BRIDGE" up
}
first_process() {
    local unshared
    unshared=$(cat "$CLUSTER/run/$1.pid") && tr -d ' ' <"/proc/$unshared/task/$unshared/children" 2>/dev/null
}
is_apart() {
    local pid network
    pid=$(first_process "$1") && [ -n "$pid" ] && network=$(readlink "/proc/$pid/ns/net") &&
        [ "$network" != "$(readlink /proc/self/ns/net)" ]
}

crash() {
    local pid
    # The cable first: the others are not told.
    ip link del "$BRIDGE.${1#node}" 2>/dev/null || true
    pid=$(first_process "$1" 2>/dev/null) && [ -n "$pid" ] && kill -KILL "$pid"
    stop "$1" KILL
    rm -f "$CLUSTER/run/slurmd.$1.pid"
}

all_idle() { [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | wc -l)" = "$NODES" ]; }

up() {
    local i
    [ "$(id -u)" = 0 ] || die "needs root"
    [ ! -e "$CLUSTER/run/slurmctld.pid" ] || down
    if [ -e "$CLUSTER" ] && [ ! -e "$CLUSTER/slurm.conf" ]; then die "CLUSTER = $CLUSTER: is something else"; fi
    rm -rf "${CLUSTER:?}"
    mkdir -p "$CLUSTER"/{run,log,state,spool,munge}
    trap down EXIT # a start that fails leaves nothing behind
    configure
    (umask 077 && head -c 1024 /dev/urandom >"$CLUSTER/munge/key")
    munged --key-file="$CLUSTER/munge/key" --socket="$CLUSTER/munge/socket" --pid-file="$CLUSTER/run/munged.pid" \
        --log-file="$CLUSTER/log/munged.log" --seed-file="$CLUSTER/munge/seed"
    ip link add "$BRIDGE" type bridge
    ip addr add "$SUBNET.1/24" dev "$BRIDGE"
    ip link set "$BRIDGE" up
    slurmctld
    for ((i = 1; i <= NODES; i++)); do boot "node$i"; done
    wait_for 30 all_idle || die "the nodes are not idle after 30 s, see $CLUSTER/log"
    trap - EXIT
}

down() {
    local i
    for ((i = 1; i <= NODES; i++)); do crash "node$i"; done
    stop slurmctld TERM
    stop munged TERM
    ip link del "$BRIDGE" 2>/dev/null || true
}

case ${1:-} in
up | down) "$1" ;;
env) echo "export SLURM_CONF=$SLURM_CONF" ;;
exec)
    shift
    # shellcheck disable=SC2016 # the inner shell expands them
    exec unshare --mount sh -c 'mount --bind "$0" /etc/hosts && exec "$@"' "$CLUSTER/hosts" "$@"
    ;;
crash | boot) "$1" "${2:?a node}" ;;
*) die "usage: cluster.sh up | down | env | exec CMD... | crash NODE | boot NODE" ;;
esac
