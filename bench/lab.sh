# shellcheck shell=bash
# bench/lab.sh - the sections of scripts/bench about labs: up, replica, flush, reflink, failover, switchover. Sourced by it.
#
# A base backup is a thousand small fsyncs, and so is much of what a failover waits for. On the tmpfs of the other
# sections they cost nothing, so these work on an ext4 (reflink: on an XFS) of their own, in a file on a disk ($BENCH_DISK, or /var/tmp).
# There they may cost nothing as well; `flush` has a disk where one costs $BENCH_FLUSH_US microseconds: 1000 unless given.
# $BENCH_RUNS is how many failovers and switchovers to make: 20 unless given.
# shellcheck disable=SC2154 # scratch, pgbox, host, bindir and the like are those of scripts/bench

# ---- storage, and plain Postgres on it

flush_cost=${BENCH_FLUSH_US:-1000}

# Points PGBOX_ROOT to a disk of this kind; images and layers stay where they are.
lab_up() { # ext4|xfs|flush
    host_up
    if [ "${disk_kind:-}" != "$1" ]; then
        drop_disk
        make_disk "$1" || return
        disk_kind=$1
    fi
    export PGBOX_ROOT=$disk/root
}

make_disk() { # ext4|xfs|flush
    local place=${BENCH_DISK:-/var/tmp} file device loop kind
    [ "$1" != flush ] || place=$scratch
    mkdir -p "$scratch/disk-$1"
    file=$(mktemp "$place/pgbox-bench.XXXXXX")
    truncate -s 12G "$file"
    case $1 in
        ext4 | flush) mkfs.ext4 -q -F -i 65536 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard "$file" ;;
        xfs) mkfs.xfs -q -K -m reflink=1 "$file" || { rm "$file"; return 1; } ;;
    esac
    device=$file
    if [ "$1" = flush ]; then
        flush_up "$file" || { rm "$file"; return 1; }
        device=$scratch/flush/disk
    fi
    # mount(8) has the loop device end with the mount, and the file with its last user: nothing is left in any case.
    if mount -o loop,noatime "$device" "$scratch/disk-$1" 2>"$scratch/loop.err"; then
        loop=$(findmnt -no SOURCE "$scratch/disk-$1")
        rm "$file"
        # Not through the page cache of the file system below, where a second copy of everything would be.
        losetup --direct-io=on "$loop" 2>/dev/null || echo "note: $loop goes through the page cache of $place" >&2
        disk=$scratch/disk-$1
        storage="$1 on a loop device"
    else
        rm "$file"
        [ "$1" = ext4 ] || return 1
        skip "a file system of the bench's own: $(tail -n 1 "$scratch/loop.err"); a syncfs writes what others have on $place, too"
        lab_directory=$(mktemp -d "$place/pgbox-bench.XXXXXX")
        disk=$lab_directory
        storage="a directory"
    fi
    kind=$(stat -f -c %T "$place")
    storage+=" on $place ($kind)"
    case $1:$kind in
        flush:*) storage="ext4 on a disk in memory, a flush of which takes $flush_cost us" ;;
        *:tmpfs | *:ramfs) skip "storage where fsync costs anything: $place is a $kind, which flatters the others (BENCH_DISK=DIR)" ;;
    esac
    mkdir "$disk/plain" "$disk/root"
    chmod 755 "$disk" "$disk/plain" "$disk/root"
    ln -s "$scratch/root/images" "$scratch/root/layers" "$disk/root/"
    plain_up
}

# Serves a file as $scratch/flush/disk, whose flush costs something.
flush_up() { # FILE
    [ -x "$tools/flush" ] || return 1
    mkdir -p "$scratch/flush"
    "$tools/flush" "$scratch/flush" "$1" "$flush_cost" 2>"$scratch/flush.err" &
    for _ in {1..100}; do
        [ ! -e "$scratch/flush/disk" ] || return 0
        sleep 0.02
    done
    cat "$scratch/flush.err" >&2
    return 1
}

# Removes the disk with all that is on it.
drop_disk() {
    local node
    [ -n "${disk:-}" ] || return 0
    export PGBOX_ROOT=$disk/root
    [ -z "${plain_running:-}" ] || "$scratch/bin-plain" stop "$plain_running"
    for node in $("$pgbox" ps --quiet 2>/dev/null); do "$pgbox" rm --force -v "$node" >/dev/null 2>&1; done
    umount -l "$host/mnt" 2>/dev/null
    if [ -n "${lab_directory:-}" ]; then rm -rf -- "$lab_directory"; else umount "$disk" 2>/dev/null; fi
    [ "$disk_kind" != flush ] || umount -l "$scratch/flush"
    disk='' disk_kind=''
}

