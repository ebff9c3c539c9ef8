"""Everything that knows transformers: loading, anatomy, sites, reading and editing activations, replay."""
