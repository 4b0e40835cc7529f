# The scripts of the administrator.

readonly LOG_BYTES=65536
readonly SHOWN_BYTES=4096

run() {
    [ $# = 3 ] && is_id "$1" && is_seconds "$2" || usage 'run ID TIMEOUT_S PATH'
    [ -f "$3" ] || fail "$3 is not a file"
    new_state "$1"
    directory=$STATE/run.$$
    mkdir "$directory" && mkfifo "$directory/fifo" || fail "cannot write to $directory"
    RUNNING=$directory/running
    (head -c "$LOG_BYTES" >"$directory/log"; exec cat) <"$directory/fifo" >/dev/null 2>&1 &
    reader=$!
    # Places in memory are often mounted noexec, so the program that the first line names is called.
    { read -r first <"$3"; } 2>/dev/null || first=
    case $first in '#!'*) words=${first#??} ;; *) words=/bin/sh ;; esac
    # shellcheck disable=SC2086
    bounded "$2" "$directory/fifo" $words "$3" && status=0 || status=$?
    for _ in 1 2 3 4 5 6 7 8 9 10; do started "$reader" || break; nap; done
    kill "$reader" 2>/dev/null
    printf 'exit\t%s\n' "$status"
    printf 'output\t%s\n' "$(tail -c "$SHOWN_BYTES" "$directory/log" | base64 | tr -d '\n')"
    rm -rf "$directory"
    rmdir "$STATE" 2>/dev/null || :
}
