# What all applications have in common. Each has a file of its own with these functions:
#
# KIND_discover prints NAME<TAB>DETAIL for each instance. KIND_freeze DIRECTORY NAME and KIND_thaw DIRECTORY NAME have
# until UNTIL, leave a text in DETAIL, and may keep files in DIRECTORY (`label` is what is told after the thaw); thaw can be
# called whatever freeze has done. KIND_commit DIRECTORY NAME is called when the point is complete.

# All of them have this share of the time until the deadline, the rest is for file systems and the copy of the disks.
APPLICATIONS_PERCENT=40

discover() {
    list_processes
    for kind in $KINDS; do
        "${kind}_discover" | while IFS=$TAB read -r name detail; do
            printf 'app\t%s\t%s\t%s\n' "$kind" "$(field "$name")" "$(field "$detail")"
        done
    done
}

# application_until TO_COME: an application has half of what is left, so that those after it have something too.
application_until() {
    tick
    UNTIL=$APPLICATIONS_UNTIL
    [ "$1" -le 1 ] || UNTIL=$((NOW + (UNTIL - NOW) / 2))
    [ "$UNTIL" -ge $((NOW + 50)) ] || UNTIL=$((NOW + 50))
}

freeze_applications() {
    tick
    APPLICATIONS_UNTIL=$((NOW + (DEADLINE - NOW) * APPLICATIONS_PERCENT / 100))
    discover >"$SESSION/found" 2>/dev/null
    count=100 to_come=$(wc -l <"$SESSION/found")
    while IFS=$TAB read -r _ kind name _; do
        count=$((count + 1))
        directory=$SESSION/apps/$count
        mkdir -p "$directory"
        printf '%s\n' "$kind" >"$directory/kind"
        printf '%s\n' "$name" >"$directory/name"
        application_until "$to_come"
        to_come=$((to_come - 1))
        freeze_application "$directory" "$kind" "$name" </dev/null
    done <"$SESSION/found"
}

freeze_application() {
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
    [ -d "$SESSION/apps" ] || return 0
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
