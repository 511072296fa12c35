"""Makes the target equal to the journal, and keeps it so."""
