/* sql/bgw_backfill--1.0.sql */

-- complain if the script is sourced in psql rather than by CREATE EXTENSION
\echo Use "CREATE EXTENSION bgw_backfill" to load this file. \quit

-- Made here, so that a schema prepared by somebody else is refused.
CREATE SCHEMA bgw_backfill;
COMMENT ON SCHEMA bgw_backfill IS 'backfill worker: keeps "does this row have its companion row yet?" true and cheap to ask';
GRANT USAGE ON SCHEMA bgw_backfill TO PUBLIC;

----------------------------------------------------------------------
-- Tables. Names of relations are text on purpose: reg* types would make
-- pg_upgrade refuse the cluster. Nobody but the extension's owner has
-- rights on them; the views below show each user his own rows.
-- A foreign key locks the job's row: no table has one that a consumer writes (an open
-- claim would keep its job from being taken away), nor the groups, of which a scan writes
-- thousands.
----------------------------------------------------------------------

CREATE TABLE bgw_backfill.job (
	job				text COLLATE "C" PRIMARY KEY,
	owner			text NOT NULL,
	role_oid		oid NOT NULL,
	database_oid	oid NOT NULL,
	system_id		bigint NOT NULL,
	source_oid		oid NOT NULL,
	target_oid		oid NOT NULL,
	source_schema	text NOT NULL,
	source_name		text NOT NULL,
	target_schema	text NOT NULL,
	target_name		text NOT NULL,
	mode			text NOT NULL CHECK (mode IN ('column', 'sidecar', 'watermark')),
	source_key		text NOT NULL,
	target_key		text NOT NULL,
	flag_column		text,
	pending_where	text,
	match_where		text,
	group_by		text,
	handler			text,
	changing		boolean NOT NULL DEFAULT false,
	new_pending_where text,
	new_match_where	text,
	source_columns	text[] NOT NULL DEFAULT '{}',
	target_columns	text[] NOT NULL DEFAULT '{}',
	objects			oid[] NOT NULL DEFAULT '{}',
	settings		text[] NOT NULL DEFAULT '{}',
	paused			boolean NOT NULL DEFAULT false,
	uninstall		boolean NOT NULL DEFAULT false,
	drop_objects	boolean NOT NULL DEFAULT true,
	verify_requests	bigint NOT NULL DEFAULT 0,
	successor_of	text COLLATE "C" UNIQUE,
	becomes			text,
	created_at		timestamptz NOT NULL DEFAULT now(),
	UNIQUE (database_oid, source_oid, flag_column)
);
COMMENT ON TABLE bgw_backfill.job IS 'configuration of each job; a change wakes the launcher';
COMMENT ON COLUMN bgw_backfill.job.database_oid IS 'with system_id and the tables'' OIDs the fingerprint of where this job was tracked';
COMMENT ON COLUMN bgw_backfill.job.role_oid IS 'the owner, where the fingerprint holds';
COMMENT ON COLUMN bgw_backfill.job.successor_of IS 'the job whose place this one takes once it is verified; nobody sees it before';
COMMENT ON COLUMN bgw_backfill.job.becomes IS 'the mode that a successor gives its job, where it is not the one that it is built in';
COMMENT ON COLUMN bgw_backfill.job.changing IS 'the new conditions are to take effect';
COMMENT ON COLUMN bgw_backfill.job.source_columns IS 'the number and the name of each column of the source, as the names above and the conditions have them; target_columns: of the target';
COMMENT ON COLUMN bgw_backfill.job.objects IS 'what the job has made: view, table of pending keys, its two indexes, index on the source';
COMMENT ON COLUMN bgw_backfill.job.settings IS 'per-job settings as name=value';

