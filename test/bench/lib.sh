# shellcheck shell=bash
# What the pieces of the benchmark share: databases, clocks, medians, the table. run sets the variables.
# shellcheck disable=SC2154

# SQL as the superuser and as the owner of the tables. $1: database; the rest: psql's.
as_super()
{
	local db=$1
	shift
	psql -XqAt -v ON_ERROR_STOP=1 -d "$db" "$@"
}

as_app()
{
	local db=$1
	shift
	psql -XqAt -v ON_ERROR_STOP=1 -U app -d "$db" "$@"
}

note()
{
	echo "   $*"
}

fail()
{
	echo "$*" >&2
	return 1
}

# A database with the workload. $1: name, $2: rows.
load_database()
{
	local start=$EPOCHREALTIME
	as_super postgres -c "CREATE DATABASE $1 OWNER app"
	as_super "$1" -c "CREATE EXTENSION pg_prewarm; CREATE EXTENSION pg_stat_statements"
	as_app "$1" -v rows="$2" -v dims="$DIMS" -f "$top/test/workload.sql"
	note "loaded $2 events in $(elapsed_ms "$start") ms"
}

# A fresh physical copy of one. $1: name, $2: the original.
copy_database()
{
	drop_database "$1"
	as_super postgres -c "CREATE DATABASE $1 TEMPLATE $2 OWNER app STRATEGY file_copy"
}

drop_database()
{
	as_super postgres -c "SET client_min_messages = warning" -c "DROP DATABASE IF EXISTS $1 WITH (FORCE)"
}

# Every measured run starts alike: everything on disk, both tables and their indexes in memory.
settle()
{
	as_super "$1" >/dev/null <<-'EOF'
		CHECKPOINT;
		SELECT sum(pg_prewarm(c.oid))
		FROM pg_class AS c
		WHERE c.oid IN ('events'::regclass, 'event_embeddings'::regclass)
		   OR c.oid IN (SELECT indexrelid FROM pg_index
						WHERE indrelid IN ('events'::regclass, 'event_embeddings'::regclass));
	EOF
}

# Tracks the pair in a database, in a mode, settings given as name=value. They hold from the first batch on.
track()
{
	local db=$1 mode=$2 setting
	shift 2
	{
		echo "BEGIN;"
		echo "SELECT bgw_backfill.track('events', 'event_embeddings', mode => '$mode', group_by => 'organization_id',"
		echo "  pending_where => \$\$payload_text IS NOT NULL AND payload_text <> ''\$\$);"
		for setting; do
			echo "SELECT bgw_backfill.configure('events', '${setting%%=*}', '${setting#*=}');"
		done
		echo "COMMIT;"
	} | as_app "$db" >/dev/null
}

# One value of progress.
progress()
{
	as_app "$1" -c "SELECT $2 FROM bgw_backfill.progress WHERE job = 'events'"
}

# Waits for the job to be in one of these phases, looking from outside. $1: database, $2: pattern of case.
wait_phase()
{
	local db=$1 wanted=$2 deadline=$((SECONDS + 1800)) phase state
	while :; do
		IFS='|' read -r phase state < <(progress "$db" "phase, state") || true
		# shellcheck disable=SC2053
		[[ $phase == @($wanted) ]] && return 0
		case $state in
			failed | held | paused)
				fail "job is $state in phase $phase: $(progress "$db" last_error)" || return 1 ;;
		esac
		[ $SECONDS -lt $deadline ] || fail "phase is still $phase, state $state" || return 1
		sleep 0.2
	done
}

# The name of the database in which a job of this mode is live.
live_of()
{
	if [ "$1" = column ]; then
		echo live
	else
		echo "live_$1"
	fi
}

# That database: the large table, tracked, in phase live; made when first asked for. $1: mode, column if none.
ensure_live()
{
	local mode=${1:-column} start db
	db=$(live_of "$mode")
	if [ "$(as_super postgres -c "SELECT count(*) FROM pg_database WHERE datname = '$db'")" = 1 ]; then
		return
	fi
	copy_database "$db" base
	as_super "$db" -c "CREATE EXTENSION bgw_backfill"
	settle "$db"
	start=$EPOCHREALTIME
	track "$db" "$mode" batch_sleep=0
	wait_phase "$db" live
	note "$mode: track() to phase live: $(elapsed_ms "$start") ms without batch_sleep," \
		"of which fill $(progress "$db" fill_ms) ms"
}

elapsed_ms()
{
	awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.0f\n", (b - a) * 1000 }'
}

# Milliseconds of the one statement that psql's \timing reported.
timing()
{
	awk '/^Time: / { t = $2; n++ } END { if (n != 1) exit 1; print t }'
}

# The median of the arguments.
median()
{
	printf '%s\n' "$@" | sort -g | awk '{ v[NR] = $1 }
		END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# Between which of the arguments the true median is, 95 times in 100 (by their ranks; few runs say little).
interval()
{
	printf '%s\n' "$@" | sort -g | awk '{ v[NR] = $1 }
		END {
			half = 0.98 * sqrt(NR)
			low = int(NR / 2 - half)
			if (low < 1)
				low = 1
			printf "%.3f .. %.3f\n", v[low], v[NR + 1 - low]
		}'
}

# Divides; three places.
ratio()
{
	awk -v a="$1" -v b="$2" 'BEGIN { if (b == 0) print "inf"; else printf "%.3f\n", a / b }'
}

# The ratios of two arrays, by name, run by run; and their median.
ratios()
{
	local -n ours_=$1 base_=$2
	local i
	for i in "${!ours_[@]}"; do
		ratio "${ours_[i]}" "${base_[i]}"
	done
}

median_ratio()
{
	local list
	mapfile -t list < <(ratios "$1" "$2")
	printf '%.3f\n' "$(median "${list[@]}")"
}

# Is the value within its bound? $1: value, $2: <= or >=, $3: bound.
judge()
{
	awk -v v="$1" -v op="$2" -v b="$3" 'BEGIN { print (op == "<=" ? v <= b : v >= b) ? "ok" : "over" }'
}

# A line of the table: name, ours, baseline, value, bound, verdict.
row()
{
	printf '%s|%s|%s|%s|%s|%s\n' "$@" >>"$results"
}

# A measured time, for the table.
ms()
{
	awk -v t="$1" 'BEGIN { printf (t >= 100 ? "%.0f ms\n" : t >= 10 ? "%.1f ms\n" : "%.2f ms\n"), t }'
}

megabytes()
{
	awk -v b="$1" 'BEGIN { printf "%.1f MB\n", b / 1048576 }'
}

print_results()
{
	local rule name ours base value bound verdict
	printf -v rule '%*s' 116 ''
	echo
	printf '%-54s %14s %14s %10s %10s  %s\n' "measured" "ours" "baseline" "value" "bound" ""
	echo "${rule// /-}"
	while IFS='|' read -r name ours base value bound verdict; do
		printf '%-54s %14s %14s %10s %10s  %s\n' "$name" "$ours" "$base" "$value" "$bound" "$verdict"
	done <"$results"
}
