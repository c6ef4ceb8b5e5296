#!/usr/bin/env bash
# A two-node Slurm cluster on this machine, for tests: on loopback, without systemd, with all files in one folder.
#   slurm.sh start FOLDER     prints nothing; SLURM_CONF=FOLDER/slurm.conf lets sbatch find it
#   slurm.sh stop FOLDER      stops its jobs and daemons; keeps the folder for its logs
# Exit code 3: a program is not installed. On Debian: apt-get install slurmctld slurmd slurm-client munge
set -uo pipefail
export SLURM_CONF=$2/slurm.conf
FOLDER=$2
NODES=(127.0.0.1 127.0.0.2)  # names that need no DNS
PORT=${BERTCLI_TEST_SLURM_PORT:-18817}

write_configuration() {
    mkdir -p "$FOLDER"/{munge,state,spool}
    chmod 711 "$FOLDER/munge"
    dd if=/dev/urandom of="$FOLDER/munge/key" bs=128 count=1 status=none
    chmod 400 "$FOLDER/munge/key"
    echo CgroupPlugin=cgroup/v1 > "$FOLDER/cgroup.conf"  # otherwise the distribution's file is read
    cat > "$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$PORT
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
# A requeued job can start once its old credential has expired; values below 5 seconds count as 120.
AuthInfo=socket=$FOLDER/munge/socket,cred_expire=5
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool/%n
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd-%n.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
AccountingStorageType=accounting_storage/none
$(for node in "${NODES[@]}"; do
    echo "NodeName=$node NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((PORT + ${node##*.})) CPUs=2 RealMemory=4000"
done)
PartitionName=normal Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=2 PreemptMode=OFF
END
}

start() {
    for program in munged slurmctld slurmd sbatch srun; do
        command -v "$program" > /dev/null || { echo "$program is not installed" >&2; exit 3; }
    done
    write_configuration
    munged --force --key-file="$FOLDER/munge/key" --socket="$FOLDER/munge/socket" --pid-file="$FOLDER/munged.pid" \
        --log-file="$FOLDER/munged.log" --seed-file="$FOLDER/munge/seed" || exit 1
    slurmctld -i || exit 1
    for node in "${NODES[@]}"; do slurmd -N "$node" || exit 1; done
    for _ in {1..150}; do
        [ "$(sinfo --noheader --Node --partition=normal --states=idle --format=%N | wc -l)" = ${#NODES[@]} ] && exit 0
        sleep 0.2
    done
    echo "the nodes did not start" >&2
    tail -n 5 "$FOLDER"/*.log >&2
    exit 1
}

stop() {
    timeout 10 scancel --full --user="$(id -un)" 2> /dev/null
    for _ in {1..50}; do
        [ -z "$(timeout 5 squeue --noheader 2> /dev/null)" ] && break
        sleep 0.2
    done
    pids=$(cat "$FOLDER"/slurmd-*.pid "$FOLDER/slurmctld.pid" "$FOLDER/munged.pid" 2> /dev/null)
    kill $pids 2> /dev/null
    for _ in {1..50}; do kill -0 $pids 2> /dev/null || break; sleep 0.2; done
    kill -9 $pids 2> /dev/null
    # Step daemons have no PID file; ours are those whose environment names our configuration.
    for process in $(pgrep -x slurmstepd); do
        grep -qzx "SLURM_CONF=$SLURM_CONF" "/proc/$process/environ" 2> /dev/null && kill -9 "$process"
    done
    return 0
}

"$1"
