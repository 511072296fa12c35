"""What can be called, and by whom: every front end passes here."""
