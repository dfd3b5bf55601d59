// A role that may create objects in a schema of the search_path must not replace what the ledger calls. PostgreSQL chooses the
// function whose parameters fit best, whoever made it, and the ledger's functions run with their owner's rights.
// needs a real server
import t, { type Test } from 'tap'
import type pg from 'pg'
import { createLedger, type Ledger } from '../../src/index.js'
import { createDatabase, createPool, pglite } from '../helper/database.js'

const past = (milliseconds: number) => new Date(Date.now() - milliseconds)

t.test('functions of others with other parameters are never meant', { skip: pglite }, async t => {
  const { pool, ledger } = await open(t)
  await useEverything(t, ledger, pool)
  await pool.query(overloads)
  const { rows: [{ count }] } = await pool.query("select count(*)::integer from pg_proc where prosrc like '%taken over%'")
  t.ok(count > 200, `${count} functions lie in wait`)
  await useEverything(t, ledger, pool)
  await useEverything(t, createLedger(createPool(t, pool.options.connectionString!), options), pool)
  t.strictSame((await pool.query('select * from caught')).rows, [])
})

t.test('functions and operators of others in place of those of PostgreSQL are never meant', { skip: pglite }, async t => {
  const { pool, ledger } = await open(t)
  await pool.query(builtIns)
  await useEverything(t, ledger, pool)
  await useEverything(t, createLedger(createPool(t, pool.options.connectionString!), options), pool)
  t.strictSame((await pool.query('select * from caught')).rows, [])
})

t.test('a path that others come first in, before PostgreSQL itself, changes nothing', { skip: pglite }, async t => {
  const { pool } = await open(t)
  await pool.query(`create schema evil; set search_path = evil; ${builtIns}; reset search_path`)
  const url = new URL(pool.options.connectionString!)
  url.searchParams.set('options', '-c search_path=evil,public,pg_catalog')
  const other = createPool(t, url.href)
  const ledger = createLedger(other, options)
  await ledger.migrate()
  await useEverything(t, ledger, other)
  t.strictSame((await pool.query('select * from evil.caught')).rows, [])
})

t.test('tables and functions are made without them, too', { skip: pglite }, async t => {
  const { pool, ledger } = await open(t, builtIns)
  await useEverything(t, ledger, pool)
  t.strictSame((await pool.query('select * from caught')).rows, [])
})

const options = { allowance: { credits: 1000, every: 'day' as const } }

async function open (t: Test, script = '') {
  const pool = createPool(t, await createDatabase(t))
  if (script !== '') await pool.query(script)
  const ledger = createLedger(pool, options)
  await ledger.migrate()
  return { pool, ledger }
}

// Calls every method, alone and together, on accounts on which lapses, expiries and renewals are all due.
async function useEverything (t: Test, ledger: Ledger, pool: pg.Pool) {
  const user = `user ${Math.random()}`
  const call = { userId: user, credits: 5, operation: 'chat', metadata: { a: 1 } }
  await ledger.deduct({ ...call, idempotencyKey: 'k' })
  t.equal((await ledger.deduct({ ...call, idempotencyKey: 'k' })).replayed, true)
  await ledger.setBudget(user, 'key:*', { day: 50, total: 50 })
  t.equal((await ledger.canAfford({ ...call, budget: 'key:1', idempotencyKey: 'k 2' })).affordable, true)
  t.equal((await ledger.canAfford({ ...call, idempotencyKey: 'k' })).replayed, true)
  const { id: grantId } = await ledger.grant({ userId: user, credits: 50, reason: 'gift', expiresAt: past(-60_000), idempotencyKey: 'k' })
  await ledger.grant({ userId: user, credits: 10, expiresAt: past(-60_000) })
  const holds = await Promise.all([1, 2, 3, 4, 5].map(credits => ledger.hold({ ...call, credits, idempotencyKey: `h ${credits}` })))
  await ledger.capture(holds[0]!.id, { userId: user, credits: 3, final: false, idempotencyKey: 'part', metadata: { b: 2 } })
  await Promise.all([ledger.capture(holds[0]!.id), ledger.release(holds[1]!.id), ledger.deduct(call), ledger.deduct({ ...call, userId: `${user} 2` })])
  await ledger.extend(holds[2]!.id, { ttl: 60_000 })
  await ledger.refund({ userId: user, deductKey: 'k', credits: 2, reason: 'failed', idempotencyKey: 'k' })
  await ledger.setOverdraft(user, 5)
  await ledger.setAllowance(user, { credits: 70, every: 'week', anchor: 'account', rollover: { max: 5 } })
  await directly(pool, `
    with hold as (update public.ai_credit_holds set expires_at = now() - interval '3 minutes' where user_id = $1 and state = 'open'
        and seq % 2 = 0 returning 1),
      granted as (update public.ai_credit_grants set expires_at = now() - interval '2 minutes'
        where user_id = $1 and kind = 'grant' and state = 'living' returning 1),
      renewing as (update public.ai_credit_grants set expires_at = now() - interval '1 minute'
        where user_id = $1 and kind = 'allowance' and state = 'living' returning 1)
    update public.ai_credits set renews_at = now() - interval '1 minute', due_at = now() - interval '3 minutes' where user_id = $1`, [user])
  const heard = new Promise(resolve => ledger.once('renewed', resolve))
  t.ok(await ledger.balance(user))
  await heard
  const { id: later } = await ledger.grant({ userId: user, credits: 9 })
  await ledger.revoke(later)
  await t.rejects(ledger.revoke(grantId), { code: 'FST_CREDITS_GRANT_CLOSED' })
  t.ok((await ledger.history(user)).entries.length > 0)
  t.ok((await ledger.statement(user, { from: past(3600_000) })).entries.length > 10)
  t.match(await ledger.reconcile(), { ok: true, differences: [] })
  await ledger.prune({ before: past(1) })
  t.match(await ledger.reconcile(user), { ok: true, differences: [] })
}

