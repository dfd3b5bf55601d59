import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { Test } from 'tap'

const execute = promisify(execFile)
const checkout = fileURLToPath(new URL('../../', import.meta.url))

/** A folder outside the checkout in which the packed package, and nothing it does not ask for, is installed. */
export interface Consumer {
  folder: string
  /** Where the package is installed. */
  installed: string
  tarball: string
  /** Runs a Node.js script; returns what it wrote to stdout. */
  run (script: string, env?: NodeJS.ProcessEnv, args?: string[]): Promise<string>
  /** Runs the script of that text. */
  execute (name: string, source: string, env?: NodeJS.ProcessEnv): Promise<string>
  /** Runs a development tool of the checkout, named by its file there. */
  tool (path: string, args: string[]): Promise<string>
}

/** Packs the project as it was built, and installs it, gone after the test. */
export async function installPackage (t: Test): Promise<Consumer> {
  const folder = await mkdtemp(join(tmpdir(), 'fastify-ai-credits-package-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  const installed = join(folder, 'node_modules', 'fastify-ai-credits')
  const tarball = await pack(folder)
  await extract(tarball, installed)
  await linkDependencies(installed, join(folder, 'node_modules'))
  const run: Consumer['run'] = (script, env, args = []) => runNode(folder, [script, ...args], env)
  return {
    folder,
    installed,
    tarball,
    run,
    async execute (name, source, env) {
      await writeFile(join(folder, name), source)
      return run(join(folder, name), env)
    },
    tool: (path, args) => run(join(checkout, 'node_modules', path), {}, args)
  }
}

// Without scripts: a build at this moment would take dist/ from under the tests that run beside this one.
async function pack (folder: string) {
  await npm(['pack', '--ignore-scripts', '--pack-destination', folder])
  const [tarball] = (await readdir(folder)).filter(name => name.endsWith('.tgz'))
  return join(folder, tarball!)
}

async function npm (args: string[]) {
  await execute('npm', args, { cwd: checkout, shell: process.platform === 'win32' })
}

async function extract (tarball: string, folder: string) {
  await mkdir(folder, { recursive: true })
  await execute('tar', ['-xzf', tarball, '-C', folder, '--strip-components=1'])
}

// As npm would, but without a network: the dependencies that the package names, and those of its peers that are not
// optional. Links are followed to the checkout, so only what the package itself imports is put to the test.
async function linkDependencies (installed: string, modules: string) {
  const { dependencies, peerDependencies, peerDependenciesMeta } = JSON.parse(await readFile(join(installed, 'package.json'), 'utf8'))
  const peers = Object.keys(peerDependencies).filter(name => !peerDependenciesMeta[name]?.optional)
  const names = [...Object.keys(dependencies), ...peers, 'pg', '@types/node']
  await Promise.all(names.map(async name => {
    await mkdir(dirname(join(modules, name)), { recursive: true })
    await symlink(join(checkout, 'node_modules', name), join(modules, name), 'junction')
  }))
}

async function runNode (cwd: string, args: string[], env: NodeJS.ProcessEnv = {}) {
  const { PATH, HOME, TMPDIR, SystemRoot } = process.env
  // The coverage of the built package is not what is measured.
  const plain = { PATH, HOME, TMPDIR, SystemRoot, _TAPJS_PROCESSINFO_COVERAGE_: '0', NO_COLOR: '1' }
  try {
    const { stdout } = await execute(process.execPath, args, { cwd, env: { ...plain, ...env } })
    return stdout
  } catch (error) {
    const { stdout, stderr } = error as { stdout: string, stderr: string }
    throw new Error(`${args.join(' ')} failed:\n${stdout}${stderr}`)
  }
}
