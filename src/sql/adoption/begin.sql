-- Adopts what is there, up to where 006_tables.sql has its turn. For psql; the library does the same.
\ir state.sql
\if :originals
  \ir check.sql
  \ir columns.sql
  \ir state.sql
\endif
\if :begun
  \if :ordered
  \else
    \ir order.sql
  \endif
\endif
