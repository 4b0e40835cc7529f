#!/bin/sh
# Quiesces this guest for a moment, so that a point of its disks can be taken. Copied in by Understudy and removed again.
#
#   version | discover | begin ID DEADLINE_S [--fs] [--no-applications] | end ID | commit ID
#   run ID TIMEOUT_S PATH | cleanup
#
# Answers are tab-separated lines on standard output; what went wrong is told on standard error, with exit status 1
# (2: wrong usage). POSIX sh with coreutils or busybox. Nothing stays frozen: a watchdog of its own session thaws at the
# deadline, whoever else is dead by then. All state is on a tmpfs: a frozen file system may be read, never written.
set -u
umask 077
LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin
export LC_ALL PATH
# What a caller's database variables say is not meant for our sessions.
unset PGOPTIONS PGSERVICE PGPASSWORD PGSSLMODE MYSQL_PWD REDISCLI_AUTH CDPATH

readonly TAB='	'
readonly SETTINGS=/etc/understudy
readonly APPLICATION_LIMIT_S=10
readonly LOG_BYTES=65536
readonly SHOWN_BYTES=4096
# Where state may be, if that is in memory.
readonly PLACES='/run /dev/shm /tmp'

# --- Words, time and processes ----------------------------------------------------------------------------------------

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

# Numbers of the processes of this guest (not of its containers) with one of the names given.
processes_named() {
    for process in /proc/[0-9]*; do
        { read -r name <"$process/comm"; } 2>/dev/null || continue
        for wanted in "$@"; do
            [ "$name" = "$wanted" ] || continue
            [ "$(readlink "$process/ns/pid")" = "$(readlink /proc/self/ns/pid)" ] || continue
            printf '%s\n' "${process#/proc/}"
        done
    done
}

# The shell that reads this file, as words.
interpreter() {
    shell=$(readlink "/proc/$$/exe") || shell=/bin/sh
    case ${shell##*/} in busybox*) printf '%s sh' "$shell" ;; *) printf '%s' "$shell" ;; esac
}

# --- State ------------------------------------------------------------------------------------------------------------

# A directory that only root can have made, in BASE; fails if $1 is not in memory or has no room.
usable_base() {
    case $(stat -f -c %T "$1" 2>/dev/null) in tmpfs | ramfs) ;; *) return 1 ;; esac
    BASE=$1/understudy-guest
    mkdir -m 700 "$BASE" 2>/dev/null || :
    is_private "$BASE" || return 1
    room=$BASE/.room.$$
    dd if=/dev/zero of="$room" bs=1024 count=256 2>/dev/null && has_room=0 || has_room=1
    rm -f "$room"
    return "$has_room"
}

is_private() { [ -d "$1" ] && [ ! -L "$1" ] && [ "$(stat -c '%u %a' "$1")" = "$(id -u) 700" ]; }

new_state() {
    for place in $PLACES; do
        usable_base "$place" || continue
        STATE=$BASE/$1
        mkdir -p "$STATE" && return 0
    done
    fail "no place in memory ($PLACES) has 256 KiB left for the session's state"
}

# The state of session $1, in STATE and SESSION.
find_state() {
    for place in $PLACES; do
        is_private "$place/understudy-guest" 2>/dev/null || continue
        STATE=$place/understudy-guest/$1
        SESSION=$STATE/session
        [ ! -d "$SESSION" ] || return 0
    done
    return 1
}

# --- File systems -----------------------------------------------------------------------------------------------------

# Mount points of writable file systems on block devices, the last mounted first, one for each file system.
mount_points() {
    awk '
        { dash = 0; for (i = 7; i <= NF; i++) if ($i == "-") { dash = i; break } }
        !dash { next }
        { shown[$5] = $3 }
        $(dash + 2) !~ /^\/dev\// || $(dash + 3) !~ /(^|,)rw(,|$)/ { next }
        $(dash + 1) ~ /^(squashfs|iso9660|udf|vfat|exfat|msdos|nfs4?|cifs|fuse.*)$/ { next }
        { count++; point[count] = $5; device[count] = $3 }
        END {
            for (i = 1; i <= count; i++) if (shown[point[i]] == device[i] && !(device[i] in first)) first[device[i]] = i
            for (i = count; i >= 1; i--) if (first[device[i]] == i) print point[i]
        }' /proc/self/mountinfo
}

