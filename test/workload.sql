-- The standard workload: events, most of them with an embedding.
--   psql -v rows=1150000 -v dims=384 -f workload.sql
-- rows: events to create; dims: numbers in each embedding. The proportions are the same at any size:
-- 5 % have no text, and of the rest one in 200 and the newest 1.74 % have no embedding yet.
-- 1150000 rows: 57381 without text, 1068024 with an embedding, 24595 pending.
\set ON_ERROR_STOP on
\if :{?rows} \else \set rows 1150000 \endif
\if :{?dims} \else \set dims 384 \endif

-- One transaction: a server with wal_level = minimal then need not log the load.
BEGIN;

CREATE TABLE events (
	id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	organization_id text NOT NULL,
	created_at      timestamptz NOT NULL DEFAULT now(),
	payload_text    text,
	metadata        jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE event_embeddings (
	event_id        bigint PRIMARY KEY,
	embedding       real[] NOT NULL,
	embedding_model text NOT NULL DEFAULT 'm1',
	created_at      timestamptz NOT NULL DEFAULT now()
);

-- 40 organizations, spread as by chance; every 25th event has a NULL text, every 97th an empty one.
INSERT INTO events (organization_id, created_at, payload_text, metadata)
SELECT format('org-%s', abs(hashint8(n) % 40)),
	   timestamptz '2026-01-01 00:00+00' + n * interval '10 seconds',
	   CASE WHEN n % 25 = 0 THEN NULL WHEN n % 97 = 0 THEN '' ELSE repeat(md5(n::text), 8) END,
	   jsonb_build_object('src', n % 7, 'k', md5((3 * n)::text))
FROM generate_series(1, :rows) AS n;

CREATE INDEX events_org_created ON events (organization_id, created_at DESC);

INSERT INTO event_embeddings (event_id, embedding)
SELECT id, array_fill(0.5::real, ARRAY[:dims])
FROM events
WHERE payload_text <> '' AND id % 200 <> 3 AND id <= :rows - :rows::bigint * 20 / 1150;

-- Checked once for all rows instead of row by row.
ALTER TABLE event_embeddings ADD FOREIGN KEY (event_id) REFERENCES events (id) ON DELETE CASCADE;

-- What every result is held against.
CREATE VIEW truly_pending AS
SELECT id, organization_id
FROM events AS e
WHERE payload_text IS NOT NULL AND payload_text <> ''
  AND NOT EXISTS (SELECT FROM event_embeddings AS m WHERE m.event_id = e.id);

COMMIT;

VACUUM (ANALYZE) events, event_embeddings;
