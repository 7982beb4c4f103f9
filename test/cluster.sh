# shellcheck shell=bash
# For scripts that need a server of their own; to be sourced.
#
#   extension_settings DIR         prints settings with which servers from bindir find the extension; bindir may change
#   cluster_create <<<"settings"   a new cluster in a folder and on a socket of its own, started
#   cluster_remove                 stops and deletes it; also called on exit, whatever the reason
#
# PGHOST, PGPORT and PGUSER point at it afterwards. With KEEP=1 it stays;
# cluster_database is then the one to look at.

pg_config=${PG_CONFIG:-pg_config}
bindir=$("$pg_config" --bindir)

# Runs a command as the user the server runs as: root may not.
as_server()
{
	if [ "$(id -u)" -eq 0 ]; then
		HOME=/var/lib/postgresql setpriv --reuid=postgres --regid=postgres --init-groups "$@"
	else
		"$@"
	fi
}

# A new folder that belongs to that user.
server_folder()
{
	as_server mktemp -d "${TMPDIR:-/tmp}/bgw_backfill.XXXXXX"
}

# The extension is installed in folder $1: nobody needs the right to write to the machine's own place for it, and
# servers that run from there are left alone. A server from 18 on can be told of that folder. Before, a server knows one
# place, beside its programs: they are copied to the folder, with links to the rest.
extension_settings()
{
	local sharedir libdir version
	version=$("$pg_config" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
	sharedir=$("$pg_config" --sharedir)
	libdir=$("$pg_config" --pkglibdir)
	(
		umask 022
		mkdir -p "$1$sharedir" "$1$libdir" "$1$bindir"
		if [ "$version" -lt 18 ]; then
			cp -rs "$sharedir/." "$1$sharedir"
			cp -rs "$libdir/." "$1$libdir"
			cp -r "$bindir/." "$1$bindir"
		fi
		make -s --no-print-directory -C "$(dirname "${BASH_SOURCE[0]}")/.." PG_CONFIG="$pg_config" DESTDIR="$1" install >&2
	)
	if [ "$version" -lt 18 ]; then
		bindir=$1$bindir
	else
		echo "extension_control_path = '$1$sharedir:\$system'"
		echo "dynamic_library_path = '$1$libdir:\$libdir'"
	fi
}

cluster_dir=
cluster_create()
{
	# No variable of the caller's may lead elsewhere.
	unset PGDATA PGDATABASE PGHOSTADDR PGOPTIONS PGPASSFILE PGPASSWORD PGSERVICE PGSSLMODE
	trap cluster_remove EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP

	cluster_dir=$(server_folder)
	export PGHOST=$cluster_dir PGPORT=5432 PGUSER=postgres
	cd "$cluster_dir" || return
	extension_settings "$cluster_dir/extension" >"$cluster_dir/extension.conf"
	as_server "$bindir/initdb" -D "$cluster_dir/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 \
		--no-sync >"$cluster_dir/initdb.log" || { cat "$cluster_dir/initdb.log" >&2; return 1; }
	{
		echo "listen_addresses = ''"
		echo "unix_socket_directories = '$cluster_dir'"
		cat "$cluster_dir/extension.conf" -
	} | as_server tee -a "$cluster_dir/data/postgresql.conf" >/dev/null
	as_server "$bindir/pg_ctl" -D "$cluster_dir/data" -l "$cluster_dir/log" -s -w start ||
		{ cat "$cluster_dir/log" >&2; return 1; }
}

cluster_remove()
{
	[ -n "$cluster_dir" ] || return 0
	trap '' INT TERM HUP
	if [ -n "${KEEP:-}" ] && [ -e "$cluster_dir/data/postmaster.pid" ]; then
		echo
		echo "kept: psql -h $cluster_dir -U postgres ${cluster_database:-postgres}"
		echo "stop: pg_ctl -D $cluster_dir/data stop (as user $(stat -c %U "$cluster_dir")), then delete $cluster_dir"
	else
		cd / || return
		if [ -e "$cluster_dir/data/postmaster.pid" ]; then
			as_server "$bindir/pg_ctl" -D "$cluster_dir/data" -s -m immediate stop || true
		fi
		rm -rf "$cluster_dir"
	fi
	cluster_dir=
}
