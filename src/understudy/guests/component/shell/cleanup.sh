# What sessions have left that did not come to their end.

# cleanup [PREFIX]: end what crashed sessions have left whose names begin so, one that is quiescing now included: whoever
# calls has come after it. Sessions of others go on.
cleanup() {
    [ $# = 0 ] || { [ $# = 1 ] && is_id "$1"; } || usage 'cleanup [PREFIX]'
    own=$(cd "$(dirname "$0")" && pwd -P)
    for place in $PLACES; do
        is_private "$place/understudy-guest" 2>/dev/null || continue
        for STATE in "$place/understudy-guest/${1-}"*; do
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
    [ -e "$SESSION/ended" ] || end_abandoned
    finish
    rm -rf "$SESSION"
}

end_abandoned() {
    # It may have been killed before it had the list.
    [ -e "$SESSION/mounts" ] || mount_points >"$SESSION/mounts"
    end_beginning
    thaw_file_systems || fail "session ${STATE##*/}: a file system cannot be thawed"
    thaw_applications
}
