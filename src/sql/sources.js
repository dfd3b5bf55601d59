// Reads the SQL of this folder. It does what psql does to tables.sql and functions.sql: \ir includes a file, \set gives a
// variable its value.
import { createHash } from 'node:crypto'
import { readFileSync, readdirSync } from 'node:fs'

const read = name => readFileSync(new URL(name, import.meta.url), 'utf8').replaceAll('\r\n', '\n')

// The text that is built in has no comments between statements: it is shipped three times, and the files beside it have them. Those
// within a body are indented.
const withoutComments = text => text.replace(/^--.*\n/gm, '')

// What names the schema by hand is the caller's to do here.
const withoutConditions = text => text.replace(/^\\if [^]*?^\\endif\n/gm, '')

const onCitus = /^\\if :\{\?citus\}\n([^]*?)^\\endif\n/gm

/** A file that psql runs by itself, as it is without psql: with the schema and other variables still to be put in. */
export function withoutPsql (file) {
  return withoutConditions(read(file))
}

/**
 * The text of functions.sql, and what it says of itself: its number, the oldest caller's, and the hash of its content. `parts`: the
 * text in parts, of which the second, fourth and so on are for Citus alone.
 */
export function functionSet (source = read('functions.sql')) {
  const variables = Object.fromEntries([...source.matchAll(/^\\set (\w+) (\w+)$/gm)].map(([, name, value]) => [name, value]))
  const included = source.split(onCitus).map(part =>
    withoutConditions(part).replace(/^\\set .*\n/gm, '').replace(/^\\ir (.*)\n/gm, (_, file) => read(file)))
  const content = createHash('sha256').update(included.join('')).digest('hex')
  const parts = included.map(part => withoutComments(part).replace(/:'(\w+)'/g, (token, name) =>
    name === 'content' ? `'${content}'` : name in variables ? `'${variables[name]}'` : token))
  return { number: Number(variables.number), oldestCaller: Number(variables.oldest_caller), content, parts }
}

/** citus/tables.sql. */
export const citusTables = () => withoutComments(read('citus/tables.sql'))

/** The numbered files of tables/, in order. */
export function tableFiles () {
  return readdirSync(new URL('tables', import.meta.url)).filter(name => /^\d{3}_.*\.sql$/.test(name)).sort()
    .map(file => ({ id: parseInt(file), file: `tables/${file}`, sql: withoutComments(read(`tables/${file}`)) }))
}

const adoptionSteps = ['state', 'check', 'columns', 'order', 'records', 'finish']

/** The steps of adoption/, by name. */
export function adoptionFiles () {
  return Object.fromEntries(adoptionSteps.map(name => [name, read(`adoption/${name}.sql`)
    .replace(/^\\ir (.*)\n/gm, (_, file) => read(`adoption/${file}`)).replace(/^\\gset\n/m, '')]))
}

/** functions.sql with the hash of its content written into it. */
export function sealed (source = read('functions.sql')) {
  return source.replace(/^\\set content .*$/m, `\\set content ${functionSet(source).content}`)
}

/** The source text of index.ts for the .sql files as they are. */
export function generate () {
  return `// Made by generate.js from the .sql files beside it. Change those, then run \`npm run generate\`.

/** A step of the tables: its number, the file it is shipped as, and its SQL. */
export interface TableStep {
  id: number
  file: string
  sql: string
}

/**
 * The functions, as one set: its number, the oldest caller's that it serves, the hash of its content, and its SQL in parts. The second,
 * fourth and so on are for Citus alone.
 */
export interface FunctionSet {
  number: number
  oldestCaller: number
  content: string
  parts: string[]
}

export const tables: TableStep[] = ${JSON.stringify(tableFiles(), null, 2)}

/** What adopts tables that were there before the library, step by step. */
export const adoption = ${JSON.stringify(adoptionFiles(), null, 2)}

export const functions: FunctionSet = ${JSON.stringify(functionSet(), null, 2)}

/** What distributes the tables by Citus. */
export const citusTables = ${JSON.stringify(citusTables())}
`.replace(/^(\s*)"(\w+)":/gm, '$1$2:')
}
