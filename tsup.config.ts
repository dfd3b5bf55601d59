import { defineConfig, type Options } from 'tsup'

const shared: Options = {
  entry: { index: 'src/index.ts', ledger: 'src/ledger/index.ts' },
  target: 'node20',
  dts: true
}

export default defineConfig([
  // What both entries share is one file, which has a hash in its name: those of earlier builds go. The other build's files stay.
  { ...shared, format: 'esm', splitting: true, clean: ['!**/*.cjs'] },
  // Each whole, as splitting CommonJS would rewrite `?.` and `??`. An error of one copy is an instance of the other's class,
  // too: @fastify/error goes by the code.
  {
    ...shared,
    format: 'cjs',
    splitting: false,
    plugins: [{
      // Makes `require()` return the plugin itself, with `.default` and every named export still on it.
      name: 'require-returns-the-plugin',
      renderChunk (code, { path }) {
        return path.endsWith('/index.cjs')
          ? { code: `${code}module.exports = Object.assign(module.exports.default, module.exports);\n` }
          : undefined
      }
    }]
  }
])
