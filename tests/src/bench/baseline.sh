#!/bin/sh
# What a careful person types on three machines with the same packages: etcd, Patroni, HAProxy, as fast as they come up.
# No TLS, no authentication of etcd, no agreement before founding: the least that replicates.
# Usage: baseline.sh NAME ADDRESS "NAME=ADDRESS NAME=ADDRESS …"
set -e
name=$1 address=$2 nodes=$3
umask 022
until systemctl list-units >/dev/null 2>&1; do sleep 0.05; done
# Through networkd, which takes away what it did not set itself.
mkdir -p /run/systemd/network
printf '[Match]\nName=host0\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n[Address]\nAddress=%s/24\n' "$address" \
    >/run/systemd/network/10-baseline.network
until ip -4 -o address show dev host0 | grep -q "$address"; do
    networkctl reload 2>/dev/null || true
    sleep 0.05
done
dir=/run/baseline
mkdir -p $dir
initial='' hosts=''
for node in $nodes; do
    initial="$initial${initial:+,}${node%%=*}=http://${node#*=}:2380"
    hosts="$hosts${hosts:+,}${node#*=}:2379"
done

cat >$dir/patroni.yml <<END
scope: baseline
name: $name
restapi: {listen: "$address:8008", connect_address: "$address:8008"}
etcd3: {hosts: "$hosts"}
bootstrap:
  dcs:
    loop_wait: 10
    ttl: 30
    retry_timeout: 10
    synchronous_mode: quorum
    postgresql:
      use_pg_rewind: true
      parameters: {wal_level: replica, hot_standby: "on", max_wal_senders: 10, max_replication_slots: 10}
  initdb: [data-checksums, {encoding: UTF8}, {locale-provider: builtin}, {builtin-locale: C.UTF-8}, {locale: C}]
postgresql:
  listen: "$address:5432"
  connect_address: "$address:5432"
  bin_dir: /usr/lib/postgresql/17/bin
  data_dir: /var/lib/postgresql/17/main
  pgpass: /tmp/baseline.pgpass
  parameters: {unix_socket_directories: /run/postgresql, password_encryption: scram-sha-256}
  pg_hba: ["local all all peer", "host replication replicator $address/24 scram-sha-256", "host all all $address/24 scram-sha-256"]
  authentication:
    superuser: {username: postgres, password: baseline}
    replication: {username: replicator, password: baseline}
END

{
    echo "defaults"
    echo "  mode tcp"
    echo "  timeout connect 2s"
    echo "  timeout client 30m"
    echo "  timeout server 30m"
    echo "listen rw"
    echo "  bind *:5000"
    echo "  option httpchk OPTIONS /primary"
    echo "  default-server inter 1s fall 3 rise 1 on-marked-down shutdown-sessions"
    for node in $nodes; do echo "  server ${node%%=*} ${node#*=}:5432 check port 8008"; done
} >$dir/haproxy.cfg

systemd-run -q --unit=baseline-etcd -p User=etcd /usr/bin/etcd --name "$name" --data-dir /var/lib/etcd/default \
    --listen-peer-urls "http://$address:2380" --initial-advertise-peer-urls "http://$address:2380" \
    --listen-client-urls "http://$address:2379" --advertise-client-urls "http://$address:2379" \
    --initial-cluster "$initial" --initial-cluster-state new --initial-cluster-token baseline
systemd-run -q --unit=baseline-patroni -p User=postgres /usr/bin/patroni $dir/patroni.yml
systemd-run -q --unit=baseline-haproxy /usr/sbin/haproxy -W -db -f $dir/haproxy.cfg
