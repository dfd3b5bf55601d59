// needs a real server
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { text } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import ts from 'typescript'
import { createLedger } from '../src/index.js'
import { createDatabase, createPool } from './helper/database.js'
import { partitionScript } from './helper/templates.js'

interface Block { page: string, line: number, language: string, code: string, run: boolean }

const root = new URL('../', import.meta.url)
const docs = (await readdir(new URL('docs/', root))).filter(name => name.endsWith('.md')).map(name => `docs/${name}`)
const pages = await Promise.all(['README.md', ...docs].map(async page =>
  ({ page, markdown: await readFile(new URL(page, root), 'utf8') })))
const markdown = pages.map(({ markdown }) => markdown).join('\n')
const blocks = pages.flatMap(({ page, markdown }) => blocksOf(page, markdown))
const { scripts } = JSON.parse(await readFile(new URL('../package.json', import.meta.url), 'utf8'))

// In the checkout, so that the package's own name leads to what was built of it.
const folder = t.testdir()
const nameOf = ({ page, line }: Block) => `${basename(page, '.md')}-line-${line}`
const fileOf = (block: Block) => join(folder, `${nameOf(block)}.m${block.language}`)

t.test('blocks are of a language that is tested here', async t => {
  t.strictSame(blocks.filter(({ language }) => !['ts', 'js', 'sh', 'json', 'sql', 'sql partitioned'].includes(language)), [])
  t.ok(blocks.some(({ run }) => run))
})

t.test('JSON is well-formed', async t => {
  for (const block of of('json')) t.doesNotThrow(() => JSON.parse(block.code), nameOf(block))
})

t.test('npm has the commands and scripts', async t => {
  const inline = [...markdown.matchAll(/`[^`\n]+`/g)].join('\n')
  const shell = [inline, ...of('sh').map(({ code }) => code)].join('\n')
  const commands = [...shell.matchAll(/\bnpm (?:(run) )?([\w:-]+)/g)]
  t.ok(commands.length > 0)
  for (const [command, run, name] of commands) t.ok(run === undefined ? isCommand(name!) : name! in scripts, command)
})

t.test('code compiles', async t => {
  const context = join(folder, 'context.d.ts')
  await writeFile(context, declarations)
  const code = of('ts', 'js')
  await Promise.all(code.map(block => writeFile(fileOf(block), block.code)))
  // JavaScript cannot say of what type a parameter is.
  const problems = [
    ...compile([context, ...of('ts').map(fileOf)], {}),
    ...compile([context, ...of('js').map(fileOf)], { allowJs: true, checkJs: true, noImplicitAny: false })
  ]
  t.strictSame(problems, [])
})

t.test('SQL runs on the tables of the ledger, and some of it on partitioned ones', async t => {
  const pool = createPool(t, await createDatabase(t))
  const ledger = createLedger(pool)
  await ledger.migrate()
  await ledger.deduct({ userId: 'ann', credits: 1, operation: 'chat' })
  for (const block of of('sql')) await t.resolves(pool.query(block.code), nameOf(block))
  await pool.query(await readFile(partitionScript, 'utf8'))
  for (const block of of('sql partitioned')) await t.resolves(pool.query(block.code), nameOf(block))
  t.match(await ledger.reconcile(), { ok: true })
})

for (const block of blocks.filter(({ run }) => run)) {
  t.test(`${block.page}, line ${block.line} runs`, async t => {
    const file = join(folder, `${nameOf(block)}.run.mjs`)
    const { outputText } = ts.transpileModule(block.code, { compilerOptions: { target: ts.ScriptTarget.ES2022 } })
    await writeFile(file, outputText)
    await run(t, file)
  })
}

// What a host would have declared, or what the text around a block has introduced.
const declarations = `
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Pool, PoolClient } from 'pg'
declare global {
  const fastify: FastifyInstance
  const request: FastifyRequest
  const pool: Pool
  const client: PoolClient
}
declare module 'node:http' {
  interface IncomingHttpHeaders { 'x-user'?: string }
}
declare module '@fastify/jwt' {
  interface FastifyJWT { user: { sub: string } }
}`

// Puts a server on a free port, and ends it once it has answered what a balance is.
const preload = `
import { Server } from 'node:net'
const { listen } = Server.prototype
Server.prototype.listen = function (options, ...rest) {
  this.once('listening', async () => {
    const url = 'http://localhost:' + this.address().port + '/api/credits'
    const reply = await fetch(url, { headers: { 'x-user': 'ann' } })
    if (!reply.ok) throw new Error(await reply.text())
    process.exit()
  })
  return listen.call(this, { ...options, port: 0 }, ...rest)
}`

async function run (t: Test, file: string) {
  const env = { ...process.env, DATABASE_URL: await createDatabase(t), _TAPJS_PROCESSINFO_COVERAGE_: '0' }
  const args = ['--import', `data:text/javascript,${encodeURIComponent(preload)}`, file]
  const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'inherit', 'pipe'], timeout: 30_000 })
  const [errors, [code]] = await Promise.all([text(child.stderr!), once(child, 'close')])
  t.equal(code, 0, errors)
}

function compile (files: string[], options: ts.CompilerOptions) {
  const program = ts.createProgram(files, {
    module: ts.ModuleKind.NodeNext,
    target: ts.ScriptTarget.ES2022,
    strict: true,
    skipLibCheck: true,
    noEmit: true,
    types: ['node'],
    ...options
  })
  return ts.getPreEmitDiagnostics(program).map(({ file, start = 0, messageText }) => {
    const { line } = file?.getLineAndCharacterOfPosition(start) ?? { line: 0 }
    return `${file && basename(file.fileName)}, its line ${line + 1}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`
  })
}

function isCommand (name: string) {
  const script = { start: 'start', test: 'test', t: 'test', cit: 'test', it: 'test' }[name]
  return script === undefined ? ['ci', 'install', 'i'].includes(name) : script in scripts
}

function of (...languages: string[]) {
  return blocks.filter(({ language }) => languages.includes(language))
}

/** The fenced blocks; `<!-- run -->` on the line before has one executed. */
function blocksOf (page: string, markdown: string): Block[] {
  const fences = markdown.matchAll(/^(<!-- run -->\n+)?^```(.*)\n([^]*?)^```$/gm)
  return [...fences].map(([, marker = '', language, code], index, all) => ({
    page,
    line: markdown.slice(0, all[index]!.index + marker.length).split('\n').length,
    language: language!,
    code: code!,
    run: marker !== ''
  }))
}
