"""JSON-RPC 2.0 over a Unix socket: framing, the method table, the server and the client."""
