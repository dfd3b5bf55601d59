// The obstacles of columns, rows and keys that adoption names.
import { testObstacles } from '../helper/adoptable.js'

testObstacles({
  'a given column that is generated': {
    sql: `alter table ai_credits drop column used_credits, add column used_credits integer generated always as (0 + 0) stored;
      update ai_credit_usage set credits_used = 0`,
    says: /ai_credits\.used_credits is a generated column/
  },
  'columns named like ours': {
    sql: 'alter table ai_credits add column plan varchar, add column overdraft integer; alter table ai_credit_usage add column kind varchar',
    says: /ai_credit_usage\.kind has .*ai_credits\.overdraft has .*ai_credits\.plan has/s
  },
  'a column that must not be null': {
    sql: 'alter table ai_credit_usage add column tenant integer not null default 1; alter table ai_credit_usage alter tenant drop default',
    says: /ai_credit_usage\.tenant must not be null/
  },
  'such a column in the primary key': {
    sql: `alter table ai_credits add column tenant integer not null default 1; alter table ai_credits alter tenant drop default,
      drop constraint ai_credits_pkey, add primary key (tenant, user_id)`,
    says: /drop constraint ai_credits_pkey, alter column tenant drop not null;/
  },
  'metadata that is no JSON': {
    sql: "alter table ai_credit_usage alter column metadata type text; update ai_credit_usage set metadata = 'hello' where id = 7",
    says: /metadata of the record with the id 7 is no JSON/
  },
  'metadata that jsonb cannot hold': {
    sql: "alter table ai_credit_usage alter column metadata type json; update ai_credit_usage set metadata = '{\"a\": \"\\u0000\"}'",
    says: /the id 3 \(and of 1 others\) is no JSON/
  },
  'user ids without upper and lower case': {
    sql: `create collation folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
      alter table ai_credits alter column user_id type varchar collate folding`,
    says: /upper and lower case are the same/,
    pglite: false
  },
  'fractions of credits': {
    sql: 'alter table ai_credits alter column used_credits type numeric; update ai_credits set used_credits = 0.25; update ai_credit_usage set credits_used = 0',
    says: /used_credits is 0\.25\. Count in units of which a credit has 100/
  },
  'credits beyond what is counted to': {
    sql: "alter table ai_credits alter column total_credits type numeric; update ai_credits set total_credits = 'NaN'",
    says: /total_credits is beyond/
  },
  'times without an end': { sql: "update ai_credits set updated_at = 'infinity'", says: /updated_at is infinite in 1 rows/ },
  'one user id twice': {
    sql: `alter table ai_credits drop constraint ai_credits_pkey, alter column user_id drop not null;
      insert into ai_credits (user_id, total_credits) values ('1', 5), (null, 1)`,
    says: /1 accounts without a user_id.*1 accounts whose user_id/s
  },
  'one id twice': {
    sql: `alter table ai_credit_usage drop constraint ai_credit_usage_pkey, alter column id drop not null;
      insert into ai_credit_usage (id, user_id, credits_used) values (3, '1', 0), (null, '1', 0)`,
    says: /2 records without an id of their own/
  },
  'ids that are no numbers': {
    sql: 'alter table ai_credit_usage drop column id, add column id varchar primary key default md5(random()::text)',
    says: /ai_credit_usage\.id is of type character varying/
  },
  'a missing column': { sql: 'alter table ai_credit_usage drop column metadata', says: /has no column metadata/ },
  'times as text': {
    sql: 'alter table ai_credit_usage alter column created_at drop default, alter column created_at type text',
    says: /created_at is of type text/
  },
  'a check': { sql: 'alter table ai_credit_usage add check (credits_used > 0)', says: /constraint ai_credit_usage_credits_used_check/ },
  'a unique index': { sql: 'create unique index once on ai_credit_usage (user_id, created_at)', says: /unique index public\.once/ },
  'an index of days': { sql: 'create index days on ai_credit_usage ((created_at::date))', says: /index public\.days is made from/ },
  'foreign keys of numbers': {
    sql: `alter table ai_credits alter column user_id type integer using user_id::integer;
      alter table ai_credit_usage alter column user_id type integer using user_id::integer; create table jobs (user_id integer references ai_credits)`,
    says: /jobs_user_id_fkey/
  },
  'a foreign key that nobody would break': {
    sql: `create table users (id varchar primary key); insert into users values ('1'); insert into ai_credit_usage (id) values (2);
      alter table ai_credit_usage add foreign key (user_id) references users`,
    says: /1 records without a user_id/
  },
  'a key that is checked late': {
    sql: 'alter table ai_credits drop constraint ai_credits_pkey, add primary key (user_id) deferrable',
    says: /unique index public\.ai_credits_pkey/
  }
})
