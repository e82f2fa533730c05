// For `npx eslint@9 .`: no plugins, no package.json, nothing to build.
const browser = Object.fromEntries(
  ["document", "window", "requestAnimationFrame", "performance", "CSS"].map((name) => [name, "readonly"]));

export default [
  {
    files: ["rlhf_lib/**/*.js"],
    languageOptions: { ecmaVersion: 2022, sourceType: "module", globals: browser },
    rules: {
      "consistent-return": "error",
      "eqeqeq": "error",
      "max-lines-per-function": ["error", { max: 40, skipComments: true, skipBlankLines: true }],
      "no-console": "error",
      "no-const-assign": "error",
      "no-dupe-keys": "error",
      "no-eval": "error",
      "no-redeclare": "error",
      "no-shadow": "error",
      "no-undef": "error",
      "no-unreachable": "error",
      "no-unused-vars": "error",
      "no-use-before-define": ["error", { functions: false, variables: false }],
      "no-var": "error",
      "prefer-const": "error",
      // text must reach the page as text, and nothing may be fetched
      "no-restricted-properties": ["error",
        ...["innerHTML", "outerHTML", "insertAdjacentHTML", "write"].map((property) => ({ property }))],
      "no-restricted-globals": ["error", "fetch", "XMLHttpRequest", "localStorage", "eval"],
      "no-restricted-syntax": ["error", "ImportExpression"],
    },
  },
];
