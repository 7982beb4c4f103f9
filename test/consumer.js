#!/usr/bin/env node
// A consumer as an application would write it: claims pending rows of a job, "embeds" them and inserts their target rows.
// It says what it does on stdout, a line of JSON for each event, with the milliseconds before and after the call.
//   NODE_PATH=/usr/share/nodejs node consumer.js [name=value ...]
// The connection is as PGHOST, PGPORT, PGUSER and PGDATABASE say. The names, with their defaults, are below.
'use strict';

const { Client } = require('pg');

const options = {
	job: 'events',
	source: 'events', // its key is id, its text body
	target: 'events_emb', // (event_id, emb)
	batch: 50, // rows in a claim
	lease: 60000, // ms
	extend: 0, // ms from one extension of a lease to the next; 0: none
	work: 0, // ms that a batch takes
	hang: '', // embed, insert: never come to the end of a batch, as one that waits to be killed
	loops: 0, // batches; 0: until nothing is left
	wait: 100, // ms to sleep when there is nothing to claim and nobody wakes it
	isolation: 'read committed',
};

for (const argument of process.argv.slice(2)) {
	const [, name, value] = /^(\w+)=(.*)$/.exec(argument) || [];
	if (!(name in options))
		throw new Error(`unknown argument: ${argument}`);
	options[name] = typeof options[name] === 'number' ? Number(value) : value;
}

const client = new Client();
let woken = false;
let wake = () => { woken = true; };

function say(event, fields) {
	console.log(JSON.stringify({ event, pid: process.pid, ...fields }));
}

function sleep(ms) {
	return new Promise((resolve) => { setTimeout(resolve, ms); });
}

// Until there is news of the job, or for some time: who listens is told of nothing that came before.
async function idle() {
	if (!woken) {
		await new Promise((resolve) => {
			const timer = setTimeout(resolve, options.wait);
			wake = () => { clearTimeout(timer); resolve(); };
		});
		wake = () => { woken = true; };
	}
	woken = false;
}

// The statements of one transaction, again if others were in the way, as the isolation level may ask for.
async function transaction(statements) {
	for (;;) {
		try {
			await client.query(`BEGIN ISOLATION LEVEL ${options.isolation}`);
			const result = await statements();
			await client.query('COMMIT');
			return result;
		} catch (error) {
			await client.query('ROLLBACK');
			if (!['40001', '40P01'].includes(error.code))
				throw error;
			say('again', { error: error.message });
		}
	}
}

// One call of a function of the extension; returns its rows, and says so. A lease that has ended is no error of ours.
async function call(event, fields, sql, values) {
	const before = Date.now();
	try {
		const { rows } = await transaction(() => client.query(sql, values));
		say(event, { ...fields, before, after: Date.now() });
		return rows;
	} catch (error) {
		if (error.code !== '55000' || !/out of date/.test(error.message))
			throw error;
		say('late', { ...fields, what: event, before, after: Date.now() });
		return [];
	}
}

const lease = `${options.lease} ms`;

async function claim() {
	const before = Date.now();
	const { rows } = await transaction(() =>
		client.query('SELECT * FROM bgw_backfill.claim($1, $2, $3)', [options.job, options.batch, lease]));
	if (rows.length > 0) {
		say('claimed', {
			token: rows[0].token,
			keys: rows.map((row) => row.key),
			attempts: rows.map((row) => row.attempt),
			lease: options.lease,
			before,
			after: Date.now(),
		});
	}
	return rows;
}

function release(keys, token) {
	return call('released', { token, keys }, 'SELECT bgw_backfill.release($1, $2, $3)', [options.job, keys, token]);
}

function fail(keys, token, reason) {
	return call('failed', { token, keys, reason }, 'SELECT bgw_backfill.fail($1, $2, $3, $4)',
		[options.job, keys, token, reason]);
}

// The work itself: some of the texts cannot be embedded, some are the end of whoever tries.
async function embed(texts) {
	if (texts.some((row) => /killer/.test(row.body)))
		process.kill(process.pid, 'SIGKILL');
	if (options.hang === 'embed')
		await new Promise(() => { setInterval(() => {}, 1000); });
	await sleep(options.work);
	return texts.filter((row) => !/poison/.test(row.body));
}

async function insert(rows, token) {
	const before = Date.now();
	const values = rows.map((row, i) => `($${i + 1}, '{1}')`).join(', ');
	if (rows.length === 0)
		return;
	await transaction(async () => {
		await client.query(`INSERT INTO ${options.target} (event_id, emb) VALUES ${values} ON CONFLICT DO NOTHING`,
			rows.map((row) => row.id));
		if (options.hang === 'insert') {
			say('inserted', { token });
			await new Promise(() => { setInterval(() => {}, 1000); });
		}
	});
	say('done', { token, keys: rows.map((row) => row.id), before, after: Date.now() });
}

// One claim from its beginning to its end. False: there was nothing to do.
async function batch() {
	let rows = await claim();
	if (rows.length === 0)
		return false;
	const { token } = rows[0];

	// A row that came back may have been its consumer's end: it is tried alone, so that no other has to pay for it.
	const again = rows.find((row) => row.attempt > 1);
	if (again && rows.length > 1) {
		await release(rows.filter((row) => row !== again).map((row) => row.key), token);
		rows = [again];
	}

	const { rows: texts } = await client.query(`SELECT id, body FROM ${options.source} WHERE id = ANY ($1)`,
		[rows.map((row) => row.key)]);
	let extending = Promise.resolve();
	const heartbeat = options.extend > 0 && setInterval(() => {
		extending = call('extended', { token, lease: options.lease }, 'SELECT bgw_backfill.extend($1, $2, $3)',
			[options.job, token, lease]);
	}, options.extend);
	const embedded = await embed(texts);
	clearInterval(heartbeat);
	await extending;
	await insert(embedded, token);
	const poison = texts.filter((row) => !embedded.includes(row)).map((row) => row.id);
	if (poison.length > 0)
		await fail(poison, token, 'cannot embed poison');
	return true;
}

// Is anything pending that is, or will be, handed out to somebody?
async function anythingLeft() {
	const { rows } = await client.query(`SELECT EXISTS (SELECT FROM ${options.job}_pending p WHERE NOT EXISTS
		(SELECT FROM bgw_backfill.quarantine q WHERE q.job = $1 AND q.key = p.id::text)) AS yes`, [options.job]);
	return rows[0].yes;
}

async function main() {
	client.on('notification', (message) => {
		if (message.payload === options.job)
			wake();
	});
	await client.connect();
	await client.query('LISTEN bgw_backfill');
	for (let done = 0; options.loops === 0 || done < options.loops;) {
		if (await batch())
			done++;
		else if (await anythingLeft())
			await idle();
		else
			break;
	}
	await client.end();
}

main().catch((error) => {
	console.error(error);
	process.exit(1);
});
