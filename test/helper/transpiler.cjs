// What turns TypeScript into JavaScript for tests and benchmarks, named in tsconfig.json: esbuild, which takes half the time of
// the TypeScript compiler. There is a process for every test file, and each loads the whole library, so what was transpiled once
// is kept under node_modules/.cache, by a hash of the source. Types are checked apart, by `npm run typecheck`.
const { createHash } = require('node:crypto')
const { mkdirSync, readFileSync, renameSync, writeFileSync } = require('node:fs')
const { join } = require('node:path')

const folder = join(__dirname, '../../node_modules/.cache/transpiled')
const { version } = require('esbuild/package.json')

exports.create = () => ({
  transpile (source, { fileName }) {
    const file = join(folder, createHash('sha256').update(JSON.stringify([version, fileName, source])).digest('hex'))
    return read(file) ?? write(file, transform(source, fileName))
  }
})

function transform (source, fileName) {
  const { code, map } = require('esbuild').transformSync(source, { // loaded late, as it starts a process
    loader: 'ts',
    sourcefile: fileName,
    sourcemap: 'external',
    target: 'node20',
    tsconfigRaw: { compilerOptions: { verbatimModuleSyntax: true } }
  })
  return { outputText: code, sourceMapText: map }
}

function read (file) {
  try {
    return JSON.parse(readFileSync(file, 'utf8'))
  } catch {
    return undefined // not there yet, or only a part of it
  }
}

// Other processes see the whole file or none.
function write (file, output) {
  mkdirSync(folder, { recursive: true })
  const own = `${file}.${process.pid}`
  writeFileSync(own, JSON.stringify(output))
  renameSync(own, file)
  return output
}
