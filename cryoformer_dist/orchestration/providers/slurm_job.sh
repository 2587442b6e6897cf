# What the job does. Above, slurm.py writes the #SBATCH lines and the cluster file's settings: python, port,
# dashboard_port, cpus, gpus, folder, command.
#
# Ray's own `ray symmetric-run` is not used: it ends with `ray stop`, which would end every other Ray of the same user
# on the node, it refuses nodes that hold another Ray, and it waits for the nodes 30 seconds only.
set -uo pipefail

startup_seconds=300                             # seconds for all nodes to be there
ray_log=$folder/ray-$SLURM_JOB_ID.log           # what `ray start` says on all of them
ray_files=/tmp/cf_$SLURM_JOB_ID                 # short: Ray's sockets lie below, their paths are limited to 107 letters
job_log=$folder/job-$SLURM_JOB_ID.log           # where this script's own output goes
begun=$folder/begun-$SLURM_JOB_ID               # there once all nodes are up
driver="" head_step="" worker_step=""

# Steps outlive the loss of one of their nodes: training goes on with the others. --export: sites have other defaults.
step=(srun --export=ALL --no-kill --kill-on-bad-exit=0 --wait=0 --cpus-per-task="$cpus")
ray_start=("$python" -m ray.scripts.scripts start --num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats --block)

say() { echo "cryoformer-dist: $*"; }

fail() {
    say "$*"
    [ -s "$ray_log" ] && { say "the last lines of $ray_log:"; tail -n 15 "$ray_log"; }
    exit 1
}

fail_for_head() {
    fail "Ray did not start on $head; is port $port taken (set port:), is $python the right one?"
}

alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

# End what was started here, and nothing else: the driver first, then the nodes; half a minute each, then by force.
end_all() {
    local group process
    for group in "$driver" "$worker_step $head_step"; do
        for process in $group; do kill -TERM "$process" 2>/dev/null; done
        for _ in $(seq 100); do
            for process in $group; do alive "$process" && sleep 0.3 && continue 2; done
            break
        done
        for process in $group; do alive "$process" && kill -KILL "$process" && wait "$process" 2>/dev/null; done
    done
    driver="" head_step="" worker_step=""
}

leave() {
    local code=$?
    trap '' TERM USR1
    end_all
    local all=$SLURM_JOB_NUM_NODES
    timeout 20 "${step[@]}" --nodes="$all" --ntasks="$all" rm -rf "$ray_files" "$begun" 2>/dev/null
    exit "$code"
}

# Two minutes before the end (or before preemption, where the site sends its jobs their own signal).
go_back_to_queue() {
    trap '' TERM USR1
    say "Slurm wants the nodes back: the run stops here, the job goes back to the queue and on from the last checkpoint"
    end_all
    scontrol requeue "$SLURM_JOB_ID" || fail "the job could not be put back; launch it again with --resume"
    exit 0
}

# Cancelled, or preempted: Slurm knows which. To end by ourselves would make either a failure.
wait_for_the_end() {
    trap '' TERM USR1
    end_all
    rm -rf "$ray_files" "$begun"
    sleep 120
    exit 143
}

# Ray on a node, until it ends. Its own patience is short where a machine is busy: one that ends before the run has
# begun is started once more.
run_ray() {
    local ray
    # A job that is cancelled starts no more steps to tidy its nodes up, and this one is killed before long (KillWait, 30 s
    # by default), sooner than a Ray on a busy node ends. What it leaves behind ends with the step.
    trap 'kill -TERM "$ray" 2>/dev/null
        for _ in {1..50}; do kill -0 "$ray" 2>/dev/null || break; sleep 0.2; done
        rm -rf "$ray_files"; exit 143' TERM
    "$@" &
    ray=$!
    wait "$ray"
    [ -e "$begun" ] && return
    # Into the job's log: what this step says goes to Ray's.
    echo "cryoformer-dist: Ray did not start on $(uname -n) (load $(cut -d ' ' -f 1 /proc/loadavg) on $(nproc --all) cores);" \
        "it is tried once more" >>"$job_log"
    "$@" &
    ray=$!
    wait "$ray"
}

