// What turns TypeScript into JavaScript for tests and benchmarks, named in tsconfig.json: esbuild starts a process in half
// the time that the TypeScript compiler takes to do the same, and there is a process for every test file. Types are
// checked apart, by `npm run typecheck`.
const { transformSync } = require('esbuild')

exports.create = () => ({
  transpile (source, { fileName }) {
    const { code, map } = transformSync(source, {
      loader: 'ts',
      sourcefile: fileName,
      sourcemap: 'external',
      target: 'node20',
      tsconfigRaw: { compilerOptions: { verbatimModuleSyntax: true } }
    })
    return { outputText: code, sourceMapText: map }
  }
})
