import { defineConfig } from "vite";

// Built into the Python package, so that the wheel holds the page. Every asset is named by its content and kept for ever
// by browsers; nothing is inlined, as the page's policy allows no inline script or style.
export default defineConfig({
  base: "/",
  build: {
    outDir: "../src/buildnet/edge/web/static",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: false,
    target: "es2022",
  },
  esbuild: { jsx: "automatic", jsxImportSource: "preact", legalComments: "none" },
  // For work on the page: `npm run dev` beside a running controller.
  server: { proxy: { "/api": "http://127.0.0.1:8980", "/status": "http://127.0.0.1:8980" } },
});
