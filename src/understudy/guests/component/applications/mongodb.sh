# MongoDB: writes are flushed and locked by the server until it is told otherwise; its clients may go meanwhile.

mongodb_discover() {
    for number in $(processes_named mongod); do
        port=$(tr '\0' '\n' <"/proc/$number/cmdline" | sed -n -e '/^--port$/{n;p;}' -e 's/^--port=//p' | head -n 1)
        file=$(tr '\0' '\n' <"/proc/$number/cmdline" | sed -n -e '/^--config$/{n;p;}' -e '/^-f$/{n;p;}' -e 's/^--config=//p' | head -n 1)
        [ -n "$port" ] || port=$(sed -n 's/^[[:space:]]*port:[[:space:]]*\([0-9]*\).*/\1/p' "${file:-/dev/null}" 2>/dev/null | head -n 1)
        printf '127.0.0.1:%s\tmongod\n' "${port:-27017}"
    done
}

# mongodb_ask DIRECTORY ADDRESS SCRIPT MARK: whether it printed the line MARK; all that it printed in ANSWER.
mongodb_ask() {
    client=$(command -v mongosh || command -v mongo) || { ANSWER='neither mongosh nor mongo is installed'; return 1; }
    tick
    ask_s=$(((UNTIL - NOW) / 100))
    [ "$ask_s" -ge 1 ] || ask_s=1
    bounded "$ask_s" "$1/answer" "$client" --quiet --host "${2%:*}" --port "${2##*:}" --eval "$3" || :
    ANSWER=$(cat "$1/answer")
    grep -q -x -e "$4" "$1/answer"
}

mongodb_freeze() {
    : >"$1/asked"
    mongodb_ask "$1" "$2" 'const w = db.adminCommand({hello: 1}).lastWrite;
        const r = db.fsyncLock(); if (r.ok != 1) { throw new Error(JSON.stringify(r)); }
        if (w && w.opTime) { print("optime " + JSON.stringify(w.opTime)); } print("understudy-locked");' understudy-locked ||
        { DETAIL=${ANSWER:-no answer in time}; return 1; }
    printf '%s\n' "$ANSWER" | sed -n '/^optime /p' >"$1/label"
    DETAIL='flushed and locked'
}

mongodb_thaw() {
    [ -e "$1/asked" ] || return 0
    mongodb_ask "$1" "$2" 'const r = db.fsyncUnlock(); if (r.ok != 1) { throw new Error(JSON.stringify(r)); }
        print("understudy-unlocked");' understudy-unlocked || { DETAIL=${ANSWER:-no answer in time}; return 1; }
    DETAIL='unlocked'
}

mongodb_commit() { :; }
