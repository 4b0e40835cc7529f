# MySQL and MariaDB: commits wait, in a session that holds the server's backup locks. The end of the session lets go.

mysql_discover() {
    for number in $(processes_named mysqld mariadbd); do
        socket=$(mysql_socket "$number") || continue
        printf '%s\t%s\n' "$socket" "$(basename "$(readlink "/proc/$number/exe")")"
    done
}

mysql_socket() {
    socket=$(tr '\0' '\n' <"/proc/$1/cmdline" | sed -n 's/^--socket=//p' | tail -n 1)
    [ -n "$socket" ] || socket=$(my_print_defaults mysqld server mariadb mariadbd 2>/dev/null | sed -n 's/^--socket=//p' | tail -n 1)
    for candidate in "$socket" /run/mysqld/mysqld.sock /var/lib/mysql/mysql.sock /tmp/mysql.sock; do
        [ -S "$candidate" ] && printf '%s' "$candidate" && return 0
    done
    return 1
}

# A client as shell words, with the administrator's account if there is one.
mysql_client() {
    client=$(command -v mariadb || command -v mysql) || return 1
    settings=
    [ ! -r "$SETTINGS/mysql.cnf" ] || settings=--defaults-extra-file=$SETTINGS/mysql.cnf
    printf '%s %s --batch --skip-column-names --unbuffered --no-auto-rehash --connect-timeout=5 --socket=%s' \
        "$(quoted "$client")" "$settings" "$(quoted "$1")"
}

mysql_freeze() {
    words=$(mysql_client "$2") || { DETAIL='neither mariadb nor mysql is installed'; return 1; }
    session_open "$1" "$(id -un)" "$words" && session_ask "$1" understudy-version \
        "SELECT CONCAT('version ', VERSION()); SELECT 'understudy-version';" ||
        { DETAIL=$(session_reason "$1"); return 1; }
    version=$(sed -n 's/^version //p' "$1/out")
    tick
    wait_s=$(((UNTIL - NOW) / 100))
    [ "$wait_s" -ge 1 ] || wait_s=1
    mysql_statements "$version"
    session_ask "$1" understudy-locked "SET SESSION lock_wait_timeout = $wait_s; $lock SELECT 'understudy-locked';" ||
        { DETAIL=$(session_reason "$1"); return 1; }
    # The position of the binary log, if the server writes one; this may not keep the point from being made.
    session_ask "$1" understudy-position "SELECT 'understudy-from'; $position; SELECT 'understudy-position';" || :
    { printf 'version %s\n' "$version"; sed -n '/^understudy-from$/,/^understudy-position$/p' "$1/out" | sed '/^understudy-/d'; } >"$1/label"
    remembered "$1/client" || { DETAIL=$(session_reason "$1"); return 1; }
    DETAIL="version $version, locked for backup"
}

# What locks, unlocks and tells the position on this version, in lock, unlock and position.
mysql_statements() {
    major=${1%%.*} minor=${1#*.}
    minor=${minor%%.*}
    lock='FLUSH TABLES WITH READ LOCK;' unlock='UNLOCK TABLES;' position='SHOW MASTER STATUS'
    case $1 in
        *[Mm]aria[Dd][Bb]*)
            [ "$major" = 10 ] && [ "$minor" -lt 4 ] ||
                { lock='BACKUP STAGE START; BACKUP STAGE FLUSH; BACKUP STAGE BLOCK_DDL; BACKUP STAGE BLOCK_COMMIT;'; unlock='BACKUP STAGE END;'; } ;;
        8.* | 9.*)
            lock="LOCK INSTANCE FOR BACKUP; $lock" unlock="$unlock UNLOCK INSTANCE;"
            position='SELECT LOCAL FROM performance_schema.log_status' ;;
    esac
}

mysql_thaw() {
    version=$(sed -n 's/^version //p' "$1/out" 2>/dev/null)
    mysql_statements "${version:-0.0}"
    session_ask "$1" understudy-unlocked "$unlock SELECT 'understudy-unlocked';" && thawed=0 || thawed=1
    DETAIL='unlocked'
    [ "$thawed" = 0 ] || DETAIL="the locks were lost: $(session_reason "$1" 2>/dev/null)"
    session_close "$1"
    return "$thawed"
}

# Binary logs are kept: other servers may still have to read them, and the server removes old ones by its own setting.
mysql_commit() { :; }
