#!/bin/sh
# Quiesces this guest for a moment, so that a point of its disks can be taken. Copied in by Understudy and removed again.
#
#   version | discover | begin ID DEADLINE_S [--fs] [--no-applications] | end ID | commit ID
#   run ID TIMEOUT_S PATH | cleanup [PREFIX]
#
# Answers are tab-separated lines on standard output; what went wrong is told on standard error, with exit status 1
# (2: wrong usage). POSIX sh with coreutils or busybox. Nothing stays frozen: a watchdog of its own session thaws at the
# deadline, whoever else is dead by then. All state is on a tmpfs: a frozen file system may be read, never written.
set -u
umask 077
LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin
export LC_ALL PATH
# What a caller's database variables say is not meant for our sessions.
unset PGOPTIONS PGSERVICE PGPASSWORD PGSSLMODE MYSQL_PWD REDISCLI_AUTH CDPATH

readonly TAB='	'
readonly SETTINGS=/etc/understudy