# The kernel writes space, tab, line end and backslash in a mount point as octal numbers.
mount_point() { printf '%b' "$(printf '%s' "$1" | sed 's/\\\([0-7][0-7][0-7]\)/\\0\1/g')"; }

# Freeze all of the session's mount points, in FROZEN how many; thaws all again if one fails.
freeze_file_systems() {
    FROZEN=0
    while read -r point; do
        directory=$(mount_point "$point")
        [ -d "$directory" ] || continue
        left_s; bounded "$LEFT_S" "$SESSION/fs.log" fsfreeze --freeze "$directory" && { FROZEN=$((FROZEN + 1)); continue; }
        # As QEMU's agent does: what cannot be frozen at all is left, and so is what is frozen already.
        ! grep -q -i -e 'not supported' -e 'inappropriate ioctl' -e busy "$SESSION/fs.log" || continue
        reason="$(field "$(cat "$SESSION/fs.log")")"
        thaw_file_systems
        FS_REASON="$directory cannot be frozen: ${reason:-not in time}"
        return 1
    done <"$SESSION/mounts"
}

# Thaw all of the session's mount points, in THAWED how many were frozen; fails if one hangs. All at once: one that waits
# for a freeze on a broken disk, or for the file system below it, must not keep the others frozen. Nothing is written here.
thaw_file_systems() {
    THAWED=0 thaw_failed=0 thawing=
    while read -r point; do
        directory=$(mount_point "$point")
        [ -d "$directory" ] || continue
        setsid fsfreeze --unfreeze "$directory" </dev/null >/dev/null 2>&1 &
        thawing="$thawing $!"
    done <"$SESSION/mounts"
    tick
    thaw_until=$((NOW + 500))
    for thaw_pid in $thawing; do
        while started "$thaw_pid" && [ "$NOW" -lt "$thaw_until" ]; do nap; tick; done
        if started "$thaw_pid"; then thaw_failed=1; elif wait "$thaw_pid"; then THAWED=$((THAWED + 1)); fi
    done
    return "$thaw_failed"
}

# --- Interactive database sessions ------------------------------------------------------------------------------------
# A client that reads its statements from a fifo and stays after `begin` has ended. It has the fifo open for writing
# too, so that it never sees its end; it is ended by its number, which it tells in the first line of its output.

# session_open DIRECTORY USER COMMAND: start shell words COMMAND as USER.
session_open() {
    mkfifo "$1/in" && : >"$1/out" || return 1
    words="echo \"client \$\$\"; exec $3"
    if [ "$2" = "$(id -un)" ]; then
        (cd / && exec setsid /bin/sh -c "$words") <>"$1/in" >>"$1/out" 2>&1 &
    elif command -v runuser >/dev/null; then
        (cd / && exec setsid runuser -u "$2" -- /bin/sh -c "$words") <>"$1/in" >>"$1/out" 2>&1 &
    else
        (cd / && exec setsid su -s /bin/sh -c "$words" "$2") <>"$1/in" >>"$1/out" 2>&1 &
    fi
    session_pid=$!
    remember "$1/wrapper" "$session_pid" || return 1
    # Until it has told its number it is not to be lost; the wrapper lives at least as long.
    while started "$session_pid"; do
        { read -r word number <"$1/out"; } 2>/dev/null && [ "$word" = client ] && break
        tick
        [ "$NOW" -lt "$UNTIL" ] || return 1
        nap
    done
    [ "${word-}" = client ] && remember "$1/client" "$number"
}

# session_ask DIRECTORY MARK STATEMENTS: wait until the client has printed the line MARK; fails if it ended or UNTIL came.
session_ask() {
    remembered "$1/client" || return 1
    printf '%s\n' "$3" 1<>"$1/in"
    while ! grep -q -x -e "$2" "$1/out"; do
        remembered "$1/client" || { grep -q -x -e "$2" "$1/out"; return; }
        tick
        [ "$NOW" -lt "$UNTIL" ] || return 1
        nap
    done
}

session_close() {
    end_remembered "$1/client"
    end_remembered "$1/wrapper"
}