// The test's own SQL does not fall for the traps either.
async function directly (pool: pg.Pool, text: string, values: unknown[]) {
  const client = await pool.connect()
  await client.query('begin; set local search_path = pg_catalog')
  try {
    await client.query(text, values)
    await client.query('commit')
  } finally {
    client.release(true)
  }
}

// Creates overloads of each of the ledger's functions in the same schema, with other types for one or all of the parameters.
const overloads = `
  create table caught (by text);
  do $$
  declare
    ours record;
    types text[];
    swapped text[];
    pairs text[] := array['character varying|text', 'bigint|integer', 'bigint|numeric', 'integer|bigint', 'integer|smallint',
      'jsonb|json', 'jsonb|text', 'timestamp with time zone|timestamp without time zone', 'timestamp with time zone|text',
      'text|character varying', 'bytea|text', 'date|text', 'boolean|text', 'character varying|name', 'character varying[]|text[]',
      'bigint[]|integer[]', 'jsonb|character varying', 'date|timestamp with time zone'];
    pair text;
    position integer;
    made integer := 0;
  begin
    for ours in
      select proname, array(select format_type(t, null) from unnest(proargtypes) with ordinality as a (t, n) order by n) as types
      from pg_proc where proname like 'ai\\_credit\\_%'
    loop
      foreach pair in array pairs loop
        for position in 0..cardinality(ours.types) loop
          types := ours.types;
          for i in 1..cardinality(types) loop
            if (position = 0 or position = i) and types[i] = split_part(pair, '|', 1) then
              types[i] := split_part(pair, '|', 2);
            end if;
          end loop;
          continue when types = ours.types;
          begin
            execute format('create function %I(%s) returns integer language plpgsql as %L', ours.proname,
              array_to_string(types, ', '), format('begin insert into public.caught values (%L); raise exception ''taken over''; end', ours.proname));
            made := made + 1;
          exception when duplicate_function then
          end;
        end loop;
      end loop;
    end loop;
  end
  $$`

// Creates functions and operators that fit the arguments better than the built-in ones do.
const builtIns = `
  create table caught (by text);
  do $$
  declare
    name text;
    types text[] := array['bigint', 'integer', 'character varying', 'timestamp with time zone', 'jsonb', 'numeric'];
    one text;
    other text;
    trap text := format('begin insert into %I.caught values (%%L); raise exception ''taken over''; end', current_schema());
  begin
    foreach name in array array['concat_ws', 'format', 'coalesce_', 'sum', 'min', 'max', 'count', 'json_agg', 'nextval', 'set_config',
      'current_setting', 'now', 'statement_timestamp', 'clock_timestamp', 'sha256', 'to_char', 'date_trunc', 'timezone', 'to_regclass',
      'current_schema', 'hashtextextended', 'pg_advisory_xact_lock', 'pg_get_functiondef', 'replace', 'strpos', 'quote_ident', 'chr'] loop
      foreach one in array types loop
        execute format('create function %I(%s) returns integer language plpgsql as %L', name, one, format(trap, name));
        foreach other in array types loop
          execute format('create function %I(%s, %s) returns integer language plpgsql as %L', name, one, other, format(trap, name));
        end loop;
      end loop;
    end loop;
    foreach name in array array['json_build_array', 'jsonb_build_array', 'jsonb_build_object'] loop
      foreach one in array types loop
        foreach other in array types loop
          execute format('create function %I(%s, %s, jsonb) returns jsonb language plpgsql as %L', name, one, other, format(trap, name));
        end loop;
      end loop;
    end loop;
    if to_regclass('ai_credits') is not null then
      foreach name in array array['account', 'record', 'new_hold', 'hold_state'] loop
        execute format('create function array_append(public.ai_credit_%1$s[], public.ai_credit_%1$s) returns public.ai_credit_%1$s[] language plpgsql as %2$L',
          name, format(trap, 'array_append'));
      end loop;
    end if;
    foreach one in array types loop
      foreach other in array types loop
        execute format('create function trap_%s(a %s, b %s) returns boolean language plpgsql as %L',
          md5(one || other), one, other, format(trap, 'operator'));
        foreach name in array array['=', '<', '>', '<=', '>=', '<>', '+', '-', '||'] loop
          begin
            execute format('create operator %s (function = trap_%s, leftarg = %s, rightarg = %s)', name, md5(one || other), one, other);
          exception when others then
          end;
        end loop;
      end loop;
    end loop;
  end
  $$`
