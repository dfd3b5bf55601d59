// needs a real server
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { format } from 'node:util'
import t, { type Test } from 'tap'
import ts from 'typescript'
import { createLedger, type Ledger } from '../../src/index.js'
import { buildGateway } from '../helper/app.js'
import { createDatabase, createPool } from '../helper/database.js'
import { partitionScript } from '../../bench/ledger-scripts.js'

interface Block { page: string, line: number, language: string, code: string }

const root = new URL('../../', import.meta.url)
const docs = (await readdir(new URL('docs/', root))).filter(name => name.endsWith('.md')).map(name => `docs/${name}`)
const pages = await Promise.all(['README.md', ...docs].map(async page =>
  ({ page, markdown: await readFile(new URL(page, root), 'utf8') })))
const markdown = pages.map(({ markdown }) => markdown).join('\n')
const blocks = pages.flatMap(({ page, markdown }) => blocksOf(page, markdown))
const { scripts } = JSON.parse(await readFile(new URL('../../package.json', import.meta.url), 'utf8'))

// In the checkout, so that the package's own name leads to what was built of it.
const folder = t.testdir()
const nameOf = ({ page, line }: Block) => `${basename(page, '.md')}-line-${line}`
const fileOf = (block: Block) => join(folder, `${nameOf(block)}.m${block.language}`)

const MOST_LINES = 220 // of the README
const errors = await errorClasses()

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
  await Promise.all(code.map(block => writeFile(fileOf(block), isProgram(block) ? block.code : `${block.code}export {}\n`)))
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

t.test('the JSON of the deduct route is accepted, by the route that checks, too, and the replies are as shown', async t => {
  const [read, deduct, deducted] = jsonOf('README.md')
  const [checked] = jsonOf('docs/http.md')
  const app = await buildGateway(t, { defaultUser: 'ann', sampleData: true }, { connectionString: await createDatabase(t) })
  const { credits } = (await app.inject('/api/credits?user_id=ann')).json()
  t.strictSame({ ...credits, usage_history: [{ ...credits.usage_history[0], date: read.credits.usage_history[0].date }] }, read.credits)
  t.strictSame((await app.inject({ method: 'POST', url: '/api/credits/check', body: deduct })).json(), checked)
  t.strictSame((await app.inject({ method: 'POST', url: '/api/credits/deduct', body: deduct })).json(), deducted)
})

t.test('the JSON of the grants route is accepted, and the reply is as shown', async t => {
  const [, grant, granted] = jsonOf('docs/http.md')
  const app = await buildGateway(t, { management: { authorize: () => true } }, { connectionString: await createDatabase(t) })
  t.strictSame((await app.inject({ method: 'POST', url: '/api/credits/grants', body: grant })).json(), granted)
})

t.test('the 402 of a budget is as shown', async t => {
  const [refusal] = jsonOf('docs/budgets.md')
  const app = await buildGateway(t, { identify: () => ({ userId: 'acme', budget: 'key:k17' }) }, { connectionString: await createDatabase(t) })
  await app.credits.setBudget('acme', 'key:*', { day: 200 })
  await app.credits.deduct({ userId: 'acme', budget: 'key:k17', credits: 150, operation: 'chat' })
  const reply = await app.inject({ method: 'POST', url: '/api/credits/deduct', body: { credits: 100, operation: 'chat' } })
  t.strictSame({ ...reply.json(), resetsAt: refusal.resetsAt }, refusal)
  t.match(reply.json().resetsAt, /T00:00:00.000Z$/)
})

t.test(`the README has ${MOST_LINES} lines at most, and names every page`, async t => {
  const readme = textOf('README.md')
  t.ok(readme.split('\n').length - 1 <= MOST_LINES)
  t.strictSame(docs.filter(page => !readme.includes(`](${page})`)), [])
})

t.test('every relative link leads to something that is there', async t => {
  const links = pages.flatMap(({ page, markdown }) =>
    [...prose(markdown).matchAll(/\]\((?!https?:)([^)\s]*)\)/g)].map(([, target]) => ({ page, target: target! })))
  t.ok(links.length > 100)
  t.strictSame(links.filter(({ page, target }) => !isThere(page, target)), [])
})

