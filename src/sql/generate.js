// Writes index.ts, which carries the SQL of this folder as text: so it works from source, from ESM and from CommonJS,
// and in a host's bundle too, where no file lies beside the code. `node src/sql/generate.js`, part of the build.
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

/** The source text of index.ts for the .sql files as they are. */
export function generate () {
  const files = readdirSync(import.meta.dirname).filter(name => name.endsWith('.sql')).sort()
  const text = name => JSON.stringify(readFileSync(new URL(name, import.meta.url), 'utf8'))
  const migrations = files.filter(name => /^\d{3}_/.test(name))
  const queries = files.filter(name => !migrations.includes(name))
  return `// Made by generate.js from the .sql files beside it. Change those, then run \`npm run generate\`.

/** A step of the schema: its number, the file it is shipped as, and its SQL. */
export interface Migration {
  id: number
  file: string
  sql: string
}

export const migrations: Migration[] = [
${migrations.map(name => `  { id: ${parseInt(name)}, file: '${name}', sql: ${text(name)} }`).join(',\n')}
]
${queries.map(name => `
export const ${name.slice(0, -4).replace(/_(.)/g, (_, letter) => letter.toUpperCase())} = ${text(name)}
`).join('')}`
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  writeFileSync(new URL('index.ts', import.meta.url), generate())
}
