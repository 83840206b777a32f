# shellcheck shell=bash
# Sourced by the stubs: how they leave a trace for the test, and how they wait for it.

# record WORD...: one line, quoted so that every argument can be told from its neighbours.
record() { printf '%s\n' "$(printf '%q ' "$@")" >>"$STUB_FOLDER/calls"; }

# wait_for FILE: until the test makes it; bounded, so that nothing outlives a failed test for long.
wait_for() {
    local turn
    for ((turn = 0; turn < 500; turn++)); do
        [[ ! -e $STUB_FOLDER/$1 ]] || return 0
        command -p sleep 0.02 # the real one
    done
    echo "the test never made $1"
    exit 99
}
