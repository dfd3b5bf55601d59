import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, join, relative, sep } from 'node:path'
import { publint } from 'publint'
import t from 'tap'
import { createDatabase } from '../helper/database.js'
import { installPackage } from './consumer.js'

const names = ['InsufficientCreditsError', 'createLedger', 'default', 'fastifyAiCredits']

// One tarball for all of it, and tools that take seconds: they run together.
const consumer = await installPackage(t)
t.jobs = 4
t.setTimeout(180_000)

t.test('the tarball holds what a user needs, and nothing else', async t => {
  const files = await filesOf(consumer.installed)
  const built = files.filter(file => file.startsWith('dist/'))
  const sql = files.filter(file => file.startsWith('src/'))
  t.strictSame(built.filter(file => !/^dist\/chunk-\w+\.js$/.test(file)),
    ['index', 'ledger'].flatMap(entry => ['cjs', 'd.cts', 'd.ts', 'js'].map(end => `dist/${entry}.${end}`)))
  const included = (await Promise.all(sql.map(async file => [...(await readFile(join(consumer.installed, file), 'utf8'))
    .matchAll(/^\s*\\ir (.*)$/gm)].map(([, path]) => join(dirname(file), path!).split(sep).join('/'))))).flat()
  const told = ['tables', 'functions', 'citus', 'daily_usage', 'rights'].map(name => `src/sql/${name}.sql`)
  t.strictSame(sql, [...new Set([...included, ...told])].sort(), 'what psql is told to run, and includes')
  t.strictSame(files.filter(file => !built.includes(file) && !sql.includes(file)),
    ['CHANGELOG.md', 'LICENSE', 'README.md', 'docs/partition-usage.sql', 'package.json'])
})

t.test('it is small', async t => {
  const sizes = await Promise.all((await filesOf(consumer.installed)).map(file => stat(join(consumer.installed, file))))
  const bytes = sizes.reduce((sum, { size }) => sum + size, 0)
  t.ok(bytes < 1.75e6, `${bytes} bytes`)
})

t.test('every file that package.json names is in the tarball, and installing runs no script', async t => {
  const manifest = JSON.parse(await readFile(join(consumer.installed, 'package.json'), 'utf8'))
  const files = await filesOf(consumer.installed)
  const { main, module, types, exports, scripts } = manifest
  t.strictSame(pathsIn({ main, module, types, exports }).filter(path => !files.includes(path.slice(2))), [])
  t.notOk(['preinstall', 'install', 'postinstall', 'prepare'].some(name => name in scripts))
})

t.test('no dependency of it runs a script when it is installed', async t => {
  const { packages } = JSON.parse(await readFile(new URL('../../package-lock.json', import.meta.url), 'utf8'))
  const shipped = Object.entries<any>(packages).filter(([path, { dev }]) => path !== '' && !dev)
  t.ok(shipped.some(([path]) => path === 'node_modules/@fastify/error'))
  t.strictSame(shipped.filter(([, { hasInstallScript }]) => hasInstallScript).map(([path]) => path), [])
})

t.test('the CHANGELOG describes the version', async t => {
  const { version } = JSON.parse(await readFile(join(consumer.installed, 'package.json'), 'utf8'))
  const changelog = await readFile(join(consumer.installed, 'CHANGELOG.md'), 'utf8')
  t.match(changelog, new RegExp(`^## \\[${version.replaceAll('.', '\\.')}\\] - \\d{4}-\\d\\d-\\d\\d$`, 'm'))
})

t.test('import gives the plugin and the named exports', async t => {
  const exported = JSON.parse(await consumer.execute('names.mjs', `
    import plugin, * as all from 'fastify-ai-credits'
    const { default: again, fastifyAiCredits, ...rest } = all
    console.log(JSON.stringify({
      kind: typeof plugin,
      same: plugin === again && plugin === fastifyAiCredits,
      names: Object.keys(all).sort()
    }))`))
  t.equal(exported.kind, 'function')
  t.ok(exported.same)
  t.strictSame(exported.names.filter((name: string) => names.includes(name)), names)
})

t.test('require gives the plugin itself, with the same named exports', async t => {
  const { names: inEsm } = JSON.parse(await consumer.execute('esm-names.mjs', `
    console.log(JSON.stringify({ names: Object.keys(await import('fastify-ai-credits')) }))`))
  const exported = JSON.parse(await consumer.execute('names.cjs', `
    const plugin = require('fastify-ai-credits')
    console.log(JSON.stringify({
      kind: typeof plugin,
      same: plugin === plugin.default && plugin === plugin.fastifyAiCredits,
      code: new plugin.UnavailableError().code,
      missing: ${JSON.stringify(inEsm)}.filter(name => typeof plugin[name] !== 'function')
    }))`))
  t.strictSame(exported, { kind: 'function', same: true, code: 'FST_CREDITS_UNAVAILABLE', missing: [] })
})

