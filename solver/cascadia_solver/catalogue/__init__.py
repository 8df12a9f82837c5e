"""Facts about models and GPUs: what is published, and nothing that is measured or fitted."""