CREATE TABLE bgw_backfill.job_state (
	job				text COLLATE "C" PRIMARY KEY REFERENCES bgw_backfill.job ON DELETE CASCADE,
	phase			text NOT NULL DEFAULT 'install'
		CHECK (phase IN ('install', 'fill', 'index', 'verify', 'live', 'uninstall')),
	generation		bigint NOT NULL DEFAULT 0,
	health			text NOT NULL DEFAULT 'ok' CHECK (health IN ('ok', 'failed', 'held')),
	flag_added		boolean NOT NULL DEFAULT false,
	walk_cursor		text,
	high_mark		text,
	rows_done		bigint NOT NULL DEFAULT 0,
	rows_total		bigint NOT NULL DEFAULT 0,
	rows_changed	bigint NOT NULL DEFAULT 0,
	index_percent	double precision NOT NULL DEFAULT 0,
	batches			bigint NOT NULL DEFAULT 0,
	batch_size		integer NOT NULL DEFAULT 0,
	batch_ms		double precision,
	batch_at		timestamptz,
	rows_per_second	double precision,
	started_at		timestamptz NOT NULL DEFAULT now(),
	phase_started_at timestamptz NOT NULL DEFAULT now(),
	fill_started_at	timestamptz,
	fill_ended_at	timestamptz,
	live_since		timestamptz,
	verified_at		timestamptz,
	mismatches		bigint,
	stale_pruned	bigint NOT NULL DEFAULT 0,
	prune_cursor	text,
	attempt_cursor	text,
	claim_cursor	text,
	watermark		text,
	next_mark		text,
	next_mark_xid	text,
	pass_mark		text,
	pass_cursor		text,
	pass_end		text,
	key_order		text,
	pass_at			timestamptz,
	files			text,
	switch_xid		text,
	sweep_request	bigint NOT NULL DEFAULT 0,
	sweep_started_at timestamptz,
	sweep_mismatches bigint NOT NULL DEFAULT 0,
	sweep_rows		bigint NOT NULL DEFAULT 0,
	sweep_total		bigint NOT NULL DEFAULT 0,
	sweep_eligible	bigint NOT NULL DEFAULT 0,
	sweep_pending	bigint NOT NULL DEFAULT 0,
	refilling		boolean NOT NULL DEFAULT false,
	pending			bigint,
	pending_capped	boolean NOT NULL DEFAULT false,
	pending_estimate bigint NOT NULL DEFAULT 0,
	groups			bigint,
	rounded_at		timestamptz,
	round_groups	bigint NOT NULL DEFAULT 0,
	round_pending	bigint NOT NULL DEFAULT 0,
	round_capped	boolean NOT NULL DEFAULT false,
	part_at			timestamptz,
	handoff_at		timestamptz,
	cut_short		integer NOT NULL DEFAULT 0,
	quiet_mark		text,
	quiet_scans		integer NOT NULL DEFAULT 0,
	scan_at			timestamptz,
	scan_ms			double precision,
	scans			bigint NOT NULL DEFAULT 0,
	scans_skipped	bigint NOT NULL DEFAULT 0,
	scan_cycle		bigint NOT NULL DEFAULT 0,
	scan_group		text,
	retries			integer NOT NULL DEFAULT 0,
	waits			integer NOT NULL DEFAULT 0,
	retry_at		timestamptz,
	waiting_for		text,
	waiting_since	timestamptz,
	errors			bigint NOT NULL DEFAULT 0,
	last_error		text,
	last_error_at	timestamptz
) WITH (fillfactor = 50);
COMMENT ON TABLE bgw_backfill.job_state IS 'progress of each job, committed by the batch that made it';
COMMENT ON COLUMN bgw_backfill.job_state.generation IS 'raised by everything that restarts a walk; a batch of an older generation leaves no trace here';
COMMENT ON COLUMN bgw_backfill.job_state.walk_cursor IS 'last key of the source that the current walk is done with, as text';
COMMENT ON COLUMN bgw_backfill.job_state.index_percent IS 'how far an index build was seen to be that had to be given up';
COMMENT ON COLUMN bgw_backfill.job_state.batch_at IS 'end of the last batch; the next one is due batch_sleep later';
COMMENT ON COLUMN bgw_backfill.job_state.prune_cursor IS 'last key of the table of pending keys that the pruning is done with, as text; it begins anew at the end';
COMMENT ON COLUMN bgw_backfill.job_state.watermark IS 'mode watermark: all rows up to this key have been looked at after their transactions had ended, as text';
COMMENT ON COLUMN bgw_backfill.job_state.next_mark IS 'the key to which the watermark rises next, once next_mark_xid has ended';
COMMENT ON COLUMN bgw_backfill.job_state.pass_mark IS 'the key to which the watermark rises when the pass under way is done';
COMMENT ON COLUMN bgw_backfill.job_state.files IS 'mode watermark: the tables'' files, by which a TRUNCATE is noticed';
COMMENT ON COLUMN bgw_backfill.job_state.sweep_eligible IS 'of the sweep under way or the last one: rows that satisfy pending_where; sweep_pending: and lack a match';
COMMENT ON COLUMN bgw_backfill.job_state.refilling IS 'a sweep under new conditions is to come, or under way';
COMMENT ON COLUMN bgw_backfill.job_state.pending IS 'what the last complete round of pending scans has counted; round_pending: the one under way, so far';
COMMENT ON COLUMN bgw_backfill.job_state.pending_estimate IS 'all that is pending, by the server''s statistics; 0: not known';
COMMENT ON COLUMN bgw_backfill.job_state.part_at IS 'end of the last part of a round; the next one is due soon after';
COMMENT ON COLUMN bgw_backfill.job_state.handoff_at IS 'when the handler has its next round of calls, before the next scan; NULL: after it';
COMMENT ON COLUMN bgw_backfill.job_state.quiet_mark IS 'how the tables stood before the last scan, by the statistics and the catalogs; quiet_scans: scans left out since, as nothing has changed';
COMMENT ON COLUMN bgw_backfill.job_state.cut_short IS 'a bit for each stage, the last scan and what follows it, that ran out of time';
COMMENT ON COLUMN bgw_backfill.job_state.key_order IS 'the types, operator class and collations that keys and groups above were stored under';
COMMENT ON COLUMN bgw_backfill.job_state.high_mark IS 'key at which the current walk ends, as text';

