# Redis 6.2 and later, Valkey: writers wait, for a time that the server itself limits, while what it holds is saved.

# The server's title tells where it listens: host:port, or unixsocket:path.
redis_discover() {
    for number in $(processes_named redis-server valkey-server); do
        address=$(tr '\0' '\n' <"/proc/$number/cmdline" | sed -n 's/^[^ ]* \([^ ]*:[^ ]*\).*/\1/p' | head -n 1)
        [ -z "$address" ] || printf '%s\t%s\n' "$address" "$(cat "/proc/$number/comm")"
    done
}

# redis_ask DIRECTORY ADDRESS WORDS...: the answer in ANSWER.
redis_ask() {
    asked=$1 address=$2
    shift 2
    client=$(command -v redis-cli || command -v valkey-cli) || { ANSWER='redis-cli is not installed'; return 1; }
    [ ! -r "$SETTINGS/redis.auth" ] || { REDISCLI_AUTH=$(cat "$SETTINGS/redis.auth"); export REDISCLI_AUTH; }
    case $address in
        unixsocket:*) set -- -s "${address#unixsocket:}" "$@" ;;
        '*'*) set -- -h 127.0.0.1 -p "${address##*:}" "$@" ;;
        *) set -- -h "$(printf '%s' "${address%:*}" | tr -d '[]')" -p "${address##*:}" "$@" ;;
    esac
    tick
    ask_s=$(((UNTIL - NOW) / 100))
    [ "$ask_s" -ge 1 ] || ask_s=1
    bounded "$ask_s" "$asked/answer" "$client" "$@" && asked_status=0 || asked_status=$?
    unset REDISCLI_AUTH
    ANSWER=$(tr -d '\r' <"$asked/answer")
    [ "$asked_status" != 124 ] || ANSWER='no answer in time'
    [ "$asked_status" = 0 ]
}

redis_freeze() {
    tick
    redis_ask "$1" "$2" CLIENT PAUSE $(((DEADLINE - NOW) * 10 + 1000)) WRITE && [ "$ANSWER" = OK ] || { DETAIL=$ANSWER; return 1; }
    : >"$1/paused"
    redis_ask "$1" "$2" INFO persistence || { DETAIL=$ANSWER; return 1; }
    if printf '%s\n' "$ANSWER" | grep -q '^aof_enabled:1'; then
        # WAITAOF came with 7.2; before, a second is what appendfsync everysec may be behind.
        if redis_ask "$1" "$2" WAITAOF 1 0 2000 && [ "${ANSWER%%[!0-9]*}" = 1 ]; then :; else sleep 1; fi
        DETAIL='writes paused, append-only file synced'
        return 0
    fi
    redis_save "$1" "$2"
}

redis_save() {
    if printf '%s\n' "$ANSWER" | grep -q '^rdb_changes_since_last_save:0$' &&
        printf '%s\n' "$ANSWER" | grep -q '^rdb_bgsave_in_progress:0$'; then
        DETAIL='writes paused, saved already'
        return 0
    fi
    redis_ask "$1" "$2" CONFIG GET save || { DETAIL=$ANSWER; return 1; }
    # A cache that is told to keep nothing gets no file of ours.
    case $ANSWER in save | "save
") DETAIL='writes paused, nothing is kept on disk'; return 0 ;; esac
    # A save that has begun before the pause lacks what came after: it is waited for, and another one made.
    redis_wait "$1" "$2" && redis_ask "$1" "$2" BGSAVE && redis_wait "$1" "$2" || { DETAIL="not saved: $ANSWER"; return 1; }
    printf '%s\n' "$ANSWER" | grep -q '^rdb_last_bgsave_status:ok' || { DETAIL='the server could not save'; return 1; }
    DETAIL='writes paused, saved'
}

redis_wait() {
    while redis_ask "$1" "$2" INFO persistence; do
        ! printf '%s\n' "$ANSWER" | grep -q '^rdb_bgsave_in_progress:0' || return 0
        tick
        [ "$NOW" -lt "$UNTIL" ] || { ANSWER='not in time'; return 1; }
        nap
    done
    return 1
}

redis_thaw() {
    [ -e "$1/paused" ] || return 0
    redis_ask "$1" "$2" CLIENT UNPAUSE
    DETAIL=$ANSWER
    [ "$ANSWER" = OK ]
}

redis_commit() { :; }
