"""The web: what browsers and monitors ask by HTTP. Each file gives routes; nothing here decides."""
