"""Teachers: one protocol, several back ends, and the ledger of what was paid for."""