t.test('the files that docs/architecture.md names are there', async t => {
  const folders = ['', 'src/', 'src/sql/', 'src/http/charging/']
  const paths = [...textOf('docs/architecture.md').matchAll(/`([\w/-]+(?:\.ts|\.sql|\/))`/g)].map(([, path]) => path!)
  t.ok(paths.length > 30)
  t.strictSame(paths.filter(path => !folders.some(folder => existsSync(new URL(folder + path, root)))), [])
})

t.test('the functions that docs/architecture.md names are in the sources', async t => {
  const folder = fileURLToPath(new URL('src', root))
  const files = (await readdir(folder, { recursive: true })).filter(name => /(?<!sql\/index)\.(ts|sql)$/.test(name))
  const source = (await Promise.all(files.map(name => readFile(join(folder, name), 'utf8')))).join('\n')
  const [, ...walks] = textOf('docs/architecture.md').split('## The way of')
  const names = [...walks.join().matchAll(/`(?:\w+\.)*(?!ts`)(\w+)`/g)].map(([, name]) => name!)
  t.ok(names.length > 40)
  t.strictSame(names.filter(name => !new RegExp(`\\b${name}\\b`).test(source)), [])
})

t.test('docs/api.md has each public method, with its arguments, result and errors', async t => {
  const methods = membersOf('Ledger')
  t.strictSame(headingsOf(textOf('docs/api.md'), 3).filter(name => name !== 'Errors at start').sort(),
    ['createLedger', ...methods.map(({ name }) => name)].sort())
  for (const method of methods) {
    const section = sectionOf('docs/api.md', method.name)
    const [title] = section.split('\n', 1)
    const { args, fields, result, thrown } = signatureOf(method)
    const rows = firstColumn(section)
    const code = [...section.matchAll(/`[^`]+`/g)].join(' ')
    t.ok(code.includes(`${method.name}(${args.join(', ')})`), `${title}: how it is called`)
    t.strictSame(rows.filter(name => !fields.includes(name)), [], `${title}: no argument that there is not`)
    t.strictSame(fields.filter(name => !rows.includes(name)), [], `${title}: fields of what it takes`)
    t.strictSame(result.filter(name => !new RegExp(`\\b${name}\\b`).test(code)), [], `${title}: fields of what it returns`)
    t.strictSame(thrown.filter(code => !section.includes(`\`${code}\``)), [], `${title}: what it throws`)
  }
})

t.test('tables of options, of a route\'s config and of events name what the types have', async t => {
  const names = (type: string) => membersOf(type).map(({ name }) => name).sort()
  t.strictSame(firstColumn(sectionOf('README.md', 'Options')).sort(), names('FastifyAiCreditsOptions'))
  t.strictSame(firstColumn(sectionOf('docs/charging.md', 'Fields')).sort(), names('RouteCredits'))
  t.strictSame(firstColumn(sectionOf('docs/charging.md', 'The request')).sort(), names('RequestCredits'))
  t.strictSame(firstColumn(textOf('docs/events.md')).sort(), names('CreditsEvents'))
  t.strictSame(firstColumn(sectionOf('docs/prices.md', 'What an operation costs')).sort(), names('Price'))
  t.strictSame(firstColumn(sectionOf('docs/plans-and-grants.md', 'Monthly plans')).sort(), names('RecurringAllowance'))
  t.strictSame(firstColumn(sectionOf('docs/api.md', 'An entry')).sort(), names('StatementEntry'))
  const [options] = /`options` .*/.exec(sectionOf('docs/api.md', 'createLedger'))!
  t.strictSame(names('LedgerOptions').filter(name => !options.includes(`\`${name}\``)), [])
})

