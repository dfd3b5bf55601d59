-- The clock, the calendar, and how times are written.

-- The instant of the statement. The ledger reads the clock here and nowhere else.
create or replace function :"schema".ai_credit_now() returns timestamptz
language sql stable as $$
  select statement_timestamp()
$$;

-- The time zone in which this database's days begin.
create or replace function :"schema".ai_credit_time_zone() returns text
language sql stable as $$
  select coalesce((select value from :"schema".ai_credit_settings where name = 'time_zone'), 'UTC')
$$;

-- An instant as callers read it; infinity is none.
create or replace function :"schema".ai_credit_iso(p_instant timestamptz) returns text
language sql stable as $$
  select case when p_instant < 'infinity' then to_char(p_instant at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') end
$$;

-- When a day begins in a time zone: with the first of two midnights, and where there is none, with the next instant.
create or replace function :"schema".ai_credit_day_start(p_day timestamp, p_time_zone text) returns timestamptz
language sql stable as $$
  select least(p_day at time zone p_time_zone, (p_day - interval '1 hour') at time zone p_time_zone + interval '1 hour')
$$;

-- The end of the period of a plan that p_after lies in. Periods begin with the calendar's days, weeks (on Monday) and
-- months, or count from the account's first day: then a 31st is the last day of a shorter month.
create or replace function :"schema".ai_credit_next_renewal(p_plan jsonb, p_first timestamptz, p_after timestamptz)
returns timestamptz
language plpgsql stable as $$
declare
  time_zone text := :"schema".ai_credit_time_zone();
  first_day timestamp := date_trunc('day', p_first at time zone time_zone);
  local_time timestamp := p_after at time zone time_zone;
  every text := p_plan->>'every';
  periods integer;
  boundary timestamptz;
begin
  if p_plan->>'anchor' is distinct from 'account' then
    first_day := date_trunc(every, local_time);
    periods := 1;
  else
    periods := case every
      when 'day' then extract(day from local_time - first_day)
      when 'week' then extract(day from local_time - first_day)::integer / 7
      else extract(year from age(date_trunc('month', local_time), date_trunc('month', first_day))) * 12
        + extract(month from age(date_trunc('month', local_time), date_trunc('month', first_day)))
    end;
  end if;
  loop
    boundary := :"schema".ai_credit_day_start(first_day + periods * ('1 ' || every)::interval, time_zone);
    exit when boundary > p_after;
    periods := periods + 1;
  end loop;
  return boundary;
end
$$;
