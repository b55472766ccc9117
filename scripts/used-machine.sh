#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# used-machine.sh COMMAND... runs a command on a machine that other programs use too: wrk
# sends nginx 500 requests a second, fifty network namespaces come and go, each with a
# refused connection, and a second agent runs. All of these end with the command.
#
#   sudo scripts/used-machine.sh make e2e
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export TOOLS=${TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/halfopen/tools}
export PATH=$TOOLS:$PATH:/usr/sbin:/sbin

((EUID == 0)) || {
    echo 'used-machine.sh makes network namespaces, so it must run as root' >&2
    exit 1
}
[[ -x bin/halfopen ]] || {
    echo 'used-machine.sh needs bin/halfopen: run make build' >&2
    exit 1
}
scripts/need.sh iproute2 nginx wrk

tmp=$(mktemp -d)
# A copy of the agent, because the command may build bin/halfopen again.
cp bin/halfopen "$tmp/halfopen"
mkdir "$tmp/nginx"
pids=()
stop() {
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do
        kill -- "-$pid" 2>/dev/null || true # each is a process group
    done
    wait "${pids[@]}" 2>/dev/null || true
    rm -rf "$tmp"
}
trap stop EXIT
trap 'exit 130' INT TERM

# background COMMAND...: starts a command with low priority in its own process group.
background() {
    set -m
    nice -n 10 "$@" >>"$tmp/log" 2>&1 &
    pids+=($!)
    set +m
}

port=19840
cat >"$tmp/nginx.conf" <<NGINX
daemon off;
worker_processes 1;
pid $tmp/nginx.pid;
error_log $tmp/log;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path $tmp/nginx;
    proxy_temp_path $tmp/nginx;
    fastcgi_temp_path $tmp/nginx;
    uwsgi_temp_path $tmp/nginx;
    scgi_temp_path $tmp/nginx;
    limit_req_zone \$server_name zone=all:1m rate=500r/s;
    server {
        listen 127.0.0.1:$port;
        location / {
            limit_req zone=all burst=100;
            return 200 "hello\n";
        }
    }
}
NGINX
# comes_and_goes makes one network namespace after the other, each for some seconds.
cat >"$tmp/comes_and_goes" <<'BASH'
while :; do
    unshare --net bash -c 'ip link set lo up; { : <>/dev/tcp/127.0.0.1/1; } 2>/dev/null; exec sleep $((RANDOM % 15 + 1))' || true
done
BASH

background nginx -p "$tmp" -c "$tmp/nginx.conf"
background "$tmp/halfopen" agent --web.listen-address=127.0.0.1:$((port + 1))
for ((i = 0; i < 50; i++)); do
    background bash "$tmp/comes_and_goes"
done
sleep 2
background wrk -t1 -c20 -d24h "http://127.0.0.1:$port/"
sleep 1
for pid in "${pids[@]}"; do
    kill -0 "$pid" || {
        cat "$tmp/log" >&2
        exit 1
    }
done
"$@"