const deduct = `
  async function deduct (Fastify, credits) {
    const app = Fastify()
    app.register(credits, { connectionString: process.env.DATABASE_URL })
    await app.ready()
    const reply = await app.inject({ method: 'POST', url: '/api/credits/deduct', body: { credits: 100, operation: 'chat' } })
    await app.close()
    console.log(reply.body)
  }`

const deducted = { message: 'Credits deducted successfully', credits: { available: 9900, total: 10000, used: 100 } }

t.test('an ES module deducts', async t => {
  const answer = await consumer.execute('deduct.mjs', `
    import Fastify from 'fastify'
    import credits from 'fastify-ai-credits'
    ${deduct}
    await deduct(Fastify, credits)`, { DATABASE_URL: await createDatabase(t) })
  t.strictSame(JSON.parse(answer), deducted)
})

t.test('a CommonJS script deducts', async t => {
  const answer = await consumer.execute('deduct.cjs', `
    ${deduct}
    deduct(require('fastify'), require('fastify-ai-credits'))`, { DATABASE_URL: await createDatabase(t) })
  t.strictSame(JSON.parse(answer), deducted)
})

t.test('the ledger works alone, where neither Fastify nor its plugins are installed', async t => {
  const alone = await installPackage(t)
  for (const name of ['fastify', 'fastify-plugin', '@fastify/postgres']) {
    await rm(join(alone.folder, 'node_modules', name), { recursive: true })
  }
  const charge = (load: string) => `
    async function main () {
      ${load}
      const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL })
      const ledger = createLedger(pool)
      await ledger.migrate()
      const { balance } = await ledger.deduct({ userId: 'ann', credits: 100, operation: 'chat' })
      const error = await ledger.deduct({ userId: 'ann', credits: 10_000, operation: 'chat' }).catch(error => error)
      await ledger.close()
      await pool.end()
      console.log(JSON.stringify({ balance, short: error instanceof InsufficientCreditsError }))
    }
    main()`
  const scripts = {
    'ledger.mjs': charge("const [{ default: pg }, { createLedger, InsufficientCreditsError }] = await Promise.all([import('pg'), import('fastify-ai-credits/ledger')])"),
    'ledger.cjs': charge("const pg = require('pg'), { createLedger, InsufficientCreditsError } = require('fastify-ai-credits/ledger')")
  }
  for (const [name, source] of Object.entries(scripts)) {
    const answer = await alone.execute(name, source, { DATABASE_URL: await createDatabase(t) })
    t.strictSame(JSON.parse(answer), { balance: { available: 9900, total: 10000, used: 100, held: 0 }, short: true }, name)
  }
  await t.rejects(alone.execute('plugin.mjs', "import 'fastify-ai-credits'"), /Cannot find package/, 'the plugin needs them')
})

t.test('an error of one entry is one of the other\'s', async t => {
  const source = (load: string) => `
    async function main () {
      const plugin = await ${load}('fastify-ai-credits'), ledger = await ${load}('fastify-ai-credits/ledger')
      const error = new plugin.NotFoundError('hold')
      console.log(error instanceof ledger.NotFoundError, error instanceof ledger.HoldClosedError)
    }
    main()`
  t.equal(await consumer.execute('same.mjs', source('import')), 'true false\n')
  t.equal(await consumer.execute('same.cjs', source('require')), 'true false\n')
})

