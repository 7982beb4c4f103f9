-- A token is its claimer's, and the owner's of the tables; and what is said of an error is cut.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common
\set VERBOSITY default

CREATE ROLE regress_one LOGIN;
CREATE ROLE regress_two LOGIN;
CREATE ROLE regress_team;
CREATE ROLE regress_member LOGIN;
GRANT regress_team TO regress_member;
GRANT USAGE ON SCHEMA app TO PUBLIC;
SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events);
INSERT INTO events SELECT generate_series(1, 40);
GRANT SELECT ON events TO regress_one, regress_two, regress_team;
GRANT INSERT ON vectors TO regress_one, regress_two, regress_team;
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar');
CALL bgw_backfill.wait('events');
SELECT bgw_backfill.configure('events', 'scan_interval', '7d');

-- another one's token: nothing is done
SET SESSION AUTHORIZATION regress_one;
SELECT array_agg(key) AS keys, max(token) AS token FROM bgw_backfill.claim('events', 2) \gset
SET SESSION AUTHORIZATION regress_two;
SELECT bgw_backfill.fail('events', :'keys', :token, 'not mine');
SELECT bgw_backfill.release('events', :'keys', :token);
SELECT bgw_backfill.release('events', '{}', :token);
SELECT bgw_backfill.extend('events', :token, '1 day');
RESET SESSION AUTHORIZATION;
SELECT keys, expires_at < clock_timestamp() + interval '1 hour' AS not_extended FROM bgw_backfill.claim;
SELECT count(*) AS failed FROM bgw_backfill.attempt;
-- not that there is no such token
SET SESSION AUTHORIZATION regress_two;
SELECT bgw_backfill.release('events', '{1}', 1000000);

-- his own, his role's, the owner's
SET SESSION AUTHORIZATION regress_one;
SELECT bgw_backfill.extend('events', :token, '10 min') > clock_timestamp() AS his_own, bgw_backfill.release('events', :'keys', :token);
SET SESSION AUTHORIZATION regress_member;
SET ROLE regress_team;
SELECT array_agg(key) AS keys, max(token) AS token FROM bgw_backfill.claim('events', 2) \gset
RESET ROLE;
SELECT bgw_backfill.extend('events', :token, '10 min') > clock_timestamp() AS his_roles;
SET SESSION AUTHORIZATION regress_owner;
SELECT bgw_backfill.release('events', :'keys', :token) AS the_owners;
-- but not the other way round: a member's is not his role's
SET SESSION AUTHORIZATION regress_member;
SELECT array_agg(key) AS keys, max(token) AS token FROM bgw_backfill.claim('events', 2) \gset
SET ROLE regress_team;
SELECT bgw_backfill.release('events', :'keys', :token);
RESET ROLE;
SELECT bgw_backfill.release('events', :'keys', :token);

-- a role of the same name is another role
SET SESSION AUTHORIZATION regress_one;
SELECT array_agg(key) AS keys, max(token) AS token FROM bgw_backfill.claim('events', 2) \gset
RESET SESSION AUTHORIZATION;
ALTER ROLE regress_one RENAME TO regress_renamed;
SET SESSION AUTHORIZATION regress_renamed;
SELECT bgw_backfill.extend('events', :token, '10 min') > clock_timestamp() AS under_his_new_name;
RESET SESSION AUTHORIZATION;
DROP OWNED BY regress_renamed;
DROP ROLE regress_renamed;
CREATE ROLE regress_one LOGIN;
GRANT SELECT ON app.events TO regress_one;
GRANT INSERT ON app.vectors TO regress_one;
SET SESSION AUTHORIZATION regress_one;
SELECT bgw_backfill.release('events', :'keys', :token);
SET SESSION AUTHORIZATION regress_owner;
SELECT bgw_backfill.release('events', :'keys', :token);

-- what a handler was given is the owner's, who may let others answer it by a function of his
CREATE TABLE runs (keys text[], token bigint);
CREATE FUNCTION start_run(job text, group_key text, keys bigint[], token bigint) RETURNS void LANGUAGE sql SET search_path = app
	AS 'INSERT INTO app.runs VALUES (keys, token)';
CREATE FUNCTION end_run(keys text[], token bigint) RETURNS integer LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
	AS 'SELECT bgw_backfill.release(''events'', keys, token)';
SELECT bgw_backfill.configure('events', 'handler', 'start_run(text,text,bigint[],bigint)');
SELECT bgw_backfill.configure('events', 'scan_interval', '1s');
CALL test.until('EXISTS (SELECT FROM app.runs)');
SELECT bgw_backfill.configure('events', 'handler', NULL);
SELECT bgw_backfill.configure('events', 'scan_interval', '7d');
SELECT keys, token FROM runs LIMIT 1 \gset
SET SESSION AUTHORIZATION regress_two;
SELECT bgw_backfill.release('events', :'keys', :token);
SELECT end_run(:'keys', :token) = cardinality(:'keys'::text[]) AS all_of_them;
SET SESSION AUTHORIZATION regress_owner;

-- an error of more than 1000 characters, of several bytes each
SELECT array_agg(key) AS keys, max(token) AS token FROM bgw_backfill.claim('events', 1) \gset
SELECT bgw_backfill.configure('events', 'max_attempts', '1');
SELECT bgw_backfill.fail('events', :'keys', :token, repeat('ä€', 100000));
SELECT length(last_error), last_error = repeat('ä€', 500) AS whole_characters FROM bgw_backfill.quarantine;

SELECT bgw_backfill.untrack('events');
CALL bgw_backfill.wait('events', 'uninstall');
RESET SESSION AUTHORIZATION;
DROP SCHEMA app CASCADE;
DROP ROLE regress_one, regress_two, regress_team, regress_member;
