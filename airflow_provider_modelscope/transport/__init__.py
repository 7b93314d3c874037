"""HTTP: blocking on workers (requests), asynchronous in the triggerer (aiohttp), and where it may connect."""
