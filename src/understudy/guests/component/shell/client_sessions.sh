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
