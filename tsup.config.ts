import { defineConfig, type Options } from 'tsup'

const common: Options = {
  entry: ['src/index.ts'],
  target: 'node20',
  sourcemap: true,
  splitting: false
}

// Two passes, because the footer belongs to the CommonJS file alone: it makes `require()` answer the plugin itself,
// with `.default` and every named export still on it.
export default defineConfig([
  { ...common, format: 'esm', dts: true },
  {
    ...common,
    format: 'cjs',
    dts: true,
    footer: { js: 'module.exports = Object.assign(module.exports.default, module.exports);' }
  }
])
