# shellcheck shell=bash
# What pretrain.sbatch and study.sbatch share: a run that goes on after time limits and failures. Sourced in a job, after
# common.sh.

# USR1 comes before the limit, and goes on to the ranks. TERM is scancel's, which they have got already.
running='' signalled='' asked='' cancelled=''
trap 'signalled=1 asked=1; [ -z "$running" ] || kill -USR1 "$running"' USR1
trap 'signalled=1 cancelled=1' TERM

# step [OPTIONS...] -- COMMAND...: runs tasks and waits for their end; the highest status of a task.
step() {
    local options=() status=0 last
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    srun "${STEP[@]}" "${options[@]}" "${INSIDE[@]}" "$@" &
    running=$!
    [ -z "$asked" ] || kill -USR1 "$running" # it came before there was anything to tell
    while # a signal ends `wait` before its time; 127: the one before it has told already
        signalled=''
        wait "$running" && last=0 || last=$?
        [ "$last" = 127 ] || status=$last
        [ -n "$signalled" ]
    do :; done
    running=''
    return "$status"
}

newest() { find "$RUN_DIR/checkpoints" -maxdepth 1 -name 'step-*[0-9]' 2>/dev/null | sed 's/.*step-//' | sort -n | tail -n 1; }
starts() { grep -cx "step $(newest)" "$LOG.starts" || true; }

# The number of an array's last task is that of the array: it would requeue all of them.
requeue() { scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"; }

# start SCRIPT CODE ARGUMENTS...: RUN_DIR is what Python prints for CODE, which is refused here, in one line, if it must be;
# another start of the job is noted there, unless there have been too many.
start() {
    local script=$1 code=$2 status
    shift 2
    RUN_DIR=$(step --ntasks-per-node=1 --nodes=1 --ntasks=1 -- "$PYTHON" -c "
import sys
from megaqk.errors import UserError
try:
    $code
except UserError as error:
    print(f'megaqk: error: {error}', file=sys.stderr)
    sys.exit(2)" "$@") || {
        status=$?
        if [ "$status" = 2 ] || [ -n "$cancelled" ] || [ "${SLURM_RESTART_COUNT:-0}" -ge "${STARTS:-3}" ]; then
            exit "$status"
        fi
        say "exit status $status before the configuration was read: requeued"
        requeue
        exit "$status"
    }
    # A line for each start of this job: the checkpoint that it found. It counts starts that a dead node has ended, too.
    mkdir -p "$RUN_DIR/slurm"
    LOG=$RUN_DIR/slurm/$SLURM_JOB_ID
    echo "step $(newest)" >>"$LOG.starts"
    {
        echo "$script $*"
        git describe --always --dirty 2>/dev/null || true
        env | grep -E '^(SLURM|SBATCH|NCCL|GLOO|OMP|CUDA|TORCH|MEGAQK)_' | grep -v '^SLURM_JWT=' | sort
    } >"$LOG.environment"
    [ "$(starts)" -le "${STARTS:-3}" ] || refuse "STARTS = ${STARTS:-3}: as many starts have brought no new checkpoint"
    say "start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST, from step $(newest)"
}

# again STATUS: whether it would help to run the same command again, by megaqk's exit status and what the run says of itself.
again() {
    case $1 in
    0 | 2 | 76) return 1 ;; # finished, refused, diverged
    75) ! grep -qs '"stopped_by": "stop file"' "$RUN_DIR/result.json" ;;
    *) ! grep -qs '"state": "diverged"' "$RUN_DIR/result.json" ;; # a study says that a run has failed, not how
    esac
}

# end STATUS: the end of this start, requeued where that helps.
end() {
    if [ -n "$cancelled" ] || ! again "$1"; then
        exit "$1"
    elif [ "$(starts)" -ge "${STARTS:-3}" ]; then
        say "error: exit status $1, and ${STARTS:-3} starts have brought no new checkpoint: not requeued"
        exit "$1"
    fi
    say "exit status $1, requeued to go on from step $(newest)"
    requeue
    exit 0
}
