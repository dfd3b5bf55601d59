// The obstacles of tables, and of objects that depend on them, that adoption names.
import t from 'tap'
import { createLedger } from '../../src/index.js'
import { adoptable, rows, testObstacles, works } from '../helper/adoptable.js'
import { createDatabase, createPool, pglite } from '../helper/database.js'
import { originalTables } from '../helper/original-tables.js'

testObstacles({
  'a view': {
    sql: `create view spent as select user_id, sum(credits_used) as credits from ai_credit_usage group by 1;
      create view spenders as select user_id from spent`,
    says: /1\. The view public\.spenders depends .*2\. The view public\.spent depends .*make it again, from: SELECT/s
  },
  'a materialized view': { sql: 'create materialized view balances as select * from ai_credits', says: /drop materialized view public\.balances;/ },
  'a generated column': {
    sql: 'alter table ai_credits add column available integer generated always as (total_credits - used_credits) stored',
    says: /ai_credits\.available is computed .*as: \(total_credits - used_credits\)/
  },
  'a trigger': { sql: trigger('before update on ai_credits'), says: /trigger touch of public\.ai_credits would run/ },
  'a trigger on a column': { sql: trigger('after update of used_credits on ai_credits'), says: /drop trigger touch/ },
  'a rule': { sql: 'create rule quiet as on insert to ai_credit_usage do instead nothing', says: /The rule quiet/ },
  'row level security': {
    sql: 'alter table ai_credits enable row level security; create policy own on ai_credits using (user_id = current_user)',
    says: /row level security.*The policy own/s
  },
  'a partitioned table': {
    sql: `drop table ai_credit_usage; create table ai_credit_usage (id integer, user_id varchar, credits_used integer,
      operation varchar, metadata jsonb, created_at timestamp) partition by range (created_at);
      create table usage_all partition of ai_credit_usage default; insert into ai_credit_usage values (7, '1', 30)`,
    says: /ai_credit_usage is a partitioned table/
  },
  'a view named like ours': {
    sql: 'alter table ai_credits rename to accounts; create view ai_credits as select * from accounts',
    says: /ai_credits is a view/
  },
  'tables that inherit': {
    sql: 'create table more () inherits (ai_credit_usage)', says: /more inherits from public\.ai_credit_usage/
  },
  'a table named like ours': { sql: 'create table ai_credit_grants (amount integer)', says: /ai_credit_grants has a name/ },
  'a table that is not logged': { sql: 'alter table ai_credit_usage set unlogged', says: /is unlogged/, pglite: false },
  'rows within other tables': { sql: 'create table copies (account ai_credits)', says: /copies\.account holds rows/ },
  'a function that reads the table': {
    sql: 'create function spent() returns bigint language sql begin atomic select sum(credits_used) from ai_credit_usage; end',
    says: /The function public\.spent\(\) depends/
  },
  'a publication without a replica identity': {
    sql: 'create publication changes for table ai_credits; alter table ai_credits replica identity nothing',
    says: /published without a replica identity/
  },
  'several of them': {
    sql: `create view spent as select sum(credits_used) from ai_credit_usage; alter table ai_credits add column plan varchar;
      alter table ai_credit_usage add check (credits_used > 0)`,
    says: /1\. .*2\. .*3\. /s
  }
})

t.test('named: a table in another schema', async t => {
  const connectionString = await createDatabase(t)
  const options = '-c search_path=public,other'
  const pool = createPool(t, connectionString, pglite ? { max: 1 } : { max: 1, options })
  await pool.query(`create schema other; set search_path to public, other; ${originalTables}`)
  await pool.query(`${rows} alter table ai_credit_usage set schema other`)
  const error: any = await createLedger(pool, { schema: 'public' }).migrate().catch(error => error)
  t.match(error.message, /ai_credit_usage is in the schema other, apart .* set schema public;/s)
  await pool.query('alter table other.ai_credit_usage set schema public')
  await works(t, pool)
})

t.test('named: tables of another role', { skip: pglite }, async t => {
  const { pool, connectionString } = await adoptable(t, '')
  const role = `r${Math.random().toString(36).slice(2)}`
  await pool.query(`create role ${role} login; grant create on schema public to ${role}; grant select on ai_credits to ${role}`)
  const url = new URL(connectionString)
  url.username = role
  const asRole = createPool(t, url.href, { max: 1 })
  await t.rejects(createLedger(asRole).migrate(), { code: 'FST_CREDITS_ADOPTION', message: /belongs to postgres.*owner to r/s })
  await pool.query(`alter table ai_credits owner to ${role}; alter table ai_credit_usage owner to ${role}`)
  await works(t, asRole)
  await asRole.end()
  await pool.query(`drop owned by ${role}; drop role ${role}`)
})

function trigger (when: string) {
  return `create function touch() returns trigger language plpgsql as $$ begin return new; end $$;
    create trigger touch ${when} for each row execute function touch()`
}
