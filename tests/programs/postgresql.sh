# Databases: PostgreSQL and psql
# packages: postgresql
# admit: tcp/5432
server() {
    bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
    mkdir "$D/data"; chown -R postgres "$D"; cd "$D"
    as="setpriv --reuid=postgres --regid=postgres --clear-groups"
    $as "$bin/initdb" -N -A trust -D "$D/data" >/dev/null
    echo "host all all all trust" >>"$D/data/pg_hba.conf"
    exec $as "$bin/postgres" -D "$D/data" -h "$S" -k "$D"
}
client() { test "$(psql -h "$S" -U postgres -Atc 'select sum(n) from generate_series(1, 100) n')" = 5050; }
long() { yes 'select now(); select pg_sleep(0.1);' | psql -h "$S" -U postgres -At; }