t.test('every error is in one row, with its code, class and status, and no other code is named', async t => {
  const rows = [...markdown.matchAll(/^\| `(FST_CREDITS_\w+)` \| `(\w+)` \| (\d+) \|/gm)].map(([, code, name, status]) => ({ code, name, status }))
  t.strictSame(rows.sort(byCode), [...errors].sort(byCode))
  const named = new Set([...markdown.matchAll(/FST_CREDITS_[A-Z_]+/g)].map(([code]) => code))
  t.strictSame([...named].filter(name => !errors.some(({ code }) => code === name)), [])
})

for (const block of of('js').filter(isProgram)) {
  t.test(`${block.page}, line ${block.line} runs`, async t => {
    const connectionString = await createDatabase(t)
    const file = await writeModule(block)
    isSaid(t, await run(t, file, connectionString), block)
    if (!isAboutRetries(block)) return
    const kept = await keysIn(t, connectionString)
    await run(t, file, connectionString)
    t.strictSame(await keysIn(t, connectionString), kept, 'and again, as a replay')
  })
}

// Those of docs/api.md, which says what `credits` is.
for (const block of of('js').filter(block => !isProgram(block))) {
  t.test(`${block.page}, line ${block.line} runs on a ledger`, async t => {
    const connectionString = await createDatabase(t)
    isSaid(t, await runOnLedger(t, block, connectionString), block)
    if (!isAboutRetries(block)) return
    const kept = await keysIn(t, connectionString)
    isSaid(t, await runOnLedger(t, block, connectionString), block)
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
  chat: () => ['ann', async () => ({ answer: 'Hello', tokens: 42 })],
  onPayment: () => [{ id: 'payment-1', userId: 'ann', credits: 500 }],
  async giveBack (ledger) {
    await ledger.deduct({ userId: 'ann', credits: 100, operation: 'video_generation', idempotencyKey: 'job-17' })
    return ['job-17']
  },
  nightly: () => []
}

async function runOnLedger (t: Test, { code }: Block, connectionString: string) {
  const ledger = createLedger(createPool(t, connectionString), bookOfPrices())
  await ledger.migrate()
  const said: string[] = []
  const console = { log: (...args: unknown[]) => said.push(format(...args)) }
  await new AsyncFunction('credits', 'console', code)(ledger, console)
  t.match(await ledger.reconcile(), { ok: true })
  await ledger.close() // listeners have been told by then
  return said.join('\n')
}

const AsyncFunction = (async () => {}).constructor as new (...args: string[]) => (...args: unknown[]) => Promise<void>

// The options of the example in docs/prices.md.
function bookOfPrices () {
  const [{ code }] = of('js').filter(({ page }) => page === 'docs/prices.md') as [Block]
  const [options] = /(?<=createLedger\(pool, )\{[^]*?^\}(?=\)$)/m.exec(code)!
  return new Function(`return ${options}`)() // eslint-disable-line no-new-func
}

/** A comment after `console.log(…)` says what it prints; … stands for anything. */
function isSaid (t: Test, output: string, { code }: Block) {
  const expected = [...code.matchAll(/console\.log\(.*\) \/\/ (.*)$/gm)].map(([, comment]) => comment!)
  const pattern = expected.map(comment => comment.split('…').map(part => part.replace(/[^\w\s]/g, '\\$&')).join('.*')).join(' ')
  t.match(output.trim().replace(/\s+/g, ' '), new RegExp(`^${pattern}$`))
}

function isProgram ({ code }: Block) {
  return /^import /m.test(code)
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
import type { Credits } from 'fastify-ai-credits'
import type { Pool, PoolClient } from 'pg'
declare global {
  const credits: Credits
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
  const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
  t.teardown(() => child.kill())
  const [output, errors, [code]] = await Promise.all([text(child.stdout!), text(child.stderr!), once(child, 'close')])
  t.equal(code, 0, errors)
  return output
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

function jsonOf (name: string) {
  return of('json').filter(({ page }) => page === name).map(({ code }) => JSON.parse(code))
}

function textOf (name: string) {
  return pages.find(({ page }) => page === name)!.markdown
}

/** Without the fenced blocks. */
function prose (markdown: string) {
  return markdown.replace(/^```.*\n[^]*?^```$/gm, '')
}

function headingsOf (markdown: string, level?: number) {
  return [...prose(markdown).matchAll(/^(#+) (.*)$/gm)]
    .filter(([, marks]) => level === undefined || marks!.length === level).map(([, , heading]) => heading!)
}

function sectionOf (name: string, heading: string) {
  const [, section] = prose(textOf(name)).split(new RegExp(`^(?=#+ ${heading}$)`, 'm'))
  return section!.split(/(?<=\n)(?=#)/, 1)[0]!
}

/** What the first cells of a table's rows name. */
function firstColumn (markdown: string) {
  return [...markdown.matchAll(/^\| (`.*?) \|/gm)].flatMap(([, cell]) => [...cell!.matchAll(/`(\w+)/g)].map(([, name]) => name!))
}

function isThere (page: string, target: string) {
  const [path, anchor] = target.split('#') as [string, string?]
  const url = path === '' ? new URL(page, root) : new URL(path, new URL(page, root))
  if (!existsSync(url)) return false
  if (anchor === undefined) return true
  const linked = pages.find(({ page }) => new URL(page, root).href === url.href)
  return linked !== undefined && headingsOf(linked.markdown).map(anchorOf).includes(anchor)
}

// As GitHub makes them.
function anchorOf (heading: string) {
  return heading.toLowerCase().replace(/[^\p{L}\p{N}_ -]/gu, '').replaceAll(' ', '-')
}

async function errorClasses () {
  const source = await readFile(new URL('src/errors.ts', root), 'utf8')
  return [...source.matchAll(/export class (\w+) extends createError\(\s*'(\w+)',[^]*?, (\d{3})\)/g)]
    .map(([, name, code, status]) => ({ code, name, status }))
}

function byCode (a: { code?: string | undefined }, b: { code?: string | undefined }) {
  return a.code! < b.code! ? -1 : 1
}

/** The members of a type that the package exports. */
function membersOf (type: string): ts.Symbol[] {
  const { checker, exported } = api()
  return checker.getPropertiesOfType(checker.getDeclaredTypeOfSymbol(exported.get(type)!))
}

/** A method's arguments, the fields of those that are objects, the fields of its result, and the codes that it throws. */
function signatureOf (method: ts.Symbol) {
  const { checker } = api()
  const [signature] = checker.getTypeOfSymbol(method).getCallSignatures()
  const params = signature!.getParameters()
  const input = params.find(({ name }) => name === 'input')
  const result = signature!.getReturnType()
  const returned = checker.getAwaitedType(result) ?? result
  const comment = ts.displayPartsToString(method.getDocumentationComment(checker))
  return {
    args: params.map(({ name }) => name),
    fields: [...params.filter(({ name }) => name !== 'input').map(({ name }) => name),
      ...input === undefined ? [] : fieldsOf(checker.getNonNullableType(checker.getTypeOfSymbol(input)))],
    result: checker.isArrayType(returned) ? [] : fieldsOf(returned),
    thrown: errors.filter(({ name }) => comment.includes(name!) && !['InvalidInputError', 'UnavailableError'].includes(name!))
      .map(({ code }) => code!)
  }
}

function fieldsOf (type: ts.Type): string[] {
  const types = type.isUnion() ? type.types : [type]
  const { checker } = api()
  return [...new Set(types.filter(type => type.flags & ts.TypeFlags.Object).flatMap(type => checker.getPropertiesOfType(type)).map(({ name }) => name))]
}

let opened: { checker: ts.TypeChecker, exported: Map<string, ts.Symbol> } | undefined

function api () {
  if (opened === undefined) {
    const index = fileURLToPath(new URL('src/index.ts', root))
    const program = ts.createProgram([index], { module: ts.ModuleKind.NodeNext, target: ts.ScriptTarget.ES2022, strict: true, skipLibCheck: true })
    const checker = program.getTypeChecker()
    const symbols = checker.getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(index)!)!)
    opened = { checker, exported: new Map(symbols.map(symbol => [symbol.name, symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol])) }
  }
  return opened
}
