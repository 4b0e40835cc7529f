# PostgreSQL 9.6 and later: a non-exclusive backup, which lasts as long as the session that started it. Writers go on.

postgresql_discover() {
    for number in $(processes_named postgres postmaster); do
        # Only the first process of a cluster has another kind of parent; the others may be many.
        { read -r line <"/proc/$number/stat"; } 2>/dev/null || continue
        # shellcheck disable=SC2086
        set -- ${line##*) }
        { read -r parent <"/proc/$2/comm"; } 2>/dev/null || parent=
        case $parent in postgres | postmaster) continue ;; esac
        data=$(readlink "/proc/$number/cwd") || continue
        { read -r first <"$data/postmaster.pid"; } 2>/dev/null || continue
        [ "$first" = "$number" ] && postgresql_facts "$data" || continue
        printf '%s\tversion %s, port %s\n' "$data" "$version" "$port"
    done
}

# What the data directory says of its server: version, port, sockets.
postgresql_facts() {
    { read -r version <"$1/PG_VERSION"; } 2>/dev/null || return 1
    port=$(sed -n 4p "$1/postmaster.pid")
    sockets=$(sed -n 5p "$1/postmaster.pid")
}

# The client beside the server's own program knows its version.
postgresql_client() {
    server=$(readlink "/proc/$(sed -n 1p "$1/postmaster.pid")/exe") || server=
    if [ -x "${server%/*}/psql" ]; then printf '%s' "${server%/*}/psql"; else command -v psql; fi
}

postgresql_freeze() {
    postgresql_facts "$2" || { DETAIL='the cluster has stopped'; return 1; }
    case ${version%%.*} in
        9) [ "$version" = 9.6 ] || { DETAIL="version $version is too old"; return 1; } ;;
        [1-8]) DETAIL="version $version is too old"; return 1 ;;
    esac
    [ -n "$sockets" ] || { DETAIL='the server has no Unix socket'; return 1; }
    client=$(postgresql_client "$2") || { DETAIL='psql is not installed'; return 1; }
    start='pg_backup_start('"'understudy $(basename "$STATE")'"', true)'
    [ "${version%%.*}" -ge 15 ] || start='pg_start_backup('"'understudy $(basename "$STATE")'"', true, false)'
    # -w: never ask for a password.
    session_open "$1" "$(stat -c %U "$2")" \
        "env PGCONNECT_TIMEOUT=5 $(quoted "$client") -XAtqw -v ON_ERROR_STOP=1 -h $(quoted "$sockets") -p $port -d postgres" &&
        session_ask "$1" understudy-started "SET statement_timeout = 0; SET lock_timeout = 0;
            SELECT 'at ' || $start; SELECT 'understudy-started';" ||
        { DETAIL=$(session_reason "$1"); return 1; }
    DETAIL="version $version, backup started $(sed -n 's/^at /at /p' "$1/out")"
}

postgresql_thaw() {
    if [ ! -e "$1/quiesced" ] || [ -e "$SESSION/expired" ]; then
        # The end of its session cancels a backup.
        session_close "$1"
        DETAIL='the backup was cancelled'
        return 1
    fi
    postgresql_facts "$2" || { session_close "$1"; DETAIL='the cluster has stopped'; return 1; }
    # Without waiting for the archiver: that may be broken, and it is not what the point needs.
    case $version in
        9.6) stop='pg_stop_backup(false)' ;;
        1[0-4]) stop='pg_stop_backup(false, false)' ;;
        *) stop='pg_backup_stop(false)' ;;
    esac
    session_ask "$1" understudy-stopped "SELECT 'label ' ||
        replace(encode(convert_to(labelfile, 'UTF8'), 'base64'), E'\\n', '') FROM $stop; SELECT 'understudy-stopped';" &&
        sed -n 's/^label //p' "$1/out" | base64 -d >"$1/label" ||
        { DETAIL="the backup was cancelled: $(session_reason "$1")"; session_close "$1"; return 1; }
    session_close "$1"
    DETAIL='backup stopped'
}

# PostgreSQL removes or archives its logs by itself when they are no longer needed; a point gives no reason to do more.
postgresql_commit() { :; }
