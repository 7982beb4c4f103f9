# shellcheck shell=bash disable=SC2154
# A live job with nothing to do: between two pending scans no statement of ours and no connection held. All
# statements that the server executes are counted, but for those of this benchmark, which say so in a comment.

idle_scanned_at()
{
	as_app live -c "SELECT /* bench */ coalesce(max(scanned_at)::text, '') FROM bgw_backfill.pending_groups"
}

# Waits for the next scan after $1. Sets scanned.
idle_wait_scan()
{
	local deadline=$((SECONDS + 3 * interval + 60))
	while :; do
		scanned=$(idle_scanned_at)
		[ "$scanned" = "$1" ] || return 0
		[ $SECONDS -lt $deadline ] || fail "no pending scan in $((3 * interval + 60)) s" || return 1
		sleep 0.2
	done
}

# Backends of ours that are connected to a database.
idle_connections()
{
	as_super postgres -c "SELECT /* bench */ count(*) FROM pg_stat_activity
		WHERE backend_type LIKE 'bgw_backfill%' AND datid IS NOT NULL"
}

bench_idle()
{
	local scanned interval deadline end held=0 looks=0 statements n
	ensure_live
	interval=$(as_app live -c "SELECT extract(epoch FROM interval '$SCAN_INTERVAL')::int")
	as_app live -c "SELECT bgw_backfill.configure('events', 'scan_interval', '$SCAN_INTERVAL')" >/dev/null
	idle_wait_scan "$(idle_scanned_at)"
	# The worker and whoever plans the next one need a moment to leave.
	deadline=$((SECONDS + 10))
	while [ "$(idle_connections)" != 0 ]; do
		[ $SECONDS -lt $deadline ] || break
		sleep 0.1
	done

	# In one transaction with nothing else: what counts begins here, and ends well before the next scan is due.
	end=$((SECONDS + interval * 9 / 10 - 2))
	as_super live -c "SELECT /* bench */ pg_stat_statements_reset()" >/dev/null
	while [ $SECONDS -lt $end ]; do
		n=$(idle_connections)
		looks=$((looks + 1))
		if [ "$n" != 0 ]; then
			held=$((held + 1))
		fi
		sleep 0.5
	done
	as_super live -c "SELECT /* bench */ format('%s calls in %s: %s', calls, d.datname, left(query, 120))
		FROM pg_stat_statements AS s LEFT JOIN pg_database AS d ON d.oid = s.dbid
		WHERE query NOT LIKE '%/* bench */%'" >"$scratch/idle.statements"
	[ "$scanned" = "$(idle_scanned_at)" ] || fail "a scan took place within the window"
	statements=$(wc -l <"$scratch/idle.statements")
	sed 's/^/   /' "$scratch/idle.statements"
	# It was a pause between two scans, not a job that had stopped.
	idle_wait_scan "$scanned"

	note "$looks looks in $((interval * 9 / 10 - 2)) s between two scans"
	row "idle, live job: statements between two scans" "$statements" - "$statements" "0" \
		"$(judge "$statements" "<=" 0)"
	row "idle, live job: looks that found a connection held" "$held of $looks" - "$held" "0" \
		"$(judge "$held" "<=" 0)"
}