# A script for what one types without pgbox, with the same binaries and as the same user.
plain_up() {
    mount --bind "$disk/plain" "$host/mnt"
    chown 999:999 "$host/mnt"
    cat >"$scratch/bin-plain" <<END
#!/bin/bash
# plain lab NAME | stop NAME | backup NAME HOST [ARG...]
as_postgres="chroot --userspec=999:999 $host env -i PATH=$bindir:/usr/bin:/bin LANG=en_US.utf8 HOME=/tmp PGPASSFILE=/tmp/pgpass"
set -e
what=\$1 data=/mnt/\$2
settings="listen_addresses=127.0.0.1 max_wal_senders=10 huge_pages=off wal_retrieve_retry_interval=50ms"
start() { # DIRECTORY PORT
    \$as_postgres pg_ctl -s -w -D \$1 -l \$1.log -o "-p \$2\$(printf ' -c %s' \$settings)" start
}
case \$what in
    lab)
        \$as_postgres initdb -D \$data-a --username=postgres --auth=trust --data-checksums >/dev/null
        start \$data-a 5401
        \$as_postgres createuser -p 5401 -h 127.0.0.1 -U postgres --replication replicator
        \$as_postgres pg_basebackup -D \$data-b -d "host=127.0.0.1 port=5401 user=replicator application_name=b" -R -C -S b -c fast
        start \$data-b 5402
        until [ "\$(\$as_postgres psql -p 5401 -h 127.0.0.1 -U postgres -Atc 'SELECT state FROM pg_stat_replication')" = streaming ]; do
            sleep 0.01
        done ;;
    stop)
        for one in \$data-b \$data-a; do
            [ ! -d "$host\$one" ] || \$as_postgres pg_ctl -s -D \$one -m immediate -w stop || true
        done
        rm -rf -- "$disk/plain/\$2-"* ;;
    backup)
        name=\$3
        shift 3
        exec \$as_postgres pg_basebackup -D \$data -d "host=\$name user=replicator passfile=/tmp/pgpass" "\$@" ;;
esac
END
    # The commands as a user types them; a plan is split at blanks.
    {
        printf '#!/bin/sh\n'
        if "$pgbox" up --help >/dev/null 2>&1; then
            printf 'exec %s up\n' "$pgbox"
        else
            printf '%s run primary && exec %s replica replica --of primary\n' "$pgbox" "$pgbox"
        fi
    } >"$scratch/bin-lab"
    chmod +x "$scratch/bin-plain" "$scratch/bin-lab"
}

# A command whose words count only when it fails: then the bench ends.
quietly() { "$@" >"$scratch/said" 2>&1 || { echo "bench: $*: $(cat "$scratch/said")" >&2; return 1; }; }

# Removes all nodes of the lab and their data.
clear_lab() {
    local node
    for node in $("$pgbox" ps --quiet); do "$pgbox" rm --force -v "$node" >/dev/null 2>&1; done
}

address_of() { "$pgbox" inspect --json "$1" | sed -n 's/^ *"address": "\([0-9.]*\).*/\1/p' | head -n 1; }

# ---- a lab from nothing

section_up() {
    say "from nothing to a primary and a standby that streams; $storage"
    echo "pgbox: $(sed -n 's/^exec //; s/ && exec / \&\& /; $p' "$scratch/bin-lab" | sed "s|$pgbox|pgbox|g")"
    echo "plain: initdb, start, createuser, pg_basebackup -R -C -c fast, start, on the host, without passwords."
    echo
    plan pgbox "$scratch/bin-lab" "" "for n in \$($pgbox ps -q); do $pgbox rm --force -v \$n; done >/dev/null 2>&1"
    plan "plain tools on the host" "$scratch/bin-plain lab up" "" "$scratch/bin-plain stop up"
    plain_running=up
    measure 5
    plain_running=
    echo
    verdict "wall, of the plain tools'" "$(against "plain tools on the host" 2)" most 1
    verdict "wall in seconds" "$(ratio "$(figure pgbox 2)" 1000)" most 2
}

# ---- a standby

