# File systems: which there are, freezing and thawing them.

# File systems on block devices, the last mounted first, each as `rw POINT` or `ro POINT`, by one of its mount points.
mount_points() {
    awk '
        { dash = 0; for (i = 7; i <= NF; i++) if ($i == "-") { dash = i; break } }
        !dash { next }
        { shown[$5] = $3 }
        $(dash + 2) !~ /^\/dev\// { next }
        $(dash + 1) ~ /^(squashfs|iso9660|udf|vfat|exfat|msdos|nfs4?|cifs|fuse.*)$/ { next }
        { count++; point[count] = $5; device[count] = $3; mode[count] = ($(dash + 3) ~ /(^|,)rw(,|$)/) ? "rw" : "ro" }
        END {
            for (i = 1; i <= count; i++) if (shown[point[i]] == device[i] && !(device[i] in first)) first[device[i]] = i
            for (i = count; i >= 1; i--) if (first[device[i]] == i) print mode[i], point[i]
        }' /proc/self/mountinfo
}

# A mount point as a path, in MOUNTED; the kernel writes space, tab, line end and backslash in it as octal numbers.
mount_point() {
    MOUNTED=$1
    case $1 in *\\*) MOUNTED=$(printf '%b' "$(printf '%s' "$1" | sed 's/\\\([0-7][0-7][0-7]\)/\\0\1/g')") ;; esac
}

# What is left until the session's deadline, in whole seconds, at least one, in LEFT_S.
left_s() {
    tick
    LEFT_S=$(((DEADLINE - NOW) / 100))
    [ "$LEFT_S" -ge 1 ] || LEFT_S=1
}

# Freeze all that can be written to, in FROZEN how many; thaws all again if one fails.
freeze_file_systems() {
    FROZEN=0
    while read -r mode point; do
        [ "$mode" = rw ] || continue
        mount_point "$point"; directory=$MOUNTED
        [ -d "$directory" ] || continue
        left_s; bounded "$LEFT_S" "$SESSION/fs.log" fsfreeze --freeze "$directory" && { FROZEN=$((FROZEN + 1)); continue; }
        # As QEMU's agent does: what cannot be frozen at all is left, and so is what is frozen already.
        ! grep -q -i -e 'not supported' -e 'inappropriate ioctl' -e busy "$SESSION/fs.log" || continue
        reason="$(field "$(cat "$SESSION/fs.log")")"
        thaw_file_systems
        FS_REASON="$directory cannot be frozen: ${reason:-not in time}"
        return 1
    done <"$SESSION/mounts"
}

# Thaw all, in THAWED how many were frozen; fails if one hangs. All at once: one that waits for a freeze on a broken disk,
# or for the file system below it, must not keep the others frozen. The guest agent freezes read-only ones too. Nothing is
# written here.
thaw_file_systems() {
    THAWED=0 thaw_failed=0 thawing=
    while read -r _ point; do
        mount_point "$point"; directory=$MOUNTED
        [ -d "$directory" ] || continue
        setsid fsfreeze --unfreeze "$directory" </dev/null >/dev/null 2>&1 &
        thawing="$thawing $!"
    done <"$SESSION/mounts"
    tick
    thaw_until=$((NOW + 500))
    for thaw_pid in $thawing; do
        while started "$thaw_pid" && [ "$NOW" -lt "$thaw_until" ]; do nap; tick; done
        if started "$thaw_pid"; then thaw_failed=1; elif wait "$thaw_pid"; then THAWED=$((THAWED + 1)); fi
    done
    return "$thaw_failed"
}
