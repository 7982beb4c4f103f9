# shellcheck shell=bash disable=SC2154
# The worker's own memory (RssAnon) after 10 and after 1000 batches of 100 rows.

bench_memory()
{
	local last=$((ROWS / 100 - 10)) deadline=$((SECONDS + 1800)) phase batches pid key value anon
	local early="" late="" largest=0 at_early at_late first_pid="" pids=0
	[ "$last" -le 1000 ] || last=1000
	[ "$last" -gt 10 ] || fail "too few rows for 10 batches of 100"
	copy_database run base
	as_super run -c "CREATE EXTENSION bgw_backfill"
	settle run

	# One connection that asks, one process file that is read: many looks within a batch or two.
	coproc LOOK { as_app run; }
	track run column batch_size=100 batch_sleep=0
	while [ -z "$late" ]; do
		[ $SECONDS -lt $deadline ] || fail "$last batches were not reached: ${batches:-none}"
		echo "SELECT phase, coalesce(batches, 0), coalesce(worker_pid, 0) FROM bgw_backfill.progress WHERE job = 'events';" \
			>&"${LOOK[1]}"
		IFS='|' read -r phase batches pid <&"${LOOK[0]}"
		case $phase in
			install) continue ;;
			fill) ;;
			*) fail "phase $phase was reached before batch $last was seen" ;;
		esac
		anon=
		if [ "$pid" != 0 ] && [ -r "/proc/$pid/status" ]; then
			while read -r key value _; do
				if [ "$key" = RssAnon: ]; then
					anon=$value
				fi
			done <"/proc/$pid/status" 2>/dev/null || true
		fi
		[ -n "$anon" ] || continue
		if [ "$pid" != "$first_pid" ]; then
			first_pid=$pid
			pids=$((pids + 1))
		fi
		if [ -z "$early" ]; then
			if [ "$batches" -ge 10 ]; then
				early=$anon at_early=$batches
			fi
		elif [ "$batches" -ge "$last" ]; then
			late=$anon at_late=$batches
		fi
		if [ "$anon" -gt "$largest" ]; then
			largest=$anon
		fi
	done
	eval "exec ${LOOK[1]}>&-"
	drop_database run

	note "RssAnon $early kB after $at_early batches, $late kB after $at_late, at most $largest kB"
	[ "$pids" = 1 ] || fail "the worker was started $pids times meanwhile"
	value=$(awk -v a="$early" -v b="$late" 'BEGIN { printf "%.2f", (b - a) / 1024 }')
	row "the worker's memory after $at_late batches (base: $at_early)" "$(megabytes $((late * 1024)))" \
		"$(megabytes $((early * 1024)))" "$value MB" "<= 2 MB" "$(judge "$value" "<=" 2)"
}
