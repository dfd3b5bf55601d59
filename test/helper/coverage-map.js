// What tap counts the coverage of: the library, and the examples as far as tests load them. Not what the tests share with the
// benchmark.
export default () => ['src/**/*.{js,ts}', 'examples/**/*.js']
