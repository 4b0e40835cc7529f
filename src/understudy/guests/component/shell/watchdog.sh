# The watchdog: a process of its own that thaws everything at the deadline, whoever else is dead by then.

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
    setsid $(interpreter) "$SESSION/program" watch "${STATE##*/}" </dev/null >/dev/null 2>&1 &
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
        # Whoever ends the session ends this process; more steps would only take time from a guest that is in a hurry.
        if [ $((DEADLINE - NOW)) -gt 50 ]; then sleep 0.25 2>/dev/null || sleep 1; else nap; fi
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
