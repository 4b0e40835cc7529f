# What sessions have left that did not come to their end.

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