# Why a client that should have answered did not.
session_reason() {
    reason=$(sed -e '/^client /d' -e '/^understudy-/d' "$1/out" | tail -n 3)
    if [ -n "$reason" ]; then printf '%s' "$reason"
    elif remembered "$1/client"; then printf 'no answer in time'
    else printf 'the client ended'; fi
}

quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }

# Applications are put in here.

# --- Applications: what all have in common ----------------------------------------------------------------------------
# KIND_discover prints NAME<TAB>DETAIL for each instance. KIND_freeze DIRECTORY NAME and KIND_thaw DIRECTORY NAME have
# until UNTIL, leave a text in DETAIL, and may keep files in DIRECTORY (`label` is what is told after the thaw); thaw can be
# called whatever freeze has done. KIND_commit DIRECTORY NAME is called when the point is complete.

discover() {
    for kind in $KINDS; do
        "${kind}_discover" | while IFS=$TAB read -r name detail; do
            printf 'app\t%s\t%s\t%s\n' "$kind" "$(field "$name")" "$(field "$detail")"
        done
    done
}

# What is left until the session's deadline, in whole seconds, at least one, in LEFT_S.
left_s() {
    tick
    LEFT_S=$(((DEADLINE - NOW) / 100))
    [ "$LEFT_S" -ge 1 ] || LEFT_S=1
}

# An application has half of what is left, so that those after it have something too.
application_until() {
    left_s
    [ "$LEFT_S" -le $((APPLICATION_LIMIT_S * 2)) ] || LEFT_S=$((APPLICATION_LIMIT_S * 2))
    UNTIL=$((NOW + LEFT_S * 50))
}

freeze_applications() {
    discover >"$SESSION/found" 2>/dev/null
    count=100
    while IFS=$TAB read -r _ kind name _; do
        count=$((count + 1))
        directory=$SESSION/apps/$count
        mkdir -p "$directory"
        printf '%s\n' "$kind" >"$directory/kind"
        printf '%s\n' "$name" >"$directory/name"
        freeze_application "$directory" "$kind" "$name" </dev/null
    done <"$SESSION/found"
}

freeze_application() {
    application_until
    since=$NOW DETAIL=
    if "$2_freeze" "$1" "$3"; then
        result=quiesced
        : >"$1/quiesced"
    else
        result=failed freeze_detail=$DETAIL
        tick; UNTIL=$((NOW + 200))
        "$2_thaw" "$1" "$3" >/dev/null
        DETAIL=$freeze_detail
        : >"$1/failed"
    fi
    tick
    printf 'app\t%s\t%s\t%s\t%s\t%s\n' "$2" "$3" "$result" "$(field "$DETAIL")" $(((NOW - since) * 10)) >>"$SESSION/answer"
}

# Thaw what was quiesced, the last first; each result is kept, so that asking again tells the same.
thaw_applications() {
    for directory in $(find "$SESSION/apps" -mindepth 1 -maxdepth 1 2>/dev/null | sort -r); do
        { [ ! -e "$directory/failed" ] && claim_thaw "$directory"; } || continue
        read -r kind <"$directory/kind"
        read -r name <"$directory/name"
        tick; UNTIL=$((NOW + 500)); DETAIL=
        if "${kind}_thaw" "$directory" "$name"; then result=thawed; else result=failed; fi
        # One that was being frozen when its time came has no place among the thawed.
        if [ -e "$directory/quiesced" ]; then tell_thawed >"$directory/telling"; else : >"$directory/telling"; fi
        mv "$directory/telling" "$directory/thawed"
    done
}

tell_thawed() {
    printf 'app\t%s\t%s\t%s\t%s\n' "$kind" "$name" "$result" "$(field "$DETAIL")"
    if [ "$result" = thawed ] && [ -s "$directory/label" ]; then
        printf 'label\t%s\t%s\t%s\n' "$kind" "$name" "$(base64 <"$directory/label" | tr -d '\n')"
    fi
}

# Whether it is ours to thaw the application in directory $1: the watchdog and `end` may come at the same time. Waits for
# whoever has begun, and takes over from the dead.
claim_thaw() {
    if mkdir "$1/thawing" 2>/dev/null; then remember "$1/claim" $$; return; fi
    nap
    while [ ! -e "$1/thawed" ]; do
        remembered "$1/claim" || { remember "$1/claim" $$; return; }
        [ "$REMEMBERED" != $$ ] || return 0
        nap
    done
    return 1
}