CREATE TABLE bgw_backfill.job_skipped (
	job				text COLLATE "C" NOT NULL REFERENCES bgw_backfill.job ON DELETE CASCADE,
	key				text NOT NULL,
	PRIMARY KEY (job, key)
);
COMMENT ON TABLE bgw_backfill.job_skipped IS 'rows behind the cursor that were locked by somebody when their batch passed; done one per transaction';

CREATE TABLE bgw_backfill.pending_group (
	job				text COLLATE "C" NOT NULL,
	group_key		text,
	pending			bigint NOT NULL,
	capped			boolean NOT NULL,
	oldest_key		text,
	scanned_at		timestamptz NOT NULL,
	cycle			bigint NOT NULL,
	UNIQUE NULLS NOT DISTINCT (job, group_key)
);
COMMENT ON TABLE bgw_backfill.pending_group IS 'what the pending scan found, a row per job and group';

CREATE SEQUENCE bgw_backfill.claim_token;
COMMENT ON SEQUENCE bgw_backfill.claim_token IS 'a token for each claim; a later one is higher';

-- A row per claim, not per key: a claim costs one insert, its extension one update, and a target row that arrives
-- costs its writer nothing.
CREATE TABLE bgw_backfill.claim (
	token			bigint PRIMARY KEY,
	job				text COLLATE "C" NOT NULL,
	claimed_by		oid NOT NULL,
	claimed_at		timestamptz NOT NULL DEFAULT clock_timestamp(),
	expires_at		timestamptz NOT NULL,
	granted			integer NOT NULL,
	keys			text[] NOT NULL,
	group_keys		text[] NOT NULL,
	attempts		integer[] NOT NULL,
	last_group		text,
	stale_pruned	bigint NOT NULL DEFAULT 0,
	CHECK (cardinality(group_keys) = cardinality(keys) AND cardinality(attempts) = cardinality(keys))
);
CREATE INDEX claim_open ON bgw_backfill.claim (job) WHERE keys <> '{}';
CREATE INDEX claim_job ON bgw_backfill.claim (job, token);
COMMENT ON TABLE bgw_backfill.claim IS 'what has been handed out under one token; emptied when all of it is answered';
COMMENT ON COLUMN bgw_backfill.claim.claimed_by IS 'the role whose token it is, or a member''s of it, or the owner''s of the tables';
COMMENT ON COLUMN bgw_backfill.claim.granted IS 'how many keys it began with';
COMMENT ON COLUMN bgw_backfill.claim.keys IS 'what was not seen answered yet, as text; group_keys and attempts go with it';
COMMENT ON COLUMN bgw_backfill.claim.last_group IS 'the group that had the last turn; the next claim goes on after it';
COMMENT ON COLUMN bgw_backfill.claim.stale_pruned IS 'rows that it took out of the table of pending keys; added to the job''s when it is forgotten';

