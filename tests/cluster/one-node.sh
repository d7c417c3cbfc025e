#!/usr/bin/env bash
# one-node.sh install|start|stop: a real SLURM on this machine alone, as root, without systemd, in the folder $SLURM_DIR.
# Needs Debian's slurm-wlm and munge (22.05). Afterwards: export SLURM_CONF=$DIR/slurm.conf; sbatch, squeue, scancel.
set -euo pipefail
DIR=${SLURM_DIR:-$PWD/one-node-slurm}
export SLURM_CONF=$DIR/slurm.conf
stop() { for p in "$DIR"/*.pid; do [ -e "$p" ] && kill "$(cat "$p")" 2>/dev/null || true; done; sleep 1; rm -rf "$DIR"; }
case ${1:-start} in
install)
  command -v slurmctld slurmd munged sbatch >/dev/null && exit
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "one-node.sh: SLURM is installed by root on Debian alone" >&2; exit 1; }
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurm-wlm munge
  exit ;;
stop) stop; exit ;;
start) ;;
*) echo "one-node.sh: install, start or stop" >&2; exit 2 ;;
esac
[ ! -e "$DIR" ] || stop
mkdir -p "$DIR"/{state,spool,log,cgroup} /run/munge && chown munge: /run/munge
[ -S /run/munge/munge.socket.2 ] && munge -n >/dev/null 2>&1 || { runuser -u munge -- munged --force; cp /run/munge/munged.pid "$DIR/munged.pid"; }
printf 'CgroupPlugin=cgroup/v1\n' > "$DIR/cgroup.conf"
cat > "$SLURM_CONF" <<C
ClusterName=one
SlurmctldHost=$(hostname -s)
SlurmUser=root
AuthType=auth/munge
# a requeued job begins only when its credential has expired: 120 s unless this says less
AuthInfo=cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld
SlurmdLogFile=$DIR/log/slurmd
SlurmctldPort=${SLURMCTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobs
KillWait=5
OverTimeLimit=0
$(slurmd -C | head -n 1 | sed 's/ UpTime.*//') State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
C
slurmctld -c -f "$SLURM_CONF"; slurmd -f "$SLURM_CONF"
for _ in $(seq 30); do sinfo -h -o %T 2>/dev/null | grep -q idle && { echo "idle: export SLURM_CONF=$SLURM_CONF"; exit 0; }; sleep 1; done
echo "no idle node after 30 s; see $DIR/log" >&2; tail -n 5 "$DIR"/log/* >&2 || true; exit 1
