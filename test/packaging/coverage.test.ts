// needs no database
import { readdir, readFile } from 'node:fs/promises'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import ts from 'typescript'

const src = fileURLToPath(new URL('../../src', import.meta.url))

// A file that no test loads is missing from tap's coverage, and so from its 100 %. The tests load src/index.ts.
t.test('every file with code is loaded by way of src/index.ts', async (t) => {
  const code = await readCode()
  const loaded = reachable(join(src, 'index.ts'), code)
  const forgotten = [...code.keys()].filter((file) => !loaded.has(file) && !isEmpty(code.get(file)!))
  t.same(forgotten.map((file) => relative(src, file)), [])
})

// As JavaScript, because imports of types load nothing.
async function readCode (): Promise<Map<string, string>> {
  const names = await readdir(src, { recursive: true })
  const files = names.filter((name) => /(?<!\.d)\.ts$/.test(name)).map((name) => join(src, name))
  return new Map(await Promise.all(files.map(async (file) => [file, toJavaScript(await readFile(file, 'utf8'))] as const)))
}

function toJavaScript (source: string): string {
  const compilerOptions = { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ESNext, verbatimModuleSyntax: true, removeComments: true }
  return ts.transpileModule(source, { compilerOptions }).outputText
}

function isEmpty (code: string): boolean {
  return /^\s*(export \{\s*\};?\s*)?$/.test(code)
}

function reachable (file: string, code: Map<string, string>, found = new Set<string>()): Set<string> {
  if (found.has(file) || !code.has(file)) return found
  found.add(file)
  for (const { fileName } of ts.preProcessFile(code.get(file)!).importedFiles) {
    if (fileName.startsWith('.')) reachable(join(file, '..', fileName.replace(/\.js$/, '.ts')), code, found)
  }
  return found
}
