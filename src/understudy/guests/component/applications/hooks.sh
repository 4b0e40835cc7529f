# The administrator's own programs, in name order, each called with freeze, thaw and commit; its exit status decides.

readonly HOOKS=$SETTINGS/hooks.d
readonly HOOK_LIMIT_S=10

hooks_discover() {
    for hook in "$HOOKS"/*; do
        [ -f "$hook" ] && [ -x "$hook" ] || continue
        printf '%s\t%s\n' "${hook##*/}" "$hook"
    done
}

# Whoever may write to it would be root here.
hook_is_safe() {
    for path in "$1" "$HOOKS"; do
        facts=$(stat -L -c '%u %a' "$path") || return 1
        case $facts in "0 "*[2367] | "0 "*[2367]? | [!0]* | 0[!\ ]*) return 1 ;; esac
    done
}

# hook_call DIRECTORY NAME WORD SECONDS
hook_call() {
    hook_is_safe "$HOOKS/$2" || { DETAIL='it, or its directory, does not belong to root or is writable by others'; return 1; }
    bounded "$4" "$1/log" "$HOOKS/$2" "$3" && status=0 || status=$?
    DETAIL="exit status $status"
    [ "$status" != 124 ] || DETAIL="it was killed after $4 s"
    [ "$status" = 0 ] || DETAIL="$DETAIL $(tail -c 200 "$1/log")"
    [ "$status" = 0 ]
}

hooks_freeze() {
    tick
    hook_s=$(((UNTIL - NOW) / 100))
    [ "$hook_s" -ge 1 ] || hook_s=1
    [ "$hook_s" -le "$HOOK_LIMIT_S" ] || hook_s=$HOOK_LIMIT_S
    : >"$1/called"
    hook_call "$1" "$2" freeze "$hook_s"
}

hooks_thaw() {
    [ ! -e "$1/called" ] || hook_call "$1" "$2" thaw "$HOOK_LIMIT_S"
}

hooks_commit() { hook_call "$1" "$2" commit "$HOOK_LIMIT_S"; }
