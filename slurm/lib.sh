# shellcheck shell=bash
# Shared by the batch scripts: find sft, run it in a Slurm step, forward a warning signal to it, requeue the job.
# Sourced by the *.sbatch files.
set -euo pipefail

readonly STOPPED=75 BAD_REQUEST=78
readonly MAX_RESTARTS=${SFT_MAX_RESTARTS:-20} MAX_STARTS_WITHOUT_PROGRESS=3
readonly POLLS_PER_WARNING=10
readonly KILLED_BY_USR1=$((128 + 10))

stop_signal=''

say() { printf '== %s\n' "$*"; }

refuse() {
    printf '%s\n' "$*" >&2
    exit "$BAD_REQUEST"
}

# begin COMMAND USAGE [ARGUMENT...]: refuse what cannot work, find sft, print in one line what starts where.
begin() {
    local command=$1 usage=$2
    shift 2
    (($# > 0)) || refuse "usage: sbatch $usage"
    [[ -n ${SLURM_JOB_ID:-} ]] || refuse "not inside a Slurm job; submit it: sbatch $usage"
    [[ $MAX_RESTARTS =~ ^(0|[1-9][0-9]*)$ ]] || refuse "SFT_MAX_RESTARTS=$MAX_RESTARTS: expected a whole number"
    find_sft
    # Otherwise the output of a killed process is lost, and the rest is in the wrong order in the log.
    export PYTHONUNBUFFERED=1
    # Since Slurm 22.05 a step gets one CPU by default; after `sbatch --export=NONE` it gets no environment.
    step_command=(srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --export=ALL)
    say "$(date +%Y-%m-%dT%H:%M:%S%z) job $SLURM_JOB_ID on ${SLURMD_NODENAME:-$(uname -n)}," \
        "restart ${SLURM_RESTART_COUNT:-0}: $command$(printf ' %q' "$@")"
}

find_sft() {
    local environment=${SFT_VENV:-${SLURM_SUBMIT_DIR:-$PWD}/.venv}
    if [[ -d $environment/bin ]]; then
        export PATH="$environment/bin:$PATH"
    elif [[ -n ${SFT_VENV:-} ]]; then
        refuse "SFT_VENV=$SFT_VENV: not a Python environment, it has no bin folder"
    fi
    command -v sft >/dev/null || refuse "there is no sft on PATH: run make install, or set SFT_VENV"
}

# part_of_task USAGE: the share of the work that this task of a job array does, as I/N.
#
# N is SFT_PARTS. Without it Slurm's count of tasks will do, but only if they are 1 to N: in an array such as 2,5, which
# makes two parts again, it is not the number of parts.
part_of_task() {
    local usage=$1 task=${SLURM_ARRAY_TASK_ID:-} num_parts=${SFT_PARTS:-}
    local first=${SLURM_ARRAY_TASK_MIN:-} last=${SLURM_ARRAY_TASK_MAX:-} num_tasks=${SLURM_ARRAY_TASK_COUNT:-}
    [[ -n $task ]] || refuse "not a task of a job array; submit it: sbatch $usage"
    if [[ -z $num_parts ]]; then
        [[ $first == 1 && $last == "$num_tasks" ]] ||
            refuse "an array of $num_tasks tasks from $first to $last: expected 1-N, or SFT_PARTS=N and tasks within 1-N"
        num_parts=$num_tasks
    fi
    [[ $num_parts =~ ^[1-9][0-9]{0,5}$ ]] || refuse "SFT_PARTS=$num_parts: expected a whole number from 1 to 999999"
    # The whole array counts, not this task alone: otherwise some parts would run and others be refused.
    ((first >= 1 && last <= num_parts)) ||
        refuse "an array with tasks from $first to $last: expected tasks within 1-$num_parts, since SFT_PARTS=$num_parts"
    printf '%s/%s' "$task" "$num_parts"
}

# Call it first: a signal that comes from now on is noted, and run_with_warning_signal will find the note.
catch_signals() {
    local name
    for name in USR1 TERM INT; do
        # shellcheck disable=SC2064 # expands the name now
        trap "stop_signal=$name" "$name"
    done
}

# run_with_warning_signal COMMAND...: run it in a step and signal it when this shell gets a signal; returns its code.
#
# In the background, since bash runs a trap only between two commands. Polled, since a `wait` that is interrupted by a
# trap may lose the exit code or end before the step does (seen in bash 5.2). What is sent is USR1, since TERM makes
# srun kill the step; again and again, since srun loses what comes before the step runs.
run_with_warning_signal() {
    local step_pid status=0 num_polls=0
    if [[ -n $stop_signal ]]; then
        say "$stop_signal came before the start: nothing was run"
        return "$STOPPED"
    fi
    "${step_command[@]}" "$@" &
    step_pid=$!
    while kill -0 "$step_pid" 2>/dev/null; do
        if [[ -n $stop_signal ]] && ((num_polls++ % POLLS_PER_WARNING == 0)); then
            kill -USR1 "$step_pid" 2>/dev/null || true
        fi
        sleep 1
    done
    wait "$step_pid" || status=$?
    if [[ -n $stop_signal && $status -eq $KILLED_BY_USR1 ]]; then
        say "$stop_signal came before sft could listen, and ended it; nothing is lost"
        status=$STOPPED
    fi
    return "$status"
}

# For sft train, which stops in time if it knows the job's end; not every Slurm exports it (22.05 does not).
export_end_time() {
    local end
    [[ -z ${SLURM_JOB_END_TIME:-} ]] || return 0
    end=$(TZ=UTC0 SLURM_TIME_FORMAT=standard squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e) || return 0
    [[ $end == *T*:* ]] || return 0 # such as N/A
    SLURM_JOB_END_TIME=$(date --utc --date="$end" +%s) || return 0
    export SLURM_JOB_END_TIME
}

# For sft train, which runs once per task of the job: a step of all tasks, and their rendezvous address.
#
# When a task ends, the others are killed after --wait: by then they have detected that it is gone.
use_all_tasks() {
    ((${SLURM_NTASKS:-1} > 1)) || return 0
    local hostnames
    hostnames=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    MASTER_ADDR=${hostnames%%$'\n'*}
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    export MASTER_ADDR MASTER_PORT
    step_command=(srun --ntasks="$SLURM_NTASKS" --wait=300 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --export=ALL)
    say "$SLURM_NTASKS processes on $SLURM_JOB_NODELIST meet at $MASTER_ADDR:$MASTER_PORT"
}

# The run folder that `sft train ARGUMENT...` will use; fails as sft does if it refuses the arguments.
run_folder_of() { sft train "$@" --print-run-folder; }

# The name of the newest checkpoint, which sorts by step; nothing if there is none.
newest_checkpoint() {
    find "$1/checkpoints" -maxdepth 1 -name 'step-*' -printf '%f\n' 2>/dev/null | sort | tail -n 1 || true
}

# requeue_if_useful RUN_FOLDER NEWEST_BEFORE: what to do after exit code 75.
requeue_if_useful() {
    local run=$1 before=$2 state
    state=$(job_state) || state=''
    if [[ -z $state ]]; then
        say "not requeued: Slurm does not answer; submit it again to go on"
    elif [[ $state != RUNNING ]]; then
        # Slurm would requeue even a cancelled job.
        say "not requeued: the job is $state, so it was cancelled or at its end, or Slurm requeues it by itself"
    elif ((${SLURM_RESTART_COUNT:-0} >= MAX_RESTARTS)); then
        say "not requeued: the limit of $MAX_RESTARTS restarts (SFT_MAX_RESTARTS) is reached; submit it again to go on"
    elif has_progressed "$run" "$before"; then
        say "asking Slurm for another start"
        scontrol requeue "$SLURM_JOB_ID" || say "Slurm refused to requeue it; submit it again to go on"
    else
        say "held: $MAX_STARTS_WITHOUT_PROGRESS starts in a row were stopped before a new checkpoint in $run; is the" \
            "job's time longer than stop_margin_s and the start? To try again: scontrol release $SLURM_JOB_ID"
        scontrol requeuehold "$SLURM_JOB_ID" || say "Slurm refused to hold it; submit it again to go on"
    fi
}

# The job's state as Slurm names it; nothing if the controller is still busy after several queries.
job_state() {
    local turn
    for turn in {1..5}; do
        ((turn == 1)) || sleep 10
        squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T && break
    done
}

# Fails at the last of several starts in a row after which the newest checkpoint is not newer than before.
has_progressed() {
    local run=$1 before=$2 record=$1/.starts_without_progress
    [[ -d $run ]] || return 0 # stopped before the very first step
    if [[ $(newest_checkpoint "$run") > $before ]]; then
        rm -f "$record"
        return 0
    fi
    printf 'job %s, restart %s\n' "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" >>"$record"
    (($(grep -c "^job $SLURM_JOB_ID," "$record") < MAX_STARTS_WITHOUT_PROGRESS))
}
