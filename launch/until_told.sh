#!/bin/sh
# Runs a command and ends it with SIGTERM when a line, or the end, of standard input comes; ends with
# its status. `sweep_hosts.sh` starts it at the other end of ssh, which hands no signals on: neither
# a Ctrl-C here nor a lost connection leaves a run behind there.
#
# usage: launch/until_told.sh COMMAND...
exec 3<&0
"$@" 3<&- </dev/null &
command=$!
{
  read -r _
  kill -TERM "$command"
} <&3 2>/dev/null &
ear=$!
wait "$command"
status=$?
kill "$ear" 2>/dev/null
exit "$status"