// A finder that is refused everything would pass for one that found nothing, so the second run has an API to find. A test
// of its own, as no other may find one.
t.test('without @opentelemetry/api nothing is measured, and with it calls are', async t => {
  const alone = await installPackage(t)
  const run = async (name: string, api: string) => [
    await alone.execute(`${name}.mjs`, `
      import Fastify from 'fastify'
      import credits from 'fastify-ai-credits'
      ${deduct}
      ${api}
      await deduct(Fastify, credits)`, { DATABASE_URL: await createDatabase(t) }),
    await alone.execute(`${name}.cjs`, `
      ${deduct}
      async function main () {
        ${api}
        await deduct(require('fastify'), require('fastify-ai-credits'))
      }
      main()`, { DATABASE_URL: await createDatabase(t) })
  ]
  for (const answer of await run('without', '')) t.strictSame(JSON.parse(answer), deducted)
  const stub = join(alone.folder, 'node_modules', '@opentelemetry', 'api')
  await mkdir(stub, { recursive: true })
  await writeFile(join(stub, 'package.json'), JSON.stringify({ name: '@opentelemetry/api', main: 'index.js' }))
  await writeFile(join(stub, 'index.js'), `
    exports.spans = []
    const span = { isRecording: () => false }
    exports.trace = { getTracer: () => ({ startSpan (name) { exports.spans.push(name); return span } }) }
    const meter = {}
    exports.metrics = { getMeter: () => meter }
    exports.createNoopMeter = () => meter`)
  const measured = await run('with', `
    const api = await import('@opentelemetry/api')
    process.once('beforeExit', () => console.log(JSON.stringify(api.spans)))`)
  for (const output of measured) t.strictSame(JSON.parse(output.split('\n')[1]!), ['ai_credits.deduct'])
})

const typedUse = `
  const app = Fastify()
  app.register(credits, { connectionString: 'postgres://localhost/gateway', allowance: 500 })
  app.register(fastifyAiCredits, { identify: async request => request.headers['x-user'] as string | undefined })
  // @ts-expect-error an unknown option
  app.register(credits, { allowence: 500 })

  export async function charge (pool: Pool, options: FastifyAiCreditsOptions): Promise<number> {
    const { balance } = await app.credits.deduct({ userId: 'ann', credits: options.historyDays ?? 1, operation: 'chat' })
    // @ts-expect-error credits are numbers
    await app.credits.deduct({ credits: '100', operation: 'chat' })
    try {
      await createLedger(pool).deduct({ credits: 1, operation: 'chat' })
    } catch (error) {
      if (error instanceof InsufficientCreditsError) return error.credits.available + error.required + error.statusCode!
    }
    return balance.available
  }`

const ledgerImport = "import { createLedger as openAlone, type Ledger } from 'fastify-ai-credits/ledger'"

const imports = "{ createLedger, fastifyAiCredits, InsufficientCreditsError, type FastifyAiCreditsOptions, type Pool } from 'fastify-ai-credits'"

t.test('TypeScript compiles an ES module and a CommonJS one, every declaration checked', async t => {
  const { folder } = consumer
  await writeFile(join(folder, 'typed.mts'), `
    import Fastify from 'fastify'
    import credits, ${imports}
    ${ledgerImport}
    ${typedUse}
    export const open = (pool: Pool): Ledger => openAlone(pool)`)
  await writeFile(join(folder, 'typed.cts'), `
    import Fastify from 'fastify'
    import credits, ${imports}
    import required = require('fastify-ai-credits')
    ${ledgerImport}
    ${typedUse}
    export const open = (pool: Pool): Ledger => openAlone(pool)
    app.register(required.default)`)
  await writeFile(join(folder, 'tsconfig.json'), JSON.stringify({
    compilerOptions: { module: 'NodeNext', target: 'ES2022', strict: true, skipLibCheck: false, noEmit: true, types: ['node'] },
    files: ['typed.mts', 'typed.cts']
  }))
  const checked = (await consumer.tool('typescript/bin/tsc', ['-p', '.', '--listFiles'])).split('\n')
  t.ok(checked.some(file => file.endsWith('fastify-ai-credits/dist/index.d.ts')))
  t.ok(checked.some(file => file.endsWith('fastify-ai-credits/dist/index.d.cts')))
  // A consumer need not install @types/pg for the sake of these types.
  t.strictSame(checked.filter(file => /\/(@types|@fastify)\/(pg|postgres)\//.test(file)), [])
})

t.test('publint has nothing to say', async t => {
  const { messages } = await publint({ pkgDir: consumer.installed, pack: false, strict: true })
  t.strictSame(messages, [])
})

t.test('the types are right for every kind of import', async t => {
  const report = await consumer.tool('@arethetypeswrong/cli/dist/index.js', [consumer.tarball, '--format', 'ascii'])
  t.match(report, /No problems found/)
})

async function filesOf (folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  return entries.filter(entry => entry.isFile())
    .map(entry => relative(folder, join(entry.parentPath, entry.name)).split(sep).join('/'))
    .sort()
}

function pathsIn (value: unknown): string[] {
  return typeof value === 'string' ? [value] : Object.values(value as object).flatMap(pathsIn)
}
