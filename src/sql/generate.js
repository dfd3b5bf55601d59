// Writes index.ts, which carries the SQL of this folder as text: so it works from source, from ESM and from CommonJS,
// and in a host's bundle too, where no file lies beside the code. Part of the build: `node src/sql/generate.js`.
import { writeFileSync } from 'node:fs'
import { generate, sealed } from './sources.js'

writeFileSync(new URL('functions.sql', import.meta.url), sealed())
writeFileSync(new URL('index.ts', import.meta.url), generate())
