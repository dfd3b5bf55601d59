// needs a real server
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { text } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import ts from 'typescript'
import { createLedger, type Ledger } from '../src/index.js'
import { buildGateway } from './helper/app.js'
import { createDatabase, createPool } from './helper/database.js'
import { partitionScript } from './helper/templates.js'

interface Block { page: string, line: number, language: string, code: string }

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
  await pool.query(partitionScript)
  for (const block of of('sql partitioned')) await t.resolves(pool.query(block.code), nameOf(block))
  t.match(await ledger.reconcile(), { ok: true })
})

t.test('the JSON of the deduct route is accepted, and the replies are as shown', async t => {
  const [read, deduct, deducted] = of('json').map(({ code }) => JSON.parse(code))
  const app = await buildGateway(t, { defaultUser: 'ann', sampleData: true }, { connectionString: await createDatabase(t) })
  const { credits } = (await app.inject('/api/credits?user_id=ann')).json()
  t.strictSame({ ...credits, usage_history: [{ ...credits.usage_history[0], date: read.credits.usage_history[0].date }] }, read.credits)
  t.strictSame((await app.inject({ method: 'POST', url: '/api/credits/deduct', body: deduct })).json(), deducted)
})

for (const block of of('js')) {
  t.test(`${block.page}, line ${block.line} runs`, async t => {
    const connectionString = await createDatabase(t)
    const file = await writeModule(block)
    await run(t, file, connectionString)
    if (!isAboutRetries(block)) return
    const kept = await keysIn(t, connectionString)
    await run(t, file, connectionString)
    t.strictSame(await keysIn(t, connectionString), kept, 'and again, as a replay')
  })
}

for (const block of of('ts')) {
  const name = /^async function (\w+)/m.exec(block.code)?.[1] ?? 'nothing'
  t.test(`${block.page}, line ${block.line} runs: ${name}`, async t => {
    const ledger = createLedger(createPool(t, await createDatabase(t)))
    await ledger.migrate()
    t.ok(name in argumentsOf, 'argumentsOf says how it is called')
    const args = await argumentsOf[name]!(ledger)
    const { [name]: documented } = await import(await writeModule(block, `export { ${name} }`))
    await documented(ledger, ...args)
    const balance = await ledger.balance('ann')
    await documented(ledger, ...args) // as a retry, or as the next call
    if (isAboutRetries(block)) t.strictSame(await ledger.balance('ann'), balance, 'and again, as a replay')
    t.match(await ledger.reconcile(), { ok: true })
  })
}

/** What the functions of the documentation are called with after the ledger, on which what they are about has happened. */
const argumentsOf: Record<string, (ledger: Ledger) => unknown[] | Promise<unknown[]>> = {
  tour: () => [],
  chat: () => ['ann', async () => ({ answer: 'Hello', tokens: 42 })],
  onPayment: () => [{ id: 'payment-1', userId: 'ann', credits: 500 }],
  async giveBack (ledger) {
    await ledger.deduct({ userId: 'ann', credits: 100, operation: 'video_generation', idempotencyKey: 'job-17' })
    return ['job-17']
  },
  nightly: () => []
}

const isAboutRetries = ({ code }: Block) => code.includes('idempotencyKey')

async function keysIn (t: Test, connectionString: string) {
  const { rows } = await createPool(t, connectionString).query(`
    select user_id, idempotency_key, credits_used as credits from ai_credit_usage where idempotency_key is not null
    union all select user_id, idempotency_key, credits from ai_credit_grants where idempotency_key is not null`)
  t.ok(rows.length > 0)
  return rows
}

async function writeModule (block: Block, end = '') {
  const file = join(folder, `${nameOf(block)}.run.mjs`)
  const { outputText } = ts.transpileModule(block.code + end, { compilerOptions: { target: ts.ScriptTarget.ES2022 } })
  await writeFile(file, outputText)
  return file
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

// Puts a server on a free port, and ends it once it has said what ann's balance is, to whatever says that one is ann.
const preload = `
import { createHmac } from 'node:crypto'
import { Server } from 'node:net'
const encoded = object => Buffer.from(JSON.stringify(object)).toString('base64url')
const token = encoded({ alg: 'HS256', typ: 'JWT' }) + '.' + encoded({ sub: 'ann' })
const signature = createHmac('sha256', process.env.JWT_SECRET).update(token).digest('base64url')
const headers = { 'x-user': 'ann', authorization: 'Bearer ' + token + '.' + signature }
const { listen } = Server.prototype
Server.prototype.listen = function (options, ...rest) {
  this.once('listening', async () => {
    const reply = await fetch('http://localhost:' + this.address().port + '/api/credits', { headers })
    if (!reply.ok) throw new Error(await reply.text())
    process.exit()
  })
  return listen.call(this, { ...options, port: 0 }, ...rest)
}`

async function run (t: Test, file: string, connectionString: string) {
  const env = { ...process.env, DATABASE_URL: connectionString, JWT_SECRET: 'a secret of the tests', _TAPJS_PROCESSINFO_COVERAGE_: '0' }
  const args = ['--import', `data:text/javascript,${encodeURIComponent(preload)}`, file]
  const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'inherit', 'pipe'] })
  t.teardown(() => child.kill())
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

/** The fenced blocks. */
function blocksOf (page: string, markdown: string): Block[] {
  return [...markdown.matchAll(/^```(.*)\n([^]*?)^```$/gm)].map(({ index, 1: language, 2: code }) => ({
    page, line: markdown.slice(0, index).split('\n').length, language: language!, code: code!
  }))
}
