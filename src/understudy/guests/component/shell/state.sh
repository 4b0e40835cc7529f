# Where the state of sessions is: in memory, because a frozen file system may be read, but never written.

readonly PLACES='/run /dev/shm /tmp'

# A directory that only root can have made, in BASE; fails if $1 is not in memory or has no room.
usable_base() {
    case $(stat -f -c %T "$1" 2>/dev/null) in tmpfs | ramfs) ;; *) return 1 ;; esac
    BASE=$1/understudy-guest
    mkdir -m 700 "$BASE" 2>/dev/null || :
    is_private "$BASE" || return 1
    room=$BASE/.room.$$
    dd if=/dev/zero of="$room" bs=65536 count=4 2>/dev/null && has_room=0 || has_room=1
    rm -f "$room"
    return "$has_room"
}

is_private() { [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] && [ "$(stat -c %a "$1")" = 700 ]; }

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
