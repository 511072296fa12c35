"""What is durable: the journal, its schema, its history, its backup."""
