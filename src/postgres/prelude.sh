# What the official entrypoint has around the scripts that it sources, and they use. For bash and for sh.
docker_process_sql() {
    PGHOST= PGHOSTADDR= psql -v ON_ERROR_STOP=1 --no-password --no-psqlrc --username "$POSTGRES_USER" \
        ${POSTGRES_DB:+--dbname "$POSTGRES_DB"} "$@"
}

# sh has no arrays, and could not even read this.
[ -z "${BASH_VERSION-}" ] || eval 'psql=( docker_process_sql )'

# VARIABLE [DEFAULT]: takes its value from VARIABLE_FILE, where there is one.
file_env() {
    local value file
    eval "value=\${$1-} file=\${$1_FILE-}"
    if [ "$value" ] && [ "$file" ]; then
        echo "error: both $1 and $1_FILE are set" >&2
        exit 1
    fi
    if [ "$file" ]; then value=$(cat "$file"); fi
    export "$1=${value:-${2-}}"
    unset "$1_FILE"
}

# FILES: what is done with those of /docker-entrypoint-initdb.d.
docker_process_init_files() {
    local file
    for file; do
        echo "running $file"
        case $file in
            *.sh) if [ -x "$file" ]; then "$file"; else . "$file"; fi ;;
            *.sql) docker_process_sql --file="$file" ;;
            *.sql.gz) gunzip -c "$file" | docker_process_sql ;;
            *.sql.xz) xz -dc "$file" | docker_process_sql ;;
            *.sql.zst) zstd -dc "$file" | docker_process_sql ;;
            *) echo "ignoring $file" ;;
        esac
    done
}

. "$1"
# What it has exported, for the scripts after it.
cat /proc/self/environ >&3
