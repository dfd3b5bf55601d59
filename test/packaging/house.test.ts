// needs no database
import { readdir, readFile } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import ts from 'typescript'

const src = fileURLToPath(new URL('../../src', import.meta.url))
const bench = fileURLToPath(new URL('../../bench', import.meta.url))
const files = await readFiles('.ts')
const imports = new Map([...files].map(([name, text]) => [name, importsOf(name, text)]))

t.test('nothing imports in a circle, types included', async t => {
  t.strictSame(circles(imports), [])
})

t.test('a circle is found', async t => {
  const graph = new Map([['a', ['b']], ['b', ['c', 'd']], ['c', ['a']], ['d', []]])
  t.strictSame(circles(graph), [['a', 'b', 'c', 'a']])
})

t.test('the ledger imports nothing of Fastify or the routes', async t => {
  for (const [name, targets] of imports) {
    if (!name.startsWith('ledger/')) continue
    const foreign = targets.filter(target => /^(fastify|@fastify\/(?!error$)|http\/|index\.ts$|options\.ts$|pool\.ts$)/.test(target))
    t.strictSame(foreign, [], name)
  }
})

t.test('what loads the ledger alone loads neither fastify-plugin nor @fastify/postgres', async t => {
  const loaded = reachable('ledger/index.ts')
  t.ok(loaded.has('ledger/open.ts'), 'the ledger is there')
  t.strictSame([...loaded].filter(name => /^(fastify|fastify-plugin|@fastify\/postgres)$/.test(name)), [])
})

t.test('the plugin and the routes hold no SQL', async t => {
  for (const [name, text] of files) {
    if (name !== 'index.ts' && name !== 'options.ts' && name !== 'pool.ts' && !name.startsWith('http/')) continue
    t.notMatch(text, /ai_credit_|\b(select|insert into|update|delete from) \w+/, name)
  }
})

t.test('the benchmark imports nothing of the tests', async t => {
  const sources = await readFiles('.ts', bench)
  t.ok(sources.has('bench.ts'))
  for (const [name, text] of sources) t.notMatch(text, /from '[./]+\/test\//, name)
})

t.test('each function, view, type and table is defined once in SQL', async t => {
  const definitions = [...await readFiles('.sql')]
    .filter(([name]) => name.startsWith('sql/functions/') || name.startsWith('sql/tables/'))
    .flatMap(([name, text]) => [...text.matchAll(/^create (?:or replace )?(function|view|type|table)(?: if not exists)? :"schema"\.(\w+)/gm)]
      .map(([, kind, defined]) => ({ name, defined: `${kind} ${defined}` })))
  t.ok(definitions.length > 50, `${definitions.length} definitions`)
  const twice = definitions.filter(({ defined }, index) => definitions.findIndex(other => other.defined === defined) !== index)
  t.strictSame(twice, [])
})

async function readFiles (ending: string, folder = src): Promise<Map<string, string>> {
  const names = (await readdir(folder, { recursive: true })).filter(name => name.endsWith(ending)).map(name => name.replaceAll('\\', '/'))
  return new Map(await Promise.all(names.map(async name => [name, await readFile(join(folder, name), 'utf8')] as const)))
}

// By their paths in src, and packages by their names.
function importsOf (name: string, text: string): string[] {
  const { importedFiles } = ts.preProcessFile(text)
  return importedFiles.map(({ fileName }) => fileName.startsWith('.')
    ? relative(src, join(src, dirname(name), fileName)).replaceAll('\\', '/').replace(/\.js$/, '.ts')
    : fileName)
}

function circles (graph: Map<string, string[]>): string[][] {
  const found: string[][] = []
  const done = new Set<string>()
  const visit = (name: string, path: string[]) => {
    if (path.includes(name)) return found.push([...path.slice(path.indexOf(name)), name])
    if (done.has(name)) return
    for (const target of graph.get(name) ?? []) visit(target, [...path, name])
    done.add(name)
  }
  for (const name of graph.keys()) visit(name, [])
  return found
}

function reachable (start: string): Set<string> {
  const loaded = new Set([start])
  for (const name of loaded) for (const target of imports.get(name) ?? []) loaded.add(target)
  return loaded
}