# Compares `pgbox replica` with a bare base backup of the node `primary`, each to storage of the same kind.
compare_replica() { # ROUNDS TARGET TEXT
    local from
    from=$(address_of primary)
    # The password file is made with the role, for the first standby.
    quietly "$pgbox" replica first --of primary
    printf '%s:*:*:replicator:%s' "$from" "$(cat "$PGBOX_ROOT/labs/default/nodes/primary/replicator")" >"$host/tmp/pgpass"
    chown 999:999 "$host/tmp/pgpass"
    chmod 600 "$host/tmp/pgpass"
    quietly "$pgbox" rm --force -v first
    plan pgbox "$pgbox replica r{i} --of primary" "sync" "$pgbox rm --force -v r{i} >/dev/null 2>&1"
    plan "pg_basebackup" "$scratch/bin-plain backup copy $from" "sync" "rm -rf $disk/plain/copy"
    plan "pg_basebackup --checkpoint=fast" "$scratch/bin-plain backup copy $from --checkpoint=fast" "sync" "rm -rf $disk/plain/copy"
    measure "$1"
    echo
    verdict "$3, wall, of pg_basebackup's" "$(against pg_basebackup 2)" most "$2"
    echo "                 of pg_basebackup --checkpoint=fast: $(against "pg_basebackup --checkpoint=fast" 2)"
}

# What decides the sections about a standby: the peer makes a thousand.
fsync_cost() {
    # It is told by what ends the pipe what it need not measure any more.
    chroot "$host" "$bindir/pg_test_fsync" -s 1 -f /mnt/flushed 2>/dev/null |
        sed -n '/^ *fsync /{s/.*ops\/sec *\([0-9]*\) usecs.*/One fsync of a page takes \1 us there (pg_test_fsync)./p;q}' || true
    rm -f "$disk/plain/flushed"
    echo
}

fill_primary() {
    "$pgbox" exec primary -- psql -U postgres -qc "CREATE TABLE filler AS SELECT i, repeat(md5(i::text), 25) AS text FROM generate_series(1, 920000) i" -c CHECKPOINT
    echo "with $("$pgbox" exec primary -- psql -U postgres -Atc "SELECT pg_size_pretty(sum(pg_database_size(oid))) FROM pg_database"):"
}

section_replica() {
    say "a standby: replica, until it streams, against a bare pg_basebackup of the same server; $storage"
    echo "pgbox makes a container, copies inside it, starts the server and waits until it streams; the other only copies."
    fsync_cost
    quietly "$pgbox" run primary
    compare_replica 7 0.35 "empty primary"
    echo
    fill_primary
    compare_replica 3 0.7 "0.8 GB"
    clear_lab
}

section_flush() {
    say "a standby where a flush costs something; $storage"
    echo "Otherwise as \`replica\`."
    fsync_cost
    quietly "$pgbox" run primary
    compare_replica 5 0.35 "empty primary"
    echo
    fill_primary
    compare_replica 3 0.7 "0.8 GB"
    clear_lab
}

section_reflink() {
    say "a standby by reflink: its data are clones of the primary's files; $storage"
    echo "pgbox makes a container, clones, starts the server and waits until it streams; the other only copies, on the same"
    echo "file system."
    echo
    quietly "$pgbox" run primary
    fill_primary
    compare_replica 5 0.15 "0.8 GB by reflink"
    clear_lab
}

# ---- changes of roles, under load

# Makes the nodes `a` and `b`; commits wait for whichever is the standby.
lab_of_two() {
    quietly "$pgbox" run a --restart no
    quietly "$pgbox" replica b --of a --restart no
    quietly "$pgbox" sync 'any 1 (b)'
    quietly "$pgbox" drive start --fresh
    quietly "$pgbox" drive stop
}

number_in() { sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\).*/\1/p" | head -n 1; } # FIELD, JSON on the standard input

# Milliseconds since 1970 of a date, or of bash's $EPOCHREALTIME.
millis() {
    local micros=${1##*[.,]}
    case $1 in
        *T*) date -d "$1" +%s%3N ;;
        *) echo "${1%[.,]*}${micros:0:3}" ;;
    esac
}

# Ends the run of the driver and notes how long it went without an acknowledgement. From `moment` on, if it is given and
# within that gap; otherwise all of the gap counts.
note_gap() { # FILE [MOMENT]
    local report gap from
    report=$("$pgbox" drive stop --json)
    gap=$(number_in longest_gap_ms <<<"$report")
    if [ -n "${2:-}" ]; then
        from=$(millis "$(number_in longest_gap_at <<<"$report")")
        gap=$(awk -v gap="$gap" -v from="$from" -v moment="$(millis "$2")" 'BEGIN {
            rest = from + gap - moment
            print (from <= moment + 50 && rest > 0) ? rest : gap }')
    fi
    echo "$gap" >>"$1"
}

