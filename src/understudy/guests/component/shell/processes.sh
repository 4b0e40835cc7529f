# Words of answers, time, and processes.

fail() { printf '%s\n' "$*" >&2; exit 1; }

usage() { printf 'usage: %s\n' "$*" >&2; exit 2; }

# One field of an answer: no tabs, no line ends, no control characters, bounded.
field() { printf '%s' "$*" | tr -s '[:cntrl:]' ' ' | cut -c1-300; }

is_id() { case $1 in '' | .* | *[!A-Za-z0-9._-]*) return 1 ;; esac; [ ${#1} -le 64 ]; }

is_seconds() { case $1 in '' | 0* | *[!0-9]*) return 1 ;; esac; [ ${#1} -le 5 ]; }

nap() { sleep 0.05 2>/dev/null || sleep 1; }

# The clock that nobody sets, in hundredths of a second, in NOW.
tick() {
    read -r NOW rest </proc/uptime
    NOW=${NOW%.*}${NOW#*.}
    NOW=${NOW#0}
    NOW=${NOW#0}
}

# When a process was started, in STARTED; fails for one that is gone or only waits to be reaped.
started() {
    STARTED=
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    # shellcheck disable=SC2086
    set -- ${line##*) }
    case $1 in Z | X) return 1 ;; esac
    shift 19
    STARTED=$1
}

# Remember process $2 in file $1; its number alone may be another process's later.
remember() { started "$2" && printf '%s %s\n' "$2" "$STARTED" >"$1"; }

# Whether the process remembered in file $1 still runs, its number in REMEMBERED.
remembered() {
    REMEMBERED=
    { read -r number since <"$1"; } 2>/dev/null || return 1
    started "$number" && [ "$STARTED" = "$since" ] && REMEMBERED=$number
}

# Signal $1 to process $2 and its process group, if it leads one.
signal() { kill "-$1" "-$2" 2>/dev/null || kill "-$1" "$2" 2>/dev/null || :; }

# End the process remembered in file $1: asked first, then killed.
end_remembered() {
    remembered "$1" || return 0
    signal TERM "$REMEMBERED"
    for _ in 1 2 3 4 5 6 7 8 9 10; do remembered "$1" || return 0; nap; done
    ! remembered "$1" || signal KILL "$REMEMBERED"
}

# bounded SECONDS FILE COMMAND...: run it in a process group of its own, output to FILE; 124 if it was killed.
# For the caller's death a file RUNNING is remembered while it runs, if that is set.
bounded() {
    bounded_s=$1 bounded_file=$2
    shift 2
    tick
    bounded_until=$((NOW + bounded_s * 100))
    setsid "$@" </dev/null >"$bounded_file" 2>&1 &
    bounded_pid=$!
    [ -z "${RUNNING-}" ] || remember "$RUNNING" "$bounded_pid" || :
    while started "$bounded_pid"; do
        tick
        if [ "$NOW" -ge "$bounded_until" ]; then
            signal KILL "$bounded_pid"
            [ -z "${RUNNING-}" ] || rm -f "$RUNNING"
            return 124
        fi
        nap
    done
    [ -z "${RUNNING-}" ] || rm -f "$RUNNING"
    wait "$bounded_pid" && bounded_status=0 || bounded_status=$?
    # What a script has left in its group would hold on to what it was given.
    kill -KILL "-$bounded_pid" 2>/dev/null || :
    return "$bounded_status"
}

# All processes as words NUMBER/NAME, in PROCESSES: one look for all who search.
list_processes() {
    PROCESSES=
    for process in /proc/[0-9]*; do
        { read -r name <"$process/comm"; } 2>/dev/null || continue
        case $name in *[!A-Za-z0-9._-]*) continue ;; esac
        PROCESSES="$PROCESSES ${process#/proc/}/$name"
    done
}

# Numbers of the processes of this guest (not of its containers) with one of the names given.
processes_named() {
    for process in $PROCESSES; do
        for wanted in "$@"; do
            [ "${process#*/}" = "$wanted" ] || continue
            process=${process%%/*}
            [ "$(readlink "/proc/$process/ns/pid")" = "$(readlink /proc/self/ns/pid)" ] || continue
            printf '%s\n' "$process"
        done
    done
}

# The shell that reads this file, as words.
interpreter() {
    shell=$(readlink "/proc/$$/exe") || shell=/bin/sh
    case ${shell##*/} in busybox*) printf '%s sh' "$shell" ;; *) printf '%s' "$shell" ;; esac
}
