# The life of a session: begin, end, commit.

begin() {
    [ $# -ge 2 ] && is_id "$1" && is_seconds "$2" || usage 'begin ID DEADLINE_S [--fs] [--no-applications] [--share=PERCENT]'
    id=$1 deadline_s=$2 with_fs=no with_applications=yes
    shift 2
    for option in "$@"; do
        case $option in
        --fs) with_fs=yes ;;
        --no-applications) with_applications=no ;;
        --share=[1-9][0-9]) APPLICATIONS_PERCENT=${option#*=} ;;
        *) usage "begin: $option" ;;
        esac
    done
    refuse_second "$id"
    new_state "$id"
    SESSION=$STATE/session
    # Begun anew, without what could not be quiesced.
    [ ! -e "$SESSION/ended" ] || rm -rf "$SESSION"
    mkdir "$SESSION" 2>/dev/null || fail "session $id has begun already"
    RUNNING=$SESSION/running
    start_watchdog "$deadline_s"
    : >"$SESSION/answer"
    [ "$with_applications" = no ] || freeze_applications
    if [ "$with_fs" = yes ]; then begin_file_systems; else tell_unwatched; fi
    printf 'ready\n' >>"$SESSION/answer"
    cat "$SESSION/answer"
    rm -f "$SESSION/beginning"
}

# File systems cannot be frozen twice, and a second session's thaw would end the first one's. One whose deadline is over
# and whose watchdog was killed is ended here: perhaps nobody else ever comes for it.
refuse_second() {
    for place in $PLACES; do
        is_private "$place/understudy-guest" 2>/dev/null || continue
        for STATE in "$place"/understudy-guest/*; do
            SESSION=$STATE/session
            { [ -d "$SESSION" ] && [ ! -e "$SESSION/ended" ] && [ "${STATE##*/}" != "$1" ]; } || continue
            is_abandoned || fail "session ${STATE##*/} is quiescing this guest"
            end_abandoned
            finish
        done
    done
}

is_abandoned() {
    { read -r _ over <"$SESSION/times"; } 2>/dev/null || return 1
    tick
    [ "$NOW" -ge "$over" ] && ! remembered "$SESSION/watchdog"
}

# The guest agent freezes file systems by itself; can the watchdog here thaw them?
tell_unwatched() {
    command -v fsfreeze >/dev/null || printf 'unwatched\tfsfreeze is not installed\n' >>"$SESSION/answer"
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