# Ray on a node beside the first. With --no-kill Slurm takes a lost node off the job and leaves it the others, also when
# it is the first, and with it this script and the driver: nobody would be left to end the job before its time is up.
# So a node whose Ray has ended by itself asks Slurm whether the first one is still of the job.
keep_ray() {
    local head=$1 left
    shift
    run_ray "$@"
    while true; do
        # One that is being ended has given up some of its nodes; no answer says nothing.
        left=$(squeue --noheader --states=RUNNING --jobs="$SLURM_JOB_ID" --format=%N)
        if [ -n "$left" ] && ! scontrol show hostnames "$left" | grep -qxF "$head"; then
            # Who gathered this step's output was on that node.
            echo "cryoformer-dist: Slurm has lost $head, the first node: the job goes back to the queue" >>"$job_log"
            scontrol requeue "$SLURM_JOB_ID" || scancel "$SLURM_JOB_ID"
        fi
        sleep 20 &
        wait $!
    done
}

trap leave EXIT
trap wait_for_the_end TERM
trap go_back_to_queue USR1

# One token for this job, in the environment of its processes only: never on a command line, never in a file.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN PYTHONUNBUFFERED=1
unset RAY_AUTH_TOKEN_PATH

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
# The head's address as another node sees it; what a node calls itself may be 127.0.1.1.
found=$("${step[@]}" --nodes=1 --ntasks=1 --nodelist="${nodes[-1]}" getent ahostsv4 "$head")
address=${found%% *}
[ -n "$address" ] || fail "${nodes[-1]} does not know the address of $head"
export RAY_ADDRESS=$address:$port

# Ray lets everybody into its folder; nobody else gets through this one, and one that somebody else made is not taken.
"${step[@]}" --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" bash -c \
    'mkdir -m 700 "$0" 2>/dev/null || { [ -O "$0" ] && [ ! -L "$0" ] && chmod 700 "$0"; }' "$ray_files" ||
    fail "$ray_files cannot be made on every node for this user alone; remove what is there"

# Ray's client server, which nobody here uses, cannot be switched off; at its usual port two jobs of a node would clash.
# This one is above those of Ray's workers, and below those that the kernel hands out, which Ray has some of too.
client_port=$((20000 + port % 12000))
rm -f "$begun"
export job_log begun ray_files
# As text: a site's wrapper of srun may be a shell that drops functions from its environment.
functions=$(declare -f run_ray keep_ray)
"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$head" bash -c "$functions; run_ray \"\$@\"" \
    run_ray "${ray_start[@]}" --head --node-ip-address="$address" --port="$port" --ray-client-server-port="$client_port" \
    --temp-dir="$ray_files/ray" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" >>"$ray_log" 2>&1 &
head_step=$!
until (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; do
    alive "$head_step" || fail_for_head
    ((SECONDS < startup_seconds)) || fail "Ray's head on $head did not answer at $RAY_ADDRESS within $startup_seconds s"
    sleep 0.3
done

others=$((SLURM_JOB_NUM_NODES - 1))
if ((others > 0)); then
    "${step[@]}" --nodes="$others" --ntasks="$others" --exclude="$head" bash -c "$functions; keep_ray \"\$@\"" \
        keep_ray "$head" "${ray_start[@]}" --address="$RAY_ADDRESS" >>"$ray_log" 2>&1 &
    worker_step=$!
fi

# In the background and waited for, as the driver below: bash minds signals only when it waits. Whichever ends first: a
# head that has ended is tried no more, and who has joined one that is tried once more ends with it, and joins the next.
while true; do
    "$python" -c '
import sys, time, ray
wanted, seconds = int(sys.argv[1]), float(sys.argv[2])
trouble = ""
def count():
    global trouble
    # A head that is tried once more does not answer meanwhile.
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
        return sum(node["Alive"] for node in ray.nodes())
    except Exception as error:
        trouble = f": {error}"
        return 0
end = time.monotonic() + seconds
while (there := count()) < wanted and time.monotonic() < end:
    time.sleep(1)
print(f"cryoformer-dist: {there} of {wanted} nodes are up" + trouble * (there == 0))
sys.exit(there < wanted)
' "$SLURM_JOB_NUM_NODES" "$((startup_seconds - SECONDS))" &
    driver=$!
    wait -n "$driver" "$head_step"
    nodes_code=$?
    alive "$head_step" || fail_for_head
    ((nodes_code == 0)) && break
    ((SECONDS < startup_seconds)) || fail "Ray is not up on every node $SECONDS s after the start of this job"
    sleep 1
done
: >"$begun"

# Preempted, requeued by hand, or a node was lost; a run that did not get as far as a checkpoint begins anew.
if ((${SLURM_RESTART_COUNT:-0} > 0)) && [[ " ${command[*]} " != *" --resume "* ]]; then
    say "start number $((SLURM_RESTART_COUNT + 1)) of this job: it goes on where it was"
    command+=(--resume)
fi
"${command[@]}" &
driver=$!
wait "$driver"
exit $?