# Rows that were acknowledged and are not there, added to those of the rounds before.
count_missing() { # NODE
    local verdict
    verdict=$("$pgbox" verify --node "$1" --json) || true
    missing=$((missing + $(number_in missing <<<"$verdict")))
    acknowledged=$(number_in acknowledged <<<"$verdict")
}

# Prints a file of milliseconds as a distribution; sets `median` and `longest`.
distribution() { # FILE LABEL
    local line
    line=$(sort -n "$1" | awk '{ v[NR] = $1 } END {
        if (NR) printf "%d %.0f %.0f %.0f %.0f", NR, v[1], NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2, v[int(NR * 0.9 + 0.5)], v[NR] }')
    local count least ninth
    read -r count least median ninth longest <<<"$line"
    printf '%-34s %8s %8s %8s %8s %8s\n' "$2" runs "min ms" median "p90" "max ms"
    printf '%-34s %8s %8s %8s %8s %8s\n' "" "$count" "$least" "$median" "$ninth" "$longest"
}

verdict_of_roles() { # FILE LABEL
    local median longest
    distribution "$1" "$2"
    echo
    verdict "median in ms" "$median" most 200
    verdict "the longest in ms" "$longest" most 1000
    verdict "acknowledged rows missing, of $acknowledged" "$missing" most 0
    echo
}

postmaster_of() { pgrep -P "$(pid_of "$1")" -x postgres | head -n 1; }

# One failover: kill -9, and whoever is to act. ACT gets the standby's name.
fail_over() { # PRIMARY STANDBY FILE ACT
    local postmaster moment
    postmaster=$(postmaster_of "$1")
    quietly "$pgbox" drive start
    sleep 0.4
    moment=$EPOCHREALTIME
    kill -9 "$postmaster"
    "$4" "$2"
    sleep 0.3
    note_gap "$3" "$moment"
    count_missing "$2"
    quietly "$pgbox" rejoin "$1"
    quietly "$pgbox" wait "$1" --for streaming
}

by_hand() { "$pgbox" failover "$1" >>"$scratch/failover.log" 2>&1 || cat "$scratch/failover.log" >&2; }

by_guard() { "$pgbox" wait "$1" --for role=primary --timeout 20s >/dev/null 2>&1 || cat "$scratch/guard.log" >&2; }

rounds_of_failover() { # ROUNDS ACT LABEL
    local primary=a standby=b other round missing=0 acknowledged=0
    rm -f "$scratch/gaps" "$scratch/failover.log"
    lab_of_two
    if [ "$2" = by_guard ]; then
        "$pgbox" guard >"$scratch/guard.log" 2>&1 &
        guard=$!
        for _ in {1..50}; do [ ! -s "$scratch/guard.log" ] || break; sleep 0.1; done
    fi
    for ((round = 0; round < $1; round++)); do
        fail_over "$primary" "$standby" "$scratch/gaps" "$2"
        other=$primary primary=$standby standby=$other
    done
    if [ "$2" = by_guard ]; then
        kill "$guard"
        wait "$guard" || true
    fi
    verdict_of_roles "$scratch/gaps" "$3"
    clear_lab
}

section_failover() {
    say "kill -9 of the primary's postmaster -> first acknowledged write on the other node; $storage"
    echo "Two nodes, commits wait for the standby, four writers as fast as they go. The killed one rejoins before the next round."
    echo
    rounds_of_failover "${BENCH_RUNS:-20}" by_hand "pgbox failover, by a script"
    if "$pgbox" guard --help >/dev/null 2>&1; then
        rounds_of_failover "${BENCH_RUNS:-20}" by_guard "pgbox guard, which is there before"
    else
        skip "pgbox guard: this build has none"
    fi
}

section_switchover() {
    local round target=b missing=0 acknowledged=0
    say "switchover -> the longest time without an acknowledged write; $storage"
    echo "Two nodes in turns, commits wait for the standby, four writers as fast as they go."
    echo
    rm -f "$scratch/gaps"
    lab_of_two
    for ((round = 0; round < ${BENCH_RUNS:-20}; round++)); do
        quietly "$pgbox" drive start
        sleep 0.3
        "$pgbox" switchover "$target" >"$scratch/switchover.log" 2>&1 || cat "$scratch/switchover.log" >&2
        sleep 0.3
        note_gap "$scratch/gaps"
        count_missing "$target"
        if [ "$target" = b ]; then target=a; else target=b; fi
    done
    echo "The targets are those of a failover. Most of it is the old server's own shutdown and its last checkpoint."
    verdict_of_roles "$scratch/gaps" "pgbox switchover"
    clear_lab
}