# --- Verbs ------------------------------------------------------------------------------------------------------------

begin() {
    [ $# -ge 2 ] && is_id "$1" && is_seconds "$2" || usage 'begin ID DEADLINE_S [--fs] [--no-applications]'
    id=$1 deadline_s=$2 with_fs=no with_applications=yes
    shift 2
    for option in "$@"; do
        case $option in --fs) with_fs=yes ;; --no-applications) with_applications=no ;; *) usage "begin: $option" ;; esac
    done
    new_state "$id"
    SESSION=$STATE/session
    refuse_second "$id"
    mkdir "$SESSION" 2>/dev/null || fail "session $id has begun already"
    RUNNING=$SESSION/running
    start_watchdog "$deadline_s"
    : >"$SESSION/answer"
    [ "$with_applications" = no ] || freeze_applications
    if [ "$with_fs" = yes ]; then begin_file_systems; fi
    printf 'ready\n' >>"$SESSION/answer"
    cat "$SESSION/answer"
    rm -f "$SESSION/beginning"
}

# File systems cannot be frozen twice, and a second session's thaw would end the first one's.
refuse_second() {
    for place in $PLACES; do
        for other in "$place"/understudy-guest/*/session; do
            [ ! -d "$other" ] || [ -e "$other/ended" ] || [ "$other" = "$SESSION" ] ||
                fail "session $(basename "${other%/session}") is quiescing this guest"
        done
    done
}

begin_file_systems() {
    tick; since=$NOW
    : >"$SESSION/with-fs"
    if ! freeze_file_systems; then
        thaw_applications
        finish
        fail "$FS_REASON"
    fi
    tick
    printf 'fs\t%s\t%s\n' "$FROZEN" $(((NOW - since) * 10)) >>"$SESSION/answer"
}

# Before anything is frozen: the list of what may have to be thawed, and somebody who will do it.
start_watchdog() {
    tick
    DEADLINE=$((NOW + $1 * 100))
    printf '%s %s\n' "$NOW" "$DEADLINE" >"$SESSION/times"
    mount_points >"$SESSION/mounts"
    remember "$SESSION/beginning" $$ || fail 'this process is not in /proc'
    # Its program is read once before; the copy that was called may be on a file system that is frozen, or removed.
    cat "$0" >"$SESSION/program" || fail "cannot copy $0"
    fsfreeze -h >/dev/null 2>&1
    # shellcheck disable=SC2046
    setsid $(interpreter) "$SESSION/program" watch "$(basename "$STATE")" </dev/null >/dev/null 2>&1 &
    remember "$SESSION/watchdog" $! || fail 'the watchdog did not start'
    while [ ! -e "$SESSION/watching" ]; do
        remembered "$SESSION/watchdog" || fail 'the watchdog did not start'
        nap
    done
}

# Not a verb for callers: the watchdog's own life.
watch() {
    find_state "$1" || exit 1
    # A service manager that restarts the agent ends all of its control group: not us. Nor does lack of memory.
    for group in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/systemd/cgroup.procs; do
        [ ! -w "$group" ] || { echo $$ >"$group"; } 2>/dev/null
    done
    { echo -1000 >/proc/self/oom_score_adj; } 2>/dev/null
    trap '' HUP INT PIPE
    read -r began DEADLINE <"$SESSION/times"
    : >"$SESSION/watching"
    tick
    while [ "$NOW" -lt "$DEADLINE" ]; do
        [ -d "$SESSION" ] && [ ! -e "$SESSION/ended" ] || exit 0
        nap
        tick
    done
    expire
}

# The deadline has come. File systems first, and without a write before they are thawed.
expire() {
    # Whoever is still freezing would freeze after us.
    if remembered "$SESSION/beginning"; then kill -KILL "$REMEMBERED" 2>/dev/null; fi
    if remembered "$SESSION/running"; then signal KILL "$REMEMBERED"; fi
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        thaw_file_systems && break
        sleep 1
    done
    # A freeze that was on its way when its process was killed may have ended since.
    [ ! -e "$SESSION/beginning" ] || { sleep 1; thaw_file_systems; }
    tick
    echo $(((NOW - began) / 100)) >"$SESSION/expired"
    thaw_applications
    : >"$SESSION/ended"
}

# The session is over: nothing is frozen, nobody has to watch.
finish() {
    : >"$SESSION/ended"
    end_remembered "$SESSION/watchdog"
}

end() {
    [ $# = 1 ] && is_id "$1" || usage 'end ID'
    if ! find_state "$1"; then
        # Nothing here knows the session any more, so nothing says that it was quiesced until now.
        printf 'expired\t0\nended\n'
        return
    fi
    thaw_file_systems || fs_left='a file system cannot be thawed'
    end_beginning
    # The watchdog may be at it: its results are taken, and what it has not reached is done here.
    thaw_applications
    if [ -z "${fs_left-}" ]; then finish; fi
    print_end
    [ -z "${fs_left-}" ] || fail "$fs_left"
}

# A `begin` that nobody waited for must not go on freezing.
end_beginning() {
    [ -e "$SESSION/beginning" ] || return 0
    if remembered "$SESSION/beginning"; then kill -KILL "$REMEMBERED" 2>/dev/null; fi
    if remembered "$SESSION/running"; then signal KILL "$REMEMBERED"; fi
    nap
    thaw_file_systems || fs_left='a file system cannot be thawed'
}

print_end() {
    if [ -e "$SESSION/with-fs" ]; then
        [ -s "$SESSION/thawed-fs" ] || echo "$THAWED" >"$SESSION/thawed-fs"
        printf 'fs\t%s\n' "$(cat "$SESSION/thawed-fs")"
    fi
    for directory in "$SESSION"/apps/*; do
        [ ! -s "$directory/thawed" ] || cat "$directory/thawed"
    done
    [ ! -s "$SESSION/expired" ] || printf 'expired\t%s\n' "$(cat "$SESSION/expired")"
    printf 'ended\n'
}

commit() {
    [ $# = 1 ] && is_id "$1" || usage 'commit ID'
    find_state "$1" || fail "session $1 is not known here"
    [ -e "$SESSION/ended" ] || fail "session $1 has not ended"
    problems=
    for directory in "$SESSION"/apps/*; do
        [ -e "$directory/quiesced" ] || continue
        read -r kind <"$directory/kind"
        read -r name <"$directory/name"
        DETAIL=
        "${kind}_commit" "$directory" "$name" || problems="$problems $kind $name: $(field "$DETAIL");"
    done
    rm -rf "$SESSION"
    rmdir "$STATE" 2>/dev/null || :
    [ -z "$problems" ] || fail "not committed:$problems"
    printf 'committed\n'
}

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

# End what crashed sessions have left, a session that is quiescing now included: whoever calls has come after it.
cleanup() {
    own=$(cd "$(dirname "$0")" && pwd -P)
    for place in $PLACES; do
        is_private "$place/understudy-guest" 2>/dev/null || continue
        for STATE in "$place"/understudy-guest/*; do
            [ -d "$STATE" ] || continue
            clean_session
            # The directory of the program that runs here is its caller's to remove.
            [ "$(cd "$STATE" && pwd -P)" != "$own" ] || continue
            rm -rf "$STATE"
            printf 'removed\t%s\n' "$(field "$(basename "$STATE")")"
        done
    done
    printf 'clean\n'
}

clean_session() {
    for directory in "$STATE"/run.*; do end_remembered "$directory/running"; done
    SESSION=$STATE/session
    [ -d "$SESSION" ] || return 0
    if [ ! -e "$SESSION/ended" ]; then
        end_beginning
        thaw_file_systems || fail "session $(basename "$STATE"): a file system cannot be thawed"
        thaw_applications
    fi
    finish
    rm -rf "$SESSION"
}

main() {
    [ $# -ge 1 ] || usage 'version | discover | begin | end | commit | run | cleanup'
    verb=$1
    shift
    case $verb in
        version) printf 'understudy-guest\t1\n' ;;
        discover) discover && printf 'discovered\n' ;;
        begin | end | commit | run | cleanup | watch) "$verb" "$@" ;;
        *) usage 'version | discover | begin | end | commit | run | cleanup' ;;
    esac
}

# One line, so that all of the file has been read before anything is done.
main "$@"; exit $?