CREATE TABLE bgw_backfill.answered (
	job				text COLLATE "C" NOT NULL,
	key				text COLLATE "C" NOT NULL,
	token			bigint NOT NULL,
	noted_at		timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX answered_job ON bgw_backfill.answered (job);
COMMENT ON TABLE bgw_backfill.answered IS 'claimed rows whose target row has come, and is gone again: claims with a lower token do not hold them any more';

CREATE TABLE bgw_backfill.attempt (
	job				text COLLATE "C" NOT NULL,
	key				text COLLATE "C" NOT NULL,
	group_key		text COLLATE "C",
	attempts		integer NOT NULL,
	next_at			timestamptz NOT NULL,
	quarantined_at	timestamptz,
	last_error		text,
	last_error_at	timestamptz,
	PRIMARY KEY (job, key)
);
CREATE INDEX attempt_next ON bgw_backfill.attempt (job, group_key, next_at) WHERE quarantined_at IS NULL;
CREATE INDEX attempt_quarantined ON bgw_backfill.attempt (job, key) WHERE quarantined_at IS NOT NULL;
COMMENT ON TABLE bgw_backfill.attempt IS 'pending rows that have been handed out and came back';
COMMENT ON COLUMN bgw_backfill.attempt.attempts IS 'failures and expired leases so far';

-- No unique key, so that nobody waits for a claim that is not committed: the highest of a group counts.
CREATE TABLE bgw_backfill.passed (
	job				text COLLATE "C" NOT NULL,
	group_key		text COLLATE "C",
	key				text NOT NULL,
	looked_at		text,
	looked_on		timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX passed_group ON bgw_backfill.passed (job, group_key);
COMMENT ON TABLE bgw_backfill.passed IS 'where a claim may begin in a group: what is pending up to that key has been handed out before';
COMMENT ON COLUMN bgw_backfill.passed.looked_at IS 'how far the worker has looked for rows that became pending below that key';

CREATE TABLE bgw_backfill.stretch (
	job				text COLLATE "C" NOT NULL,
	after_group		text,
	upto_group		text NOT NULL,
	until			timestamptz NOT NULL
);
CREATE INDEX stretch_job ON bgw_backfill.stretch (job, until);
COMMENT ON TABLE bgw_backfill.stretch IS 'groups one after the other of which nothing can be handed out; stepped over for a while';

CREATE TABLE bgw_backfill.group_wait (
	job				text COLLATE "C" NOT NULL,
	group_key		text COLLATE "C",
	failures		integer NOT NULL,
	next_at			timestamptz NOT NULL,
	last_error		text NOT NULL,
	UNIQUE NULLS NOT DISTINCT (job, group_key)
);
COMMENT ON TABLE bgw_backfill.group_wait IS 'groups whose last call of the handler failed';

REVOKE ALL ON bgw_backfill.job, bgw_backfill.job_state, bgw_backfill.job_skipped,
	bgw_backfill.pending_group, bgw_backfill.claim, bgw_backfill.answered, bgw_backfill.attempt, bgw_backfill.passed,
	bgw_backfill.stretch, bgw_backfill.group_wait FROM PUBLIC;
REVOKE ALL ON SEQUENCE bgw_backfill.claim_token FROM PUBLIC;

-- Jobs go into a dump; a restored one is held until somebody resumes it.
SELECT pg_catalog.pg_extension_config_dump('bgw_backfill.job', '');
SELECT pg_catalog.pg_extension_config_dump('bgw_backfill.job_state', '');
SELECT pg_catalog.pg_extension_config_dump('bgw_backfill.job_skipped', '');
SELECT pg_catalog.pg_extension_config_dump('bgw_backfill.attempt', '');
-- claims are not dumped, but a token that was given before must not be given again
SELECT pg_catalog.pg_extension_config_dump('bgw_backfill.claim_token', '');

----------------------------------------------------------------------
-- Trigger functions
----------------------------------------------------------------------

CREATE FUNCTION bgw_backfill.job_changed() RETURNS trigger
	LANGUAGE c AS 'MODULE_PATHNAME', 'bgw_backfill_job_changed';
REVOKE EXECUTE ON FUNCTION bgw_backfill.job_changed() FROM PUBLIC;
COMMENT ON FUNCTION bgw_backfill.job_changed() IS 'wakes the launcher once a change of a job is committed';
-- not for what a worker records of the tables and of what it has made
CREATE TRIGGER job_changed AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF owner, role_oid, database_oid, system_id,
	source_oid, target_oid, source_schema, source_name, target_schema, target_name, mode, source_key, target_key, flag_column,
	pending_where, match_where, group_by, handler, changing, new_pending_where, new_match_where, settings, paused, uninstall,
	drop_objects, verify_requests, successor_of, becomes ON bgw_backfill.job
	FOR EACH STATEMENT EXECUTE FUNCTION bgw_backfill.job_changed();
ALTER TABLE bgw_backfill.job ENABLE ALWAYS TRIGGER job_changed;

CREATE FUNCTION bgw_backfill.target_changed() RETURNS trigger
	LANGUAGE c AS 'MODULE_PATHNAME', 'bgw_backfill_target_changed';
COMMENT ON FUNCTION bgw_backfill.target_changed() IS 'on a target: settles the source rows that a statement''s target rows point at';

CREATE FUNCTION bgw_backfill.source_changed() RETURNS trigger
	LANGUAGE c AS 'MODULE_PATHNAME', 'bgw_backfill_source_changed';
COMMENT ON FUNCTION bgw_backfill.source_changed() IS 'on a source: settles the rows that a statement inserted or gave a new key';

CREATE FUNCTION bgw_backfill.target_truncated() RETURNS trigger
	LANGUAGE c AS 'MODULE_PATHNAME', 'bgw_backfill_target_truncated';
COMMENT ON FUNCTION bgw_backfill.target_truncated() IS 'on a target: puts the job back to phase fill';

CREATE FUNCTION bgw_backfill.source_truncated() RETURNS trigger
	LANGUAGE c AS 'MODULE_PATHNAME', 'bgw_backfill_source_truncated';
COMMENT ON FUNCTION bgw_backfill.source_truncated() IS 'on a source: empties the table of pending keys';

----------------------------------------------------------------------
-- What a user calls
----------------------------------------------------------------------

CREATE FUNCTION bgw_backfill.track(
	source regclass,
	target regclass,
	job text DEFAULT NULL,
	mode text DEFAULT 'column',
	source_key name DEFAULT NULL,
	target_key name DEFAULT NULL,
	flag_column name DEFAULT 'has_embedding',
	pending_where text DEFAULT NULL,
	match_where text DEFAULT NULL,
	group_by name DEFAULT NULL,
	handler regprocedure DEFAULT NULL,
	dry_run boolean DEFAULT false)
	RETURNS text LANGUAGE c AS 'MODULE_PATHNAME', 'bgw_backfill_track';
COMMENT ON FUNCTION bgw_backfill.track(regclass, regclass, text, text, name, name, name, text, text, name, regprocedure, boolean)
	IS 'start keeping track of which source rows have a target row; returns the job''s name';

CREATE FUNCTION bgw_backfill.untrack(job text, drop_objects boolean DEFAULT true)
	RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'bgw_backfill_untrack';
COMMENT ON FUNCTION bgw_backfill.untrack(text, boolean)
	IS 'end a job; drop_objects false keeps its column, index and view and drops its triggers';

CREATE FUNCTION bgw_backfill.pause(job text)
	RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'bgw_backfill_pause';
COMMENT ON FUNCTION bgw_backfill.pause(text) IS 'stop a job''s worker after its current batch; a running index build is cancelled';

CREATE FUNCTION bgw_backfill.resume(job text)
	RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'bgw_backfill_resume';
COMMENT ON FUNCTION bgw_backfill.resume(text) IS 'go on with a paused, failed or held job';

CREATE FUNCTION bgw_backfill.verify(job text)
	RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'bgw_backfill_verify';
COMMENT ON FUNCTION bgw_backfill.verify(text) IS 'start a parity sweep now; while one runs, queue another';

CREATE FUNCTION bgw_backfill.configure(job text, setting text, value text)
	RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'bgw_backfill_configure';
COMMENT ON FUNCTION bgw_backfill.configure(text, text, text) IS 'give a job its own value of a setting; NULL goes back to the server''s';

CREATE PROCEDURE bgw_backfill.wait(job text, phase text DEFAULT 'live', timeout interval DEFAULT '1 hour')
	LANGUAGE c AS 'MODULE_PATHNAME', 'bgw_backfill_wait';
COMMENT ON PROCEDURE bgw_backfill.wait(text, text, interval) IS 'return when a job has reached a phase; not to be called in a transaction block';

----------------------------------------------------------------------
-- What a consumer calls
----------------------------------------------------------------------

CREATE FUNCTION bgw_backfill.claim(
	job text,
	max_rows integer DEFAULT 100,
	lease interval DEFAULT '5 minutes',
	group_key text DEFAULT NULL,
	OUT key text, OUT group_key text, OUT attempt integer, OUT token bigint)
	RETURNS SETOF record LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'bgw_backfill_claim';
COMMENT ON FUNCTION bgw_backfill.claim(text, integer, interval, text)
	IS 'hand out pending rows of a job, round-robin over the groups; never waits for another claim';

CREATE FUNCTION bgw_backfill.fail(job text, keys text[], token bigint, error text)
	RETURNS integer LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'bgw_backfill_fail';
COMMENT ON FUNCTION bgw_backfill.fail(text, text[], bigint, text)
	IS 'claimed rows could not be done: count it, and hand them out again later or not at all; returns how many';

CREATE FUNCTION bgw_backfill.release(job text, keys text[], token bigint)
	RETURNS integer LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'bgw_backfill_release';
COMMENT ON FUNCTION bgw_backfill.release(text, text[], bigint) IS 'give claimed rows back, uncharged; returns how many';

CREATE FUNCTION bgw_backfill.extend(job text, token bigint, lease interval)
	RETURNS timestamptz LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'bgw_backfill_extend';
COMMENT ON FUNCTION bgw_backfill.extend(text, bigint, interval) IS 'let a claim''s lease end that long from now; returns when';

CREATE FUNCTION bgw_backfill.requeue(job text, keys text[] DEFAULT NULL)
	RETURNS bigint LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'bgw_backfill_requeue';
COMMENT ON FUNCTION bgw_backfill.requeue(text, text[]) IS 'take rows out of quarantine, all of them if no keys are given; returns how many';

----------------------------------------------------------------------
-- Views
----------------------------------------------------------------------

CREATE FUNCTION bgw_backfill.worker_status(
	OUT pid integer, OUT owner oid, OUT job text, OUT state text,
	OUT waiting_for text, OUT waiting_since timestamptz, OUT index_percent double precision)
	RETURNS SETOF record LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'bgw_backfill_worker_status';
COMMENT ON FUNCTION bgw_backfill.worker_status() IS 'the workers of this database whose owner''s role the caller is a member of';

CREATE FUNCTION bgw_backfill.launcher_waiting_for() RETURNS text
	LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'bgw_backfill_launcher_waiting_for';
COMMENT ON FUNCTION bgw_backfill.launcher_waiting_for() IS 'what keeps the launcher from starting workers, or NULL';

CREATE FUNCTION bgw_backfill.effective_settings(settings text[]) RETURNS jsonb
	LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
	RETURN (
		SELECT jsonb_object_agg(substr(p.name, 14), jsonb_build_object(
			'value', coalesce(o.value, current_setting(p.name)),
			'source', CASE WHEN o.value IS NULL THEN p.source ELSE 'job' END))
		FROM pg_settings p
			LEFT JOIN LATERAL (SELECT split_part(x, '=', 2) AS value FROM unnest(settings) x
				WHERE split_part(x, '=', 1) = substr(p.name, 14)) o ON true
		WHERE p.name IN ('bgw_backfill.batch_size', 'bgw_backfill.batch_sleep', 'bgw_backfill.lock_timeout',
			'bgw_backfill.statement_timeout', 'bgw_backfill.scan_interval', 'bgw_backfill.scan_timeout',
			'bgw_backfill.verify_interval', 'bgw_backfill.lookback', 'bgw_backfill.max_attempts',
			'bgw_backfill.max_leased', 'bgw_backfill.handoff_rows', 'bgw_backfill.handoff_groups',
			'bgw_backfill.handoff_lease'));
COMMENT ON FUNCTION bgw_backfill.effective_settings(text[]) IS 'each per-job setting, its value and where that comes from';

CREATE VIEW bgw_backfill.visible_job WITH (security_barrier) AS
SELECT j.*, coalesce(c.relowner, r.oid) AS owner_oid
FROM bgw_backfill.job j
	LEFT JOIN (pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace)
		ON CASE WHEN j.database_oid = (SELECT d.oid FROM pg_catalog.pg_database d
				WHERE d.datname = pg_catalog.current_database())
			THEN c.oid = j.source_oid
			ELSE n.nspname = j.source_schema AND c.relname = j.source_name END
	LEFT JOIN pg_catalog.pg_roles r ON r.rolname = j.owner
WHERE j.successor_of IS NULL
	AND (pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')
		OR pg_catalog.pg_has_role(coalesce(c.relowner, r.oid), 'MEMBER'));
COMMENT ON VIEW bgw_backfill.visible_job IS 'the jobs that the current user may see';

CREATE VIEW bgw_backfill.jobs WITH (security_barrier) AS
SELECT job, pg_catalog.pg_get_userbyid(owner_oid) AS owner,
	pg_catalog.format('%I.%I', source_schema, source_name) AS source,
	pg_catalog.format('%I.%I', target_schema, target_name) AS target,
	mode, source_key, target_key, flag_column, pending_where, match_where, group_by, handler,
	paused, uninstall, created_at,
	bgw_backfill.effective_settings(settings) AS settings
FROM bgw_backfill.visible_job;
COMMENT ON VIEW bgw_backfill.jobs IS 'configuration of each job, its effective settings and where each comes from';

CREATE VIEW bgw_backfill.progress WITH (security_barrier) AS
SELECT q.job, q.source, q.target, q.mode, q.phase, q.state, q.percent, q.rows_done, q.rows_total,
	q.rows_changed, q.pending, q.pending_capped, q.pending_estimate, q.round_percent, q.batches, q.batch_size, q.batch_ms, q.rows_per_second,
	CASE WHEN q.phase IN ('fill', 'verify') AND q.rows_per_second > 0
		THEN pg_catalog.date_trunc('second', pg_catalog.make_interval(
			secs => least(greatest(q.rows_total - q.rows_done, 0) / q.rows_per_second, 1e9))) END AS eta,
	q.fill_ms, q.waiting_for, q.waited, q.errors, q.last_error, q.last_error_at, q.started_at,
	q.phase_started_at, q.live_since, q.verified_at, q.mismatches, q.stale_pruned, q.coverage, q.watermark, q.leased, q.quarantined, q.waiting_groups,
	q.scans, q.scans_skipped, q.cut_short, q.rebuilding, q.worker_pid,
	pg_catalog.format('[%s%s] %s%%',
		pg_catalog.repeat('#', pg_catalog.floor(q.percent / 5)::integer),
		pg_catalog.repeat('.', 20 - pg_catalog.floor(q.percent / 5)::integer),
		pg_catalog.lpad(pg_catalog.floor(q.percent)::text, 3)) AS bar
FROM (
	SELECT j.job,
		pg_catalog.format('%I.%I', j.source_schema, j.source_name) AS source,
		pg_catalog.format('%I.%I', j.target_schema, j.target_name) AS target,
		j.mode, CASE WHEN j.uninstall THEN 'uninstall' ELSE s.phase END AS phase,
		CASE
			WHEN s.health <> 'ok' THEN s.health
			WHEN j.paused AND NOT j.uninstall THEN 'paused'
			WHEN w.state = 'running' THEN w.state
			WHEN s.retries > 0 OR s.waits > 0 THEN 'retrying'
			WHEN w.state IS NOT NULL THEN w.state
			WHEN s.phase <> 'live' AND ow.pid IS NOT NULL THEN 'sleeping'
			WHEN s.phase IN ('fill', 'verify') AND s.batch_at IS NOT NULL
				AND bgw_backfill.launcher_waiting_for() IS NULL THEN 'sleeping'
			ELSE 'idle'
		END AS state,
		CASE
			WHEN j.uninstall THEN 0
			WHEN s.phase = 'live' THEN 100
			WHEN s.phase IN ('fill', 'verify') THEN
				CASE WHEN s.rows_total > 0
					THEN least(99.9, pg_catalog.round(100.0 * s.rows_done / s.rows_total, 1)) ELSE 0 END
			WHEN s.phase = 'index' THEN least(99.9, pg_catalog.round(greatest(w.index_percent, s.index_percent)::numeric, 1))
			ELSE 0
		END AS percent,
		s.rows_done, greatest(s.rows_total, s.rows_done) AS rows_total, s.rows_changed,
		CASE WHEN s.rounded_at IS NULL AND s.scan_at IS NOT NULL THEN s.round_pending ELSE s.pending END AS pending,
		CASE WHEN s.rounded_at IS NULL THEN s.scan_group IS NOT NULL ELSE s.pending_capped END AS pending_capped,
		CASE WHEN s.scan_at IS NULL AND s.rounded_at IS NULL THEN NULL
			WHEN s.pending_capped OR s.scan_group IS NOT NULL
			THEN greatest(s.pending, s.round_pending, s.pending_estimate) ELSE s.pending END AS pending_estimate,
		CASE WHEN s.scan_group IS NULL AND s.rounded_at IS NOT NULL THEN 100
			WHEN s.scan_group IS NOT NULL THEN least(99, pg_catalog.floor(100.0 * CASE WHEN s.rounded_at IS NULL
				THEN s.round_pending / greatest(s.pending_estimate, s.round_pending, 1)::numeric
				ELSE s.round_groups / greatest(s.groups, s.round_groups, 1)::numeric END))
			END AS round_percent,
		s.scans, s.scans_skipped,
		(SELECT pg_catalog.string_agg(x.stage, ', ' ORDER BY x.i)
			FROM pg_catalog.unnest('{scan,prune,claims,attempts,passed groups,notify,handler}'::text[]) WITH ORDINALITY x (stage, i)
			WHERE s.cut_short & (1 << (x.i - 1)::integer) <> 0) AS cut_short,
		s.batches, s.batch_size, pg_catalog.round(s.batch_ms::numeric, 1) AS batch_ms,
		pg_catalog.round(s.rows_per_second::numeric, 1) AS rows_per_second,
		pg_catalog.round(pg_catalog.date_part('epoch', s.fill_ended_at - s.fill_started_at)::numeric * 1000, 1) AS fill_ms,
		CASE WHEN s.health = 'ok' AND NOT (j.paused AND NOT j.uninstall) THEN
			coalesce(w.waiting_for, s.waiting_for,
				CASE WHEN ow.pid IS NULL THEN bgw_backfill.launcher_waiting_for() END) END AS waiting_for,
		CASE WHEN w.waiting_for IS NOT NULL THEN pg_catalog.clock_timestamp() - w.waiting_since
			WHEN s.waiting_for IS NOT NULL THEN pg_catalog.clock_timestamp() - s.waiting_since END AS waited,
		s.errors, s.last_error, s.last_error_at, s.started_at, s.phase_started_at, s.live_since,
		s.verified_at, s.mismatches,
		s.stale_pruned + (SELECT coalesce(pg_catalog.sum(c.stale_pruned), 0) FROM bgw_backfill.claim c
			WHERE c.job = j.job)::bigint AS stale_pruned,
		s.watermark,
		CASE WHEN s.sweep_eligible > 0 THEN pg_catalog.round(
			100.0 * (s.sweep_eligible - s.sweep_pending) / s.sweep_eligible, 1) END AS coverage,
		(SELECT coalesce(pg_catalog.sum(pg_catalog.cardinality(c.keys)), 0) FROM bgw_backfill.claim c
			WHERE c.job = j.job AND c.keys <> '{}') AS leased,
		(SELECT pg_catalog.count(*) FROM bgw_backfill.attempt a
			WHERE a.job = j.job AND a.quarantined_at IS NOT NULL) AS quarantined,
		(SELECT pg_catalog.count(*) FROM bgw_backfill.group_wait g
			WHERE g.job = j.job AND EXISTS (SELECT FROM bgw_backfill.pending_group p
				WHERE p.job = g.job AND p.group_key IS NOT DISTINCT FROM g.group_key)) AS waiting_groups,
		coalesce('mode ' || coalesce(n.becomes, n.mode) || ': ' || CASE
				WHEN n.uninstall THEN 'given up'
				WHEN ns.health <> 'ok' THEN pg_catalog.format('%s: %s', ns.health, ns.last_error)
				WHEN ns.phase IN ('fill', 'verify') AND ns.rows_total > 0 THEN pg_catalog.format('%s, %s %%', ns.phase,
					least(99, pg_catalog.floor(100.0 * ns.rows_done / ns.rows_total)))
				ELSE pg_catalog.format('%s%s', CASE WHEN ns.phase = 'live' THEN 'verified' ELSE ns.phase END,
					', waits for ' || ns.waiting_for)
			END, CASE
				WHEN j.changing THEN 'conditions: about to change'
				WHEN s.refilling THEN pg_catalog.format('conditions: refill, %s %%',
					least(99, pg_catalog.floor(100.0 * s.sweep_rows / greatest(s.sweep_total, s.sweep_rows, 1))))
			END) AS rebuilding,
		coalesce(w.pid, ow.pid) AS worker_pid
	FROM bgw_backfill.visible_job j
		JOIN bgw_backfill.job_state s ON s.job = j.job
		LEFT JOIN (bgw_backfill.job n JOIN bgw_backfill.job_state ns ON ns.job = n.job) ON n.successor_of = j.job
		LEFT JOIN bgw_backfill.worker_status() w ON w.job = j.job
		LEFT JOIN LATERAL (SELECT x.pid FROM bgw_backfill.worker_status() x
			WHERE x.owner = j.owner_oid AND s.phase <> 'live' LIMIT 1) ow ON true
	) q;
COMMENT ON VIEW bgw_backfill.progress IS 'what each job is doing and how far it is';

CREATE VIEW bgw_backfill.pending_groups WITH (security_barrier) AS
SELECT g.job, g.group_key, g.pending, g.capped, g.oldest_key, g.scanned_at
FROM bgw_backfill.pending_group g
	JOIN bgw_backfill.visible_job j ON j.job = g.job
	JOIN bgw_backfill.job_state s ON s.job = g.job AND g.cycle >= s.scan_cycle - 1;
COMMENT ON VIEW bgw_backfill.pending_groups IS 'what the last pending scan found in each group';

CREATE VIEW bgw_backfill.quarantine WITH (security_barrier) AS
SELECT a.job, a.key, a.group_key, a.attempts, a.last_error, a.last_error_at, a.quarantined_at
FROM bgw_backfill.attempt a JOIN bgw_backfill.visible_job j ON j.job = a.job
WHERE a.quarantined_at IS NOT NULL;
COMMENT ON VIEW bgw_backfill.quarantine IS 'pending rows that have failed max_attempts times and are not handed out any more';

REVOKE ALL ON bgw_backfill.visible_job FROM PUBLIC;
GRANT SELECT ON bgw_backfill.jobs, bgw_backfill.progress, bgw_backfill.pending_groups,
	bgw_backfill.quarantine TO PUBLIC;

----------------------------------------------------------------------
-- Say it at once when nothing would run.
----------------------------------------------------------------------

CREATE FUNCTION bgw_backfill.check_preload() RETURNS void
	LANGUAGE c AS 'MODULE_PATHNAME', 'bgw_backfill_check_preload';
COMMENT ON FUNCTION bgw_backfill.check_preload() IS 'warns when the library is not in shared_preload_libraries';
SELECT bgw_backfill.check_preload();
